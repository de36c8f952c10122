"""Chunks of one pack that are read at once: checked as they come, decoded, and put where they belong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import blake3
import numpy as np

from limpet.engine.slots import Bytes8
from limpet.errors import CorruptError
from limpet.format import codec
from limpet.format.codec import RAW
from limpet.format.deltas import decode_delta
from limpet.format.manifest import ChunkAt, Manifest
from limpet.stores.base import Bytes

__all__ = ["Content", "Part", "Piece", "Run", "Watch", "copy_out", "decode_run", "group", "settle_run", "wanted_pieces"]

_RUN_BYTES = 16 << 20
"""Stored bytes per request."""


class Piece(NamedTuple):
    """``whole[start : start + nbytes]`` gets the chunk's raw bytes from ``offset`` on."""

    whole: Bytes8
    start: int
    nbytes: int
    offset: int

    @property
    def target(self) -> Bytes8:
        """The memory to fill."""
        return self.whole[self.start : self.start + self.nbytes]


@dataclass(slots=True)
class Content:
    """A chunk that is put together from a chain of deltas.

    Attributes:
        memory: its raw bytes, as far as they are: those of the last link that was decoded.
        applied: how many deltas were.
    """

    memory: Bytes8
    applied: int = 0


class Part(NamedTuple):
    """A chunk, and what its bytes are for.

    Attributes:
        chunk: to be read.
        pieces: where its raw bytes go.
        content: for a delta, what it is to be applied to.
        number: for a delta, which it is of those to be applied, from 1.
    """

    chunk: ChunkAt
    pieces: Sequence[Piece]
    content: Content | None = None
    number: int = 0

    @property
    def whole(self) -> Bytes8 | None:
        """Where the chunk's raw bytes go, if that is one place that takes all of them."""
        if len(self.pieces) == 1 and self.pieces[0].nbytes == self.chunk.raw_bytes:
            return self.pieces[0].target
        return None

    @property
    def place(self) -> Bytes8 | None:
        """The same, if it takes the chunk as it is stored."""
        return self.whole if self.chunk.codec == RAW else None


@dataclass(slots=True)
class Run:
    """Chunks that lie one after the other in one pack, and where their bytes go."""

    pack: str
    offset: int
    stored_bytes: int = 0
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Take one more chunk in, which comes right after the last one."""
        self.parts.append(part)
        self.stored_bytes += part.chunk.stored_bytes

    def takes(self, pack: str, chunk: ChunkAt) -> bool:
        """Whether ``chunk`` may be added."""
        end = self.offset + self.stored_bytes
        return pack == self.pack and chunk.offset == end and self.stored_bytes + chunk.stored_bytes <= _RUN_BYTES

    def targets(self) -> list[Bytes8] | None:
        """Where each chunk is to be read into: to its place, if that is one and takes the chunk as it is stored.

        ``None`` if that is so of no chunk. The others get memory of their own.
        """
        places = [part.place for part in self.parts]
        if all(place is None for place in places):
            return None
        return [
            np.empty(part.chunk.stored_bytes, np.uint8) if place is None else place
            for place, part in zip(places, self.parts, strict=True)
        ]


class Watch:
    """Checks the stored bytes of a run's chunks as they are read.

    Attributes:
        done: whether all of them were seen, and are right.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begin()

    def __call__(self, position: int, piece: memoryview) -> None:
        """See ``Seen``.

        Raises:
            CorruptError: the chunk that ends in ``piece`` is damaged.
        """
        if position == 0:
            self._begin()
        while piece:
            chunk = self._run.parts[self._index].chunk
            seen = piece[: chunk.stored_bytes - self._hashed]
            self._hash.update(seen)
            self._hashed += len(seen)
            piece = piece[len(seen) :]
            if self._hashed == chunk.stored_bytes:
                if self._hash.hexdigest() != _stored_digest(chunk):
                    raise _damaged(self._run, chunk)
                self._next(self._index + 1)

    def _begin(self) -> None:
        self.done = False
        self._next(0)

    def _next(self, index: int) -> None:
        self._index = index
        self._hash = blake3.blake3()
        self._hashed = 0
        self.done = index == len(self._run.parts)


