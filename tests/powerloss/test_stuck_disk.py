"""A disk that does not answer at all: any system call of a save may hang, for ever as far as anyone can tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faulty import PATIENCE_SECONDS, write_over
from tests.powerloss.lives import same, state_of
from tests.stores.recording import Recording

import limpet
from limpet import Checkpointer, Last, StoreError
from limpet.engine.timing import Timing
from limpet.stores.local import LocalStore

QUICK = ("writev", "fsync", "link")
HANGS = (
    *QUICK,
    *(pytest.param(name, marks=pytest.mark.heavy) for name in ("open", "close", "rename", "fsync_dir", "unlink")),
)
DEADLINE_SECONDS = 0.4
MARGIN_SECONDS = 1.0
STALL_SECONDS = 0.5
"""The promise is 50 ms; so much more leaves room for a busy machine, and none for a wait on the disk."""


class StuckDisk(Recording):
    """Every call of one name hangs while the disk is ``stuck``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.reached = threading.Event()

    def hang(self) -> None:
        self._goes_on.clear()

    def mend(self) -> None:
        self._goes_on.set()

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        if name == self._name and threading.current_thread().name.startswith("limpet-") and not self._goes_on.is_set():
            self.reached.set()
            self._goes_on.wait()


@pytest.fixture
def stuck(request: pytest.FixtureRequest) -> Iterator[StuckDisk]:
    disk = StuckDisk(request.param)
    yield disk
    disk.mend()


def writer_over(root: Path, disk: StuckDisk, **settings: Any) -> Checkpointer:
    timing = Timing(commit_deadline=DEADLINE_SECONDS, upload_deadline=DEADLINE_SECONDS, grace=0.0)
    return write_over(LocalStore(root, files=disk), timing=timing, retain=Last(3), **settings)


def seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


@pytest.mark.parametrize("on_busy", ["skip", "supersede"])
@pytest.mark.parametrize("stuck", HANGS, indirect=True)
def test_a_stuck_disk_stalls_nobody_fails_saves_in_time_and_is_used_again(
    tmp_path: Path, stuck: StuckDisk, on_busy: str
) -> None:
    writer = writer_over(tmp_path, stuck, on_busy=on_busy, on_error="warn")
    writer.write(state_of(2), step=2, durable=True)
    stuck.hang()
    state = state_of(4)
    hanging = writer.write(state, step=4)
    assert stuck.reached.wait(PATIENCE_SECONDS)
    for step in (6, 8, 10):
        assert seconds(lambda step=step: writer.write(state_of(step), step=step)) < STALL_SECONDS
    state["own"][:] = 0  # the task goes on with its memory
    assert seconds(lambda: failed_or_committed(hanging)) < DEADLINE_SECONDS + MARGIN_SECONDS
    stuck.mend()
    settle(writer)
    writer.write(state_of(12), step=12, durable=True)
    writer.close()
    with limpet.open(tmp_path) as run:
        assert same(run.read(), 12)
        infos = run.checkpoints()
        assert all(same(run.read(at=info), info.step) for info in infos)
        needed = {pack for one in run._seen.values() for pack in one.packs}
    with writer_over(tmp_path, StuckDisk("")) as heir:
        heir.read()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.pack")} <= needed
    assert list((tmp_path / "tmp").iterdir()) == []


def failed_or_committed(handle: Any) -> None:
    """A call that hangs after everything that matters (an unlink) delays nothing but itself."""
    handle._completion.wait(PATIENCE_SECONDS)
    handle._seen = True
    error = handle._completion.error
    assert error is None or isinstance(error, StoreError)


def settle(writer: Checkpointer) -> None:
    """Wait until nothing is on its way; what failed has been looked at."""
    while True:
        try:
            writer.wait(PATIENCE_SECONDS)
        except StoreError:
            continue
        return


@pytest.mark.filterwarnings("ignore:limpet left .* untidy:RuntimeWarning")
@pytest.mark.parametrize("stuck", HANGS, indirect=True)
def test_closing_on_a_stuck_disk_ends_in_time_and_says_what_is_not_there(tmp_path: Path, stuck: StuckDisk) -> None:
    writer = write_over(LocalStore(tmp_path, files=stuck))
    writer._timing = Timing(grace=0.0)
    writer.write(state_of(2), step=2, durable=True)
    stuck.hang()
    writer.write(state_of(4), step=4)
    assert stuck.reached.wait(PATIENCE_SECONDS)
    started = time.monotonic()
    with pytest.raises(StoreError, match="step=4") as caught:
        writer.close(DEADLINE_SECONDS)
    assert time.monotonic() - started < DEADLINE_SECONDS + MARGIN_SECONDS
    assert caught.value.kind == "late"
    assert "limpet-files-0" in str(caught.value) or "limpet-packs-0" in str(caught.value)
    with limpet.open(tmp_path) as run:
        found = run.read()
        assert same(found, 2) or same(found, 4)


@pytest.mark.parametrize("stuck", ["writev"], indirect=True)
def test_memory_that_a_stuck_write_still_reads_from_is_not_used_for_another_state(
    tmp_path: Path, stuck: StuckDisk
) -> None:
    written: list[bytes] = []
    real = StuckDisk.writev

    def watched(fd: int, buffers: Any) -> int:
        written.append(b"".join(buffers))
        return int(real(stuck, fd, buffers))

    stuck.writev = watched  # type: ignore[method-assign]
    writer = writer_over(tmp_path, stuck, compression="off", on_busy="skip", on_error="warn")
    big = np.full(1 << 20, 7, np.uint8)
    writer.write({"x": big}, step=1, durable=True)
    written.clear()
    stuck.hang()
    hanging = writer.write({"x": big}, step=2)
    assert stuck.reached.wait(PATIENCE_SECONDS)
    failed_or_committed(hanging)
    for step in (3, 4, 5):
        writer.write({"x": np.full(1 << 20, step, np.uint8)}, step=step)
    stuck.mend()
    settle(writer)
    writer.close()
    assert all(len(set(one[: 1 << 20])) == 1 for one in written if len(one) >= 1 << 20)
