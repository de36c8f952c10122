"""One accepted save on its way through the engine, and the queue that it waits in."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from limpet.engine.slots import Lease, SlotPool
from limpet.engine.staging import Snapshot
from limpet.errors import LimpetError
from limpet.pending import Completion, PendingWrite, Phase
from limpet.types import Outcome, Receipt
from limpet.workers import refuse_reentry

__all__ = ["OnBusy", "Save", "SaveQueue", "interrupted"]

OnBusy = Literal["wait", "skip", "supersede"]


@dataclass(slots=True, eq=False)
class Save:
    """A save: what the caller asked for, its snapshot, and what is known of it so far.

    Attributes:
        handle: what the caller holds.
        meta: JSON-encodable.
        pinned: whether retention must keep it.
        supersedable: whether a newer one may replace it while it waits.
        paced: whether it may be held back a little, so that a tight loop is no stream of requests.
        urgent: whether its caller waits for the commit.
        snapshot: set once staged.
        called: monotonic time of the call.
        stalled_seconds: how long the caller was held up.
        replaced: saves that this one superseded, and whose handle somebody still holds.
        forgotten: steps of those whose handle nobody holds.
        place: in the order of the calls, once it was admitted.
        staged_seconds, encoded_seconds, uploaded_seconds: since the call.
    """

    handle: PendingWrite
    meta: dict[str, Any] = field(default_factory=dict)
    pinned: bool = False
    supersedable: bool = True
    paced: bool = True
    urgent: bool = False
    snapshot: Snapshot | None = None
    called: float = field(default_factory=time.monotonic)
    stalled_seconds: float = 0.0
    staged_seconds: float = 0.0
    encoded_seconds: float = 0.0
    uploaded_seconds: float = 0.0
    replaced: list[Replaced] = field(default_factory=list)
    forgotten: list[int | None] = field(default_factory=list)
    place: int = 0
    _to_copy: list[None] = field(default_factory=lambda: [None])

    def claim_copy(self) -> bool:
        """Whether the caller is the one to stage it, or to give that up: true once, on whatever thread."""
        try:
            self._to_copy.pop()
        except IndexError:
            return False
        return True

    @property
    def step(self) -> int | None:
        """The label that the caller gave."""
        return self.handle.step

    def elapsed(self) -> float:
        """Seconds since the call."""
        return time.monotonic() - self.called

    def take_over(self, older: Save) -> None:
        """Replace ``older``, and what it replaced: when this one ends, they all do."""
        # The lists move instead of being copied: a tight loop supersedes thousands between two commits.
        replaced, older.replaced = older.replaced, []
        forgotten, older.forgotten = older.forgotten, []
        replaced.append(Replaced(older))
        self.replaced = [*self.replaced, *replaced] if self.replaced else replaced
        self.forgotten = [*self.forgotten, *forgotten] if self.forgotten else forgotten
        count = len(self.replaced)
        if count >= 16 and count & (count - 1) == 0:  # at powers of two: seldom enough to cost nothing
            self._forget()

    @property
    def replaced_steps(self) -> list[int | None]:
        """Steps of all saves that this one superseded."""
        return [*self.forgotten, *(older.step for older in self.replaced)]

    def _forget(self) -> None:
        """While the store does not answer, as many are superseded as the caller likes: few bytes each must do."""
        self.forgotten += [older.step for older in self.replaced if older.handle() is None]
        self.replaced = [older for older in self.replaced if older.handle() is not None]

    def release(self) -> None:
        """Give the snapshot's memory back. Idempotent."""
        if self.snapshot is not None:
            self.snapshot.release()
            self.snapshot = None

    def resolve(self, receipt: Receipt) -> None:
        """End well, and with it everything that this save superseded."""
        self.release()
        self.handle.phase = Phase.DONE
        for older in self.replaced:
            older.resolve(receipt)
        self.handle._completion.set_result(receipt)

    def fail(self, error: BaseException) -> None:
        """End badly, and with it everything that this save superseded."""
        self.release()
        self.handle.phase = Phase.DONE
        for older in self.replaced:
            older.fail(error)
        self.handle._completion.set_error(error)


class Replaced:
    """What is left of a save that was superseded. It does not keep the handle alive: that is the caller's to do."""

    __slots__ = ("called", "handle", "staged_seconds", "stalled_seconds", "step")

    def __init__(self, save: Save) -> None:
        self.handle = weakref.ref(save.handle)
        self.step = save.step
        self.called = save.called
        self.stalled_seconds = save.stalled_seconds
        self.staged_seconds = save.staged_seconds

    def resolve(self, by: Receipt) -> None:
        """The newer save is durable."""
        handle = self.handle()
        if handle is None:
            return
        handle.phase = Phase.DONE
        handle._completion.set_result(
            Receipt(
                outcome=Outcome.SUPERSEDED,
                step=self.step,
                durable_step=by.durable_step,
                seq=by.seq,
                stalled_seconds=self.stalled_seconds,
                staged_seconds=self.staged_seconds,
                committed_seconds=time.monotonic() - self.called,
            )
        )

    def fail(self, error: BaseException) -> None:
        """The newer save failed; it carries the same error, and is the one to look at."""
        handle = self.handle()
        if handle is None:
            return
        handle._seen = True
        handle.phase = Phase.DONE
        handle._completion.set_error(error)


def interrupted(error: BaseException) -> BaseException:
    """What becomes of a save whose staging ended with ``error``: an interruption is no error of the save's own."""
    if isinstance(error, Exception):
        return error
    return LimpetError("the state was not staged: its copy was interrupted.", kind="interrupted")


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
            waiting = tuple(self._waiting)
            try:
                lease, claimed = self._admit(save, nbytes)
            except BaseException:
                self._restore(save, waiting)
                raise
        for older in claimed:
            older.release()
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

    def _restore(self, save: Save, waiting: Sequence[Save]) -> None:
        """An interrupt came in the middle of an admission: what has given up its lease for it is replaced by it."""
        self._waiting = deque(older for older in waiting if older.snapshot is not None and older.snapshot.lease.is_held)
        for older in waiting:
            if older not in self._waiting and all(known.handle() is not older.handle for known in save.replaced):
                save.take_over(older)

    def leave(self, save: Save) -> None:
        """The caller of ``save`` did not get its lease, and does not wait for one any more."""
        with self._lock:
            refuse_reentry(self._lock)
            for line in (self._line, self._staging):
                if save in line:
                    line.remove(save)
        self.notify()

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

    def hurry(self, hurried: bool = True) -> None:
        """Stop (or go on) pacing."""
        self.hurried = hurried
        self._wake(True)

    def close(self, error: BaseException) -> None:
        """Fail what waits, and every later call, with ``error``. What is being written goes on."""
        with self._lock:
            refuse_reentry(self._lock)
            self.closed_by = self.closed_by or error
            waiting = list(self._waiting)
            self._waiting.clear()
        for save in waiting:
            save.fail(error)
        self.notify()

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
        for older in reversed(self._waiting):
            if not older.supersedable or older.snapshot is None:
                continue
            claimed.append(older)
            leases.append(older.snapshot.lease)
            lease = self._pool.try_lease(nbytes, instead_of=leases)
            if lease is not None:
                for one in claimed:
                    self._waiting.remove(one)
                return lease, claimed
        return None, []
