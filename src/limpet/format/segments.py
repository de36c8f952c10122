"""Cutting a snapshot into segments that are copied and written one after another, in a window of memory.

The window has two halves: while one segment is written from the one, the next is copied into the other. A pack ends with
its segment, so the number of segments is bounded by the packs that a checkpoint may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from limpet.format.chunks import ChunkSource, Plan

__all__ = ["PACKS_MAX", "Segment", "cut_segments", "half_of", "least_window"]

PACKS_MAX = 61
"""Packs of its own that a save may have: a record holds 256, and a save may refer to 192 older ones."""
_SEGMENTS_MAX = PACKS_MAX - 1
_ALIGNMENT = 4096
"""Of a segment in its half: the chunks keep their places within a page, as writing past the page cache wants it."""


class Segment(NamedTuple):
    """Chunks that are in memory together.

    Attributes:
        start: index of the first one.
        end: index after the last one.
        first: where in the whole snapshot's slot the first chunk that is copied begins.
        last: where the last one ends.
    """

    start: int
    end: int
    first: int
    last: int

    @property
    def base(self) -> int:
        """What of the whole slot lies at the beginning of this segment's half."""
        return self.first // _ALIGNMENT * _ALIGNMENT


def half_of(window_bytes: int) -> int:
    """What one segment may take of a window."""
    return window_bytes // 2 // _ALIGNMENT * _ALIGNMENT


def least_window(plan: Plan) -> int:
    """The smallest window, in bytes, that a snapshot can be written through."""
    chunk = max((chunk.raw_bytes for chunk in plan.chunks if chunk.buffer < 0), default=0)
    # All segments but the last are fuller than their half less one chunk, and less what aligns them.
    half = -(-plan.slot_bytes // (_SEGMENTS_MAX - 1)) + chunk + 2 * _ALIGNMENT
    return 2 * (-(-half // _ALIGNMENT) * _ALIGNMENT)


def cut_segments(chunks: Sequence[ChunkSource], half_bytes: int) -> list[Segment]:
    """Cut chunks into segments of at most ``half_bytes`` each; what is not copied needs none of them.

    Raises:
        ValueError: one chunk alone needs more.
    """
    segments: list[Segment] = []
    current = Segment(0, 0, 0, 0)
    for index, chunk in enumerate(chunks):
        if chunk.buffer < 0:
            after = chunk.offset + chunk.raw_bytes
            if current.last == current.first:  # the first of this segment that is copied
                current = current._replace(first=chunk.offset, last=chunk.offset)
            if after - current.base > half_bytes:
                if current.last > current.first:
                    segments.append(current)
                current = Segment(index, index, chunk.offset, chunk.offset)
            if after - current.base > half_bytes:
                raise ValueError(f"a chunk of {chunk.raw_bytes} bytes does not fit into {half_bytes}")
            current = current._replace(last=after)
        current = current._replace(end=index + 1)
    return [*segments, current]
