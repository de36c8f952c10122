"""A run's writer as its trainer sees it: the face of ``RunWriter``, the work in another process.

The trainer's queue decides, as ever, what is written when, and what gives way; the process does it. Each save is told of
as soon as it is staged, so that it outlives the trainer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import msgspec

from limpet import events
from limpet.engine.live import Checkpoint, LiveSet, info_of
from limpet.engine.pacing import Pacer
from limpet.engine.queue import SaveQueue
from limpet.engine.reader import Reader
from limpet.engine.save import Save
from limpet.engine.staging import Snapshot
from limpet.engine.writer import WriterSettings
from limpet.errors import NotFoundError, StoreError
from limpet.events import Committed, Event, Failed, Restarted, Superseded, warn_gently
from limpet.format import retention
from limpet.format.record import Record, from_ranges
from limpet.format.standing import Standing
from limpet.pending import Phase
from limpet.remote import messages as said
from limpet.remote.link import Link
from limpet.remote.memory import SharedMemory
from limpet.remote.told import Told
from limpet.stores.base import Store
from limpet.types import CheckpointInfo, Receipt, Swept
from limpet.workers import Workers

__all__ = ["RemoteWriter"]

_encode_node = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _LogView:
    """What is known here of the log: newer records that are damaged."""

    quarantined: tuple[int, ...] = ()


class RemoteWriter:
    """See the module.

    Args:
        link: to the process.
        place: of the run.
        store: the same, to read from here.
        settings: plain data; the run's id is found out over there.
        queue: where callers put their saves.
        name: of a child run.
        takeover: also from a writer that is alive on this host.
        urgent: threads to read on.
        emit: tells the hooks.
    """

    def __init__(
        self,
        link: Link,
        place: said.Place,
        store: Store,
        settings: WriterSettings,
        queue: SaveQueue,
        *,
        name: str,
        takeover: bool,
        urgent: Workers,
        emit: Callable[[Event], None],
    ) -> None:
        self.run = link.next_run()
        self.live = LiveSet()
        self.committed: tuple[CheckpointInfo, ...] = ()
        self.log = _LogView()
        self.policy: retention.Policy
        self.reader = Reader(store, urgent)
        self._link = link
        self._place = place
        self._store = store
        self._settings = settings
        self._queue = queue
        self._name = name
        self._takeover = takeover
        self._emit = emit
        self._epoch: int | None = None
        self._hurried = False
        self._pacer = Pacer(
            queue,
            interval_seconds=store.commit_interval_seconds,
            clock=settings.timing.clock,
            start=self._start,
        )
        self._stopped = asyncio.Event()
        self._told: dict[int, Told] = {}
        self._numbers: dict[Save, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Opening and ending.

    async def open(self) -> None:
        """Take the run over; see ``RunWriter.open``."""
        await self._link.open(self)

    def opening(self, call: int) -> said.OpenRun:
        """What the process is told to open, for the first time or in place of one that died."""
        settings = self._settings
        timing = settings.timing
        return said.OpenRun(
            call=call,
            run=self.run,
            place=self._place,
            owner=settings.owner,
            library=settings.library,
            retain=None if settings.retain is None else retention.to_json(settings.retain),
            compression=settings.compression,
            delta=settings.delta,
            takeover=self._takeover,
            name=self._name,
            note=settings.note,
            deadlines=(timing.commit_deadline, timing.open_deadline, timing.upload_deadline, timing.grace),
            continues=self._epoch,
        )

    def reopen(self, answer: asyncio.Future[Any]) -> None:
        """A new process opens the run again; if it cannot, nothing more is written."""

        async def check() -> None:
            try:
                await answer
            except Exception as error:
                self.lose(error)

        task = asyncio.get_running_loop().create_task(check())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def adopt(self, opened: said.Opened) -> None:
        """Go on with what the process found."""
        pinned = from_ranges(opened.head.pinned)
        self._epoch = opened.epoch
        checkpoints = [Checkpoint(record, info_of(record, pinned=record.seq in pinned)) for record in opened.records]
        self.live = LiveSet(checkpoints, opened.damaged)
        self.log.quarantined = tuple(opened.head.quarantined)
        self.policy = retention.from_json(opened.head.retain)
        self.committed = tuple(self.live.infos())
        self.standing = Standing(self.policy, self.committed)

    async def serve(self) -> None:
        """Have written what the queue holds, until ``stop``."""
        self.wake()
        await self._stopped.wait()

    async def stop(self, goodbye_seconds: float) -> None:
        """See ``RunWriter.stop``."""
        try:
            await self._link.call(self.run, "stop", goodbye_seconds)
        except Exception as error:
            warn_gently(f"limpet left {self._store.url} untidy: {error}")
        self._link.leave(self)
        self.lose(StoreError("the save was not committed before the deadline of close().", kind="late"))
        self._pacer.stop()
        self._stopped.set()

    def lose(self, error: BaseException) -> None:
        """Nothing more will be written: fail what is left. From any thread."""
        self._queue.close(error)
        with self._link.lock:
            left = list(self._told.values())
            self._told.clear()
            self._numbers.clear()
        for told in left:
            if told.started:
                self._fail(told.save, error)

    def report(self, how: str) -> None:
        """The process died, and a new one is on its way."""
        unfinished = len(self._told)
        self._queue.give_up_kept()  # the new one knows nothing of it
        warn_gently(
            f"limpet: the process that writes {self._store.url} ended {how}. A new one goes on with what is staged."
        )
        self._emit(Restarted(self._store.url, how, unfinished))

    # Saves.

    def announce(self, save: Save) -> None:
        """Tell of a save that was staged, from the thread that staged it. Idempotent."""
        snapshot = save.snapshot
        if snapshot is None:
            return
        with self._link.lock:
            number = self._numbers.get(save)
            if number is None:
                number = self._link.next_save()
                self._numbers[save] = number
                self._told[number] = Told(number, save, ref(snapshot.lease))
            self._send(self._told[number], snapshot)
            self._withdraw()

    def _send(self, told: Told, snapshot: Snapshot) -> None:
        # While it is held: a newer save may be about to take its memory, and must not find it marked as the older one's.
        snapshot.lease.while_held(lambda: self._send_held(told, snapshot))

    def _send_held(self, told: Told, snapshot: Snapshot) -> None:
        lease, save, plan = snapshot.lease, told.save, snapshot.plan
        mapping = lease.mapping
        shared = mapping if isinstance(mapping, SharedMemory) else None
        if shared is not None:
            shared.hold(lease, told.number)
            self._link.show(shared)
        spooled = [] if snapshot.spool is None else snapshot.spool.folders
        message = said.StageSave(
            run=self.run,
            number=told.number,
            place=save.place,
            step=save.step,
            meta=save.meta,
            pinned=save.pinned,
            urgent=save.urgent,
            called=save.called,
            stalled_seconds=save.stalled_seconds,
            staged_seconds=save.staged_seconds,
            node=_encode_node(snapshot.node),
            buffers=plan.buffers,
            chunks=plan.chunks,
            slot_bytes=plan.slot_bytes,
            raw_bytes=plan.raw_bytes,
            slot=0 if shared is None else shared.number,
            data=lease.memory.tobytes() if shared is None else b"",
            files={index: (piece.path, piece.size) for index, piece in snapshot.files.items()},
            folders=[path for path, _ in spooled],
            nonces=told.nonces,
        )
        told.packet = self._link.send(message, tuple(fd for _, fd in spooled))

    def _withdraw(self) -> None:
        """Tell which saves gave way to newer ones; of one that was not told of yet, nothing is."""
        withdrawn = [told for told in self._told.values() if told.is_withdrawn]
        for told in withdrawn:
            del self._told[told.number], self._numbers[told.save]
        known = [told.number for told in withdrawn if told.packet is None or not self._link.take_back(told.packet)]
        if known:
            self._link.send(said.Withdraw(self.run, known))

    def tell_again(self) -> None:
        """A new process: tell of everything that has not ended."""
        for told in list(self._told.values()):
            snapshot = told.save.snapshot
            if snapshot is not None and not told.is_withdrawn:
                self._send(told, snapshot)
                if told.started:
                    self._link.send(said.StartSave(self.run, told.number))
        self._link.send(said.Hurry(self.run, self._hurried))

    def wake(self) -> None:
        """Start every save whose turn it is; on the loop."""
        if self._queue.hurried != self._hurried:
            self._hurried = self._queue.hurried
            self._link.send(said.Hurry(self.run, self._hurried))
        self._pacer.look()

    def _start(self, save: Save) -> None:
        with self._link.lock:
            number = self._numbers.get(save)
            told = None if number is None else self._told[number]
            if told is not None:
                told.started = True
                self._link.send(said.StartSave(self.run, told.number))
            self._withdraw()
        if told is None or self._link.lost is not None:
            self._fail(save, self._link.lost or StoreError("the save was not handed to the writer's process."))

    # What the process says; on the loop.

    def take(self, message: Any) -> None:
        """A message about this run."""
        match message:
            case said.Recorded():
                self._apply(message.record)
            case said.Happened():
                self._emit(_event(message))
            case said.RunClosed():
                self._queue.close(message.fault.error())
            case said.Intent() | said.Released() | said.Ended():
                told = self._told.get(message.number)
                if told is not None:
                    self._take_of_save(told, message)

    def _take_of_save(self, told: Told, message: said.Intent | said.Released | said.Ended) -> None:
        save = told.save
        match message:
            case said.Intent():
                told.nonces.append(message.nonce)
            case said.Released():
                # Not given back yet: if that process dies before the commit, the next one has to write it again.
                told.lent = message.lent
                save.handle.phase = Phase.COMMITTING
            case said.Ended():
                with self._link.lock:
                    del self._told[told.number]
                    del self._numbers[save]
                if message.kept and save.snapshot is not None:
                    self._queue.give_up_kept()  # it is the base now
                    save.snapshot.keep(lent=told.lent)
                if told.lent and save.snapshot is not None:  # unless it was kept
                    save.snapshot.release(lent=True)
                if message.receipt is not None:
                    self._link.progress()
                    self._succeed(save, message.receipt)
                else:
                    assert message.fault is not None
                    self._fail(save, message.fault.error())

    def _apply(self, record: Record) -> None:
        left = self.live.apply(record)
        self.standing.follow([checkpoint.info for checkpoint in left], self.live.info(record.seq))
        self.log.quarantined = tuple(record.quarantined)
        self.committed = tuple(self.live.infos())

    def _succeed(self, save: Save, receipt: Receipt) -> None:
        assert receipt.seq is not None
        self._emit(Committed(receipt.seq, save.step, receipt.raw_bytes, receipt.new_bytes, save.elapsed()))
        for step in save.replaced_steps:
            self._emit(Superseded(step, save.step))
        save.resolve(receipt)
        self._queue.finished(save)

    def _fail(self, save: Save, error: BaseException) -> None:
        save.fail(error)
        self._emit(Failed(save.step, error))
        self._queue.finished(save)

    # Calls; on the loop.

    async def pin(self, seq: int, pinned: bool) -> CheckpointInfo:
        """See ``RunWriter.pin``."""
        await self._link.call(self.run, "pin", seq, pinned)
        checkpoint = self.live.checkpoints.get(seq)
        if checkpoint is None:
            raise NotFoundError(f"{self._store.url} has no live checkpoint {seq}.")
        return checkpoint.info

    async def delete(self, seq: int) -> None:
        """See ``RunWriter.delete``."""
        await self._link.call(self.run, "delete", seq)

    async def drop_damaged(self) -> tuple[int, ...]:
        """See ``RunWriter.drop_damaged``."""
        dropped: list[int] = await self._link.call(self.run, "drop_damaged")
        self.live.damaged -= set(dropped)
        return tuple(dropped)

    async def sweep(self) -> Swept:
        """See ``RunWriter.sweep``."""
        return msgspec.convert(await self._link.call(self.run, "sweep"), Swept)

    def discard(self, pack: str) -> None:
        """See ``RunWriter.discard``."""
        self._link.send(said.Discard(self.run, pack))


def _event(message: said.Happened) -> Event:
    fields = dict(message.fields)
    if message.fault is not None:
        fields["error"] = message.fault.error()
    made: Event = getattr(events, message.kind)(**fields)
    return made
