"""What must hold after a process died: looked at by a reader, then by a successor that goes on."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.kills.life import Live, Place, open_place, state_of

import limpet
from limpet import Checkpointer, Files
from limpet.format.layout import LOG_PREFIX, log_key
from limpet.format.record import decode_record, from_ranges
from limpet.reading import Reading
from limpet.stores.urls import open_store

__all__ = ["assert_like", "assert_nothing_left_over", "check_survival", "keys_of", "live_of"]

NEXT_STEP = 100


def check_survival(place: Place, allowed: Sequence[Live]) -> None:
    """The run is as ``allowed`` says; the next attempt finds its newest state, saves, and leaves no garbage."""
    with limpet.open(place.url, storage=place.storage) as run:
        found = live_of(run)
        assert found in allowed, f"{found} is none of {allowed}"
        for info in run.checkpoints():
            check_checkpoint(run, place, info)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="limpet took", category=RuntimeWarning)
        with open_place(place) as cp:
            go_on(cp, place, found)
    assert_nothing_left_over(place)
    with limpet.open(place.url, storage=place.storage) as run:
        assert_like(run.read(strict=True), state_of(NEXT_STEP, Path(place.files)))


def go_on(cp: Checkpointer, place: Place, found: Live) -> None:
    """What a successor does: resume, save, verify, sweep."""
    resumed = cp.resume({"step": 0})
    assert (resumed.info.step if resumed.info else None) == (found.steps[-1] if found.steps else None)
    if resumed.info is not None and resumed.info.step != 10:
        assert_like(resumed.state, state_of(resumed.info.step, Path(place.files)))
    cp.write(state_of(NEXT_STEP, Path(place.files)), step=NEXT_STEP, durable=True)
    assert live_of(cp) == found.committed(NEXT_STEP)
    for info in cp.checkpoints():
        assert cp.verify(info) is not None
    cp.sweep()


def live_of(run: Reading) -> Live:
    """The live checkpoints as a reader, or a writer, sees them."""
    infos = run.checkpoints()
    steps = [info.step for info in infos]
    return Live(tuple(steps), frozenset(info.step for info in infos if info.pinned))


def check_checkpoint(run: Reading, place: Place, info: Any) -> None:
    """It reads back, bit for bit, as what was written."""
    if info.step == 10:
        with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
            run.restore(folder, at=info)
            assert_same_files(Path(place.files), Path(folder))
    else:
        if info.step == 11 and place.target.exists():  # a restore was killed there: the next one mends it
            run.read(at=info)["files"].restore(place.target)
            assert_same_files(Path(place.files), place.target)
        assert_like(run.read(at=info, strict=True), state_of(info.step, Path(place.files)))


def assert_like(found: Any, wanted: Any) -> None:
    """Two states are the same, bit for bit; files are restored and compared."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, Files):
            with tempfile.TemporaryDirectory() as folder:
                found[name].restore(folder)
                assert_same_files(value.path, Path(folder))
        elif name == "own":
            assert [part.tobytes() for part in found[name]] == [part.tobytes() for part in value]
        elif hasattr(value, "tobytes"):
            assert found[name].dtype == value.dtype
            assert found[name].tobytes() == value.tobytes()
        else:
            assert found[name] == value


def assert_same_files(wanted: Path, found: Path) -> None:
    """Two directories have the same content."""
    assert contents(found) == contents(wanted)


def contents(folder: Path) -> dict[str, Any]:
    """Every file, directory and link below a directory."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def assert_nothing_left_over(place: Place) -> None:
    """Data is what the live checkpoints need, all of it and nothing else; the log is whole; no temporary file stays."""
    objects = keys_of(place)
    seqs = sorted(int(key.rpartition("/")[2].removesuffix(".json")) for key in objects if key.startswith(LOG_PREFIX))
    assert seqs == list(range(1, len(seqs) + 1))
    head, _ = decode_record(objects[log_key(seqs[-1])], seqs[-1])
    assert head.kind == "close"
    live = [decode_record(objects[log_key(seq)], seq)[0] for seq in from_ranges(head.live)]
    needed = set(
        itertools.chain.from_iterable([use.key for use in record.commit.packs] for record in live if record.commit)
    )
    assert {key for key in objects if key.startswith("data/")} == needed
    others = {key for key in objects if not key.startswith(("data/", LOG_PREFIX))}
    assert others == {"limpet.json"}
    if "://" not in place.url:
        assert os.listdir(Path(place.url) / "tmp") == []
    assert [name for name in os.listdir(place.scratch) if name.startswith("limpet-spool-")] == []


def keys_of(place: Place) -> dict[str, bytes]:
    """Every object, and the content of those of the log."""

    async def look() -> dict[str, bytes]:
        store = open_store(place.url, place.storage)
        try:
            entries = await store.list("")
            return {
                entry.key: await store.get(entry.key) if entry.key.startswith(LOG_PREFIX) else b"" for entry in entries
            }
        finally:
            await store.close()

    return asyncio.run(look())
