"""Slots: reused memory that snapshots are copied into.

A slot is one mapping, page-aligned, huge-page-advised and touched once, which makes later copies
three times faster than fresh memory. It is leased: it goes back to the pool when its last reader is
done, and never while somebody below us (an upload that was cancelled, say) may still read from it: then
the memory is abandoned to the garbage collector and the next lease maps anew.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from limpet.pages import HUGE_PAGE_BYTES, KEPT_TO_OURSELVES, advise, private_pages
from limpet.workers import refuse_reentry

__all__ = ["Bytes8", "Lease", "MemoryBudget", "SlotPool"]

_TINY = 64 << 10
"""Snapshots up to this size live on the heap: mapping and page alignment would cost more than they save."""
_SHRINK_AFTER = 8
"""A slot is given back after so many leases in a row that used less than a quarter of it."""
_ADVICE = ("MADV_HUGEPAGE", *KEPT_TO_OURSELVES)

Bytes8: TypeAlias = npt.NDArray[np.uint8]


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES


class _Slot:
    """One mapping and how it was used lately."""

    __slots__ = ("array", "mapping", "small_leases", "touched")

    def __init__(self, nbytes: int, memory: Callable[[int], mmap.mmap]) -> None:
        try:
            self.mapping = mapping = memory(nbytes)
        except OSError as error:  # ENOMEM: mmap(2) says it in its own way
            raise MemoryError(f"no memory for a buffer of {nbytes} bytes: {error.strerror}") from error
        for name in _ADVICE:
            advise(mapping, name, len(mapping))
        self.array: Bytes8 = np.frombuffer(mapping, dtype=np.uint8, count=nbytes)
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

    __slots__ = ("__weakref__", "_borrowed", "_counted", "_pool", "_released", "_slot", "memory", "on_end")

    def __init__(self, pool: SlotPool, slot: _Slot | None, memory: Bytes8) -> None:
        self._pool = pool
        self._slot = slot
        self.memory = memory
        self._borrowed: list[weakref.ref[Bytes8]] = []
        self._released = False
        self._counted = False
        self.on_end: Callable[[], None] | None = None
        """Called when it ends, before anybody else can have the memory: nothing that an interrupt could come into."""

    def __del__(self) -> None:
        # An interrupt from the keyboard may lose it half made, on its way to the caller, or on its way back.
        if getattr(self, "_counted", False):
            self._pool._give_back(self, self._slot, reusable=False)

    def borrow(self, offset: int, nbytes: int) -> Bytes8:
        """A view to hand to somebody whose references cannot be followed otherwise."""
        view = self.memory[offset : offset + nbytes]
        self._borrowed.append(weakref.ref(view))
        return view

    @property
    def is_held(self) -> bool:
        """Whether it has not ended yet."""
        return not self._released

    @property
    def mapping(self) -> mmap.mmap | None:
        """What ``memory`` is the beginning of; ``None`` of a small one, which has none of its own."""
        return None if self._slot is None else self._slot.mapping

    def release(self, *, lent: bool = False) -> None:
        """Give the slot back. Idempotent.

        Args:
            lent: somebody beyond our sight may still read from it.
        """
        with self._pool._lock:
            if self._released:
                return
            lent = lent or any(reference() is not None for reference in self._borrowed)
            slot = self._slot
            self._end()
        self._pool._give_back(self, slot, reusable=not lent)

    def while_held(self, do: Callable[[], None]) -> None:
        """``do()``, unless it has ended; it does not end meanwhile."""
        with self._pool._lock:
            if not self._released:
                do()

    def _end(self) -> None:
        if self.on_end is not None:
            self.on_end()
        self._released = True
        self._borrowed.clear()
        self.memory = _EMPTY
        self._slot = None


_EMPTY: Bytes8 = np.empty(0, dtype=np.uint8)


class MemoryBudget:
    """What the leased slots of several pools may take together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._leased_bytes = 0
        self._lock = threading.RLock()
        self._watchers: tuple[Callable[[], None], ...] = ()

    def try_take(self, nbytes: int, giving_back: int = 0) -> bool:
        """Take ``nbytes`` if they fit beside what is taken already; the first one only has to fit alone.

        Args:
            nbytes: how many.
            giving_back: bytes that are given back in the same step, if they fit.
        """
        with self._lock:
            refuse_reentry(self._lock)
            others = self._leased_bytes - giving_back
            if others and others + nbytes > self.limit_bytes:
                return False
            self._leased_bytes = others + nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """Give ``nbytes`` back."""
        with self._lock:
            self._leased_bytes -= nbytes

    def watch(self, freed: Callable[[], None]) -> None:
        """Call ``freed()`` whenever a pool has given memory back: another pool's callers may wait for it."""
        with self._lock:
            refuse_reentry(self._lock)
            self._watchers = (*self._watchers, freed)

    def unwatch(self, freed: Callable[[], None]) -> None:
        """Forget ``freed``, if it watches."""
        with self._lock:
            refuse_reentry(self._lock)
            self._watchers = tuple(watcher for watcher in self._watchers if watcher != freed)

    def tell(self) -> None:
        """Tell the watchers; without any lock held."""
        for watcher in self._watchers:
            watcher()


