"""Which chunks need not be written again, because a live checkpoint holds them.

Membership comes from manifests of live checkpoints only, never from the existence of an object: what a
listing shows may be on its way out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import msgspec
from msgspec.structs import force_setattr

from limpet.format.manifest import Manifest

__all__ = ["ChunkIndex", "Known"]

MANIFESTS = 3
"""How many of the newest live manifests are searched: what is older has rarely anything to offer."""
_SHARES_MAX = 1000
"""A chunk is written anew after so many commits have shared it, so that one lost pack cannot take them all."""
_PACKS_MAX = 192
"""Older packs that one save may refer to; a record holds 256, and the save's own need room too."""


class Known(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A chunk that a live checkpoint holds, and how many commits have shared it.

    A save makes and asks as many as there are links in its chains: so they are cheap to make, and know about all of their
    chain.

    Attributes:
        base: what it is stored as the difference from, if it is.
        depth: how many deltas lead to it from what is stored in full.
        packs: that its chain lies in. Chains that lie in the same ones have one set.
        chain_shares: the most that any of its chain has.
    """

    id: str
    pack: str
    pack_bytes: int
    codec: str
    offset: int
    stored_bytes: int
    stored_digest: str
    raw_bytes: int
    shares: int = 0
    base: Known | None = None
    depth: int = 0
    packs: frozenset[str] = frozenset()
    chain_shares: int = 0

    def __post_init__(self) -> None:
        base = self.base
        force_setattr(self, "packs", _packs(self.pack, None if base is None else base.packs))
        force_setattr(self, "depth", 0 if base is None else base.depth + 1)
        force_setattr(self, "chain_shares", self.shares if base is None else max(self.shares, base.chain_shares))

    @property
    def chain(self) -> Iterator[Known]:
        """What must be read for it: itself, its base, and so on to what is stored in full."""
        link: Known | None = self
        while link is not None:
            yield link
            link = link.base


@lru_cache(maxsize=1024)
def _packs(pack: str, of_base: frozenset[str] | None) -> frozenset[str]:
    return frozenset((pack,)) if of_base is None else of_base | {pack}


class ChunkIndex:
    """Chunk ids of the newest live manifests."""

    def __init__(self) -> None:
        self._by_seq: dict[int, dict[str, Known]] = {}
        self._last: dict[str, Known] = {}
        self._damaged: set[str] = set()
        self._pack_bytes: dict[str, int] = {}

    def add(self, seq: int, manifest: Manifest, pack_bytes: dict[str, int]) -> None:
        """Offer the chunks of checkpoint ``seq``, and their bases.

        Args:
            seq: it is live.
            manifest: its manifest.
            pack_bytes: size of each of its packs.
        """
        known: dict[str, Known] = {}
        base_of = dict(manifest.deltas)
        at: dict[int, Known] = {}
        for index, chunk in reversed([*enumerate([*manifest.chunks, *manifest.bases])]):  # bases first
            pack = manifest.packs[chunk.pack]
            base = at.get(base_of.get(index, -1))
            if not pack or (index in base_of and base is None):  # in the record itself: not ours to refer to
                continue
            before = self._last.get(chunk.id)
            shares = before.shares + 1 if before is not None and before.pack == pack else 0
            known[chunk.id] = at[index] = Known(
                chunk.id, pack, pack_bytes[pack], chunk.codec, chunk.offset, chunk.stored_bytes, chunk.stored_digest,
                chunk.raw_bytes, shares, base,
            )  # fmt: skip
        self._by_seq[seq] = self._last = known
        for old in sorted(self._by_seq)[:-MANIFESTS]:
            del self._by_seq[old]
        used = self._packs()
        self._pack_bytes = {key: size for key, size in (self._pack_bytes | pack_bytes).items() if key in used}

    def keep_only(self, live: set[int]) -> None:
        """Forget checkpoints that left the live set."""
        self._by_seq = {seq: known for seq, known in self._by_seq.items() if seq in live}

    def discard_pack(self, key: str) -> None:
        """Never offer a chunk of this pack again: it was found damaged or missing."""
        self._damaged.add(key)

    def packs(self) -> dict[str, int]:
        """Every pack that something on offer lies in, and its size."""
        return {key: self._pack_bytes[key] for key in self._packs() - self._damaged}

    def _packs(self) -> set[str]:
        of_chains = {known.packs for chunks in self._by_seq.values() for known in chunks.values()}
        return set().union(*of_chains)

    def offer(self) -> dict[str, Known]:
        """What the next save may refer to: a frozen copy, for use on any thread."""
        merged: dict[str, Known] = {}
        for seq in sorted(self._by_seq):
            merged.update(self._by_seq[seq])
        damaged = self._damaged
        usable = {
            id_: known
            for id_, known in merged.items()
            if known.chain_shares < _SHARES_MAX and known.packs.isdisjoint(damaged)
        }
        if len(set().union(*{known.packs for known in usable.values()})) <= _PACKS_MAX:
            return usable
        bytes_in: Counter[str] = Counter()
        for known in usable.values():
            for link in known.chain:
                bytes_in[link.pack] += link.stored_bytes
        best = {pack for pack, _ in bytes_in.most_common(_PACKS_MAX)}
        return {id_: known for id_, known in usable.items() if known.packs <= best}
