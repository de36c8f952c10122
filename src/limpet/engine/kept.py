"""What chunks are stored as differences from: the content of the last committed checkpoint, kept in memory.

It is a matter of bytes, never of truth: a base is named by the ``id`` of its content, and counts only while its memory
holds that for certain, before and after it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import blake3

from limpet.engine.index import Known
from limpet.engine.slots import Bytes8
from limpet.format.buffers import Buffer
from limpet.format.choosing import DeltaChooser, delta_codec
from limpet.format.chunks import ChunkSource, Plan
from limpet.format.deltas import DELTAS, Scratch, encode_delta
from limpet.format.manifest import Manifest, bases_max

__all__ = ["Attempt", "Differences", "Kept", "KeptMemory", "LastCommitted", "base_buffers"]


_scratch = Scratch()


class KeptMemory(Protocol):
    """Memory that its owner takes back as soon as he needs it."""

    @property
    def is_held(self) -> bool:
        """Whether it holds what was kept, and has done so all the time."""

    def copy_if_held(self, offset: int, out: Bytes8, /) -> bool:
        """Fill ``out`` with what was kept from ``offset`` on, unless it is not held any more when that is done."""

    def release(self) -> None:
        """Give it back. Idempotent."""


class Kept:
    """A snapshot after its upload.

    Args:
        memory: of its copies.
        chunks: where each chunk is.
        sources: buffers that nobody can change, by number; where they are.
    """

    def __init__(self, memory: KeptMemory, chunks: Sequence[ChunkSource], sources: Mapping[int, Buffer]) -> None:
        self._memory = memory
        self._chunks = chunks
        self._sources = sources
        self._users = 0
        self._wanted = True

    def matches(self, index: int, source: ChunkSource) -> bool:
        """Whether chunk ``index`` can be the base of one that is like ``source``."""
        if index >= len(self._chunks) or not self._memory.is_held:
            return False
        mine = self._chunks[index]
        return (mine.raw_bytes, mine.dtype) == (source.raw_bytes, source.dtype)

    def read(self, index: int) -> Bytes8 | None:
        """The bytes of a chunk, until the same thread reads another; ``None`` if they are not kept (any more).

        A copy where somebody may need the memory: who takes that back need not wait until it has been compared.
        """
        chunk = self._chunks[index]
        if chunk.buffer < 0:
            out = _scratch.take(chunk.raw_bytes)
            return out if self._memory.copy_if_held(chunk.offset, out) else None
        buffer = self._sources.get(chunk.buffer)
        flat = None if buffer is None else buffer.flat()
        return None if flat is None else flat[chunk.offset : chunk.offset + chunk.raw_bytes]

    @property
    def is_held(self) -> bool:
        """Whether it is kept still."""
        return self._memory.is_held

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A block in which a save is compared with it."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not (self._users or self._wanted):
                self.release()

    def retire(self) -> None:
        """Give the memory back as soon as nothing is compared with it any more."""
        self._wanted = False
        if not self._users:
            self.release()

    def release(self) -> None:
        """Give the memory back. Idempotent."""
        self._memory.release()


class Attempt(NamedTuple):
    """A chunk that may be stored as a difference.

    Attributes:
        codec: one of ``DELTAS``.
        base: where the other one is stored.
        place: its chunk among those that are kept.
        most_bytes: more than that, and it is stored in full.
    """

    codec: str
    base: Known
    kept: Kept
    place: int
    most_bytes: int

    def encode(self, raw: Bytes8, level: int, out: Bytes8 | None) -> tuple[memoryview | None, bool]:
        """The difference, if it is small enough; and whether that was found out. Runs on a worker."""
        base = self.kept.read(self.place)
        if base is None:
            return None, False
        stored = encode_delta(raw, base, width=DELTAS[self.codec], level=level, out=out)
        fits = stored is not None and stored.nbytes <= self.most_bytes
        # The difference from what has changed in memory could never be restored: a fifth of the time for certainty.
        if fits and blake3.blake3(base.data).hexdigest() != self.base.id:
            return None, False
        return (stored if fits else None), True


class Differences:
    """What one save's chunks may be stored as differences from.

    Args:
        kept: the content of the last committed checkpoint.
        ids: of its chunks.
        known: chunks of live checkpoints.
        chooser: what pays.
    """

    def __init__(self, kept: Kept, ids: Sequence[str], known: Mapping[str, Known], chooser: DeltaChooser) -> None:
        self._kept = kept
        self._ids = ids
        self._known = known
        self._chooser = chooser
        self._links = {index: known[id_].depth for index, id_ in enumerate(ids) if id_ in known}
        self._links_in_all = sum(self._links.values())
        self._links_max = bases_max()

    def in_use(self) -> AbstractContextManager[None]:
        """A block in which attempts are made: what they are compared with stays, unless somebody needs its room."""
        return self._kept.in_use()

    def attempt(self, index: int, source: ChunkSource) -> Attempt | None:
        """How to try chunk ``index`` of the state; ``None``: in full."""
        codec = delta_codec(source.dtype)
        if codec is None or self._links_in_all >= self._links_max or not self._kept.matches(index, source):
            return None
        base = self._known.get(self._ids[index])
        if base is None or base.raw_bytes != source.raw_bytes:
            return None
        *_, root = base.chain
        most_bytes = self._chooser.most_bytes(index, base.depth, root.stored_bytes)
        return Attempt(codec, base, self._kept, index, most_bytes) if most_bytes else None

    def learn(self, index: int, attempt: Attempt, *, paid: bool) -> None:
        """Take in what came of an attempt."""
        *_, root = attempt.base.chain
        self._chooser.learn(index, paid=paid, raw_bytes=root.raw_bytes, full_bytes=root.stored_bytes)

    def stored(self, index: int, base: Known | None) -> None:
        """Chunk ``index`` of the state is stored as its difference from ``base``, or in full.

        A manifest names every link of every chain, and has room for so many: what the others are going to have is taken
        to be what they had, until it is known.
        """
        links = 0 if base is None else base.depth + 1
        self._links_in_all += links - self._links.get(index, 0)
        self._links[index] = links


class Keepable(Protocol):
    """A staged snapshot."""

    plan: Plan

    def keep(self) -> Kept | None:
        """See ``Snapshot.keep``."""


class LastCommitted:
    """The last committed checkpoint of a writer, as long as its content is kept.

    Args:
        wanted: whether it is to be kept at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._chooser = DeltaChooser()
        self._kept: Kept | None = None
        self._ids: Sequence[str] = ()

    def differences(self, known: Mapping[str, Known]) -> Differences | None:
        """What the save that begins now may be compared with."""
        if self._kept is None or not self._kept.is_held:
            self._kept = None
            return None
        return Differences(self._kept, self._ids, known, self._chooser)

    def give_up(self) -> None:
        """Keep nothing any more."""
        if self._kept is not None:
            self._kept.release()
            self._kept = None

    @contextmanager
    def replacing(self, snapshot: Keepable | None, manifest: Manifest, *, inline: bool) -> Iterator[bool]:
        """A block that commits ``snapshot``, which is uploaded: whether its content is kept. If it fails, it is not.

        What was kept before ends after the block, so that it stays what the next save is compared with if that fails.

        Args:
            snapshot: ends with the beginning of the block if it is kept.
            manifest: its own.
            inline: it travels in its record, to which nothing can refer; what was kept before stays.
        """
        kept = None
        if self._wanted and snapshot is not None and not inline and _worth_keeping(snapshot.plan):
            kept = snapshot.keep()
        if kept is None:
            yield False
            if not inline:
                self.give_up()
            return
        try:
            yield True
        except BaseException:
            kept.release()
            raise
        if not kept.is_held:  # its room was needed meanwhile: what was kept before may be there still
            return
        before, self._kept, self._ids = self._kept, kept, [chunk.id for chunk in manifest.chunks]
        if before is not None:
            before.retire()


def base_buffers(plan: Plan) -> set[int]:
    """The buffers that stay where they are, and whose chunks can be bases."""
    return {chunk.buffer for chunk in plan.chunks if chunk.buffer >= 0 and delta_codec(chunk.dtype) is not None}


def _worth_keeping(plan: Plan) -> bool:
    """Whether half of what would be kept, at least, can be a base."""
    bases = sum(chunk.raw_bytes for chunk in plan.chunks if delta_codec(chunk.dtype) is not None)
    useless = sum(chunk.raw_bytes for chunk in plan.chunks if chunk.buffer < 0 and delta_codec(chunk.dtype) is None)
    return bases > 0 and bases >= useless
