"""A run whose records are signed: what is created under ``log/`` gets a seal, what is read there must have one.

Everything else is reached from records by digest, so nothing else needs to know. What bit rot did is left to the
reader of the record, who falls back; an intact record that is not ours is refused, loudly and for good.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Sequence

from limpet.errors import UntrustedError
from limpet.format.layout import LOG_PREFIX, log_key, parse_log_key
from limpet.format.record import intact_digest
from limpet.format.seal import SEAL_BYTES, Seal
from limpet.stores.base import GET_BYTES_MAX, Bytes, Entry, KeyMissingError, Store
from limpet.stores.head_memory import HeadMemory, Remembered
from limpet.stores.lanes import end_lanes
from limpet.workers import Workers

__all__ = ["Sealed", "sealed"]

_NOTE_SECONDS = 1.0
"""The memory of the head is written so often at most, and when the store is closed."""


def sealed(store: Store, key: bytes | None) -> Store:
    """``store``, with signed records if there is a key."""
    return store if key is None else Sealed(store, Seal(key))


class Sealed:
    """See the module.

    Args:
        store: where the run is.
        seal: signs and checks.
    """

    def __init__(self, store: Store, seal: Seal) -> None:
        self.store = store
        self.url = store.url
        self.commit_interval_seconds = store.commit_interval_seconds
        self._seal = seal
        self._memory = HeadMemory(store.url, seal.id)
        self._newest = Remembered(0, "")
        self._noted = self._newest
        self._noted_at = float("-inf")
        self._lane = Workers(1, "limpet-heads")

    def __repr__(self) -> str:
        return f"Sealed({self.store!r})"

    async def get(self, key: str, *, limit: int = GET_BYTES_MAX) -> bytes:
        """See ``Store.get``.

        Raises:
            UntrustedError: of a record: it is intact, and not signed with the key.
        """
        seq = parse_log_key(key)
        if seq is None:
            return await self.store.get(key, limit=limit)
        for last in (False, False, True):
            data = await self.store.get(key, limit=limit + SEAL_BYTES)
            try:
                return self._opened(data, seq)
            except UntrustedError:  # a bit of the seal may have flipped on the way
                if last:
                    raise
        raise AssertionError("unreachable")

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        """See ``Store.get_range``."""
        return await self.store.get_range(key, offset, size)

    async def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """See ``Store.read_into``."""
        await self.store.read_into(key, offset, target)

    async def list(self, prefix: str) -> list[Entry]:
        """See ``Store.list``."""
        return await self.store.list(prefix)

    async def folders(self, prefix: str) -> set[str]:
        """See ``Store.folders``. Whoever looks for the head begins here, and must not find an older one than before.

        Raises:
            UntrustedError: the run was rolled back.
        """
        if prefix == LOG_PREFIX:
            await self._refuse_rollback()
        return await self.store.folders(prefix)

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        """See ``Store.put``."""
        return await self.store.put(key, parts, size_hint=size_hint)

    async def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``."""
        seq = parse_log_key(key)
        if seq is None:
            await self.store.create(key, data)
            return
        await self.store.create(key, self._seal.sign(data))
        self._saw(Remembered(seq, intact_digest(data) or ""))

    async def settle(self, key: str) -> None:
        """See ``Store.settle``."""
        await self.store.settle(key)

    async def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        await self.store.delete(key)

    async def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``."""
        return await self.store.free_bytes()

    async def prepare(self) -> None:
        """See ``Store.prepare``."""
        await self.store.prepare()

    def acquire_writer_lock(self, owner: str) -> None:
        """See ``Store.acquire_writer_lock``."""
        self.store.acquire_writer_lock(owner)

    def release_writer_lock(self) -> None:
        """See ``Store.release_writer_lock``."""
        self.store.release_writer_lock()

    def spool_folder(self) -> str | None:
        """See ``Store.spool_folder``."""
        return self.store.spool_folder()

    def child(self, prefix: str) -> Sealed:
        """See ``Store.child``: signed with the same key, with a memory of its own."""
        return Sealed(self.store.child(prefix), self._seal)

    async def close(self) -> None:
        """See ``Store.close``."""
        self._note(at_once=True)
        await end_lanes(self._lane)
        await self.store.close()

    def _opened(self, data: bytes, seq: int) -> bytes:
        try:
            plain = self._seal.open(data, f"{self.url}: log record {seq}")
        except UntrustedError:
            rest = data[: -SEAL_BYTES - 1] + b"}" if data.endswith(b'"}') else data
            if intact_digest(rest) is None:
                return rest  # damaged: the reader says so, and falls back
            raise
        digest = intact_digest(plain)
        if digest is not None:
            self._saw(Remembered(seq, digest))
        return plain

    def _saw(self, seen: Remembered) -> None:
        if seen.seq > self._newest.seq:
            self._newest = seen
            self._note(at_once=False)

    def _note(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if self._newest == self._noted or (not at_once and now - self._noted_at < _NOTE_SECONDS):
            return
        newest, self._noted, self._noted_at = self._newest, self._newest, now
        self._lane.submit(lambda: self._memory.note(newest))  # a home folder may be slow

    async def _refuse_rollback(self) -> None:
        stored = await self._lane.run(self._memory.recall)
        known = max(self._newest, stored or self._newest)
        if known.seq == 0:
            return
        why = ""
        try:
            data = await self.get(log_key(known.seq))
        except KeyMissingError:
            why = f"log record {known.seq}, which was there before, is gone"
        else:
            digest = intact_digest(data)
            if digest is not None and digest != known.digest:
                why = f"log record {known.seq} is not the one that was there before"
        if why:
            raise UntrustedError(
                f"{self.url} was rolled back: {why}.",
                hint=f"If you removed the run yourself, remove {self._memory.path} too.",
                kind="rolled_back",
            )
