"""Writing one save's packs: everything before the commit.

Packs are few and large; the manifest ends the last one. A pack that fails is written again, whole, under a
fresh name: no name ever has two contents. A tiny save needs no pack: it travels in its commit record.
"""

from __future__ import annotations

import base64
import math
import secrets
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field

import anyio

from limpet.engine.bases import Bases
from limpet.engine.budget import ByteBudget
from limpet.engine.encode import BatchStream, Encoded, Trial, encode_chunks, mostly_known
from limpet.engine.index import Known
from limpet.engine.kept import Differences, LastCommitted
from limpet.engine.places import Places
from limpet.engine.save import Save
from limpet.engine.staging import Snapshot
from limpet.engine.timing import Timing
from limpet.errors import LimpetError, StoreError, UsageError
from limpet.failpoints import reach
from limpet.format.choosing import CodecChooser
from limpet.format.layout import PackName, pack_key
from limpet.format.manifest import Manifest, encode_manifest
from limpet.format.record import INLINE_BYTES_MAX, Commit, ManifestAt, PackUse
from limpet.format.segments import PACKS_MAX
from limpet.stores.base import NO_SPACE, Bytes, Store
from limpet.stores.retry import RetryPolicy, backoff_delays
from limpet.types import Outcome, Receipt
from limpet.workers import Workers

__all__ = ["Resources", "Upload", "Uploaded", "forget_locals"]

_PACK_BYTES = 256 << 20
_PACKS_PER_SAVE = 32
_INLINE_RAW_MAX = 16 << 10
"""States larger than this are not even tried in the record, unless nearly all of it is known already."""
_INLINE_TRIAL_MAX = 64 << 20
"""Of states larger than this it is not even looked at how much is known: that hashes them once more."""
_SLOWEST_BYTES_PER_SECOND = 512 << 10
"""Of a line that is slow, not dead: what is on its way, at most ``_ON_THE_WAY_MAX``, may take that much longer."""
_ON_THE_WAY_MAX = 64 << 20
_CHUNKS_AT_ONCE = 1000
"""A manifest of more chunks is made on a worker: some 50 ms where each has a chain of eight."""
_STUCK = "stuck"


@dataclass(slots=True)
class Resources:
    """What all saves of a run share.

    Attributes:
        store: where it goes.
        run: id of the run.
        epoch: of this writer.
        timing: deadlines.
        budget: bytes in flight.
        chooser: codecs.
        bases: chunks of live checkpoints.
        last: the content of the last committed one, if it is kept.
        workers: gives the threads to encode a save on, which depend on how urgent it is now.
        make_room: frees what may be freed at once when the store is full; whether there was anything.
        on_retry: told of every failure that is tried again.
    """

    store: Store
    run: str
    epoch: int
    timing: Timing
    budget: ByteBudget
    chooser: CodecChooser
    bases: Bases
    last: LastCommitted
    workers: Callable[[Save], Workers]
    make_room: Callable[[], Awaitable[bool]]
    on_retry: Callable[[str, str, int, BaseException], None]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A save's data, durable and not yet visible: what its commit record will say."""

    manifest: Manifest
    at: ManifestAt
    packs: list[PackUse]
    raw_bytes: int
    stored_bytes: int
    new_bytes: int
    body: str = ""

    def commit(self, save: Save) -> Commit:
        """The part of the commit record that describes this checkpoint."""
        return Commit(
            manifest=self.at,
            packs=self.packs,
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            new_bytes=self.new_bytes,
            step=save.step,
            meta=save.meta,
            body=self.body,
        )

    def receipt(self, save: Save, seq: int) -> Receipt:
        """What the caller of a committed save is told."""
        return Receipt(
            outcome=Outcome.COMMITTED,
            step=save.step,
            durable_step=save.step,
            seq=seq,
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            new_bytes=self.new_bytes,
            stalled_seconds=save.stalled_seconds,
            staged_seconds=save.staged_seconds,
            encoded_seconds=save.encoded_seconds,
            uploaded_seconds=save.uploaded_seconds,
            committed_seconds=save.elapsed(),
        )


