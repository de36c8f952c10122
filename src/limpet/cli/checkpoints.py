"""``limpet ls``, ``show`` and ``verify``: they only read, create nothing and fence nobody."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limpet import open as open_run
from limpet.cli.options import Json, KeyFile, Storage, Url, key_in, parsed_storage
from limpet.cli.output import Column, age, duration, print_json, print_table, size, when
from limpet.errors import CorruptError, FormatError, NotFoundError

if TYPE_CHECKING:
    from limpet import CheckpointInfo, Run

__all__ = ["Step", "chosen", "ls", "newest", "show", "verify"]

Step = Annotated[
    str | None,
    typer.Argument(
        metavar="[STEP]", help="Step of the checkpoint, or seq:N for the N-th commit; the newest when left out."
    ),
]


def ls(url: Url, json: Json = False, storage: Storage = None, key_file: KeyFile = None) -> None:
    """List the checkpoints of a run, newest first."""
    with open_run(url, storage=parsed_storage(storage), key=key_in(key_file)) as run:
        found = _newest_first(run)
    if json:
        print_json([_info_document(info) for info in found])
    elif not found:
        print(f"{url} holds no checkpoint.")
    else:
        print_table("", _LS_COLUMNS, [_info_row(info, time.time()) for info in found])


def show(url: Url, step: Step = None, json: Json = False, storage: Storage = None, key_file: KeyFile = None) -> None:
    """Show what a checkpoint holds, leaf by leaf."""
    with open_run(url, storage=parsed_storage(storage), key=key_in(key_file)) as run:
        info = chosen(run, step) if step is not None else newest(run, url)
        leaves = [_leaf_document(leaf) for leaf in run.describe(at=info)]
    if json:
        print_json(_info_document(info) | {"leaves": leaves})
        return
    title = (
        f"step {_text(info.step)} (seq {info.seq}), {when(info.time)}, {size(info.raw_bytes)} in {len(leaves)} leaves"
    )
    print_table(title, _SHOW_COLUMNS, [_leaf_row(leaf) for leaf in leaves])


def verify(url: Url, step: Step = None, json: Json = False, storage: Storage = None, key_file: KeyFile = None) -> None:
    """Read every byte of a checkpoint, or of all, and check it. Exit code 1 if one is damaged."""
    reports: list[dict[str, Any]] = []
    with open_run(url, storage=parsed_storage(storage), key=key_in(key_file)) as run:
        infos = [chosen(run, step)] if step is not None else _newest_first(run)
        if not infos:
            raise _nothing(url)
        for info in infos:
            report = _verified(run, info)
            reports.append(report)
            if not json:
                print(_verified_line(report), flush=True)
    are_good = all(report["ok"] for report in reports)
    if json:
        print_json({"ok": are_good, "checkpoints": reports})
    if not are_good:
        raise typer.Exit(1)


def chosen(run: Run, step: str) -> CheckpointInfo:
    """Give the checkpoint that ``step`` (``1200`` or ``seq:7``) names; of equal steps, the newest commit.

    Raises:
        typer.BadParameter: ``step`` is neither.
        NotFoundError: the run has no such checkpoint.
    """
    match = re.fullmatch(r"(seq:)?([0-9]{1,18})", step)
    if match is None:
        raise typer.BadParameter(f"{step!r} is neither a step nor seq:N")
    number = int(match[2])
    infos = _newest_first(run)
    for info in infos:
        if (info.seq if match[1] else info.step) == number:
            return info
    held = ", ".join(_text(info.step) if not match[1] else f"seq:{info.seq}" for info in infos) or "none"
    raise NotFoundError(f"There is no checkpoint {step}.", hint=f"This run holds: {held}.")


def newest(run: Run, url: str) -> CheckpointInfo:
    """Give the newest checkpoint.

    Raises:
        NotFoundError: there is none.
    """
    infos = _newest_first(run)
    if not infos:
        raise _nothing(url)
    return infos[0]


_LS_COLUMNS = (
    Column("seq"),
    Column("step"),
    Column("time", is_number=False),
    Column("age"),
    Column("raw"),
    Column("stored"),
    Column("new"),
    Column("pinned", is_number=False),
    Column("owner", is_number=False),
)
_SHOW_COLUMNS = (
    Column("leaf", is_number=False),
    Column("kind", is_number=False),
    Column("dtype", is_number=False),
    Column("shape", is_number=False),
    Column("size"),
)


def _newest_first(run: Run) -> list[CheckpointInfo]:
    return sorted(run.checkpoints(), key=lambda info: info.seq, reverse=True)


def _nothing(url: str) -> NotFoundError:
    return NotFoundError(f"{url} holds no checkpoint.", hint="Check the URL; `limpet ls` lists what a run holds.")


def _text(step: int | None) -> str:
    return "-" if step is None else str(step)


def _info_document(info: CheckpointInfo) -> dict[str, Any]:
    document = dataclasses.asdict(info)
    return document | {"time": when(info.time), "ratio": _ratio(info)}


def _ratio(info: CheckpointInfo) -> float | None:
    return round(info.raw_bytes / info.stored_bytes, 4) if info.stored_bytes else None


def _info_row(info: CheckpointInfo, now: float) -> list[str]:
    return [
        str(info.seq),
        _text(info.step),
        when(info.time),
        age(info.time, now),
        size(info.raw_bytes),
        size(info.stored_bytes),
        size(info.new_bytes),
        "yes" if info.pinned else "",
        info.owner,
    ]


def _leaf_document(leaf: Any) -> dict[str, Any]:
    shape = None if leaf.shape is None else list(leaf.shape)
    return {"path": leaf.path, "kind": leaf.kind, "dtype": leaf.dtype, "shape": shape, "bytes": leaf.nbytes}


def _leaf_row(leaf: dict[str, Any]) -> list[str]:
    shape = "" if leaf["shape"] is None else " x ".join(map(str, leaf["shape"])) or "scalar"
    return [leaf["path"] or "(root)", leaf["kind"], leaf["dtype"] or "", shape, size(leaf["bytes"] or 0)]


def _verified(run: Run, info: CheckpointInfo) -> dict[str, Any]:
    """Check one checkpoint; an error other than damage (no access, no answer) says nothing about it and is raised."""
    begun = time.monotonic()
    report: dict[str, Any] = {"seq": info.seq, "step": info.step, "ok": True, "error": None, "chunks": 0, "bytes": 0}
    try:
        found = run.verify(at=info)
    except (CorruptError, FormatError) as error:
        report |= {"ok": False, "error": str(error)}
    else:
        if found is not None:
            report |= {"chunks": found.chunks, "bytes": found.read_bytes}
    return report | {"seconds": round(time.monotonic() - begun, 6)}


def _verified_line(report: dict[str, Any]) -> str:
    name = f"step {_text(report['step'])} (seq {report['seq']})"
    if not report["ok"]:
        return f"{name}: DAMAGED: {report['error']}"
    return f"{name}: ok, {report['chunks']} chunks, {size(report['bytes'])} read in {duration(report['seconds'])}"
