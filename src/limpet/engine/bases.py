"""What a save may refer to instead of writing it: chunks of live checkpoints, in packs that were seen lately.

Only a live manifest makes a chunk known, never the existence of an object: what a listing shows may be on its way
out. But what no listing shows any more was removed from outside, and a save that relied on it could not be read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from limpet.engine.index import MANIFESTS, ChunkIndex, Known
from limpet.engine.live import Checkpoint
from limpet.engine.reader import Reader
from limpet.engine.timing import Timing
from limpet.errors import CorruptError, StoreError
from limpet.events import warn_gently
from limpet.format.layout import epoch_prefix, parse_pack_key
from limpet.format.manifest import Manifest
from limpet.stores.base import Store

__all__ = ["Bases", "listed_sizes"]

SEEN_SECONDS = 60.0
"""A pack that was seen within that time is not looked for again."""
TRUSTED_SECONDS = 600.0
"""While the store cannot list, packs are relied on for so long: to write everything anew would not help it."""


async def listed_sizes(store: Store, packs: Collection[str]) -> dict[str, int]:
    """The sizes of those of ``packs`` that are there: one listing for each epoch that wrote some of them."""
    epochs = {name.epoch for key in packs if (name := parse_pack_key(key)) is not None}
    sizes: dict[str, int] = {}
    for epoch in sorted(epochs):
        sizes.update({entry.key: entry.size for entry in await store.list(epoch_prefix(epoch))})
    return {key: sizes[key] for key in packs if key in sizes}


class Bases:
    """The chunk index of a writer, kept true.

    Args:
        store: the run's root.
        timing: its clock.
    """

    def __init__(self, store: Store, timing: Timing) -> None:
        self._store = store
        self._timing = timing
        self._index = ChunkIndex()
        self._seen: dict[str, float] = {}
        self._listed = timing.clock()

    async def load(self, checkpoints: Sequence[Checkpoint], reader: Reader) -> None:
        """Offer the chunks of the newest ``checkpoints`` (newest first) whose packs a listing shows, whole."""
        newest = checkpoints[:MANIFESTS]
        sizes = await listed_sizes(self._store, {key for checkpoint in newest for key in checkpoint.packs})
        for checkpoint in reversed(newest):
            commit = checkpoint.record.commit
            if commit is None or any(sizes.get(use.key) != use.size for use in commit.packs):
                continue
            try:
                opened = await reader.open(checkpoint)
            except (CorruptError, StoreError):
                continue  # nothing to refer to: the next save writes it all
            self.add(checkpoint.info.seq, opened.manifest, {use.key: use.size for use in commit.packs})

    def add(self, seq: int, manifest: Manifest, pack_bytes: dict[str, int]) -> None:
        """Offer the chunks of checkpoint ``seq``, which is live; its packs were there a moment ago."""
        self._index.add(seq, manifest, pack_bytes)
        now = self._timing.clock()
        for key in pack_bytes:
            self._seen.setdefault(key, now)

    async def recheck(self) -> None:
        """Look for the packs that were not seen for a minute; what is gone is not offered again."""
        packs = self._index.packs()
        now = self._timing.clock()
        self._seen = {key: seen for key, seen in self._seen.items() if key in packs and now - seen < SEEN_SECONDS}
        if len(self._seen) == len(packs):
            return
        try:
            deadline = now + self._timing.upload_deadline / 2
            sizes = await self._timing.within(deadline, listed_sizes(self._store, packs))
        except StoreError:
            if now - self._listed > TRUSTED_SECONDS:
                self._index.keep_only(set())
            return
        self._listed = now
        gone = sorted(key for key, size in packs.items() if sizes.get(key) != size)
        for key in gone:
            self._index.discard_pack(key)
        self._seen = dict.fromkeys(sizes, now)
        if gone:
            warn_gently(
                f"limpet: {self._store.url}: {', '.join(gone)}: removed or cut short by somebody else; checkpoints that"
                " need it cannot be read, and the next save writes its part of the state anew."
            )

    def offer(self) -> dict[str, Known]:
        """What the save that begins now may refer to: a frozen copy, for use on any thread."""
        return self._index.offer()

    def keep_only(self, live: set[int]) -> None:
        """Forget checkpoints that left the live set."""
        self._index.keep_only(live)

    def discard_pack(self, key: str) -> None:
        """Never offer a chunk of this pack again: it was found damaged or missing."""
        self._index.discard_pack(key)
