"""What stands behind one ``Checkpointer`` while it is open: loop, threads, memory, queue and writer.

The face holds it, and so does the exit guard, which must be able to drain after the face was forgotten.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limpet.engine.capture import clear_stale_spools
from limpet.engine.opening import View, claim_root, take_writer_lock
from limpet.engine.queue import OnBusy, SaveQueue
from limpet.engine.save import Save
from limpet.engine.slots import SlotPool, anonymous_memory
from limpet.engine.timing import Timing
from limpet.engine.writer import RunWriter, WriterSettings
from limpet.errors import StoreError, UsageError
from limpet.events import Event, Hook, Opened, Retried, warn_gently
from limpet.failpoints import reach
from limpet.format.retention import Policy
from limpet.loop import ExitGuard, Operation, Wait, drive, insist, on_worker
from limpet.pending import Completion, Unseen
from limpet.remote.launch import Launched
from limpet.remote.link import Link
from limpet.remote.messages import Place
from limpet.remote.proxy import RemoteWriter
from limpet.stores.base import Store
from limpet.stores.retry import Retrying
from limpet.threads import Threads
from limpet.types import CheckpointInfo
from limpet.workers import still_at_work

__all__ = ["Session", "SessionSettings"]

_EXIT_SECONDS = 300.0
_STOP_SECONDS = 20.0
_GOODBYE_SECONDS = 10.0
_LATE_STOP_SECONDS = 0.15
"""For each step of ending, once the store has shown that it does not answer."""
_LATE = "late"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Plain data that a session is made from; see ``Checkpointer`` for what each means."""

    owner: str
    library: str
    retain: Policy | None = None
    buffers: int = 2
    on_busy: OnBusy = "supersede"
    compression: str = "auto"
    delta: bool = False
    memory_limit: int | None = None
    takeover: bool = False
    name: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    timing: Timing = field(default_factory=Timing)
    place: Place | None = None


