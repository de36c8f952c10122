"""One run in the writer's process: its ``RunWriter``, its saves, and what is told of both."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from limpet.engine.opening import claim_root, take_writer_lock
from limpet.engine.queue import SaveQueue
from limpet.engine.save import Save
from limpet.engine.timing import Timing
from limpet.engine.upload import Uploaded
from limpet.engine.urgency import Encoders
from limpet.engine.writer import RunWriter, WriterSettings
from limpet.errors import StoreError
from limpet.events import Committed, Event, Failed, Opened, Retried, Superseded
from limpet.format import retention
from limpet.format.record import Record
from limpet.remote import messages as said
from limpet.remote.faults import fault_of
from limpet.remote.handed import Handed, Loan, save_from
from limpet.remote.memory import ViewedMemory
from limpet.stores.retry import Retrying
from limpet.types import Outcome, Receipt

__all__ = ["HostedRun", "Turns"]

_TOLD_BY_THE_TRAINER = (Committed, Failed, Superseded)
_GOODBYE_SECONDS = 10.0


class Turns(SaveQueue):
    """The saves that the trainer has started: it has decided whose turn it is already.

    Args:
        closed: told why nothing more can be written.
    """

    def __init__(self, closed: Callable[[BaseException], None]) -> None:
        self.closed_by: BaseException | None = None
        self.hurried = False
        self._closed = closed
        self._started: deque[Save] = deque()
        self._unended: set[Save] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, save: Save) -> None:
        """It is this save's turn."""
        if self.closed_by is not None:
            save.fail(self.closed_by)
            return
        self._unended.add(save)
        self._idle.clear()
        self._started.append(save)

    def start_nowait(self, wait_seconds: Callable[[], float]) -> Save | float | None:  # noqa: ARG002 - paced already
        """The next one."""
        return self._started.popleft() if self._started else None

    def finished(self, save: Save) -> None:
        """``save`` has ended."""
        self._unended.discard(save)
        if not self._unended:
            self._idle.set()

    async def drained(self) -> None:
        """Wait until nothing is being written."""
        await self._idle.wait()

    def notify(self) -> None:
        """Nobody waits for a place here."""

    def give_up_kept(self) -> None:
        """The memory is the trainer's."""

    def close(self, error: BaseException) -> None:
        """Fail what was not begun."""
        if self.closed_by is None:
            self.closed_by = error
            self._closed(error)
        while self._started:
            save = self._started.popleft()
            save.fail(error)
            self.finished(save)


class _Writer(RunWriter):
    """A ``RunWriter`` that tells of its records: of each that is in the log, and of a commit before it is sent."""

    applied: Callable[[Record], None]
    intends: Callable[[Save, str], None]
    _committing: Save | None = None

    def _apply(self, record: Record) -> None:
        super()._apply(record)
        self.applied(record)

    async def _commit(self, save: Save, uploaded: Uploaded) -> Record:
        self._committing = save  # one at a time: each waits for the one before it
        try:
            return await super()._commit(save, uploaded)
        finally:
            self._committing = None

    async def _append(self, make: Callable[[Record], Record]) -> Record:
        def telling(base: Record) -> Record:
            record = make(base)
            if record.commit is not None and self._committing is not None:
                self.intends(self._committing, record.nonce)
            return record

        return await super()._append(telling)


