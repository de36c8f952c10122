"""Slots: reused memory that snapshots are copied into.

A slot is one anonymous mapping, page-aligned, huge-page-advised and touched once, which makes later copies
three times faster than fresh memory. It is leased: it goes back to the pool when its last reader is
done, and never while somebody below us (an upload that was cancelled, say) may still read from it: then
the memory is abandoned to the garbage collector and the next lease maps anew.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import suppress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Bytes8", "Lease", "MemoryBudget", "SlotPool"]

_HUGE_PAGE = 2 << 20
_TINY = 64 << 10
"""Snapshots up to this size live on the heap: mapping and page alignment would cost more than they save."""
_SHRINK_AFTER = 8
"""A slot is given back after so many leases in a row that used less than a quarter of it."""
_ADVICE = ("MADV_HUGEPAGE", "MADV_DONTFORK", "MADV_DONTDUMP")

Bytes8: TypeAlias = npt.NDArray[np.uint8]


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE


class _Slot:
    """One mapping and how it was used lately."""

    __slots__ = ("array", "small_leases", "touched")

    def __init__(self, nbytes: int) -> None:
        mapping = mmap.mmap(-1, nbytes)
        for name in _ADVICE:
            advice = getattr(mmap, name, None)
            if advice is not None:
                with suppress(OSError):  # a kernel without this capability: slower, not wrong
                    mapping.madvise(advice)
        self.array: Bytes8 = np.frombuffer(mapping, dtype=np.uint8)
        self.small_leases = 0
        self.touched = False

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def touch(self) -> None:
        """Fault every page in, so that the first copy runs at full speed."""
        if not self.touched:
            self.array[:: mmap.PAGESIZE] = 0
            self.touched = True


class Lease:
    """The right to use one of the pool's slots, until ``release``."""

    __slots__ = ("_borrowed", "_pool", "_released", "_slot", "memory")

    def __init__(self, pool: SlotPool, slot: _Slot | None, memory: Bytes8) -> None:
        self._pool = pool
        self._slot = slot
        self.memory = memory
        self._borrowed: list[weakref.ref[Bytes8]] = []
        self._released = False

    def borrow(self, offset: int, nbytes: int) -> Bytes8:
        """A view to hand to somebody whose references cannot be followed otherwise."""
        view = self.memory[offset : offset + nbytes]
        self._borrowed.append(weakref.ref(view))
        return view

    def release(self) -> None:
        """Give the slot back. Idempotent."""
        if self._released:
            return
        self._released = True
        lent = any(reference() is not None for reference in self._borrowed)
        self._borrowed.clear()
        self.memory = _EMPTY
        slot, self._slot = self._slot, None
        self._pool._give_back(slot, reusable=not lent)


_EMPTY: Bytes8 = np.empty(0, dtype=np.uint8)


class MemoryBudget:
    """What the leased slots of several pools may take together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._leased_bytes = 0
        self._lock = threading.Lock()

    def try_take(self, nbytes: int) -> bool:
        """Take ``nbytes`` if they fit beside what is taken already; the first one only has to fit alone."""
        with self._lock:
            if self._leased_bytes and self._leased_bytes + nbytes > self.limit_bytes:
                return False
            self._leased_bytes += nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """Give ``nbytes`` back."""
        with self._lock:
            self._leased_bytes -= nbytes


class SlotPool:
    """``count`` leases, each with as much reused memory as its snapshot needs.

    Args:
        count: how many snapshots may exist at once.
        budget: what all slots may take, together with those of other pools.
    """

    def __init__(self, count: int, budget: MemoryBudget) -> None:
        self.count = count
        self._budget = budget
        self._free: list[_Slot] = []
        self._leased = 0
        self._lock = threading.Lock()
        self._closed = False

    def try_lease(self, nbytes: int) -> Lease | None:
        """A lease on ``nbytes`` of memory, or ``None`` while none is free or they do not fit beside the others."""
        with self._lock:
            if self._leased >= self.count:
                return None
            if nbytes <= _TINY:
                self._leased += 1
                return Lease(self, None, np.empty(nbytes, dtype=np.uint8))
            slot = self._take(nbytes)
            if slot is None:
                return None
            self._leased += 1
            return Lease(self, slot, slot.array[:nbytes])

    def fits(self, nbytes: int) -> bool:
        """Whether ``nbytes`` can ever be leased."""
        return nbytes <= self._budget.limit_bytes

    @property
    def limit_bytes(self) -> int:
        """The most that can ever be leased."""
        return self._budget.limit_bytes

    def prewarm(self, nbytes: int) -> None:
        """Map and touch memory for as many snapshots of ``nbytes`` as there are free leases and room."""
        leases: list[Lease] = []
        while (lease := self.try_lease(nbytes)) is not None:
            leases.append(lease)
        for lease in leases:
            if lease._slot is not None:
                lease._slot.touch()
            lease.release()

    def close(self) -> None:
        """Forget the free slots; those still leased are forgotten when they come back."""
        with self._lock:
            self._closed = True
            self._free.clear()

    def _take(self, nbytes: int) -> _Slot | None:
        """The smallest free slot that fits, else a new one; those that are too small make room for it."""
        fitting = [slot for slot in self._free if slot.nbytes >= nbytes]
        if fitting:
            slot = min(fitting, key=lambda slot: slot.nbytes)
            self._free.remove(slot)
            slot.small_leases = slot.small_leases + 1 if nbytes < slot.nbytes // 4 else 0
            if slot.small_leases < _SHRINK_AFTER:
                if self._budget.try_take(slot.nbytes):
                    return slot
                self._free.append(slot)
                return None
        else:
            self._free.clear()
        needed = _whole_pages(nbytes)
        return _Slot(needed) if self._budget.try_take(needed) else None

    def _give_back(self, slot: _Slot | None, *, reusable: bool) -> None:
        with self._lock:
            self._leased -= 1
            if slot is None:
                return
            self._budget.give_back(slot.nbytes)
            if reusable and not self._closed:
                self._free.append(slot)
