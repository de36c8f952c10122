"""Row 28: memory runs out at the n-th allocation. It is an error of the call that met it, and of nothing else.

Large allocations are failed one by one in this process; in a process of its own the kernel refuses them for real.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import noise, run_script

import limpet
from limpet import Checkpointer, Files, Last, LimpetError
from limpet.engine import encode, memory, slots, upload
from limpet.stores import local_objects

MIB = 1 << 20


class Allocations:
    """Counts limpet's large allocations, and fails one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fail_at = 0
        self._lock = threading.Lock()
        for owner, name in [
            (np, "empty"),
            (slots.mmap, "mmap"),
            (encode.codec, "encode"),
            (upload, "encode_manifest"),
        ]:
            error: BaseException = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) if name == "mmap" else MemoryError()
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), error))
        counted = self._counted(bytearray, MemoryError())
        monkeypatch.setattr(local_objects, "bytearray", counted, raising=False)

    @property
    def met(self) -> bool:
        """Whether the allocation that is to fail was asked for."""
        return 0 < self.fail_at <= self.count

    def _counted(self, allocate: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
        def counted(*args: Any, **keywords: Any) -> Any:
            if not sys._getframe(1).f_globals["__name__"].startswith("limpet."):
                return allocate(*args, **keywords)
            with self._lock:
                self.count += 1
                fails = self.count == self.fail_at
            if fails:
                raise error
            return allocate(*args, **keywords)

        return counted


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> Allocations:
    return Allocations(monkeypatch)


def state_of(step: int, nbytes: int) -> dict[str, Any]:
    return {"step": step, "array": noise(step, nbytes), "bytes": bytearray(noise(step + 500, 100_000).tobytes())}


def same(found: Any, wanted: Any) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(np.asarray(found[name]), np.asarray(wanted[name])) for name in wanted if name != "files"
    )


SIZES = [2 * MIB, 1000, 5 * MIB, 1000, 300_000, 9 * MIB]
"""They grow and shrink, so that slots are mapped, reused, and replaced."""


def attempt(call: Callable[[], Any], refused: list[BaseException]) -> Any:
    """What a call gives; the error of memory that it may raise is noted."""
    try:
        return call()
    except (MemoryError, LimpetError) as error:
        refused.append(error)
        return None


class Task:
    """A training task whose process is short of memory once."""

    def __init__(self, url: Path, files: Path) -> None:
        self.cp = Checkpointer(url, retain=Last(2), on_busy="wait")
        self.files = files
        self.refused: list[BaseException] = []
        self.newest: tuple[int, int] | None = None

    def write(self, step: int, nbytes: int, **more: Any) -> None:
        state = {**state_of(step, nbytes), **more}
        pending = attempt(lambda: self.cp.write(state, step=step), self.refused)
        if pending is not None and attempt(pending.result, self.refused) is not None:
            self.newest = (step, nbytes)

    def check(self) -> None:
        found = attempt(lambda: self.cp.read(strict=True), self.refused)
        if found is None and self.newest is not None:
            found = self.cp.read(strict=True)  # only one allocation fails
        if self.newest is not None:
            assert same(found, {**state_of(*self.newest), **({"files": 0} if "files" in found else {})})

    def end(self) -> None:
        """The next save works, and nothing stays taken."""
        self.write(99, 4 * MIB)
        if self.newest != (99, 4 * MIB):  # this was the one that met it
            self.write(99, 4 * MIB)
        assert self.newest == (99, 4 * MIB)
        self.check()
        session = self.cp._session
        assert session is not None
        assert session.pool._leased == 0
        assert session.threads.budget._leased_bytes == 0
        assert session.writer._resources.budget.held_bytes == 0
        self.cp.sweep()
        self.cp.close()