@dataclass(slots=True)
class Upload:
    """The packs of one save.

    Args:
        resources: what saves share.
        save: what to write; staged.
        number: of the save within its epoch.
    """

    resources: Resources
    save: Save
    number: int
    _snapshot: Snapshot = field(init=False)
    _known: dict[str, Known] = field(init=False)
    _differences: Differences | None = field(init=False)
    _places: Places = field(default_factory=Places)
    _start: int = 0
    _encoding_seconds: float = 0.0
    _manifest: Manifest | None = None
    _at: ManifestAt | None = None

    def __post_init__(self) -> None:
        if self.save.snapshot is None:
            raise AssertionError("a save is staged before it is written")
        self._snapshot = self.save.snapshot
        self._known = self.resources.bases.offer()
        self._differences = self.resources.last.differences(self._known)

    async def run(self) -> Uploaded:
        """Write everything but the commit record.

        Raises:
            StoreError: the store failed until the deadline.
            UsageError: the state has too many leaves.
        """
        try:
            with nullcontext() if self._differences is None else self._differences.in_use():
                return await self._write()
        except UsageError as error:
            if error.kind != "too_many_leaves" or not self._places.has_bases or self._snapshot.parts > 1:
                raise
        # It may be the chains that take the room: a manifest names every link of them.
        self._differences = None
        self._known = {id_: known for id_, known in self._known.items() if known.base is None}
        self._places, self._at = Places(), None
        return await self._write()

    async def _write(self) -> Uploaded:
        inline = await self._try_inline()
        if inline is not None:
            return inline
        part = 0
        while self._at is None:
            await self._write_pack(part)
            part += 1
        self.save.uploaded_seconds = self.save.elapsed()
        return self._uploaded(self._at, b"")

    async def _try_inline(self) -> Uploaded | None:
        """The save as a record's body, if what is new of it is tiny."""
        plan = self._snapshot.plan
        if self._snapshot.parts > 1:
            return None
        choose, level = self.resources.chooser.choose, self.resources.chooser.level
        chunks = [Trial(chunk, choose(chunk.dtype, chunk.raw_bytes, i)) for i, chunk in enumerate(plan.chunks)]
        if plan.raw_bytes <= _INLINE_RAW_MAX:  # too small to be worth a hop
            encoded = encode_chunks(self._snapshot, chunks, self._known, level)
        elif self._known and plan.raw_bytes <= _INLINE_TRIAL_MAX:
            workers = self.resources.workers(self.save)
            if not await workers.run(mostly_known, self._snapshot, plan.chunks, self._known, _INLINE_RAW_MAX):
                return None
            encoded = await workers.run(encode_chunks, self._snapshot, chunks, self._known, level)
        else:
            return None
        body = b"".join(self._places.place(encoded, "", 0)[0])
        self._manifest, stored, digest = self._encode_manifest(self._places)
        if len(body) + len(stored) > INLINE_BYTES_MAX:
            self._forget_from(0)
            return None
        self.save.encoded_seconds = self.save.uploaded_seconds = self.save.elapsed()
        return self._uploaded(ManifestAt("", len(body), len(stored), digest), body + stored)

    async def _write_pack(self, part: int) -> None:
        """Write the pack that starts at the first chunk not placed yet, again until it is there."""
        self._start = len(self._places)
        timing = self.resources.timing
        failed_since: float | None = None
        for attempt, delay in enumerate(backoff_delays(RetryPolicy()), 1):
            key = pack_key(PackName(self.resources.epoch, self.number, secrets.token_hex(4), 0, part))
            started, self._encoding_seconds = timing.clock(), 0.0
            left = timing.upload_deadline - (0.0 if failed_since is None else started - failed_since)
            # Half of the time at first: a connection may be dead, and the next one good. A moment is left always,
            # for the store's own words.
            patience = max(left / 2 if failed_since is None else left, timing.upload_deadline / 20)
            try:
                # Closed here, not when it is collected: until then it holds the budget and reads from the snapshot.
                async with aclosing(self._parts(key)) as parts:
                    size = await self._put(key, parts, patience)
            except StoreError as error:
                self._forget_from(self._start)
                if failed_since is None:
                    failed_since = started if error.kind == _STUCK else timing.clock()
                await self._consider(error, key, attempt, failed_since)
                await timing.sleep(min(delay, max(0.0, failed_since + timing.upload_deadline - timing.clock())))
            else:
                reach("save.pack_done")
                self._places.wrote(key, size)
                self._snapshot.written(len(self._places))
                self.resources.chooser.observe_store(size, timing.clock() - started - self._encoding_seconds)
                return

    async def _put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], patience: float) -> int:
        """Have the store write a pack, unless it stands still for ``patience`` seconds, and for what is on its way.

        Raises:
            StoreError: it failed, or stood still.
        """
        with anyio.CancelScope(deadline=anyio.current_time() + patience) as scope:
            return await self.resources.store.put(key, _watched(parts, scope, patience), size_hint=self._pack_bytes())
        words = f"writing {self.resources.store.url}/{key}: the store stood still for {patience:.3g} s"
        raise StoreError(words, kind=_STUCK, transient=True)

    async def _consider(self, error: StoreError, key: str, attempt: int, failed_since: float) -> None:
        """Raise ``error`` unless another try may help."""
        timing = self.resources.timing
        forget_locals(error)
        if error.kind == NO_SPACE:
            if not await self.resources.make_room():
                raise error
        elif not error.transient or timing.clock() - failed_since >= timing.upload_deadline:
            raise error
        self.resources.on_retry("put", key, attempt, error)

    async def _parts(self, key: str) -> AsyncGenerator[Sequence[Bytes], None]:
        """The pack's content, and as a side effect the places of its chunks."""
        offset = 0
        target, total = self._pack_bytes(), len(self._snapshot.plan.chunks)
        clock, chooser = self.resources.timing.clock, self.resources.chooser
        while True:
            asked = clock()
            end = await self._snapshot.available(len(self._places))
            async with aclosing(self._batches(len(self._places), end)) as batches:
                async for _, batch in batches:
                    self._encoding_seconds += clock() - asked
                    before = offset
                    part, offset = self._places.place(batch, key, offset)
                    self.save.share_encoded = len(self._places) / total
                    if part:
                        handed = clock()
                        yield part
                        reach("save.part_sent")
                        chooser.observe_store(offset - before, clock() - handed, durable=False)
                    asked = clock()
                    if offset >= target and len(self._places) < total:
                        return
            if len(self._places) == total:
                break
            if offset:  # what it was made from is needed until it is durable, and its memory for what comes next
                return
            self._start = len(self._places)
            self._snapshot.written(self._start)
        self.save.encoded_seconds = self.save.elapsed()
        stored, digest = await self._encode_beside()
        yield [stored]
        reach("save.manifest_sent")
        self._at = ManifestAt(key, offset, len(stored), digest)

    async def _batches(self, start: int, end: int) -> AsyncGenerator[tuple[int, list[Encoded]], None]:
        shared = self.resources
        stream = BatchStream(
            self._snapshot,
            self._known,
            shared.chooser,
            shared.budget,
            lambda: shared.workers(self.save),
            start,
            end,
            self._differences,
        )
        try:
            async with aclosing(stream.__aiter__()) as batches:
                async for batch in batches:
                    yield batch
        finally:
            await stream.aclose()

    def _forget_from(self, start: int) -> None:
        """Take back every place from chunk ``start`` on."""
        self._places.forget_from(start)
        self._at = None

    def _pack_bytes(self) -> int:
        packs = min(_PACKS_PER_SAVE, PACKS_MAX - self._snapshot.parts)  # one ends with each segment too
        return max(_PACK_BYTES, -(-self._snapshot.plan.raw_bytes // packs))

    def _encode_manifest(self, places: Places) -> tuple[Manifest, bytes, str]:
        run, save = self.resources.run, f"{self.resources.epoch}/{self.number}"
        manifest = places.manifest(self._snapshot.plan, self._snapshot.node, run=run, save=save)
        return manifest, *encode_manifest(manifest)

    async def _encode_beside(self) -> tuple[bytes, str]:
        """The manifest's bytes and their digest; a large one is not in the loop's way."""
        if len(self._places) <= _CHUNKS_AT_ONCE:
            self._manifest, stored, digest = self._encode_manifest(self._places)
            return stored, digest
        places = self._places.copy()  # of its own: a worker goes on when we are cancelled
        found = await self.resources.workers(self.save).run(self._encode_manifest, places)
        self._places = places
        self._manifest, stored, digest = found
        return stored, digest

    def _uploaded(self, at: ManifestAt, body: bytes) -> Uploaded:
        if self._manifest is None:
            raise AssertionError("the manifest is built before the save counts as uploaded")
        return Uploaded(
            manifest=self._manifest,
            at=at,
            packs=self._places.uses(self._manifest, at),
            raw_bytes=self._snapshot.plan.raw_bytes,
            stored_bytes=self._places.stored_bytes + at.size,
            new_bytes=self._places.new_bytes + at.size,
            body=base64.b64encode(body).decode(),
        )


async def _watched(
    parts: AsyncIterable[Sequence[Bytes]], scope: anyio.CancelScope, patience: float
) -> AsyncIterator[Sequence[Bytes]]:
    """``parts``; ``scope`` ends when whoever reads them neither asks for the next nor returns for too long."""
    sent = 0
    scope.deadline = math.inf  # it has asked: now it is for us to encode
    async for part in parts:
        sent += sum(memoryview(buffer).nbytes for buffer in part)
        allowance = patience + min(sent, _ON_THE_WAY_MAX) / _SLOWEST_BYTES_PER_SECOND
        scope.deadline = anyio.current_time() + allowance
        yield part
        del part  # its buffers are free once the next one is asked for
        scope.deadline = math.inf
    scope.deadline = anyio.current_time() + patience + min(sent, _ON_THE_WAY_MAX) / _SLOWEST_BYTES_PER_SECOND


def forget_locals(error: BaseException | None) -> None:
    """Drop what the error's frames refer to: buffers of a snapshot, whose memory could not be used again.

    The frames themselves are left alone. Others may have been given the same error, that of a fenced writer say, and
    before Python 3.13 to clear the frame of a coroutine that waits is to end it.
    """
    while error is not None:
        if error.__traceback__ is not None and not isinstance(error, LimpetError):  # a defect: say where it is
            error.add_note("".join(traceback.format_tb(error.__traceback__)))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
