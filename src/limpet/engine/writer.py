"""The writing end of a run: takes it over, writes saves, commits them in order, keeps house.

Runs on the engine's event loop. Each accepted save has a task and a shielded scope of its own: nothing that
happens to a caller, or to another save, cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec

from limpet.engine.bases import Bases
from limpet.engine.budget import ByteBudget
from limpet.engine.edits import with_pin, without, without_damaged
from limpet.engine.janitor import Janitor
from limpet.engine.kept import LastCommitted
from limpet.engine.live import Checkpoint, LiveSet, info_of, load_checkpoints
from limpet.engine.log import Head, Log
from limpet.engine.pacing import Pacer
from limpet.engine.policy import policy_to_record, report_narrowing
from limpet.engine.queue import SaveQueue
from limpet.engine.reader import Reader
from limpet.engine.save import Save
from limpet.engine.timing import Timing
from limpet.engine.upload import Resources, Upload, Uploaded, forget_locals
from limpet.engine.urgency import Encoders, urgency
from limpet.errors import LimpetError, NotFoundError, StoreError
from limpet.events import Committed, Deleted, Event, Failed, Opened, Retried, Superseded, warn_gently
from limpet.failpoints import reach
from limpet.format import retention
from limpet.format.choosing import CodecChooser
from limpet.format.record import Record, from_ranges, to_ranges
from limpet.format.standing import Standing
from limpet.pending import Phase
from limpet.stores.base import Store
from limpet.types import CheckpointInfo, Swept
from limpet.workers import Workers

__all__ = ["RunWriter", "WriterSettings"]

_IN_FLIGHT_BYTES = 96 << 20
_SWEEP_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """Plain data that a writer is made from.

    Attributes:
        run: id of the run.
        owner: who we are.
        library: name and version of this library.
        retain: the policy asked for; ``None`` inherits the recorded one.
        compression: ``"auto"``, ``"off"`` or a codec.
        note: goes into our open record (where a warm start came from, say).
        timing: deadlines and clocks.
        delta: whether the content of the last committed checkpoint is kept, to store differences from it.
        continues: epoch of the writer that this one stands in for: no newer one may have come between.
    """

    run: str
    owner: str
    library: str
    retain: retention.Policy | None = None
    compression: str = "auto"
    delta: bool = False
    note: dict[str, Any] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    continues: int | None = None


class RunWriter:
    """One writer of one run.

    Args:
        store: the run's root.
        settings: plain data.
        queue: where callers put their saves.
        encoders: threads to encode on.
        emit: tells the hooks.
    """

    def __init__(
        self,
        store: Store,
        settings: WriterSettings,
        queue: SaveQueue,
        *,
        encoders: Encoders,
        emit: Callable[[Event], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._queue = queue
        self._encoders = encoders
        self._emit = emit
        self.live = LiveSet()
        self.committed: tuple[CheckpointInfo, ...] = ()
        self.reader = Reader(store, encoders.urgent)
        self._bases = Bases(store, settings.timing)
        self._chooser = CodecChooser(settings.compression, threads=encoders.urgent.count)
        self._last = LastCommitted(wanted=settings.delta)
        self._log_lock = anyio.Lock()
        self._tail: anyio.Event | None = None
        self._number = 0
        self._pacer = Pacer(
            queue,
            interval_seconds=store.commit_interval_seconds,
            clock=settings.timing.clock,
            start=self._start,
        )
        self._tidy_wakeup = asyncio.Event()
        self._stopped = asyncio.Event()
        self._scopes: dict[anyio.CancelScope, None] = {}  # in the order of the calls
        self._sent: set[int] = set()  # numbers of saves whose commit record may be on its way
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> Head:
        """Take the run over; returns the head that the writer before us left.

        Raises:
            StoreError: the store could not be read or written.
        """
        settings = self._settings
        self.log, head = await Log.open(
            self._store,
            settings.timing,
            run=settings.run,
            owner=settings.owner,
            library=settings.library,
            retain=lambda head: policy_to_record(settings.retain, head, settings.continues),
            note=settings.note,
        )
        reach("open.created")
        self.log.on_adopted = self._apply
        self.log.on_retry = self._retried
        self.log.make_room = self._make_room
        self.policy = retention.from_json(self.log.head.retain)
        before = None if head.record is None else (head.record, head.digest)
        checkpoints, damaged = await load_checkpoints(self._store, self.log.head, before=before)
        self.live = LiveSet(checkpoints, damaged)
        self.committed = tuple(self.live.infos())
        self.standing = Standing(self.policy, self.committed)
        self._report_damaged()
        report_narrowing(self._store.url, settings.retain, head, self.live)
        self.janitor = Janitor(self._store, self.log, self.live, settings.timing)
        self._resources = self._make_resources()
        await self._bases.load(checkpoints, self.reader)
        reach("open.loaded")
        self._emit(Opened(self._store.url, self.log.epoch, _left_behind(head)))
        return head

    def _report_damaged(self) -> None:
        if self.damaged:
            warn_gently(
                f"limpet: {self._store.url}: log records {', '.join(map(str, self.damaged))} are damaged. Nothing is"
                " deleted while they may come back (from a copy, say); drop_damaged() gives them up."
            )

    def _make_resources(self) -> Resources:
        return Resources(
            store=self._store,
            run=self._settings.run,
            epoch=self.log.epoch,
            timing=self._settings.timing,
            budget=ByteBudget(_IN_FLIGHT_BYTES),
            chooser=self._chooser,
            bases=self._bases,
            last=self._last,
            workers=self._workers_for,
            make_room=self._make_room,
            on_retry=self._retried,
        )

    def _retried(self, operation: str, key: str, attempt: int, error: BaseException) -> None:
        self._emit(Retried(operation, key, attempt, error))

    async def serve(self) -> None:
        """Write what the queue holds, and keep house, until ``stop``."""
        self.wake()
        tidy = asyncio.create_task(self._tidy())
        try:
            await self._stopped.wait()
        finally:
            tidy.cancel()

    def wake(self) -> None:
        """Start every save whose turn it is; on the loop."""
        self._pacer.look()

    def _start(self, save: Save) -> None:
        before, self._tail = self._tail, anyio.Event()
        self._number += 1
        task = asyncio.get_running_loop().create_task(self._write(save, self._number, before, self._tail))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, save: Save, number: int, before: anyio.Event | None, done: anyio.Event) -> None:
        failed = False
        scope = anyio.CancelScope(shield=True)
        self._scopes[scope] = None
        try:
            with scope:
                await self._write_shielded(save, number, before)
        except Exception as error:
            failed = True
            self._fail(save, error)
        finally:
            del self._scopes[scope]
            if not save.handle.done():  # cancelled, by stop() or with the loop
                failed = True
                self._fail(save, StoreError("the save was not committed before the deadline of close().", kind="late"))
            # A create whose answer never came may still land, whatever ended the save that sent it.
            unknown = failed and number in self._sent and not self.log.settled
            self._sent.discard(number)
            done.set()
            self.janitor.end(number, unknown=unknown, failed=failed)
            self._queue.finished(save)
            if failed:
                self._tidy_wakeup.set()

    async def _write_shielded(self, save: Save, number: int, before: anyio.Event | None) -> None:
        if self.log.stopped is not None:
            raise self.log.stopped
        await self._bases.recheck()
        # In one step: what the save may refer to is what is live now, and that stays until the save is settled.
        upload = Upload(self._resources, save, number)
        self.janitor.begin(number)
        reach("save.begun")
        uploaded = await upload.run()
        reach("save.uploaded")
        with self._last.replacing(save.snapshot, uploaded.manifest, inline=bool(uploaded.body)) as save.kept:
            save.release()
            self._queue.notify()
            if before is not None:
                await before.wait()
            save.handle.phase = Phase.COMMITTING
            self._sent.add(number)
            record = await self._commit(save, uploaded)
        reach("save.committed")
        self._emit(Committed(record.seq, save.step, uploaded.raw_bytes, uploaded.new_bytes, save.elapsed()))
        for step in save.replaced_steps:
            self._emit(Superseded(step, save.step))
        save.resolve(uploaded.receipt(save, record.seq))

    async def _commit(self, save: Save, uploaded: Uploaded) -> Record:
        commit = uploaded.commit(save)

        def make(base: Record) -> Record:
            record = msgspec.structs.replace(base, kind="commit", commit=commit)
            candidate = info_of(record, pinned=save.pinned)
            pinned_before = from_ranges(base.pinned) & self.live.seqs
            kept = self.standing.kept_with(candidate) | pinned_before | self.live.damaged
            pinned = pinned_before | ({record.seq} if save.pinned else set())
            return msgspec.structs.replace(record, live=to_ranges(kept), pinned=to_ranges(pinned))

        record = await self._append(make)
        self._bases.add(record.seq, uploaded.manifest, {use.key: use.size for use in uploaded.packs})
        return record

    async def _append(self, make: Callable[[Record], Record]) -> Record:
        async with self._log_lock:
            try:
                record = await self.log.append(make)
            finally:
                if self.log.stopped is not None:
                    self._queue.close(self.log.stopped)
            self._apply(record)
            if self.log.settled and self.janitor.settled():
                self._tidy_wakeup.set()
        return record

    def _apply(self, record: Record) -> None:
        left = self.live.apply(record)
        self.standing.follow([one.info for one in left], self.live.info(record.seq))
        self.log.quarantined = tuple(record.quarantined)
        self._bases.keep_only(self.live.seqs)
        self.committed = tuple(self.live.infos())
        if self.janitor.retire(left):
            self._tidy_wakeup.set()

    def _fail(self, save: Save, error: BaseException) -> None:
        if self.log.stopped is not None:
            self._queue.close(self.log.stopped)
        forget_locals(error)
        save.fail(error)
        self._emit(Failed(save.step, error))

    def _workers_for(self, save: Save) -> Workers:
        if self._queue.hurried or save.urgent:
            return self._encoders.urgent
        return self._encoders.at(urgency(save.elapsed(), save.share_encoded))

    async def _tidy(self) -> None:
        """Sweep when something's grace is over."""
        while True:
            self._tidy_wakeup.clear()
            due = self.janitor.due_in()
            if due is not None and due <= 0:
                try:
                    await self._sweep(graceful=True)
                except Exception as error:  # housekeeping goes on, whatever it was
                    warn_gently(f"limpet could not sweep {self._store.url}: {error}")
                    await anyio.sleep(_SWEEP_AGAIN_SECONDS)
                # A steady run always has something due: a listing now and then is enough.
                await anyio.sleep(max(1.0, self._settings.timing.grace / 4))
                continue
            with anyio.move_on_after(due):
                await self._tidy_wakeup.wait()

    async def _sweep(self, *, graceful: bool, closing: bool = False) -> Swept:
        swept = await self.janitor.sweep(graceful=graceful, closing=closing)
        if swept.objects:
            self._emit(Deleted(swept.objects, swept.freed_bytes))
        return swept

    async def _make_room(self) -> bool:
        return (await self._sweep(graceful=False)).objects > 0

    async def sweep(self) -> Swept:
        """Remove everything that no live checkpoint and no save in flight reaches, at once."""
        return await self._sweep(graceful=False)

    async def pin(self, seq: int, pinned: bool) -> CheckpointInfo:
        """Keep checkpoint ``seq`` whatever the policy says, or leave it to the policy again."""
        self._known(seq)

        def make(base: Record) -> Record:
            self._known(seq)
            return with_pin(base, seq, pinned)

        await self._append(make)
        return self._known(seq).info

    async def delete(self, seq: int) -> None:
        """Take checkpoint ``seq`` out of the live set; its data goes after the grace."""

        def make(base: Record) -> Record:
            self._known(seq)
            return without(base, seq, self.live.damaged)

        await self._append(make)

    async def drop_damaged(self) -> tuple[int, ...]:
        """Give up the damaged records that keep everything from being deleted; returns their seqs."""
        dropped = self.damaged
        if dropped:
            await self._append(lambda base: without_damaged(base, self.live.damaged))
        return dropped

    @property
    def damaged(self) -> tuple[int, ...]:
        """Seqs of damaged records: live ones, and those that were found newer than the head."""
        return tuple(sorted({*self.live.damaged, *self.log.quarantined}))

    def _known(self, seq: int) -> Checkpoint:
        checkpoint = self.live.checkpoints.get(seq)
        if checkpoint is None:
            raise NotFoundError(
                f"{self._store.url} has no live checkpoint {seq}.",
                hint="checkpoints() lists those that there are.",
            )
        return checkpoint

    def discard(self, pack: str) -> None:
        """A pack was found damaged or missing: the next save writes its chunks anew."""
        self._bases.discard_pack(pack)

    async def stop(self, goodbye_seconds: float) -> None:
        """Cancel what is still being written, say goodbye in the log within that long, sweep, and end ``serve``."""
        for scope in list(self._scopes):
            scope.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.log.stopped is None:
            with anyio.move_on_after(goodbye_seconds, shield=True):
                try:
                    try:
                        reach("close.drained")
                        await self._append(lambda base: msgspec.structs.replace(base, kind="close"))
                        reach("close.recorded")
                    finally:
                        if self.log.stopped is None:
                            await self._sweep(graceful=True, closing=True)
                except LimpetError as error:
                    warn_gently(f"limpet left {self._store.url} untidy: {error}")
        self._pacer.stop()
        self._last.give_up()
        self._stopped.set()


def _left_behind(head: Head) -> str | None:
    record = head.record
    return None if record is None or record.kind == "close" else record.owner or "another writer"
