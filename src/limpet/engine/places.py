"""Where the chunks of one save are: those that it writes, those that it refers to, and the bases of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from limpet.engine.encode import Encoded
from limpet.engine.index import Known
from limpet.format.chunks import Plan
from limpet.format.manifest import ChunkAt, Manifest, version_for
from limpet.format.record import ManifestAt, PackUse
from limpet.stores.base import Bytes

__all__ = ["Places"]


class _Placed(NamedTuple):
    id: str
    raw_bytes: int
    codec: str
    pack: str
    offset: int
    stored_bytes: int
    stored_digest: str
    base: Known | None


class Places:
    """The chunks of a save in their order, as far as each has a place."""

    def __init__(self) -> None:
        self._placed: list[_Placed] = []
        self._own: dict[str, _Placed] = {}
        self._pack_bytes: dict[str, int] = {}
        self._found: list[Known] | None = None

    def copy(self) -> Places:
        """The same, whatever becomes of this one: to be looked at on another thread."""
        other = Places()
        other._placed, other._own, other._pack_bytes = self._placed[:], self._own.copy(), self._pack_bytes.copy()
        return other

    def __len__(self) -> int:
        return len(self._placed)

    def place(self, batch: Sequence[Encoded], key: str, offset: int) -> tuple[list[Bytes], int]:
        """Give each chunk its place; returns what must be written to pack ``key``, and the offset after it."""
        part: list[Bytes] = []
        self._found = None
        for chunk in batch:
            known = chunk.known
            placed = self._own.get(chunk.id)
            if known is not None:
                placed = _Placed(
                    chunk.id, chunk.raw_bytes, known.codec, known.pack, known.offset, known.stored_bytes,
                    known.stored_digest, known.base,
                )  # fmt: skip
                self._pack_bytes[known.pack] = known.pack_bytes
            elif placed is None:
                size = memoryview(chunk.stored).nbytes
                placed = _Placed(chunk.id, chunk.raw_bytes, chunk.codec, key, offset, size, chunk.digest, chunk.base)
                self._own[chunk.id] = placed
                part.append(chunk.stored)
                offset += size
            self._placed.append(placed)
        return part, offset

    def forget_from(self, start: int) -> None:
        """Take back every place from chunk ``start`` on."""
        del self._placed[start:]
        self._found = None
        kept = {placed.id for placed in self._placed}
        self._own = {id_: placed for id_, placed in self._own.items() if id_ in kept}

    def wrote(self, pack: str, size: int) -> None:
        """``pack`` is in the store."""
        self._pack_bytes[pack] = size

    def manifest(self, plan: Plan, tree: Any, *, run: str, save: str) -> Manifest:
        """What names all of them."""
        links = self._links()
        chunks: list[_Placed | Known] = [*self._placed, *links]
        packs = list(dict.fromkeys(chunk.pack for chunk in chunks))
        number = {pack: index for index, pack in enumerate(packs)}
        index_of = {(link.pack, link.offset): index for index, link in enumerate(links, len(self._placed))}
        deltas = [
            (index, index_of[chunk.base.pack, chunk.base.offset])
            for index, chunk in enumerate(chunks)
            if chunk.base is not None
        ]

        def at(chunk: _Placed | Known) -> ChunkAt:
            return ChunkAt(
                chunk.id, chunk.raw_bytes, chunk.codec, number[chunk.pack], chunk.offset, chunk.stored_bytes,
                chunk.stored_digest,
            )  # fmt: skip

        return Manifest(
            version=version_for(deltas),
            run=run,
            save=save,
            tree=tree,
            buffers=plan.buffers,
            chunks=[at(placed) for placed in self._placed],
            packs=packs,
            bases=[at(link) for link in links],
            deltas=deltas,
        )

    def uses(self, manifest: Manifest, at: ManifestAt) -> list[PackUse]:
        """The packs that a checkpoint with this manifest needs."""
        sizes = self._pack_bytes | {link.pack: link.pack_bytes for link in self._links()}
        return [PackUse(key, sizes[key]) for key in dict.fromkeys([*manifest.packs, at.key]) if key]

    @property
    def has_bases(self) -> bool:
        """Whether any of them is stored as a difference."""
        return any(placed.base is not None for placed in self._placed)

    @property
    def stored_bytes(self) -> int:
        """What all of them take in the store, those shared with other checkpoints and the bases included."""
        chunks: list[_Placed | Known] = [*self._placed, *self._links()]
        return sum({(chunk.pack, chunk.offset): chunk.stored_bytes for chunk in chunks}.values())

    @property
    def new_bytes(self) -> int:
        """What this save wrote of that."""
        return sum(placed.stored_bytes for placed in self._own.values())

    def _links(self) -> list[Known]:
        """Every base that is needed, once, and each after all that are stored as differences from it.

        Looked for once: a manifest is made when all have their places.
        """
        if self._found is not None:
            return self._found
        found: dict[tuple[str, int], Known] = {}
        for placed in self._placed:
            for link in placed.base.chain if placed.base is not None else ():
                if (link.pack, link.offset) in found:
                    break
                found[link.pack, link.offset] = link
        self._found = sorted(found.values(), key=lambda link: -link.depth)
        return self._found
