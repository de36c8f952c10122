"""What must hold after power came back: the oracle, and a real recovery that it judges."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from tests.faulty import write_over
from tests.powerloss.disk import Image
from tests.powerloss.lives import CHILD, RUN, lay_out, place_of, same, state_of

import limpet
from limpet import Run
from limpet.finding import DamagedCheckpointWarning
from limpet.format.layout import parse_log_key
from limpet.format.record import Record, decode_record, from_ranges
from limpet.reading import Reading
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps

__all__ = ["Violation", "recover"]

NEXT_STEP = 1002


class Violation(AssertionError):
    """Recovery did not give what was promised."""


class Unsynced(FileOps):
    """Recovery itself is not cut short here: its fsyncs would only take time."""

    def fsync(self, fd: int) -> None:
        pass

    def fsync_dir(self, fd: int) -> None:
        pass


def recover(image: Image, acked: dict[str, int], folder: Path) -> None:
    """Lay the image out and go on from it, as the next attempt would.

    Raises:
        Violation: something acknowledged is gone, something torn is visible, or the run cannot go on.
    """
    lay_out(image, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("error", DamagedCheckpointWarning)
            _recover(image, acked, folder / RUN)
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"recovery raised {error!r} though {acked or 'nothing'} was acknowledged") from error
    finally:
        shutil.rmtree(folder)


def _recover(image: Image, acked: dict[str, int], root: Path) -> None:
    promised = _steps_promised(image, acked, "")
    with limpet.open(root) as run:
        _check(run, promised)
        of_child = _steps_promised(image, acked, CHILD)
        if of_child or f"{place_of(CHILD)}/log" in image:
            _check(run.child(CHILD), of_child)
        _go_on(root, promised)
        _check_what_is_left(run, root)


def _records(image: Image, place: str) -> dict[int, Record]:
    found = {}
    for path, data in image.items():
        seq = parse_log_key(path.removeprefix(f"{place}/")) if path.startswith(f"{place}/") else None
        if seq is not None and data is not None:
            found[seq] = decode_record(data, seq)[0]
    return found


def _steps_promised(image: Image, acked: dict[str, int], child: str) -> dict[int, int]:
    """Seq and step of every checkpoint that the newest record in the image keeps alive."""
    place = place_of(child)
    records = _records(image, place)
    head = max(records, default=0)
    if head < acked.get(place, 0):
        raise Violation(f"record {acked[place]} of {place} was acknowledged; the newest is {head}")
    live = from_ranges(records[head].live) if records else set()
    return {seq: commit.step for seq in live if (commit := records[seq].commit) is not None and commit.step is not None}


def _check(reading: Reading, promised: dict[int, int]) -> None:
    """Everything that is promised is there, and nothing else; each is what a single write staged."""
    newest = promised[max(promised)] if promised else None
    found: Any = reading.read()
    if newest is None and found is not None:
        raise Violation("something was read though nothing was committed")
    if newest is not None and not same(found, newest):
        raise Violation(f"the newest state is not that of step {newest}, but {found!r:.100}")
    infos = reading.checkpoints()
    listed = {info.seq: info.step for info in infos}
    if listed != promised:
        raise Violation(f"live are {listed}, promised was {promised}")
    for info in infos[:-1]:
        if not same(reading.read(at=info), promised[info.seq]):
            raise Violation(f"checkpoint {info.seq} is not the state of step {info.step}")


def _go_on(root: Path, promised: dict[int, int]) -> None:
    """The next attempt resumes and saves."""
    with write_over(LocalStore(root, files=Unsynced()), owner="recovery") as writer:
        resumed = writer.resume({"step": np.int8(-1)})
        if promised and not same(resumed.state, promised[max(promised)]):
            raise Violation("resume gave another state than read")
        if not promised and resumed.info is not None:
            raise Violation("resume gave a checkpoint though nothing was committed")
        writer.write(state_of(NEXT_STEP), step=NEXT_STEP, durable=True)


def _check_what_is_left(run: Run, root: Path) -> None:
    """The save after the loss of power is there, and nothing that nobody needs."""
    if not same(run.read(), NEXT_STEP):
        raise Violation("the save after the loss of power cannot be read")
    run.verify()
    needed = {pack for one in run._seen.values() for pack in one.packs}
    found = {f"data/{path.relative_to(root / 'data').as_posix()}" for path in (root / "data").rglob("*.pack")}
    if found != needed:
        raise Violation(f"garbage stays, or a pack is gone: {found ^ needed}")
    if left := list((root / "tmp").iterdir()):
        raise Violation(f"temporary files stay: {left}")
