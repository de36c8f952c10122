"""``limpet restore``: a checkpoint's content as files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limpet import open as open_run
from limpet.cli.checkpoints import chosen, newest
from limpet.cli.export import STATE_NAME, export
from limpet.cli.options import Json, KeyFile, Storage, Url, key_in, parsed_storage
from limpet.cli.output import print_json
from limpet.errors import UsageError
from limpet.types import Files

if TYPE_CHECKING:
    from limpet import CheckpointInfo, Run

__all__ = ["restore"]


def restore(
    url: Url,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if it is not there.")],
    at: Annotated[str | None, typer.Option(metavar="STEP", help="Step, or seq:N; the newest when left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that already holds something.")] = False,
    json: Json = False,
    storage: Storage = None,
    key_file: KeyFile = None,
) -> None:
    """Write a checkpoint's content below DIR: saved files as they were, any other state as .npy and state.json."""
    _check_folder(folder, force)
    with open_run(url, storage=parsed_storage(storage), key=key_in(key_file)) as run:
        info = chosen(run, at) if at is not None else newest(run, url)
        folder.mkdir(parents=True, exist_ok=True)
        written, leaves = _restored(run, info, folder)
    if json:
        print_json({"path": str(written), "seq": info.seq, "step": info.step, "leaves": leaves})
        return
    step = "-" if info.step is None else info.step
    what = "its files" if leaves is None else f"{len(leaves)} leaves, listed in {STATE_NAME}"
    print(f"step {step} (seq {info.seq}): {what}, restored to {written}")


def _check_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a directory.", hint="Name a directory, or one that does not exist yet.")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", hint="Name another directory, or give --force to write into it.")


def _restored(run: Run, info: CheckpointInfo, folder: Path) -> tuple[Path, list[dict[str, Any]] | None]:
    paths = [leaf.path for leaf in run.describe(at=info)]
    if len(paths) == 1:
        state = run.read(at=info)
        if isinstance(state, Files):
            return state.restore(folder), None
    return folder, export(_leaves(run, info, paths), folder)


def _leaves(run: Run, info: CheckpointInfo, paths: list[str]) -> Iterator[tuple[str, Any]]:
    """Give the leaves one by one: the classes of their containers, which this process does not have, are not needed."""
    for path in paths:
        yield path, run.read(at=info, select=path)
