"""A disk that answers with errors: each call of each kind fails once, or from then on until it is mended.

Whatever fails, what was committed stays and is read back, the task goes on, and once the disk is well
again the next save is committed. Time is virtual, so the deadlines are the real ones.
"""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.powerloss.lives import same, state_of
from tests.stores.recording import Failing

from limpet import Checkpointer, CommitUnknownError, CorruptError, Last, LimpetError, Run, StoreError
from limpet.engine.timing import Timing
from limpet.finding import DamagedCheckpointWarning
from limpet.format import chunks
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps
from limpet.stores.retry import Retrying
from limpet.writing import Writing

WRITING = ("open", "writev", "fsync", "fsync_dir", "close", "link", "rename", "unlink", "mkdir", "fstat", "stat")
READING = ("open", "preadv", "fstat", "scandir", "close")
EVERYTHING = (*WRITING, "preadv", "scandir", "rmdir")
ONCE, UNTIL_MENDED = "once", "until mended"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SHARED_BYTES", 4096)


class Haste:
    """A clock that runs ahead instead of letting anybody wait."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def clock(self) -> float:
        return time.monotonic() + self._ahead

    async def sleep(self, seconds: float) -> None:
        self._ahead += seconds
        await anyio.sleep(0)


class SickDisk(Failing):
    """Fails by plan, and remembers every file that was synced again after its fsync had failed."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(name, code)
        self.armed = False
        self.synced_again: list[str] = []
        self._abandoned: set[str] = set()

    def plan(self, number: int, how: str) -> None:
        """Fail call ``number`` from now on, and if it is ``UNTIL_MENDED`` every one after it."""
        name, code, _, _ = self._plan
        self._plan = (name, code, number, number if how == ONCE else float("inf"))
        self.count = 0
        self.armed = True

    def mend(self) -> bool:
        """All is well from now on; whether anything has failed."""
        self.armed = False
        return self.count >= self._plan[2]

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        if name != "fsync":
            super().before(name, args)
            return
        target = self._names[args[0]]
        if target in self._abandoned:
            self.synced_again.append(target)
        try:
            super().before(name, args)
        except OSError:
            if not target.endswith(".json"):  # a record that is settled is not written to by anybody
                self._abandoned.add(target)
            raise


def store_over(root: Path, files: FileOps | None = None) -> Retrying:
    haste = Haste()
    return Retrying(LocalStore(root, files=files), sleep=haste.sleep, clock=haste.clock)


def writer_over(root: Path, files: FileOps | None = None) -> Checkpointer:
    haste = Haste()
    writer = Checkpointer("memory://only-for-its-settings", owner="test", retain=Last(2), on_busy="wait")
    Writing.__init__(writer, store_over(root, files), writer._settings)
    writer._timing = Timing(grace=0.0, clock=haste.clock, sleep=haste.sleep)
    return writer


def step_read(root: Path, files: FileOps | None = None) -> int:
    """The step that a reader finds, whose state is checked."""
    run = Run(store_over(root, files))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DamagedCheckpointWarning)
            state = run.read()
    finally:
        run.close()
    assert same(state, state["step"])
    return int(state["step"])


def failure_of(call: Callable[[], object]) -> LimpetError | None:
    try:
        call()
    except LimpetError as error:
        return error
    return None


def check_failure(error: LimpetError | None, code: int) -> None:
    """A store's error, that says "full" if that is what it is."""
    if error is None:
        return
    assert isinstance(error, StoreError)
    if code == errno.ENOSPC and not isinstance(error, CommitUnknownError):
        assert error.kind == "no_space"


def assert_tidy(root: Path) -> None:
    assert list((root / "tmp").iterdir()) == []
    with Run(store_over(root)) as run:
        run.read()
        needed = {pack for one in run._seen.values() for pack in one.packs}
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.pack")} == needed


def numbers(most: int = 400) -> Iterator[int]:
    """1, 2, 3 ... until the caller has seen that nothing fires any more."""
    for number in count(1):
        yield number
        assert number < most, "the failing call was always reached"


def faults(names: Sequence[str], quick: Callable[[str, int, str], bool]) -> list[Any]:
    """All combinations; those that are not ``quick`` belong to the full run."""
    return [
        pytest.param(name, code, how, marks=() if quick(name, code, how) else pytest.mark.heavy)
        for name, code, how in product(names, (errno.EIO, errno.ENOSPC), (ONCE, UNTIL_MENDED))
    ]


def is_quick(name: str, code: int, how: str) -> bool:
    """An error of the disk once, where bytes and names are written; a full disk that stays full."""
    if code == errno.EIO:
        return how == ONCE and name not in ("open", "fstat", "stat", "unlink")
    return how == UNTIL_MENDED and name in ("writev", "link")