class HostedRun:
    """See the module.

    Args:
        message: which run, and how.
        store: its root.
        encoders: threads to encode on.
        tell: sends a message.
        tell_first: sends a message, and returns once it has left.
        bereft: whether the trainer is dead.
    """

    def __init__(
        self,
        message: said.OpenRun,
        store: Retrying,
        *,
        encoders: Encoders,
        tell: Callable[[said.FromWriter], None],
        tell_first: Callable[[said.FromWriter], None],
        bereft: Callable[[], bool],
    ) -> None:
        self.number = message.run
        self.store = store
        self.encoders = encoders
        self.queue = Turns(lambda error: tell(said.RunClosed(self.number, fault_of(error))))
        self._message = message
        self._tell = tell
        self._tell_first = tell_first
        self._bereft = bereft
        self._opened = asyncio.Event()
        self._writer: _Writer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._locked = False
        self._staged: dict[int, tuple[said.StageSave, Save, ViewedMemory | None]] = {}
        self._numbers: dict[Save, int] = {}
        self._begun: deque[int] = deque(maxlen=256)
        self._wanted: list[int] = []

    # From the opening to the end.

    async def open(self) -> said.Opened:
        """Take the run over.

        Raises:
            LimpetError: see ``Session.open``.
        """
        message = self._message
        try:
            self.store.on_retry = lambda operation, key, error, attempt: self._emit(
                Retried(operation, key, attempt, error)
            )
            await self.store.prepare()
            self._locked = await take_writer_lock(self.store, message.owner, takeover=message.takeover)
            timing = Timing(*message.deadlines)
            marker = await claim_root(self.store, message.name, timing)
            settings = WriterSettings(
                run=marker.run,
                owner=message.owner,
                library=message.library,
                retain=None if message.retain is None else retention.from_json(message.retain),
                compression=message.compression,
                delta=message.delta,
                note=message.note,
                timing=timing,
                continues=message.continues,
            )
            writer = _Writer(self.store, settings, self.queue, encoders=self.encoders, emit=self._emit)
            writer.applied = lambda record: self._tell(said.Recorded(self.number, record))
            writer.intends = self._intends
            await writer.open()
        except BaseException as error:
            self.queue.close(error)
            for number in list(self._staged):
                self._staged.pop(number)[1].fail(error)
            await self._let_go()
            self._opened.set()
            raise
        self._writer = writer
        self._serving = asyncio.create_task(writer.serve())
        live = writer.live
        return said.Opened(
            message.call,
            writer.log.epoch,
            writer.log.head,
            [checkpoint.record for checkpoint in live.checkpoints.values()],
            sorted(live.damaged),
        )

    def begin(self) -> None:
        """Write what was started so far. After ``Opened`` was told: what comes of that builds on it."""
        self._settle_landed()
        for number in self._wanted:
            self.start(number)
        self._opened.set()

    async def drain(self) -> None:
        """The trainer is dead: write all that it had staged, in its order, and leave the run in good order."""
        self.hurry(True)
        await self._opened.wait()
        if self._writer is None:
            return
        staged = sorted(self._staged.items(), key=lambda item: (item[1][0].place or float("inf"), item[0]))
        for number, (_, save, memory) in staged:
            if memory is None or memory.save == number:
                self.start(number)
            else:  # overwritten, at least in part, by a save that never came to its end
                save.release()
        await self.queue.drained()
        await self.stop(_GOODBYE_SECONDS)

    async def stop(self, goodbye_seconds: float) -> None:
        """End the writer; see ``RunWriter.stop``."""
        late = StoreError("the save was not committed before the deadline of close().", kind="late")
        self.queue.close(late)
        for _, save, _ in list(self._staged.values()):
            save.release()
        self._staged.clear()
        if self._writer is not None:
            await self._writer.stop(goodbye_seconds)
        if self._serving is not None:
            await self._serving
        await self._let_go()

    async def _let_go(self) -> None:
        locked, self._locked = self._locked, False
        if locked:
            self.store.release_writer_lock()
        await self.store.close()

    # Saves.

    def stage(self, message: said.StageSave, memory: ViewedMemory | None, loan: Loan, fds: list[int]) -> None:
        """Take note of a save; its turn is still to come."""
        save = save_from(message, Handed(message, memory, loan, fds, self._bereft))
        self._staged[message.number] = message, save, memory
        self._numbers[save] = message.number
        save.handle._completion.add_callback(lambda: self._ended(save))

    def knows(self, number: int) -> bool:
        """Whether it was told of this save before."""
        return number in self._staged or number in self._begun

    def start(self, number: int) -> None:
        """It is this save's turn."""
        if self._writer is None:
            self._wanted.append(number)
            return
        found = self._staged.pop(number, None)
        if found is None:
            return
        self._begun.append(number)
        self.queue.add(found[1])
        self._writer.wake()

    def withdraw(self, number: int) -> None:
        """Forget a save that was not started."""
        found = self._staged.pop(number, None)
        if found is not None:
            self._begun.append(number)
            del self._numbers[found[1]]
            found[1].release()

    def hurry(self, hurried: bool) -> None:
        """Whether somebody waits."""
        self.queue.hurried = hurried

    def _settle_landed(self) -> None:
        """A save whose record an earlier process created, without having told of it, is committed already."""
        assert self._writer is not None
        landed = {checkpoint.record.nonce: checkpoint.record for checkpoint in self._writer.live.checkpoints.values()}
        for number, (message, save, _) in list(self._staged.items()):
            record = next((landed[nonce] for nonce in message.nonces if nonce in landed), None)
            if record is not None:
                del self._staged[number]
                self._begun.append(number)
                save.resolve(_receipt_from(record, save))

    def _ended(self, save: Save) -> None:
        number = self._numbers.pop(save, None)
        if number is None:
            return
        error = save.handle._completion.error
        if error is not None:
            self._tell(said.Ended(self.number, number, fault=fault_of(error)))
        else:
            self._tell(said.Ended(self.number, number, save.handle._completion.get(), kept=save.kept))

    def _intends(self, save: Save, nonce: str) -> None:
        number = self._numbers.get(save)
        if number is not None:
            self._tell_first(said.Intent(self.number, number, nonce))

    # Calls.

    async def call(self, message: said.Call) -> Any:
        """Do what is asked; returns what the trainer is told."""
        if message.name == "stop":
            return await self.stop(*message.args)
        await self._opened.wait()
        if self._writer is None:
            raise self.queue.closed_by or StoreError("the run is not open.")
        calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "pin": self._writer.pin,
            "delete": self._writer.delete,
            "drop_damaged": self._writer.drop_damaged,
            "sweep": self._writer.sweep,
        }
        if message.again and message.name == "delete" and message.args[0] not in self._writer.live.seqs:
            return None
        value = await calls[message.name](*message.args)
        return None if message.name == "pin" else value

    def discard(self, pack: str) -> None:
        """See ``RunWriter.discard``."""
        if self._writer is not None:
            self._writer.discard(pack)

    def _emit(self, event: Event) -> None:
        if isinstance(event, _TOLD_BY_THE_TRAINER):
            return
        if isinstance(event, Opened) and self._message.continues is not None:
            event = dataclasses.replace(event, replaced=None)  # that was a process of the same trainer
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        error = fields.pop("error", None)
        fault = None if error is None else fault_of(error)
        self._tell(said.Happened(self.number, type(event).__name__, fields, fault))


def _receipt_from(record: Record, save: Save) -> Receipt:
    commit = record.commit
    assert commit is not None
    return Receipt(
        Outcome.COMMITTED,
        step=save.step,
        durable_step=save.step,
        seq=record.seq,
        raw_bytes=commit.raw_bytes,
        stored_bytes=commit.stored_bytes,
        new_bytes=commit.new_bytes,
        stalled_seconds=save.stalled_seconds,
        staged_seconds=save.staged_seconds,
        committed_seconds=time.monotonic() - save.called,
    )
