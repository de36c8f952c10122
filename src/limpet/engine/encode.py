"""Turning a snapshot's chunks into stored bytes, in batches large enough for few, long native calls."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import blake3

from limpet.engine.budget import ByteBudget
from limpet.engine.index import Known
from limpet.engine.outputs import Outputs
from limpet.engine.slots import Bytes8
from limpet.engine.staging import Snapshot
from limpet.format import codec
from limpet.format.choosing import CodecChooser
from limpet.format.chunks import ChunkSource
from limpet.workers import Workers

__all__ = ["BatchStream", "Encoded", "encode_chunks", "mostly_known"]

RAW = "raw"
BATCH_BYTES = 16 << 20
"""Raw bytes per hop to a worker: a hop costs up to 1.5 ms beside a busy interpreter."""
_AHEAD = 2
"""Batches encoded while one is being written."""
_FIRST_BYTES = 4 << 20
"""The same while nothing is known of the store, and one after the other: a fast one is not kept waiting for a codec."""


class Encoded(NamedTuple):
    """One chunk, ready to be placed.

    Attributes:
        id: BLAKE3 of the raw bytes.
        raw_bytes: their number.
        codec: what encoded them.
        stored: what to write; ``None`` if ``known`` holds it already.
        digest: BLAKE3 of ``stored``; empty for raw chunks.
        known: where a live checkpoint holds this chunk.
    """

    id: str
    raw_bytes: int
    codec: str
    stored: Any
    digest: str
    known: Known | None
    seconds: float = 0.0


def encode_chunks(
    snapshot: Snapshot,
    chunks: Sequence[tuple[ChunkSource, str]],
    known: Mapping[str, Known],
    level: int,
    outputs: Outputs | None = None,
) -> list[Encoded]:
    """Hash every chunk, and encode those that are not ``known``. Runs on a worker.

    Args:
        snapshot: where the chunks' bytes are.
        chunks: with the codec to try on each.
        known: what may be referred to instead, by id.
        level: of zstd.
        outputs: where to take memory from for what is encoded; each chunk gets memory of its own by default.
    """
    encoded: list[Encoded] = []
    out = None if outputs is None else _memory_for(chunks, outputs)
    used_bytes = 0
    for source, name in chunks:
        raw = snapshot.read(source)
        id_ = blake3.blake3(raw.data).hexdigest()
        hit = known.get(id_)
        if hit is not None and hit.raw_bytes == source.raw_bytes:
            encoded.append(Encoded(id_, source.raw_bytes, hit.codec, None, hit.stored_digest, hit))
            continue
        started = time.perf_counter()
        room = None if out is None else out[used_bytes : used_bytes + codec.bound(raw.size)]
        used, stored = codec.encode(raw, codec=name, level=level, out=room)
        digest = "" if used == RAW else blake3.blake3(stored).hexdigest()
        seconds = time.perf_counter() - started
        used_bytes += 0 if used == RAW else len(stored)
        encoded.append(Encoded(id_, source.raw_bytes, used, stored, digest, None, seconds))
    return encoded


def _memory_for(chunks: Sequence[tuple[ChunkSource, str]], outputs: Outputs) -> Bytes8:
    return outputs.take(sum(codec.bound(source.raw_bytes) for source, name in chunks if name != RAW))


def mostly_known(
    snapshot: Snapshot, chunks: Sequence[ChunkSource], known: Mapping[str, Known], new_bytes_max: int
) -> bool:
    """Whether no more than ``new_bytes_max`` raw bytes are not known yet. Runs on a worker; stops as soon as it can."""
    new_bytes = 0
    for source in chunks:
        if blake3.blake3(snapshot.read(source).data).hexdigest() not in known:
            new_bytes += source.raw_bytes
            if new_bytes > new_bytes_max:
                return False
    return True


@dataclass(slots=True)
class _Batch:
    start: int
    tried: list[str]
    raw_bytes: int
    task: asyncio.Task[list[Encoded]]


class BatchStream:
    """Some chunks of a snapshot, encoded in order and a little ahead.

    Args:
        snapshot: what to encode.
        known: chunks that need not be written.
        chooser: which codec to try.
        budget: bounds the bytes of encoded batches.
        workers: gives the threads to use, asked anew for each batch.
        start: index of the first chunk.
        end: index after the last one; all of them can be read now.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        known: Mapping[str, Known],
        chooser: CodecChooser,
        budget: ByteBudget,
        workers: Callable[[], Workers],
        start: int,
        end: int,
    ) -> None:
        self._snapshot = snapshot
        self._known = known
        self._chooser = chooser
        self._budget = budget
        self._workers = workers
        self._next = start
        self._end = end
        self._ahead: deque[_Batch] = deque()
        self._outputs = Outputs()

    async def __aiter__(self) -> AsyncGenerator[tuple[int, list[Encoded]], None]:
        """Yield (index of the batch's first chunk, its encoded chunks)."""
        while True:
            await self._fill()
            if not self._ahead:
                return
            batch = self._ahead[0]
            encoded = await asyncio.shield(batch.task)
            self._learn(batch, encoded)
            try:
                yield batch.start, encoded
            finally:
                del encoded
                self._ahead.popleft()
                self._budget.release(batch.raw_bytes)

    async def aclose(self) -> None:
        """Wait until no worker reads from the snapshot any more."""
        while self._ahead:
            batch = self._ahead[0]
            with suppress(Exception):
                await asyncio.shield(batch.task)
            self._ahead.popleft()
            self._budget.release(batch.raw_bytes)

    async def _fill(self) -> None:
        chunks = self._snapshot.plan.chunks
        unsure = self._chooser.awaits_store
        ahead, most = (0, _FIRST_BYTES) if unsure else (_AHEAD, BATCH_BYTES)
        while len(self._ahead) <= ahead and self._next < self._end:
            end, size = self._next, 0
            while end < self._end and (end == self._next or size + chunks[end].raw_bytes <= most):
                size += chunks[end].raw_bytes
                end += 1
            # Never wait while holding: saves that all did so would wait for each other.
            if self._ahead and not self._budget.has_room(size):
                return
            await self._budget.acquire(size)
            self._ahead.append(self._start(self._next, end, size))
            self._next = end

    def _start(self, start: int, end: int, size: int) -> _Batch:
        sources = self._snapshot.plan.chunks[start:end]
        tried = [
            self._chooser.choose(source.dtype, source.raw_bytes, start + index) for index, source in enumerate(sources)
        ]
        work = self._workers().run(
            encode_chunks,
            self._snapshot,
            list(zip(sources, tried, strict=True)),
            self._known,
            self._chooser.level,
            self._outputs,
        )
        return _Batch(start, tried, size, asyncio.ensure_future(work))

    def _learn(self, batch: _Batch, encoded: Sequence[Encoded]) -> None:
        for offset, (chunk, tried) in enumerate(zip(encoded, batch.tried, strict=True)):
            if chunk.known is None:
                self._chooser.learn(
                    batch.start + offset, tried, chunk.raw_bytes, memoryview(chunk.stored).nbytes, chunk.seconds
                )
