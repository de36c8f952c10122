"""Where each buffer of a state goes: into which chunk, and which bytes are copied where.

Big buffers are cut into chunks of their own, aligned to the buffer's start, so that a tensor that did not
change gives the same chunks whatever happens around it; small ones share a chunk. Content-defined
cutting finds nothing in dense tensors and costs far more metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from limpet.format.manifest import BufferAt

__all__ = ["CHUNK_BYTES", "SHARED_BYTES", "BufferSpec", "ChunkSource", "Plan", "Run", "plan_chunks"]

CHUNK_BYTES = 4 << 20
SHARED_BYTES = 256 << 10
"""Buffers smaller than this share chunks."""
_RUN_BYTES = 1 << 20
"""One native call gathers no more than this, for it holds the interpreter lock meanwhile."""
_ALIGNMENT = 4096
_CHUNKS_MAX_FOR_SIZE = 200_000
"""Beyond this many chunks they grow, so that the manifest stays below its limit."""


class BufferSpec(NamedTuple):
    """What the plan must know of a buffer: its size, its codec hint, whether it may stay where it is."""

    nbytes: int
    dtype: str
    stays: bool
    joins: bool = False
    """Whether it may be gathered in one native call with others."""
    late: bool = False
    """If it must be copied, because it shares a chunk, whether that has time until the chunk is read."""


@dataclass(slots=True)
class Run:
    """Small buffers that lie back to back in one shared chunk, and are gathered together.

    Attributes:
        offset: in the slot.
        nbytes: of all of them.
        buffers: their indices, in order.
        joins: whether one native call gathers them; else it is a single buffer.
        late: whether it is done when the chunk is read; else in the call.
        chunk: where in the slot the chunk starts.
    """

    offset: int
    nbytes: int
    buffers: list[int]
    joins: bool
    late: bool
    chunk: int


class ChunkSource(NamedTuple):
    """Where a chunk's raw bytes are: in the slot if ``buffer`` is -1, else within that buffer."""

    raw_bytes: int
    dtype: str
    buffer: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout of one snapshot.

    Attributes:
        buffers: where each buffer is in the sequence of chunks.
        chunks: where each chunk's bytes come from.
        copies: (buffer, offset in the slot) for each buffer that must be copied by itself.
        runs: the other buffers that must be copied.
        slot_bytes: the memory that those copies need.
        raw_bytes: all bytes of all buffers.
    """

    buffers: list[BufferAt]
    chunks: list[ChunkSource]
    copies: list[tuple[int, int]]
    runs: list[Run]
    slot_bytes: int
    raw_bytes: int


def plan_chunks(specs: Sequence[BufferSpec]) -> Plan:
    """Lay out buffers in chunks, shared ones first."""
    raw_bytes = sum(spec.nbytes for spec in specs)
    chunk_bytes = _chunk_size(raw_bytes)
    buffers = [BufferAt(0, 0, 0)] * len(specs)
    chunks: list[ChunkSource] = []
    copies: list[tuple[int, int]] = []
    runs: list[Run] = []
    slot_bytes = _plan_shared(specs, buffers, chunks, copies, runs)
    for index, spec in enumerate(specs):
        if spec.nbytes < SHARED_BYTES:
            continue
        buffers[index] = BufferAt(len(chunks), 0, spec.nbytes)
        source = index
        base = 0
        if not spec.stays:
            source = -1
            base = -(-slot_bytes // _ALIGNMENT) * _ALIGNMENT
            copies.append((index, base))
            slot_bytes = base + spec.nbytes
        for offset in range(0, spec.nbytes, chunk_bytes):
            size = min(chunk_bytes, spec.nbytes - offset)
            chunks.append(ChunkSource(size, spec.dtype, source, base + offset))
    return Plan(buffers, chunks, copies, runs, slot_bytes, raw_bytes)


def _chunk_size(raw_bytes: int) -> int:
    size = CHUNK_BYTES
    while raw_bytes // size > _CHUNKS_MAX_FOR_SIZE and size < CHUNK_BYTES << 4:
        size <<= 1
    return size


def _plan_shared(
    specs: Sequence[BufferSpec],
    buffers: list[BufferAt],
    chunks: list[ChunkSource],
    copies: list[tuple[int, int]],
    runs: list[Run],
) -> int:
    """Pack the small buffers back to back; every one lies within a single chunk."""
    position = start = 0
    dtypes: set[str] = set()
    for index, spec in enumerate(specs):
        if spec.nbytes >= SHARED_BYTES or spec.nbytes == 0:
            continue
        if position > start and position - start + spec.nbytes > CHUNK_BYTES:
            chunks.append(_shared_chunk(start, position, dtypes))
            start = position
            dtypes = set()
        buffers[index] = BufferAt(len(chunks), position - start, spec.nbytes)
        if spec.joins or spec.late:
            _join(runs, index, spec, position, start)
        else:
            copies.append((index, position))
        position += spec.nbytes
        dtypes.add(spec.dtype)
    if position > start:
        chunks.append(_shared_chunk(start, position, dtypes))
    return position


def _join(runs: list[Run], index: int, spec: BufferSpec, position: int, chunk: int) -> None:
    """Add a buffer to the last run if it can be gathered with that, else begin another."""
    last = runs[-1] if runs else None
    if (
        last is not None
        and (last.joins, last.late, last.chunk) == (spec.joins, spec.late, chunk)
        and last.joins
        and last.offset + last.nbytes == position
        and last.nbytes + spec.nbytes <= _RUN_BYTES
    ):
        last.buffers.append(index)
        last.nbytes += spec.nbytes
    else:
        runs.append(Run(position, spec.nbytes, [index], spec.joins, spec.late, chunk))


def _shared_chunk(start: int, end: int, dtypes: set[str]) -> ChunkSource:
    return ChunkSource(end - start, dtypes.pop() if len(dtypes) == 1 else "", -1, start)