def wanted_pieces(manifest: Manifest, destinations: dict[int, Bytes8]) -> dict[int, list[Piece]]:
    """The chunks that some buffers lie in, and what of each goes where.

    Args:
        manifest: of the checkpoint.
        destinations: for each buffer's index, memory of exactly its size.
    """
    wanted: dict[int, list[Piece]] = {}
    for index, target in destinations.items():
        at = manifest.buffers[index]
        if target.nbytes != at.nbytes:
            raise AssertionError(f"buffer {index} has {at.nbytes} bytes, its destination {target.nbytes}")
        chunk, offset, done = at.chunk, at.offset, 0
        while done < at.nbytes:
            size = min(at.nbytes - done, manifest.chunks[chunk].raw_bytes - offset)
            wanted.setdefault(chunk, []).append(Piece(target, done, size, offset))
            chunk, offset, done = chunk + 1, 0, done + size
    return wanted


def group(manifest: Manifest, parts: Iterable[Part]) -> list[Run]:
    """``parts`` in as few runs as their order allows."""
    runs: list[Run] = []
    for part in parts:
        pack = manifest.packs[part.chunk.pack]
        if not runs or not runs[-1].takes(pack, part.chunk):
            runs.append(Run(pack, part.chunk.offset))
        runs[-1].add(part)
    return runs


def settle_run(run: Run, targets: Sequence[Bytes8], checked: bool) -> None:
    """Finish chunks whose stored bytes were read into ``targets``; ``checked`` says that those are right."""
    for part, target in zip(run.parts, targets, strict=True):
        if part.place is None:
            _decode_part(run, part, target.data, checked=checked)
        elif not checked:
            _check_id(run, part.chunk, target)


def decode_run(run: Run, stored: Bytes) -> None:
    """Check and decode the chunks of a run, of which these are the stored bytes.

    Raises:
        CorruptError: they are not.
    """
    view = memoryview(stored).cast("B") if not isinstance(stored, bytes) else memoryview(stored)
    if view.nbytes != run.stored_bytes:
        raise CorruptError(f"{run.pack or 'the record'} ends before byte {run.offset + run.stored_bytes}.")
    start = 0
    for part in run.parts:
        _decode_part(run, part, view[start : start + part.chunk.stored_bytes])
        start += part.chunk.stored_bytes


def _decode_part(run: Run, part: Part, stored: memoryview, *, checked: bool = False) -> None:
    chunk, content = part.chunk, part.content
    if content is not None and content.applied >= part.number:
        return  # a run is read again as a whole: this was right the first time, and stands on what is gone
    if not checked and blake3.blake3(stored).hexdigest() != _stored_digest(chunk):
        raise _damaged(run, chunk)
    if content is not None:
        _apply(run, part, stored, content)
        return
    whole = part.whole
    if chunk.codec == RAW:
        raw = np.frombuffer(stored, dtype=np.uint8)
    elif whole is not None:
        codec.decode(chunk.codec, stored, whole)
        _check_id(run, chunk, whole)
        return
    else:
        raw = np.empty(chunk.raw_bytes, dtype=np.uint8)
        codec.decode(chunk.codec, stored, raw)
        _check_id(run, chunk, raw)
    copy_out(raw, part.pieces)


def _apply(run: Run, part: Part, stored: memoryview, content: Content) -> None:
    # Never in place: what is found wrong here is read once more, and needs its base for that.
    raw = np.empty(part.chunk.raw_bytes, dtype=np.uint8)
    decode_delta(part.chunk.codec, stored, content.memory, raw)
    _check_id(run, part.chunk, raw)
    np.copyto(content.memory, raw)
    content.applied = part.number


def copy_out(raw: Bytes8, pieces: Iterable[Piece]) -> None:
    """Put each piece of a chunk's raw bytes where it belongs."""
    for piece in pieces:
        np.copyto(piece.target, raw[piece.offset : piece.offset + piece.nbytes])


def _stored_digest(chunk: ChunkAt) -> str:
    """Of the bytes as they are stored: of a raw chunk, that is its id."""
    return chunk.id if chunk.codec == RAW else chunk.stored_digest


def _check_id(run: Run, chunk: ChunkAt, raw: Bytes8) -> None:
    if blake3.blake3(raw.data).hexdigest() != chunk.id:
        raise _damaged(run, chunk)


def _damaged(run: Run, chunk: ChunkAt) -> CorruptError:
    where = run.pack or "the commit record"
    return CorruptError(
        f"{where} is damaged at byte {chunk.offset} ({chunk.stored_bytes} bytes do not match).", pack=run.pack or None
    )
