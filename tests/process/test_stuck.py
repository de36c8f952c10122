"""Row 12: a store that does not answer, or a disk that hangs, costs the loop nothing, and ``close`` its deadline."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.process.programs import state_of
from tests.support import PATIENCE_SECONDS, Gated, checkpointer_over

from limpet import Checkpointer, StoreError
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps

WRITES = 50
_NOISE_SECONDS = 1.0
"""What ``close`` may take beyond its deadline."""


def stuck(operation: str = "put", **settings: Any) -> tuple[Checkpointer, Any]:
    """A run whose step 0 is durable and whose step 1 is stuck in the store."""
    store = Gated()
    cp = checkpointer_over(store, **settings)
    cp.write(state_of(0), step=0, durable=True)
    held = store.hold(operation)
    cp.write(state_of(1), step=1)
    held.wait_until_reached()
    return cp, held


@pytest.mark.parametrize("policy", ["skip", "supersede"])
def test_writes_return_while_the_store_is_stuck(policy, capsys):
    cp, held = stuck(on_busy=policy)
    state = state_of(2)
    stalls, pendings = [], []
    for step in range(2, WRITES + 2):
        started = time.perf_counter()
        pendings.append(cp.write(state, step=step))
        stalls.append(time.perf_counter() - started)
    assert cp.latest.step == 0  # all of them returned, and the store has not answered yet
    with capsys.disabled():
        print(f" p99 stall {1000 * statistics.quantiles(stalls, n=100)[-1]:.1f} ms", end="")
    held.release()
    cp.wait(PATIENCE_SECONDS)
    assert pendings[-1].result().durable_step == (WRITES + 1 if policy == "supersede" else 0)
    cp.close()


@pytest.mark.parametrize("operation", ["put", "create"])
@pytest.mark.parametrize("timeout", [0, 0.3])
def test_close_returns_at_its_deadline_and_names_what_was_not_committed(operation, timeout):
    cp, _ = stuck(operation)
    cp.write(state_of(2), step=2)
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"step=1.*step=2") as caught:
        cp.close(timeout)
    assert time.monotonic() - started < timeout + _NOISE_SECONDS
    assert caught.value.kind == "late"


def test_a_second_close_returns_at_once_and_raises_nothing():
    cp, _ = stuck()
    with pytest.raises(StoreError):
        cp.close(0)
    cp.close(0)
    cp.close()


def test_close_from_two_threads_raises_in_one_of_them():
    cp, held = stuck()
    problems: list[BaseException | None] = []

    def close() -> None:
        try:
            cp.close(0.3)
        except StoreError as error:
            problems.append(error)
        else:
            problems.append(None)

    threads = [threading.Thread(target=close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    held.release()
    assert sorted(map(type, problems), key=str) == [type(None), StoreError]


def test_the_exception_of_the_body_is_not_masked_by_a_close_that_is_late():
    cp, _ = stuck()
    close = cp.close
    cp.close = lambda: close(0.1)
    with pytest.raises(ValueError, match="the body's") as caught, cp:
        raise ValueError("the body's")
    assert "step=1" in caught.value.__notes__[0]


# A disk that hangs: a thread of ours is in the kernel, and does not come back before the disk does.


class Disk(FileOps):
    def __init__(self) -> None:
        self.hangs = False
        self.reached = threading.Event()
        self.back = threading.Event()

    def fsync(self, fd: int) -> None:
        if self.hangs:
            self.reached.set()
            assert self.back.wait(10 * PATIENCE_SECONDS)
        super().fsync(fd)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.back.set()


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_close_on_a_disk_that_hangs_names_the_saves_and_the_threads(tmp_path, disk, timeout):
    cp = checkpointer_over(LocalStore(tmp_path, files=disk))
    cp.write(state_of(0), step=0, durable=True)
    disk.hangs = True
    cp.write(state_of(1), step=1)
    assert disk.reached.wait(PATIENCE_SECONDS)
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"step=1.* Still at work: .*limpet-packs-0"):
        cp.close(timeout)
    assert time.monotonic() - started < timeout + _NOISE_SECONDS
    disk.back.set()
