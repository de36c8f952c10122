"""The one lease that is kept when its snapshot is written: nobody's right, and in nobody's way."""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import numpy as np
import pytest

from limpet.engine.memory import MemoryBudget
from limpet.engine.slots import Bytes8, Lease, SlotPool

MIB = 1 << 20
SIZE = 4 * MIB


def pool_of(count: int = 1, *, limit_bytes: int = 2 * SIZE, budget: MemoryBudget | None = None) -> SlotPool:
    return SlotPool(count, budget or MemoryBudget(limit_bytes), keeps=True)


def leased(pool: SlotPool, content: int = 0) -> Lease:
    lease = pool.try_lease(SIZE)
    assert lease is not None
    lease.memory[:] = content
    return lease


def kept(pool: SlotPool, content: int = 7) -> Lease:
    memory = leased(pool, content).keep()
    assert memory is not None
    return memory


def test_a_kept_lease_takes_no_place_of_the_pool_s() -> None:
    pool = pool_of(1)
    before = kept(pool)
    after = leased(pool)
    assert (before.is_held, before.memory[0], after.memory[0]) == (True, 7, 0)


def test_a_lease_that_was_kept_has_ended_and_its_release_changes_nothing() -> None:
    pool = pool_of(1)
    lease = leased(pool, 7)
    memory = lease.keep()
    lease.release()
    assert memory is not None
    assert (lease.is_held, memory.is_held, memory.memory[0]) == (False, True, 7)


def test_a_kept_lease_ends_before_one_is_refused_for_want_of_room() -> None:
    pool = pool_of(2)
    before = kept(pool)
    leased_now = [leased(pool), leased(pool)]
    assert not before.is_held
    assert len(leased_now) == 2


def test_a_kept_lease_of_another_pool_ends_too() -> None:
    budget = MemoryBudget(SIZE)
    before = kept(pool_of(budget=budget))
    leased(pool_of(budget=budget))
    assert not before.is_held


def test_a_kept_lease_stays_where_a_lease_is_refused_for_its_number() -> None:
    pool = pool_of(1)
    before = kept(pool)
    leases = [leased(pool)]
    assert pool.try_lease(SIZE) is None
    assert (before.is_held, len(leases)) == (True, 1)


def test_the_memory_of_what_is_not_kept_any_more_is_reused() -> None:
    pool = pool_of(1)
    first = kept(pool)
    address = first.memory.ctypes.data
    second = kept(pool)
    first.release()
    third = leased(pool)
    assert (first.is_held, second.is_held, third.memory.ctypes.data) == (False, True, address)


def test_a_pool_keeps_the_first_and_the_newest_of_as_many_as_it_has_leases() -> None:
    for count, expected in ((1, [True, False, True]), (3, [True, True, True])):
        pool = pool_of(count, limit_bytes=9 * SIZE)
        assert [lease.is_held for lease in [kept(pool) for _ in range(3)]] == expected
        pool.close()


def test_of_those_that_are_kept_only_as_many_end_as_must() -> None:
    pool = pool_of(2, limit_bytes=3 * SIZE)
    first, second = kept(pool), kept(pool)
    leases = [leased(pool), leased(pool)]
    assert (first.is_held, second.is_held, len(leases)) == (False, True, 2)


def test_what_was_kept_before_makes_room_for_what_is_kept_beside_a_slot() -> None:
    pool = pool_of(1, limit_bytes=2 * SIZE)
    before = kept(pool)
    memory = leased(pool).keep(beside_bytes=SIZE)
    assert (before.is_held, memory is not None and memory.is_held) == (False, True)


def test_memory_that_is_taken_back_is_reused_at_once_whoever_reads_it() -> None:
    pool = pool_of(1, limit_bytes=SIZE)
    before = kept(pool)
    address = before.memory.ctypes.data
    out = np.zeros(MIB, np.uint8)
    found = before.copy_if_held(0, out), out[0]
    after = leased(pool)
    assert found == (True, 7)
    assert (before.copy_if_held(0, out), after.memory.ctypes.data) == (False, address)


def test_what_was_taken_back_in_the_middle_of_a_copy_was_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(1)
    before, copyto = kept(pool), np.copyto

    def interrupted(out: Bytes8, memory: Bytes8) -> None:
        before.release()
        copyto(out, memory)

    monkeypatch.setattr(np, "copyto", interrupted)
    assert not before.copy_if_held(0, np.zeros(MIB, np.uint8))


def test_a_kept_lease_remembers_nobody_who_read_from_it() -> None:
    before = kept(pool_of())
    for _ in range(100):
        before.copy_if_held(0, np.zeros(16, np.uint8))
    assert before._borrowed == []


