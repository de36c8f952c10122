"""Which chunks need not be written again, because a live checkpoint holds them.

Membership comes from manifests of live checkpoints only, never from the existence of an object: what a
listing shows may be on its way out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from limpet.format.manifest import Manifest

__all__ = ["ChunkIndex", "Known"]

MANIFESTS = 3
"""How many of the newest live manifests are searched: what is older has rarely anything to offer."""
_SHARES_MAX = 1000
"""A chunk is written anew after so many commits have shared it, so that one lost pack cannot take them all."""
_PACKS_MAX = 192
"""Older packs that one save may refer to; a record holds 256, and the save's own need room too."""


@dataclass(frozen=True, slots=True)
class Known:
    """A chunk that a live checkpoint holds, and how many commits have shared it."""

    pack: str
    pack_bytes: int
    codec: str
    offset: int
    stored_bytes: int
    stored_digest: str
    raw_bytes: int
    shares: int = 0


class ChunkIndex:
    """Chunk ids of the newest live manifests."""

    def __init__(self) -> None:
        self._by_seq: dict[int, dict[str, Known]] = {}
        self._last: dict[str, Known] = {}
        self._damaged: set[str] = set()

    def add(self, seq: int, manifest: Manifest, pack_bytes: dict[str, int]) -> None:
        """Offer the chunks of checkpoint ``seq``.

        Args:
            seq: it is live.
            manifest: its manifest.
            pack_bytes: size of each of its packs.
        """
        known: dict[str, Known] = {}
        for chunk in manifest.chunks:
            pack = manifest.packs[chunk.pack]
            if not pack:  # in the record itself: not ours to refer to
                continue
            before = self._last.get(chunk.id)
            shares = before.shares + 1 if before is not None and before.pack == pack else 0
            known[chunk.id] = Known(
                pack, pack_bytes[pack], chunk.codec, chunk.offset, chunk.stored_bytes, chunk.stored_digest,
                chunk.raw_bytes, shares,
            )  # fmt: skip
        self._by_seq[seq] = self._last = known
        for old in sorted(self._by_seq)[:-MANIFESTS]:
            del self._by_seq[old]

    def keep_only(self, live: set[int]) -> None:
        """Forget checkpoints that left the live set."""
        self._by_seq = {seq: known for seq, known in self._by_seq.items() if seq in live}

    def discard_pack(self, key: str) -> None:
        """Never offer a chunk of this pack again: it was found damaged or missing."""
        self._damaged.add(key)

    def packs(self) -> dict[str, int]:
        """Every pack that something on offer lies in, and its size."""
        return {
            known.pack: known.pack_bytes
            for chunks in self._by_seq.values()
            for known in chunks.values()
            if known.pack not in self._damaged
        }

    def offer(self) -> dict[str, Known]:
        """What the next save may refer to: a frozen copy, for use on any thread."""
        merged: dict[str, Known] = {}
        for seq in sorted(self._by_seq):
            merged.update(self._by_seq[seq])
        usable = {
            id_: known
            for id_, known in merged.items()
            if known.pack not in self._damaged and known.shares < _SHARES_MAX
        }
        bytes_in: Counter[str] = Counter()
        for known in usable.values():
            bytes_in[known.pack] += known.stored_bytes
        if len(bytes_in) <= _PACKS_MAX:
            return usable
        best = {pack for pack, _ in bytes_in.most_common(_PACKS_MAX)}
        return {id_: known for id_, known in usable.items() if known.pack in best}
