"""The queue that accepted saves wait in, and who gives up a place for whom."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from limpet.engine.save import Save
from limpet.engine.slots import Lease, SlotPool
from limpet.pending import Completion, Phase
from limpet.workers import refuse_reentry

__all__ = ["OnBusy", "SaveQueue"]

OnBusy = Literal["wait", "skip", "supersede"]


class SaveQueue:
    """Staged saves in the order of their calls, and the leases that bound how many there may be.

    Shared by callers' threads and the engine's; all decisions are made under one lock in the
    ``*_nowait`` methods, which never block; whoever must wait subscribes with ``changed``.

    Args:
        pool: the memory.
        wake: wakes the engine's loop, with whether it must be at once; called without the lock.
    """

    def __init__(self, pool: SlotPool, on_busy: OnBusy, wake: Callable[[bool], None]) -> None:
        self._pool = pool
        self._on_busy = on_busy
        self._wake = wake
        self._lock = threading.RLock()
        self._waiting: deque[Save] = deque()
        self._active: list[Save] = []
        self._staging: list[Save] = []
        self._line: deque[Save] = deque()
        self._admitted = 0
        self._watchers: list[Completion[None]] = []
        self._engine_will_look = False
        self.closed_by: BaseException | None = None
        self.hurried = False

    def admit_nowait(self, save: Save, nbytes: int) -> Lease | Literal["skip"] | None:
        """A lease for ``save``, ``"skip"``, or ``None`` if it must wait in line until something ``changed``.

        Whoever waits must try again, or ``leave``. If ``save`` takes the place of one that still waits to be written,
        that one is claimed here, in the same step: it is given up only for a lease.

        Raises:
            BaseException: what the queue was closed with.
        """
        with self._lock:
            refuse_reentry(self._lock)
            if self.closed_by is not None:
                raise self.closed_by
            waiting, staging = tuple(self._waiting), tuple(self._staging)
            try:
                lease, claimed = self._admit(save, nbytes)
            except BaseException:
                self._restore(save, waiting, staging)
                raise
        for older in claimed:
            older.release()
        if staging and any(older in staging for older in claimed):
            self._wake(False)  # one that came later may have waited for the copy
        return lease

    def _admit(self, save: Save, nbytes: int) -> tuple[Lease | Literal["skip"] | None, list[Save]]:
        first = not self._line or self._line[0] is save
        lease, claimed = self._lease_for(save, nbytes) if first else (None, [])
        if lease is None:
            if self._on_busy == "skip" and save.supersedable:
                return "skip", claimed
            if save not in self._line:
                self._line.append(save)
            return None, claimed
        if self._line:
            self._line.popleft()
        for older in claimed:
            save.take_over(older)
        self._join(save)
        self._staging.append(save)
        if self._line:
            self.notify()
        return lease, claimed

    def _restore(self, save: Save, waiting: Sequence[Save], staging: Sequence[Save]) -> None:
        """An interrupt came in the middle of an admission: what has given up its lease for it is replaced by it."""
        lost = [older for older in (*waiting, *staging) if older.lease is not None and not older.lease.is_held]
        self._waiting = deque(older for older in waiting if older not in lost)
        self._staging = [older for older in self._staging if older not in lost]
        for older in lost:
            if all(known.handle() is not older.handle for known in save.replaced):
                save.take_over(older)
        for older in staging:
            if older.copying is not None and older not in lost:
                older.copying.resume()

    def leave(self, save: Save) -> None:
        """The caller of ``save`` did not get its lease, and does not wait for one any more."""
        with self._lock:
            refuse_reentry(self._lock)
            for line in (self._line, self._staging):
                if save in line:
                    line.remove(save)
        self.notify()

    def take_copy(self, save: Save) -> bool:
        """The caller of a lazy ``save`` copies it by itself from here on; ``False`` if it was handed over or replaced."""
        with self._lock:
            refuse_reentry(self._lock)
            copying = save.copying
            if copying is None:
                return True
            if save not in self._staging or not copying.pause():
                return False
            save.copying = None  # nobody takes it for a paused copy, whose memory may be given away
            return True

    def push(self, save: Save, *, admitted: bool = True) -> None:
        """Hand a staged save to the engine. Saves are written and committed in the order they were admitted in.

        One that was interrupted may be repeated: what it has done already is not done again.
        """
        with self._lock:
            refuse_reentry(self._lock)
            if not admitted:
                self._join(save)
            closed_by = self.closed_by
            if closed_by is None and save.handle.phase == Phase.STAGING and save not in self._waiting:
                self._insert(save)
                save.handle.phase = Phase.WAITING
            if save in self._staging:  # last: what an interrupt leaves here is for the next try, or ``abandon``
                self._staging.remove(save)
            wake = not (self._engine_will_look and save.paced)
            watched = bool(self._watchers)
        if closed_by is not None:
            save.fail(closed_by)
        elif wake:
            self._wake(save.urgent)
        if watched:  # a call that waits in line may supersede this one now
            self.notify()

    def abandon(self, save: Save, error: BaseException) -> bool:
        """The staging of an admitted save failed in its caller; ``False`` if it was pushed already."""
        with self._lock:
            refuse_reentry(self._lock)
            pushed = save not in self._staging and (save in self._waiting or save in self._active)
            for line in () if pushed else (self._staging, self._waiting):
                if save in line:
                    line.remove(save)
        if not pushed:
            save.fail(error)
            self.notify()
        self._wake(True)
        return not pushed

    def start_nowait(self, wait_seconds: Callable[[], float]) -> Save | float | None:
        """The next save to write; or how many seconds its pacing asks for; or ``None`` if there is nothing to start.

        Args:
            wait_seconds: how long until the next paced commit may start.
        """
        with self._lock:
            refuse_reentry(self._lock)
            # Whoever finishes a save, or the timer of a paced one, makes the engine look again by itself.
            if not self._waiting or len(self._active) >= max(1, self._pool.count - 1):
                self._engine_will_look = bool(self._waiting)
                return None
            save = self._waiting[0]
            if self._staging and self._staging[0].place < save.place:
                self._engine_will_look = False  # the one before it is still being copied: its push wakes the engine
                return None
            urgent = self.hurried or any(not waiting.paced for waiting in self._waiting)
            delay = 0.0 if urgent else wait_seconds()
            if delay > 0:
                self._engine_will_look = True
                return delay
            self._engine_will_look = False
            self._waiting.popleft()
            self._active.append(save)
        save.handle.phase = Phase.WRITING
        return save

    def finished(self, save: Save) -> None:
        """``save`` has ended and released its lease."""
        with self._lock:
            refuse_reentry(self._lock)
            self._active.remove(save)
        self.notify()
        self._wake(True)

    def idle(self) -> bool:
        """Whether nothing is being staged, waits or is being written."""
        with self._lock:
            refuse_reentry(self._lock)
            return not (self._staging or self._waiting or self._active)

    def unfinished(self) -> list[Save]:
        """Everything accepted that has not ended, oldest first."""
        with self._lock:
            refuse_reentry(self._lock)
            return [*self._active, *self._waiting, *self._staging]

    def press(self) -> None:
        """Somebody waits for memory: the oldest save, the first to give its own back, goes at full speed; no other does."""
        for save in self.unfinished()[:1]:
            save.urgent = True
            if (copying := save.copying) is not None:
                copying.hurry()

    def hurry(self, hurried: bool = True) -> None:
        """Stop (or go on) pacing, and hold up nobody for the sake of a copy."""
        self.hurried = hurried
        if hurried:
            for save in tuple(self._staging):
                if (copying := save.copying) is not None:
                    copying.hurry()
        self._wake(True)

    def close(self, error: BaseException) -> None:
        """Fail what waits, or is copied behind its caller's back, and every later call. What is written goes on."""
        with self._lock:
            refuse_reentry(self._lock)
            self.closed_by = self.closed_by or error
            failing = [save for save in (*self._waiting, *self._staging) if self._still(save) is not None]
            self._waiting.clear()
            self._staging = [save for save in self._staging if save not in failing]
        self._pool.give_up_kept()  # without the lock: it tells other queues of the room
        for save in failing:
            save.fail(error)
        self.notify()

    def give_up_kept(self) -> None:
        """Nothing is going to be compared with the last committed checkpoint: its memory is free."""
        self._pool.give_up_kept()

    def changed(self) -> Completion[None]:
        """Settles when a call that had to wait should try again, or when the queue may be idle."""
        watcher: Completion[None] = Completion()
        with self._lock:
            refuse_reentry(self._lock)
            self._watchers.append(watcher)
        return watcher

    def notify(self) -> None:
        """Wake everyone who subscribed with ``changed``."""
        with self._lock:  # a lease that gets lost tells us in the middle of anything: no harm is done
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.set_result(None)

    def _join(self, save: Save) -> None:
        self._admitted += 1
        save.place = self._admitted

    def _insert(self, save: Save) -> None:
        index = len(self._waiting)
        while index and self._waiting[index - 1].place > save.place:
            index -= 1
        self._waiting.insert(index, save)

    def _lease_for(self, save: Save, nbytes: int) -> tuple[Lease | None, list[Save]]:
        """A lease, and the waiting saves whose place it takes, the newest first; they have left the queue."""
        lease = self._pool.try_lease(nbytes)
        if lease is not None or not save.supersedable or self._on_busy != "supersede":
            return lease, []
        claimed: list[Save] = []
        leases: list[Lease] = []
        for older in self._replaceable():
            held = self._still(older)
            if held is None:
                continue
            claimed.append(older)
            leases.append(held)
            lease = self._pool.try_lease(nbytes, instead_of=leases)
            if lease is not None:
                for one in claimed:
                    (self._waiting if one in self._waiting else self._staging).remove(one)
                return lease, claimed
        for older in claimed:
            if older.copying is not None:
                older.copying.resume()
        return None, []

    def _still(self, save: Save) -> Lease | None:
        """The lease of a save that waits, or whose copy is paused by this; ``None`` while it is handed over."""
        if save in self._waiting:
            return save.lease
        copying = save.copying
        return copying.lease if copying is not None and copying.pause() else None

    def _replaceable(self) -> list[Save]:
        """What a newer save may take the place of, the newest first.

        A copy that is under way counts only beside another buffer: if the only one were handed on and on, none of
        many quick saves would ever be written.
        """
        copied = [save for save in self._staging if save.copying is not None] if self._pool.count > 1 else []
        if not copied:  # what waits is in order
            return [save for save in reversed(self._waiting) if save.supersedable]
        found = [save for save in (*self._waiting, *copied) if save.supersedable]
        return sorted(found, key=lambda save: save.place, reverse=True)
