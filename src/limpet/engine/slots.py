"""Slots: reused memory that snapshots are copied into.

A slot is one mapping, page-aligned, huge-page-advised and touched once, which makes later copies
three times faster than fresh memory. It is leased: it goes back to the pool when its last reader is
done, and never while somebody below us (an upload that was cancelled, say) may still read from it: then
the memory is abandoned to the garbage collector and the next lease maps anew.

A lease may be kept when its snapshot is written: what comes next is compared with it. It is nobody's right: it ends by
itself as soon as a lease would be refused for want of its room. Who is kept, the budget knows, and nobody else.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from limpet.engine.memory import MemoryBudget
from limpet.pages import HUGE_PAGE_BYTES, KEPT_TO_OURSELVES, advise, private_pages
from limpet.workers import refuse_reentry

__all__ = ["Bytes8", "Lease", "SlotPool"]

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

    __slots__ = (
        "__weakref__", "_borrowed", "_counted", "_kept", "_lent", "_pool", "_released", "_slot", "memory", "on_end",
    )  # fmt: skip

    def __init__(self, pool: SlotPool, slot: _Slot | None, memory: Bytes8) -> None:
        self._pool = pool
        self._slot = slot
        self.memory = memory
        self._borrowed: list[weakref.ref[Bytes8]] = []
        self._released = False
        self._counted = False
        self._kept = False
        self._lent = False
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

    def copy_if_held(self, offset: int, out: Bytes8) -> bool:
        """Fill ``out`` with what is there from ``offset`` on; ``False`` if the lease ended before that was done.

        Nobody waits for it: the memory may be somebody else's in the middle of the copy.
        """
        memory = self.memory
        if not self._released:
            np.copyto(out, memory[offset : offset + out.size])
        return not self._released

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
        if self._kept:
            self._pool._give_up(self)
            return
        if not self.is_held:  # most often it ended when a newer save took its place
            return
        with self._pool._lock:
            if self._released:
                return
            lent = lent or self._is_borrowed()
            slot = self._slot
            self._end()
        self._pool._give_back(self, slot, reusable=not lent)

    def keep(self, beside_bytes: int = 0, *, lent: bool = False) -> Lease | None:
        """End this lease, and keep its memory as long as nobody needs the room.

        A pool keeps two so, or as many as it has leases: the one that counts, and those whose commits are under way.

        Args:
            beside_bytes: what is kept with it, outside of the slot: it counts too.
            lent: somebody beyond our sight may still read from it when it ends.

        Returns:
            The lease to read from, until it ends by itself or is released; ``None`` if there is no room to keep it:
            then this one goes on.
        """
        return self._pool._keep(self, beside_bytes, lent)

    def while_held(self, do: Callable[[], None]) -> None:
        """``do()``, unless it has ended; it does not end meanwhile."""
        with self._pool._lock:
            if not self._released:
                do()

    def _is_borrowed(self) -> bool:
        return any(reference() is not None for reference in self._borrowed)

    def _end(self) -> None:
        if self.on_end is not None:
            self.on_end()
        self._released = True
        self._borrowed.clear()
        self.memory = _EMPTY
        self._slot = None


_EMPTY: Bytes8 = np.empty(0, dtype=np.uint8)


class SlotPool:
    """``count`` leases, each with as much reused memory as its snapshot needs.

    Args:
        count: how many snapshots may exist at once.
        budget: what all slots may take, together with those of other pools.
        memory: maps so many bytes.
        keeps: whether one more is going to be kept.
    """

    def __init__(
        self,
        count: int,
        budget: MemoryBudget,
        memory: Callable[[int], mmap.mmap] = private_pages,
        *,
        keeps: bool = False,
    ) -> None:
        self.count = count
        self._memory = memory
        self._budget = budget
        self._free: list[_Slot] = []
        self._leased = 0
        self._keeps = keeps
        self._kept_max = max(count, 2)
        self._lock = threading.RLock()
        self._closed = False

    def try_lease(self, nbytes: int, instead_of: Sequence[Lease] = ()) -> Lease | None:
        """A lease on ``nbytes`` of memory, or ``None`` while none is free or they do not fit beside the others.

        What is merely kept ends, in all pools of the budget and as far as it must, before a lease is refused for want of
        room.

        Args:
            nbytes: how many.
            instead_of: leases that nobody reads from: they end in the same step, or, if that gives no room, go on.
        """
        if self._leased >= self.count and not instead_of:  # the usual answer in a tight loop: no lock for that
            return None
        lease = self._lease(nbytes, instead_of)
        more = self._budget.ever_kept and self._leased - len(instead_of) < self.count
        while lease is None and more:
            more = self._budget.reclaim()
            lease = self._lease(nbytes, instead_of)
        return lease

    def _lease(self, nbytes: int, instead_of: Sequence[Lease]) -> Lease | None:
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
        """Map and touch memory for as many snapshots of ``nbytes`` as there are free leases and room beside what is kept."""
        leases: list[Lease] = []
        while (lease := self._lease(nbytes, ())) is not None:
            leases.append(lease)
        spare = self._spare(nbytes) if self._keeps and nbytes > _TINY else None
        for slot in (spare, *(lease._slot for lease in leases)):
            if slot is not None:
                slot.touch()
        for lease in leases:
            lease.release()
        if spare is not None:
            with self._lock:
                self._free.append(spare)

    def _spare(self, nbytes: int) -> _Slot | None:
        """A slot for what is going to be kept; it is counted once it is used."""
        with self._lock:
            slot = None if self.kept or self._closed else self._take(nbytes, ())
            if slot is not None:
                self._budget.give_back(slot.nbytes)
            return slot

    @property
    def kept(self) -> list[Lease]:
        """The leases that are kept, the one that is kept longest first."""
        return [lease for lease in self._budget.kept_by(self) if isinstance(lease, Lease)]

    def give_up_kept(self) -> None:
        """End the leases that are kept, if any are."""
        for lease in self.kept:
            lease.release()

    def close(self) -> None:
        """Forget the free slots, and the kept one; those still leased are forgotten when they come back."""
        with self._lock:
            refuse_reentry(self._lock)
            self._closed = True
            self._free.clear()
        self.give_up_kept()

    def _keep(self, lease: Lease, beside_bytes: int, lent: bool) -> Lease | None:
        for newest in self.kept[self._kept_max - 1 :]:
            newest.release()
        slot_bytes = 0 if lease._slot is None else lease._slot.nbytes
        if not self.fits(slot_bytes + beside_bytes):
            return None
        if beside_bytes and not self._budget.try_take(beside_bytes):
            self.give_up_kept()  # those before make room for it
            if not self._budget.try_take(beside_bytes):
                return None
        with self._lock:
            refuse_reentry(self._lock)
            ended = self._closed or lease._released
            if not ended:
                kept = Lease(self, lease._slot, lease.memory)
                kept._borrowed, kept.on_end = lease._borrowed[:], lease.on_end
                kept._kept, kept._lent = True, lent
                lease.on_end = None  # the content stays what it is
                lease._end()
                self._leased -= 1
                lease._counted = False
                self._budget.keep(self, kept, beside_bytes + slot_bytes, partial(self._end_kept, kept))
        if ended:
            self._budget.give_back(beside_bytes)
            return None
        self._budget.tell()  # whoever waits for room must know that there is some
        return kept

    def _give_up(self, lease: Lease) -> None:
        counted = self._budget.forget(lease)
        self._end_kept(lease)  # whether it counted or not: who reclaimed it may have been interrupted
        if counted:
            self._budget.tell()

    def _end_kept(self, lease: Lease) -> None:
        with self._lock:
            if lease._released:
                return
            slot, lent = lease._slot, lease._lent or lease._is_borrowed()
            lease._end()
            if slot is not None and not lent and not self._closed:
                self._free.append(slot)

    def _take(self, nbytes: int, returned: Sequence[_Slot]) -> _Slot | None:
        """The smallest slot that fits, of the free ones and those ``returned``, else a new one."""
        room = sum(slot.nbytes for slot in returned)
        # One that takes more than its share of the memory, as a window does, would leave none for the others.
        most = max(nbytes, self._budget.limit_bytes // self.count) if self.count else nbytes
        slot = min(
            (slot for slot in (*self._free, *returned) if nbytes <= slot.nbytes <= _whole_pages(most)),
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
