"""``every=``: which writes are due, and what becomes of those that are not.

A throttled state that is small is staged all the same, so that the last one can be committed at close; of a
large one only its step is remembered, so that ``close`` can say what was left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from limpet.engine.memory import MemoryBudget
from limpet.engine.save import Save
from limpet.engine.slots import SlotPool
from limpet.engine.staging import Copier, Draft, Snapshot
from limpet.format.interval import Interval, due
from limpet.workers import refuse_reentry

__all__ = ["HELD_BYTES_MAX", "Throttle"]

HELD_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class Throttle:
    """The state of ``every=`` for one run; safe to use from several threads.

    Args:
        every: the interval; ``None`` lets everything pass.
        clock: monotonic seconds.
    """

    every: Interval | None
    clock: Callable[[], float] = time.monotonic
    left_out: int | None = None
    """Step of the newest state that was throttled and not held."""
    any_left_out: bool = False
    _last_step: int | None = None
    _last_time: float | None = None
    _size: int | None = None
    _held: Save | None = None
    _pool: SlotPool = field(default_factory=lambda: SlotPool(1 << 30, MemoryBudget(64 << 20)))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def passes(self, step: int | None, *, forced: bool) -> bool:
        """Whether a write at ``step`` is due; it counts as saved if so.

        Raises:
            UsageError: the interval counts steps, and ``step`` is ``None``.
        """
        if self.every is None:
            return True
        with self._lock:
            refuse_reentry(self._lock)
            now = self.clock()
            if not forced:
                verdict = due(self.every, step=step, now=now, last_step=self._last_step, last_time=self._last_time)
                if not verdict.due:
                    return False
            self._last_step, self._last_time = step, now
            return True

    def accepted(self, nbytes: int) -> None:
        """A state of ``nbytes`` was accepted: what was held is older now."""
        if self.every is None:  # nothing is ever held
            return
        with self._lock:
            refuse_reentry(self._lock)
            self._size = nbytes
            self.any_left_out = False
            held, self._held = self._held, None
        if held is not None:
            held.release()

    def may_hold(self) -> bool:
        """Whether it is worth looking at a throttled state's size: the last one looked at was small."""
        return self._size is None or self._size <= HELD_BYTES_MAX

    def hold(self, save: Save, draft: Draft, copier: Copier) -> None:
        """Keep a copy of a throttled state, instead of the one before."""
        lease = self._pool.try_lease(draft.plan.slot_bytes)
        if lease is None:
            draft.discard()
            self.leave_out(save.step)
            return
        try:
            copier.copy(draft, lease)
        except BaseException:
            lease.release()
            draft.discard()
            raise
        save.snapshot = Snapshot(draft, lease)
        with self._lock:
            refuse_reentry(self._lock)
            held, self._held = self._held, save
            self.any_left_out = False
        if held is not None:
            held.release()

    def leave_out(self, step: int | None, nbytes: int | None = None) -> None:
        """A throttled state was not kept; it had ``nbytes``, if anybody looked."""
        with self._lock:
            refuse_reentry(self._lock)
            self.left_out, self.any_left_out = step, True
            self._size = self._size if nbytes is None else nbytes

    def close(self) -> None:
        """Forget the memory; what is still held goes too."""
        held = self.take_held()
        if held is not None:
            held.release()
        self._pool.close()

    def take_held(self) -> Save | None:
        """The throttled state that is still newer than everything accepted, to be committed at close."""
        with self._lock:
            refuse_reentry(self._lock)
            held, self._held = self._held, None
        return held