class Session:
    """One open run.

    Args:
        store: its root.
        settings: plain data.
        parent: the session whose loop, threads and memory it shares, for a child run.
        launched: the writer's process, if it was started ahead.

    Attributes:
        unseen: failed saves that nobody has looked at.
        before_drain: hands in what was held back, when it is drained at the program's end.
        ending: the program ends, and what is accepted is drained: nothing more is accepted.
        entered: threads that are in the middle of a write, and what they run on top of it must not wait for that.
    """

    def __init__(
        self, store: Store, settings: SessionSettings, parent: Session | None = None, launched: Launched | None = None
    ) -> None:
        self.store = store
        self.settings = settings
        self._parent = parent
        self._children: list[Session] = []
        self.threads: Threads = (
            Threads(settings.memory_limit, with_process=settings.place is not None, launched=launched)
            if parent is None
            else parent.threads
        )
        self.loop = self.threads.loop
        link = self.threads.link
        memory = anonymous_memory if link is None else link.memory
        self.pool = SlotPool(settings.buffers, self.threads.budget, memory, keeps=settings.delta)
        self.queue = SaveQueue(self.pool, settings.on_busy, self._wake)
        self.threads.budget.watch(self.queue.notify)
        self.unseen = Unseen()
        self.before_drain: Callable[[], None] = lambda: None
        self.ending = False
        self.entered: set[int] = set()
        self.writer: RunWriter | RemoteWriter
        self._locked = False
        self._given_up = False
        self._guard: ExitGuard | None = None

    def open(self) -> Operation[None]:
        """Take the run over.

        Raises:
            HeldError: a writer on this host is alive.
            FormatError: the place holds something else.
            StoreError: the store could not be used.
        """
        opening: Completion[None] | None = None
        try:
            opening = self.loop.call(self._open)
            yield Wait(opening, shielded=True, interruptible=True)
            opening.get()
            self.loop.call(self._serve)
            if self._parent is not None:
                self._parent._children.append(self)
            else:
                self._guard = ExitGuard(self._drain_at_exit, self._describe_lost)
                self._guard.start()
        except GeneratorExit:
            self._given_up = True
            self.loop.call(self.store.close)  # it has told its threads to end, and let go of the lock, before it waits
            self._end_threads(_LATE_STOP_SECONDS)
            raise
        except BaseException:
            # From the keyboard, if it goes on: the store may not answer, and nobody wants to wait for it.
            self._given_up = opening is None or not opening.done()
            patience = _LATE_STOP_SECONDS if self._given_up else _STOP_SECONDS
            is_open = opening is not None and opening.done() and opening.error is None
            try:
                yield from self._stop(patience) if is_open else self._release(patience)
            finally:
                self._end_threads(_LATE_STOP_SECONDS)
            raise

    async def _open(self) -> None:
        if self.threads.link is not None:
            await self._open_remotely(self.threads.link)
            return
        settings = self.settings
        if isinstance(self.store, Retrying):
            self.store.on_retry = lambda operation, key, error, attempt: self.emit(
                Retried(operation, key, attempt, error)
            )
        await self.store.prepare()
        self._locked = await take_writer_lock(self.store, settings.owner, takeover=settings.takeover)
        if self._given_up:  # before it was there to be given back
            self._unlock()
            raise UsageError("the opening was given up.", kind="closed")
        await self._clear_spools()
        reach("open.locked")
        marker = await claim_root(self.store, settings.name, settings.timing)
        reach("open.claimed")
        self.writer = RunWriter(
            self.store,
            self._writer_settings(marker.run),
            self.queue,
            encoders=self.threads.encoders,
            emit=self.emit,
        )
        await self.writer.open()

    async def _open_remotely(self, link: Link) -> None:
        """Have the writer's process take the run over. What is read goes through this process's own store."""
        settings = self.settings
        assert settings.place is not None
        self.writer = RemoteWriter(
            link,
            settings.place,
            self.store,
            self._writer_settings(""),
            self.queue,
            name=settings.name,
            takeover=settings.takeover,
            urgent=self.threads.urgent,
            emit=self.emit,
        )
        await self.writer.open()
        await self._clear_spools()

    def _writer_settings(self, run: str) -> WriterSettings:
        settings = self.settings
        return WriterSettings(
            run=run,
            owner=settings.owner,
            library=settings.library,
            retain=settings.retain,
            compression=settings.compression,
            delta=settings.delta,
            note=dict(settings.note),
            timing=settings.timing,
        )

    async def _clear_spools(self) -> None:
        for folder in (self.store.spool_folder(), tempfile.gettempdir()):
            if folder is not None:
                await self.threads.urgent.run(clear_stale_spools, Path(folder))

    def push(self, save: Save, *, admitted: bool = True) -> None:
        """Hand a staged save to the engine; see ``SaveQueue.push``."""
        if isinstance(self.writer, RemoteWriter):
            self.writer.announce(save)
        self.queue.push(save, admitted=admitted)

    async def _serve(self) -> None:
        try:
            await self.writer.serve()
        except BaseException as error:  # a defect of ours: nothing that waits may wait for ever
            self.queue.close(error)
            raise

    def _wake(self, at_once: bool) -> None:
        (self.loop.call_soon if at_once else self.loop.call_gently)(self.writer.wake)

    def view(self) -> View:
        """What is live now, as the writer knows it."""
        live = self.writer.live
        seqs = sorted(live.checkpoints, reverse=True)
        return View(
            [live.checkpoints[seq] for seq in seqs],
            {seq: StoreError(f"checkpoint {seq} could not be loaded when the run was opened.") for seq in live.damaged},
            self.writer.log.quarantined,
        )

    async def view_async(self) -> View:
        """The same, on the loop."""
        return self.view()

    def close(self, timeout_seconds: float | None) -> Operation[tuple[list[str], BaseException | None]]:
        """Commit what was accepted, leave the run in good order, and end every thread.

        Returns:
            What was not committed, one text a save; and what came meanwhile, for the caller to raise: a task's
            cancellation, which changed nothing, or an interrupt from the keyboard, which ended the waiting at once.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        interrupted: BaseException | None = None
        try:
            interrupted = yield from self._drain_whatever_comes(deadline)
        except GeneratorExit:  # thrown away: it may not wait any more
            self._end_threads(_LATE_STOP_SECONDS)
            raise
        except BaseException as error:  # from the keyboard
            interrupted = error
        self.queue.hurry()
        lost = [repr(save.handle) for save in self.queue.unfinished()]
        if lost:
            self.queue.close(StoreError("the save was not committed before the deadline of close().", kind=_LATE))
        patience = _LATE_STOP_SECONDS if lost else _STOP_SECONDS
        try:
            cancelled = yield from self._stop(patience)
        finally:
            self._end_threads(patience)
        return lost, interrupted or cancelled

    def _drain_whatever_comes(self, deadline: float | None) -> Operation[BaseException | None]:
        """Drain; returns the cancellation that came meanwhile."""
        cancelled: BaseException | None = None
        while True:
            try:
                yield from self._drain(deadline, shielded=True)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # asyncio's Task.cancel()
                cancelled = error
            else:
                return cancelled

    def _stop(self, patience: float) -> Operation[BaseException | None]:
        """End the writer, and let go of the store; returns the cancellation that came meanwhile."""
        stopping = self.loop.call(self.writer.stop, min(patience, _GOODBYE_SECONDS))
        cancelled = yield from insist(Wait(stopping, timeout_seconds=patience, shielded=True))
        return (yield from self._release(patience)) or cancelled

    def _drain(self, deadline: float | None, *, shielded: bool = False) -> Operation[None]:
        self.queue.hurry()
        while not self.queue.idle():
            changed = self.queue.changed()
            if self.queue.idle():
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            yield Wait(changed, timeout_seconds=left, shielded=shielded, interruptible=True)

    def wait_idle(self, timeout_seconds: float | None) -> Operation[bool]:
        """Wait until nothing accepted is unfinished; whether that came to pass in time."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self.queue.hurry()
        try:
            yield from self._drain(deadline)
        finally:
            self.queue.hurry(False)
        return self.queue.idle()

    def _release(self, patience: float) -> Operation[BaseException | None]:
        """Let go of the store; returns the cancellation that came meanwhile."""
        # On a thread of ours: closing a file, too, can hang on a disk that does.
        unlocking = on_worker(self.threads.urgent, self._unlock)
        cancelled = yield from insist(Wait(unlocking, timeout_seconds=patience, shielded=True))
        closing = self.loop.call(self.store.close)
        return (yield from insist(Wait(closing, timeout_seconds=patience, shielded=True))) or cancelled

    def _unlock(self) -> None:
        locked, self._locked = self._locked, False
        if locked:
            self.store.release_writer_lock()

    def discard(self) -> None:
        """Nobody has it: end it, without anybody who waits. Idempotent."""
        if self._guard is None:
            self._end_threads(_LATE_STOP_SECONDS)
        else:
            self._guard.forget()

    def forget(self) -> None:
        """The face is gone: commit what was accepted, and end, without anybody who waits. Never blocks."""
        if self._guard is not None:
            self._guard.forget()

    def _end_threads(self, patience: float) -> None:
        """End what this session has of its own. Idempotent."""
        self.queue.close(UsageError("the checkpointer is closed.", hint="Open a new one.", kind="closed"))
        self.threads.budget.unwatch(self.queue.notify)
        self.pool.close()
        if self._parent is None:
            self.threads.close(min(patience, 5.0))
        elif self in self._parent._children:
            self._parent._children.remove(self)
        if self._guard is not None:
            self._guard.release()

    def _with_descendants(self) -> list[Session]:
        return [*(session for child in list(self._children) for session in child._with_descendants()), self]

    def _drain_at_exit(self) -> str:
        if self.loop.forked:
            return ""
        sessions = self._with_descendants()
        lost: list[str] = []
        for session in sessions:
            session.ending = True
        for session in sessions:
            session.before_drain()
            lost += drive(session.close(_EXIT_SECONDS))[0]
        for session in sessions:
            lost += [f"{handle!r} ({handle._completion.error})" for handle in session.unseen.take_all()]
        return self._lost_text(lost)

    def _describe_lost(self) -> str:
        if self.loop.forked:
            return ""
        return self._lost_text(
            [repr(save.handle) for session in self._with_descendants() for save in session.queue.unfinished()]
        )

    def _lost_text(self, lost: list[str]) -> str:
        if not lost:
            return ""
        hanging = still_at_work()
        threads = f"; still at work: {', '.join(hanging)}" if hanging else ""
        return f"limpet: {self.store.url}: not committed at the end of the program: {', '.join(lost)}{threads}"

    @property
    def committed(self) -> tuple[CheckpointInfo, ...]:
        """The live checkpoints, oldest first; read without a lock from any thread."""
        return self.writer.committed

    def tell(self, event: Event) -> None:
        """Tell the hooks, from any thread."""
        if self.settings.hooks:
            self.loop.call_soon(self.emit, event)

    def emit(self, event: Event) -> None:
        """Tell the hooks; on the loop."""
        if isinstance(event, Opened) and event.replaced is not None:
            warn_gently(f"limpet took {event.url} over from {event.replaced}, which did not close it.")
        for hook in self.settings.hooks:
            try:
                hook(event)
            except Exception as error:  # a hook must never cost a save
                warn_gently(f"limpet's hook {hook!r} failed: {error!r}")
