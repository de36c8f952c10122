"""What stands behind one ``Checkpointer`` while it is open: loop, threads, memory, queue and writer.

The face holds it, and so does the exit guard, which must be able to drain after the face was forgotten.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limpet.engine.memory import default_limit_bytes
from limpet.engine.opening import View, claim_root
from limpet.engine.save import OnBusy, SaveQueue
from limpet.engine.slots import MemoryBudget, SlotPool
from limpet.engine.staging import Copier
from limpet.engine.writer import RunWriter, WriterSettings
from limpet.errors import HeldError, StoreError
from limpet.events import Event, Hook, Opened
from limpet.format.retention import Policy
from limpet.loop import EngineLoop, ExitGuard, Operation, Wait
from limpet.stores.base import Store
from limpet.types import CheckpointInfo
from limpet.workers import Workers

__all__ = ["Session", "SessionSettings"]

_EXIT_SECONDS = 300.0
_STOP_SECONDS = 20.0
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
    memory_limit: int | None = None
    takeover: bool = False
    name: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()


class Threads:
    """The loop and the threads that a run and its children share."""

    def __init__(self, memory_limit: int | None) -> None:
        self.loop = EngineLoop()
        self.niced = Workers(2, "limpet-encode", niced=True)
        self.urgent = Workers(2, "limpet-urgent")
        self.copier = Copier()
        self.budget = MemoryBudget(memory_limit if memory_limit is not None else default_limit_bytes())
        # Started now: a drain at the program's end cannot start any.
        self.niced.start()
        self.urgent.start()

    def close(self) -> None:
        self.loop.stop()
        self.niced.close()
        self.urgent.close()
        self.copier.close()


class Session:
    """One open run.

    Args:
        store: its root.
        settings: plain data.
        parent: the session whose loop, threads and memory it shares, for a child run.
    """

    def __init__(self, store: Store, settings: SessionSettings, parent: Session | None = None) -> None:
        self.store = store
        self.settings = settings
        self._own_threads = parent is None
        self.threads: Threads = Threads(settings.memory_limit) if parent is None else parent.threads
        self.loop = self.threads.loop
        self.pool = SlotPool(settings.buffers, self.threads.budget)
        self.queue = SaveQueue(self.pool, settings.on_busy, self._wake)
        self.writer: RunWriter
        self._served = threading.Event()
        self._locked = False
        self._guard: ExitGuard | None = None

    def open(self) -> Operation[None]:
        """Take the run over.

        Raises:
            HeldError: a writer on this host is alive.
            FormatError: the place holds something else.
            StoreError: the store could not be used.
        """
        opening = self.loop.call(self._open)
        try:
            yield Wait(opening, shielded=True)
            opening.get()
        except BaseException:
            self._release(opening.error is not None)
            raise
        self.loop.call(self._serve)
        if self._own_threads:
            self._guard = ExitGuard(self._drain_at_exit)

    async def _open(self) -> None:
        settings = self.settings
        await self.store.prepare()
        try:
            self.store.acquire_writer_lock(settings.owner)
            self._locked = True
        except HeldError:
            if not settings.takeover:
                raise
        marker = await claim_root(self.store, settings.name)
        self.writer = RunWriter(
            self.store,
            WriterSettings(
                run=marker.run,
                owner=settings.owner,
                library=settings.library,
                retain=settings.retain,
                compression=settings.compression,
                note=dict(settings.note),
            ),
            self.queue,
            niced=self.threads.niced,
            urgent=self.threads.urgent,
            emit=self.emit,
        )
        await self.writer.open()

    async def _serve(self) -> None:
        try:
            await self.writer.serve()
        except BaseException as error:  # a defect of ours: nothing that waits may wait for ever
            self.queue.close(error)
            raise
        finally:
            self._served.set()

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

    def close(self, timeout_seconds: float | None) -> Operation[list[str]]:
        """Commit what was accepted, leave the run in good order, and end every thread.

        Returns:
            What was not committed, one text a save.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        lost: list[str] = []
        try:
            yield from self._drain(deadline)
        finally:
            self.queue.hurry()
            lost = [repr(save.handle) for save in self.queue.unfinished()]
            if lost:
                self.queue.close(StoreError("the save was not committed before the deadline of close().", kind=_LATE))
        stopping = self.loop.call(self.writer.stop)
        yield Wait(stopping, timeout_seconds=_STOP_SECONDS, shielded=False)
        self._released_by_close()
        return lost

    def _drain(self, deadline: float | None) -> Operation[None]:
        self.queue.hurry()
        while not self.queue.idle():
            changed = self.queue.changed()
            if self.queue.idle():
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            yield Wait(changed, timeout_seconds=left)

    def wait_idle(self, timeout_seconds: float | None) -> Operation[bool]:
        """Wait until nothing accepted is unfinished; whether that came to pass in time."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self.queue.hurry()
        try:
            yield from self._drain(deadline)
        finally:
            self.queue.hurry(False)
        return self.queue.idle()

    def _released_by_close(self) -> None:
        self._release(False)
        if self._guard is not None:
            self._guard.release()

    def _release(self, _failed: bool) -> None:
        if self._locked:
            self.store.release_writer_lock()
            self._locked = False
        self.pool.close()
        closing = self.loop.call(self.store.close)
        closing.wait(_STOP_SECONDS)
        if self._own_threads:
            self.threads.close()

    def _drain_at_exit(self) -> str:
        from limpet.loop import drive

        if self.loop.forked:
            return ""
        lost = drive(self.close(_EXIT_SECONDS))
        return f"limpet: {self.store.url}: not committed at the end of the program: {', '.join(lost)}" if lost else ""

    @property
    def committed(self) -> tuple[CheckpointInfo, ...]:
        """The live checkpoints, oldest first; read without a lock from any thread."""
        return self.writer.committed

    def emit(self, event: Event) -> None:
        """Tell the hooks; on the loop."""
        if isinstance(event, Opened) and event.replaced is not None:
            warnings.warn(
                f"limpet took {event.url} over from {event.replaced}, which did not close it.",
                RuntimeWarning,
                stacklevel=1,
            )
        for hook in self.settings.hooks:
            try:
                hook(event)
            except Exception as error:  # a hook must never cost a save
                warnings.warn(f"limpet's hook {hook!r} failed: {error!r}", RuntimeWarning, stacklevel=1)