def run_task(url: Path, files: Path) -> Task:
    """The task, to its end."""
    task = Task(url, files)
    attempt(task.cp.wait, task.refused)
    for step, nbytes in enumerate(SIZES, 1):
        task.write(step, nbytes)
    task.write(50, 1000, files=Files(files))
    task.check()
    task.end()
    return task


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one").write_bytes(b"1" * 5000)
    return tmp_path / "files"


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.heavy)])
def test_an_allocation_that_fails_costs_one_call_and_no_memory(
    tmp_path: Path, files: Path, allocations: Allocations, every: int
) -> None:
    met = 0
    for at in itertools.count(1, every):
        allocations.count, allocations.fail_at = 0, at
        url = tmp_path / f"run-{at}"
        try:
            task = run_task(url, files)
        except BaseException as error:
            error.add_note(f"allocation {at} failed")
            raise
        if not allocations.met:
            break
        met += 1
        assert len(task.refused) <= 1, f"allocation {at}: {task.refused}"
        with limpet.open(url) as run:
            assert same(run.read(strict=True), state_of(99, 4 * MIB))
            packs = len(list(url.glob("data/*/*")))
            assert packs <= len(run.checkpoints()), f"allocation {at} left {packs} packs"
    assert met >= 30 // every
    print(f"{met} allocations")


class NoMemory:
    """In place of an allocation."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_buffer_that_cannot_be_mapped_takes_nothing_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = memory.MemoryBudget(100 * MIB)
    pool = slots.SlotPool(2, budget)
    with monkeypatch.context() as patch:
        patch.setattr(slots.mmap, "mmap", NoMemory())
        with pytest.raises(MemoryError, match=r"no memory for a buffer of \d+ bytes"):
            pool.try_lease(10 * MIB)
    assert (budget._leased_bytes, pool._leased) == (0, 0)
    lease = pool.try_lease(100 * MIB)  # all of it is still there
    assert lease is not None
    lease.release()


@pytest.mark.parametrize("nbytes", [10 * MIB, 100])
def test_a_lease_that_cannot_be_replaced_for_want_of_memory_goes_on(
    nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save that waits in it must not be given up for one that could not be staged."""
    budget = memory.MemoryBudget(100 * MIB)
    pool = slots.SlotPool(1, budget)
    older = pool.try_lease(4 * MIB)
    assert older is not None
    before = budget._leased_bytes
    with monkeypatch.context() as patch:
        patch.setattr(slots.mmap, "mmap", NoMemory())
        patch.setattr(np, "empty", NoMemory())
        with pytest.raises((MemoryError, OSError)):
            pool.try_lease(nbytes, instead_of=[older])
    assert (budget._leased_bytes, pool._leased, older.memory.nbytes) == (before, 1, 4 * MIB)
    older.release()
    assert (budget._leased_bytes, pool._leased) == (0, 0)


SHORT_OF_MEMORY = """
    import os, resource, sys, warnings
    import numpy as np
    from limpet import Checkpointer, Last, LimpetError

    root, spare = sys.argv[1], int(sys.argv[2])
    cp = Checkpointer(root, retain=Last(2))
    small = {"step": 1, "array": np.arange(1000)}
    large = {"step": 2, "array": np.arange(6_000_000)}
    cp.write(small, step=1, durable=True)
    taken = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + spare, resource.RLIM_INFINITY))
    outcome = "saved"
    try:
        cp.write(large, step=2, durable=True)
    except (MemoryError, LimpetError, RuntimeError, OSError) as error:
        outcome = type(error).__name__
    found = "none"
    try:
        cp.write({**small, "step": 3}, step=3, durable=True)
        found = "saved"
    except (MemoryError, LimpetError, RuntimeError, OSError) as error:
        found = type(error).__name__
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    cp.write({**large, "step": 4}, step=4, durable=True)
    assert cp._session.pool._leased == 0
    state = cp.read(strict=True)
    assert state["step"] == 4 and np.array_equal(state["array"], large["array"])
    cp.sweep()
    cp.close()
    print(outcome, found)
"""


@pytest.mark.parametrize(
    "spare_mib", [0, 56, 400, *(pytest.param(mib, marks=pytest.mark.heavy) for mib in range(4, 200, 8))]
)
def test_what_the_kernel_refuses_is_an_error_of_that_save_and_the_task_goes_on(tmp_path: Path, spare_mib: int) -> None:
    done = run_script(SHORT_OF_MEMORY, tmp_path / "run", spare_mib * MIB, timeout=60)
    assert done.returncode == 0, done.stderr
    outcome, next_one = done.stdout.split()
    if spare_mib == 0:
        assert outcome == "MemoryError"
    elif spare_mib == 400:
        assert (outcome, next_one) == ("saved", "saved")
    with limpet.open(tmp_path / "run") as run:
        assert run.verify() is not None
        assert len(list((tmp_path / "run").glob("data/*/*"))) <= len(run.checkpoints())
