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
from limpet.engine.kept import Attempt, Differences
from limpet.engine.outputs import Outputs
from limpet.engine.slots import Bytes8
from limpet.engine.staging import Snapshot
from limpet.format import codec
from limpet.format.choosing import CodecChooser
from limpet.format.chunks import ChunkSource
from limpet.workers import Workers

__all__ = ["BatchStream", "Encoded", "Trial", "encode_chunks", "mostly_known"]

RAW = "raw"
BATCH_BYTES = 16 << 20
"""Raw bytes per hop to a worker: a hop costs up to 1.5 ms beside a busy interpreter."""
_AHEAD = 2
"""Batches encoded while one is being written."""
_FIRST_BYTES = 4 << 20
"""The same while nothing is known of the store, and one after the other: a fast one is not kept waiting for a codec."""


class Trial(NamedTuple):
    """One chunk, with the codec to try on it, and before that, maybe, a difference."""

    source: ChunkSource
    codec: str
    attempt: Attempt | None = None


class Encoded(NamedTuple):
    """One chunk, ready to be placed.

    Attributes:
        id: BLAKE3 of the raw bytes.
        raw_bytes: their number.
        codec: what encoded them.
        stored: what to write; ``None`` if ``known`` holds it already.
        digest: BLAKE3 of ``stored``; empty for raw chunks.
        known: where a live checkpoint holds this chunk.
        seconds: that it took to encode it in full.
        base: what it is stored as the difference from.
        refused: whether a difference was tried, and too large.
    """

    id: str
    raw_bytes: int
    codec: str
    stored: Any
    digest: str
    known: Known | None
    seconds: float = 0.0
    base: Known | None = None
    refused: bool = False


def encode_chunks(
    snapshot: Snapshot,
    chunks: Sequence[Trial],
    known: Mapping[str, Known],
    level: int,
    outputs: Outputs | None = None,
) -> list[Encoded]:
    """Hash every chunk, and encode those that are not ``known``. Runs on a worker.

    Args:
        snapshot: where the chunks' bytes are.
        chunks: with what to try on each.
        known: what may be referred to instead, by id.
        level: of zstd.
        outputs: where to take memory from for what is encoded; each chunk gets memory of its own by default.
    """
    encoded: list[Encoded] = []
    out = None if outputs is None else _memory_for(chunks, outputs)
    used_bytes = 0
    for source, name, attempt in chunks:
        raw = snapshot.read(source)
        id_ = blake3.blake3(raw.data).hexdigest()
        hit = known.get(id_)
        if hit is not None and hit.raw_bytes == source.raw_bytes:
            encoded.append(Encoded(id_, source.raw_bytes, hit.codec, None, hit.stored_digest, hit))
            continue
        room = None if out is None else out[used_bytes : used_bytes + codec.bound(raw.size)]
        chunk = _encode(Trial(source, name, attempt), raw, id_, level, room)
        used_bytes += 0 if chunk.codec == RAW else len(chunk.stored)
        encoded.append(chunk)
    return encoded


def _encode(trial: Trial, raw: Bytes8, id_: str, level: int, out: Bytes8 | None) -> Encoded:
    source, name, attempt = trial
    difference, tried = (None, False) if attempt is None else attempt.encode(raw, level, out)
    if attempt is not None and difference is not None:
        digest = blake3.blake3(difference).hexdigest()
        return Encoded(id_, source.raw_bytes, attempt.codec, difference, digest, None, base=attempt.base)
    started = time.perf_counter()
    used, stored = codec.encode(raw, codec=name, level=level, out=out)
    digest = "" if used == RAW else blake3.blake3(stored).hexdigest()
    seconds = time.perf_counter() - started
    return Encoded(id_, source.raw_bytes, used, stored, digest, None, seconds, refused=tried)


def _memory_for(chunks: Sequence[Trial], outputs: Outputs) -> Bytes8:
    coded = (trial.source for trial in chunks if trial.codec != RAW or trial.attempt is not None)
    return outputs.take(sum(codec.bound(source.raw_bytes) for source in coded))


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
    trials: list[Trial]
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
        differences: what chunks may be stored as differences from.
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
        differences: Differences | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._known = known
        self._chooser = chooser
        self._budget = budget
        self._workers = workers
        self._next = start
        self._end = end
        self._differences = differences
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
        trials = [self._trial(index, self._snapshot.plan.chunks[index]) for index in range(start, end)]
        work = self._workers().run(
            encode_chunks, self._snapshot, trials, self._known, self._chooser.level, self._outputs
        )
        return _Batch(start, trials, size, asyncio.ensure_future(work))

    def _trial(self, index: int, source: ChunkSource) -> Trial:
        attempt = None if self._differences is None else self._differences.attempt(index, source)
        return Trial(source, self._chooser.choose(source.dtype, source.raw_bytes, index), attempt)

    def _learn(self, batch: _Batch, encoded: Sequence[Encoded]) -> None:
        for index, (chunk, trial) in enumerate(zip(encoded, batch.trials, strict=True), batch.start):
            if self._differences is not None:
                self._differences.stored(index, chunk.base if chunk.known is None else chunk.known.base)
                if trial.attempt is not None and (chunk.refused or chunk.base is not None):
                    self._differences.learn(index, trial.attempt, paid=chunk.base is not None)
            if chunk.known is None and chunk.base is None:
                stored_bytes = memoryview(chunk.stored).nbytes
                self._chooser.learn(index, trial.codec, chunk.raw_bytes, stored_bytes, chunk.seconds)
