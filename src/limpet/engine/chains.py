"""Which reads lead to the chunks of a checkpoint, and in what order where they are stored as deltas.

What each chain of deltas begins with is read into the memory where the chunk belongs, or into memory of its own where that is in
several places; then one delta after the other is applied there. A few chunks at a time, so that the reads are large, and
that what is held beside the destination is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from limpet.engine.pieces import Content, Part, Piece, Run, copy_out, group
from limpet.format.manifest import ChunkAt, Manifest

__all__ = ["Batch", "Reads"]

_BATCH_BYTES = 16 << 20
"""Raw bytes of chunks that are put together at once."""


@dataclass(slots=True)
class Batch:
    """Some chunks that are deltas, to be put together at once.

    Attributes:
        manifest: of the checkpoint.
        chains: for each chunk what leads to it, from what is stored in full on; and what of it goes where.
        raw_bytes: of the chunks.
    """

    manifest: Manifest
    chains: list[tuple[list[ChunkAt], Sequence[Piece]]] = field(default_factory=list)
    raw_bytes: int = 0
    _copied: list[tuple[Content, Sequence[Piece]]] = field(default_factory=list)

    def add(self, chain: list[ChunkAt], pieces: Sequence[Piece]) -> None:
        """Take one more chunk in."""
        self.chains.append((chain, pieces))
        self.raw_bytes += chain[-1].raw_bytes

    def rounds(self) -> Iterator[list[Run]]:
        """Runs to read, each round after the one before; then ``finish``."""
        contents = [self._content(links[-1], pieces) for links, pieces in self.chains]
        yield group(
            self.manifest,
            [
                Part(links[0], [Piece(content.memory, 0, links[0].raw_bytes, 0)])
                for (links, _), content in zip(self.chains, contents, strict=True)
            ],
        )
        for number in range(1, max(len(links) for links, _ in self.chains)):
            yield group(
                self.manifest,
                [
                    Part(links[number], (), content, number)
                    for (links, _), content in zip(self.chains, contents, strict=True)
                    if number < len(links)
                ],
            )

    def finish(self) -> None:
        """Put what had no place of its own where it belongs."""
        for content, pieces in self._copied:
            copy_out(content.memory, pieces)
        self._copied.clear()

    def _content(self, chunk: ChunkAt, pieces: Sequence[Piece]) -> Content:
        whole = Part(chunk, pieces).whole
        if whole is not None:
            return Content(whole)
        content = Content(np.empty(chunk.raw_bytes, np.uint8))
        self._copied.append((content, pieces))
        return content


class Reads:
    """What to read for which chunks of a checkpoint.

    Args:
        manifest: of the checkpoint.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._chunks = [*manifest.chunks, *manifest.bases]
        self._base_of = dict(manifest.deltas)

    def of(self, wanted: Mapping[int, Sequence[Piece]]) -> list[Run | Batch]:
        """Reads that may be done in any order.

        Args:
            wanted: for the index of each chunk what of it goes where.
        """
        full = [(index, wanted[index]) for index in sorted(wanted) if index not in self._base_of]
        deltas = [(index, wanted[index]) for index in sorted(wanted) if index in self._base_of]
        runs = group(self._manifest, (Part(self._chunks[index], pieces) for index, pieces in full))
        return [*runs, *self._batches(deltas)]

    def of_all(self) -> list[Run | Batch]:
        """The same for all chunks, and for nothing but to check them; each is read once."""
        distinct = {
            (chunk, self._base_of.get(index)): index for index, chunk in reversed([*enumerate(self._manifest.chunks)])
        }
        return self.of(dict.fromkeys(distinct.values(), ()))

    def _batches(self, deltas: Iterable[tuple[int, Sequence[Piece]]]) -> list[Batch]:
        found: list[Batch] = []
        for index, pieces in deltas:
            chain = self._chain(index)
            if not found or found[-1].raw_bytes + chain[0].raw_bytes > _BATCH_BYTES:
                found.append(Batch(self._manifest))
            found[-1].add(chain, pieces)
        return found

    def _chain(self, index: int) -> list[ChunkAt]:
        """What leads to a chunk, from what is stored in full on."""
        links = [self._chunks[index]]
        while index in self._base_of:
            index = self._base_of[index]
            links.append(self._chunks[index])
        return links[::-1]