def test_a_kept_lease_counts_until_it_ends() -> None:
    budget = MemoryBudget(SIZE)
    pool = pool_of(budget=budget)
    before = kept(pool)
    counted = budget._leased_bytes
    before.release()
    before.release()
    assert (counted, budget._leased_bytes, pool._leased) == (SIZE, 0, 0)


def test_what_is_kept_beside_a_slot_counts_too() -> None:
    budget = MemoryBudget(2 * SIZE)
    pool = pool_of(budget=budget)
    lease = leased(pool)
    too_much = lease.keep(beside_bytes=2 * SIZE)
    memory = lease.keep(beside_bytes=SIZE)
    counted = budget._leased_bytes
    leases = [leased(pool)]
    assert (too_much, counted, memory is not None and memory.is_held, len(leases)) == (None, 2 * SIZE, False, 1)


def test_what_is_kept_beside_a_tiny_slot_never_passes_the_limit() -> None:
    budget = MemoryBudget(SIZE)
    lease = pool_of(budget=budget).try_lease(80)
    assert lease is not None
    assert (lease.keep(beside_bytes=2 * SIZE), budget._leased_bytes) == (None, 0)


def test_a_closed_pool_keeps_nothing() -> None:
    pool = pool_of(2)
    before, other = kept(pool), leased(pool)
    pool.close()
    assert (before.is_held, other.keep()) == (False, None)


def test_who_waits_for_room_is_told_when_a_lease_is_kept() -> None:
    budget = MemoryBudget(SIZE)
    pool, other = pool_of(budget=budget), pool_of(budget=budget)
    lease = leased(pool)
    found: list[Lease | None] = [other.try_lease(SIZE)]

    def freed() -> None:
        found.append(other.try_lease(SIZE))

    budget.watch(freed)
    memory = lease.keep()
    budget.unwatch(freed)
    assert (found[0], found[-1] is not None, memory is not None and memory.is_held) == (None, True, False)


def test_what_marks_the_memory_stays_until_the_kept_lease_ends() -> None:
    ended: list[bool] = []
    lease = leased(pool_of())
    lease.on_end = lambda: ended.append(True)
    memory = lease.keep()
    before = list(ended)
    assert memory is not None
    memory.release()
    assert (before, ended) == ([], [True])


def interrupted_in(function: str, line: int) -> Callable[..., object]:
    """A trace that is a Ctrl-C once ``function`` comes to its ``line``."""

    def trace(frame: FrameType, _event: str, _argument: object) -> Callable[..., object] | None:
        def at(frame: FrameType, event: str, _argument: object) -> Callable[..., object]:
            if event == "line" and frame.f_lineno == frame.f_code.co_firstlineno + line:
                sys.settrace(None)
                raise KeyboardInterrupt
            return at

        return at if frame.f_code.co_name == function else None

    return trace


@pytest.mark.parametrize("line", range(len(inspect.getsourcelines(MemoryBudget.reclaim)[0])))
def test_a_kept_lease_can_be_ended_wherever_an_interrupt_comes(line: int) -> None:
    budget = MemoryBudget(SIZE)
    pool = pool_of(budget=budget)
    memory = kept(pool)
    sys.settrace(interrupted_in("reclaim", line))
    try:
        with suppress(KeyboardInterrupt):
            pool_of(budget=budget).try_lease(SIZE).release()  # type: ignore[union-attr]
    finally:
        sys.settrace(None)
    memory.release()
    assert (memory.is_held, budget._leased_bytes) == (False, 0)


def test_prewarming_maps_the_kept_slot_too() -> None:
    pool = pool_of(2, limit_bytes=4 * SIZE)
    pool.prewarm(SIZE)
    assert (len(pool._free), pool._budget._leased_bytes) == (3, 0)


def test_prewarming_leaves_what_is_kept() -> None:
    pool = pool_of(2)
    before = kept(pool)
    pool.prewarm(SIZE)
    assert (before.is_held, len(pool._free)) == (True, 1)


def test_a_kept_lease_that_is_forgotten_leaves_nothing_mapped() -> None:
    pool = pool_of()
    memory = kept(pool)
    array = weakref.ref(memory.memory.base if isinstance(memory.memory.base, np.ndarray) else memory.memory)
    pool.close()
    del memory
    gc.collect()
    assert array() is None


def test_memory_that_is_lent_while_it_is_kept_is_nobody_else_s_afterwards() -> None:
    pool = pool_of(1)
    memory = leased(pool).keep(lent=True)
    assert memory is not None
    address = memory.memory.ctypes.data
    held = memory.memory[:1]
    memory.release()
    assert leased(pool).memory.ctypes.data != address
    assert (held[0], len(pool._free)) == (0, 0)