@pytest.mark.filterwarnings("ignore:limpet took .* over:RuntimeWarning")
@pytest.mark.parametrize(("name", "code", "how"), faults(WRITING, is_quick))
def test_a_save_that_meets_a_sick_disk_harms_nothing_and_the_next_one_succeeds(
    tmp_path: Path, name: str, code: int, how: str
) -> None:
    disk = SickDisk(name, code)
    with writer_over(tmp_path) as first:
        first.write(state_of(2), step=2, durable=True)
    step = 2
    for number in numbers():
        before, during, after = step, step + 8, step + 16
        writer = writer_over(tmp_path, disk)
        writer.read()  # opened before anything fails
        disk.plan(number, how)
        error = failure_of(partial(writer.write, state_of(during), step=during, durable=True))
        fired = disk.mend()
        check_failure(error, code)
        found = step_read(tmp_path)
        assert found == during if error is None else found in (before, during)
        assert found == before or error is None or isinstance(error, CommitUnknownError)
        if isinstance(error, CommitUnknownError):
            failure_of(writer.close)
            writer = writer_over(tmp_path, disk)  # this one stops: the next attempt goes on
        writer.write(state_of(after), step=after, durable=True)
        failure_of(writer.close)
        assert step_read(tmp_path) == after
        if name != "unlink":  # what could not be removed goes when the run is opened again
            assert_tidy(tmp_path)
        step = after
        if not fired:
            break
    with writer_over(tmp_path) as last:
        last.read()
    assert_tidy(tmp_path)
    assert disk.synced_again == []


@pytest.mark.parametrize("name", READING)
def test_a_read_error_is_tried_again_and_never_falls_back(tmp_path: Path, name: str) -> None:
    with writer_over(tmp_path) as writer:
        writer.write(state_of(2), step=2, durable=True)
        writer.write(state_of(4), step=4, durable=True)
    disk = SickDisk(name, errno.EIO)
    for number in numbers():
        disk.plan(number, ONCE)
        assert step_read(tmp_path, disk) == 4
        if not disk.mend():
            break


@pytest.mark.parametrize("name", READING)
def test_a_disk_that_cannot_be_read_is_no_reason_to_fall_back(tmp_path: Path, name: str) -> None:
    with writer_over(tmp_path) as writer:
        writer.write(state_of(2), step=2, durable=True)
        writer.write(state_of(4), step=4, durable=True)
    disk = SickDisk(name, errno.EIO)
    for number in numbers():
        disk.plan(number, UNTIL_MENDED)
        found: list[int] = []
        error = failure_of(lambda found=found: found.append(step_read(tmp_path, disk)))
        if error is None:
            assert found == [4]
        else:
            assert isinstance(error, StoreError)
            assert error.transient
            assert "Input/output error" in str(error)
        if not disk.mend():
            break


def life_under(disk: SickDisk, root: Path, number: int, how: str) -> list[LimpetError | None]:
    """Opening, saves, a pin, a sweep and closing, each of which may fail."""
    disk.plan(number, how)
    writer = writer_over(root, disk)
    calls: list[Callable[[], object]] = [
        writer.read,
        lambda: writer.write(state_of(10), step=10, durable=True),
        lambda: writer.write(state_of(11), step=11, durable=True),
        lambda: writer.write(state_of(12), step=12, durable=True),
        lambda: writer.pin(12),
        lambda: writer.write(state_of(13), step=13, durable=True),
        writer.sweep,
        writer.close,
    ]
    return [failure_of(call) for call in calls]


@pytest.mark.parametrize(("name", "code", "how"), faults(EVERYTHING, lambda *_: False))
def test_a_life_on_a_sick_disk_loses_nothing_that_was_acknowledged(
    tmp_path: Path, name: str, code: int, how: str
) -> None:
    for number in numbers(1000):
        root = tmp_path / str(number)
        with writer_over(root) as first:
            first.write(state_of(2), step=2, durable=True)
        disk = SickDisk(name, code)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            failures = life_under(disk, root, number, how)
        fired = disk.mend()
        assert not any(isinstance(error, CorruptError) for error in failures), failures
        saved = [
            step for step, error in zip((10, 11, 12, 13), (*failures[1:4], failures[5]), strict=True) if error is None
        ]
        assert step_read(root) >= max(saved, default=2)
        with writer_over(root) as heir:
            heir.write(state_of(20), step=20, durable=True)
        assert step_read(root) == 20
        assert_tidy(root)
        assert disk.synced_again == []
        if not fired:
            break