class SlotPool:
    """``count`` leases, each with as much reused memory as its snapshot needs.

    Args:
        count: how many snapshots may exist at once.
        budget: what all slots may take, together with those of other pools.
        memory: maps so many bytes.
    """

    def __init__(self, count: int, budget: MemoryBudget, memory: Callable[[int], mmap.mmap] = private_pages) -> None:
        self.count = count
        self._memory = memory
        self._budget = budget
        self._free: list[_Slot] = []
        self._leased = 0
        self._lock = threading.RLock()
        self._closed = False

    def try_lease(self, nbytes: int, instead_of: Sequence[Lease] = ()) -> Lease | None:
        """A lease on ``nbytes`` of memory, or ``None`` while none is free or they do not fit beside the others.

        Args:
            nbytes: how many.
            instead_of: leases that nobody reads from: they end in the same step, or, if that gives no room, go on.
        """
        if self._leased >= self.count and not instead_of:  # the usual answer in a tight loop: no lock for that
            return None
        with self._lock:
            refuse_reentry(self._lock)
            if self._leased - len(instead_of) >= self.count:
                return None
            returned = [lease._slot for lease in instead_of if lease._slot is not None]
            # Whatever takes memory comes before any account is changed: it may fail.
            slot = self._take(nbytes, returned) if nbytes > _TINY else None
            if slot is None and nbytes > _TINY:
                return None
            memory = np.empty(nbytes, dtype=np.uint8) if slot is None else slot.array[:nbytes]
            if slot is None and returned:
                self._budget.give_back(sum(old.nbytes for old in returned))
            for older in instead_of:
                older._end()
                # Here and below, no call comes between the count and its mark: nothing can interrupt them.
                self._leased -= 1
                older._counted = False
            if returned and not self._closed:
                self._free += [old for old in returned if old is not slot]
            lease = Lease(self, slot, memory)
            self._leased += 1
            lease._counted = True
            return lease

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
            refuse_reentry(self._lock)
            self._closed = True
            self._free.clear()

    def _take(self, nbytes: int, returned: Sequence[_Slot]) -> _Slot | None:
        """The smallest slot that fits, of the free ones and those ``returned``, else a new one."""
        room = sum(slot.nbytes for slot in returned)
        slot = min(
            (slot for slot in (*self._free, *returned) if slot.nbytes >= nbytes),
            key=lambda slot: slot.nbytes,
            default=None,
        )
        rarely_full = 0 if slot is None or nbytes >= slot.nbytes // 4 else slot.small_leases + 1
        if slot is None or rarely_full >= _SHRINK_AFTER:
            if not self._budget.try_take(_whole_pages(nbytes), room):
                return None
            # Those that are too small make room for it; one that was too large for long goes.
            self._free = [] if slot is None else [free for free in self._free if free is not slot]
            try:
                return _Slot(_whole_pages(nbytes), self._memory)
            except BaseException:
                self._budget.give_back(_whole_pages(nbytes) - room)
                raise
        if not self._budget.try_take(slot.nbytes, room):
            return None
        slot.small_leases = rarely_full
        self._free = [free for free in self._free if free is not slot]
        return slot

    def _give_back(self, lease: Lease, slot: _Slot | None, *, reusable: bool) -> None:
        with self._lock:
            self._leased -= 1
            lease._counted = False
            if slot is None:
                return
            self._budget.give_back(slot.nbytes)
            if reusable and not self._closed:
                self._free.append(slot)
        self._budget.tell()
