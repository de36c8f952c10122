"""A run whose records are signed: what is created under ``log/`` gets a seal, what is read there must have one.

Everything else is reached from records by digest, so nothing else needs to know. What bit rot did is left to the
reader of the record, who falls back; an intact record that is not ours is refused, loudly and for good.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass

import anyio
import msgspec

from limpet.errors import CorruptError, FormatError, UntrustedError
from limpet.format.layout import LOG_PREFIX, log_key, parse_log_key
from limpet.format.record import decode_record, intact_digest, record_bytes
from limpet.format.seal import SEAL_BYTES, Seal
from limpet.stores.base import GET_BYTES_MAX, Bytes, Entry, KeyMissingError, Seen, Store
from limpet.stores.head_memory import HeadMemory, Remembered
from limpet.stores.lanes import end_lanes
from limpet.workers import Workers

__all__ = ["Sealed", "sealed"]

_RECALL_SECONDS = 5.0
_NOTHING = Remembered(0, "")
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
        self._runs: dict[str, _Known] = {}
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
        plain = await self._get_record(key, seq, limit)
        if (seen := _seen(plain, seq)) is not None:
            known = await self._known(seen[0])
            if not known.is_proven:
                known.is_proven = True  # now, or the records that the proof reads would ask for it again
                await self._refuse_rollback(known, limit)
            self._saw(known, seen[1])
        return plain

    async def _get_record(self, key: str, seq: int, limit: int) -> bytes:
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

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        """See ``Store.read_into``."""
        await self.store.read_into(key, offset, targets, seen)

    async def list(self, prefix: str) -> list[Entry]:
        """See ``Store.list``."""
        return await self.store.list(prefix)

    async def folders(self, prefix: str) -> set[str]:
        """See ``Store.folders``. Whoever looks for the head begins here, and must not find an older one than before."""
        if prefix == LOG_PREFIX:
            for known in self._runs.values():
                known.is_proven = False
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
        if (seen := _seen(data, seq)) is not None:
            self._saw(await self._known(seen[0]), seen[1])

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
        for known in self._runs.values():
            self._note(known, at_once=True)
        await end_lanes(self._lane)
        await self.store.close()

    def _opened(self, data: bytes, seq: int) -> bytes:
        try:
            return self._seal.open(data, f"{self.url}: log record {seq}")
        except UntrustedError:
            rest = data[: -SEAL_BYTES - 1] + b"}" if data.endswith(b'"}') else data
            if intact_digest(rest) is None:
                return rest  # damaged: the reader says so, and falls back
            raise

    async def _known(self, run: str) -> _Known:
        """What is known of ``run``; from the memory, if it is met for the first time."""
        known = self._runs.get(run)
        if known is None:
            memory = HeadMemory(run, self._seal.id, self.url)
            stored = None
            with anyio.move_on_after(_RECALL_SECONDS):  # a home folder may hang
                stored = await self._lane.run(memory.recall)
            known = self._runs.setdefault(run, _Known(memory, stored or _NOTHING, stored))
        return known

    def _saw(self, known: _Known, seen: Remembered) -> None:
        if seen.seq > known.newest.seq:
            known.newest = seen
            self._note(known, at_once=False)

    def _note(self, known: _Known, *, at_once: bool) -> None:
        now = time.monotonic()
        if known.newest in (known.noted, _NOTHING) or (not at_once and now - known.noted_at < _NOTE_SECONDS):
            return
        newest, known.noted, known.noted_at = known.newest, known.newest, now
        self._lane.submit(lambda: known.memory.note(newest))

    async def _refuse_rollback(self, known: _Known, limit: int) -> None:
        """Raise if the record that is known to have been the newest is not part of the log any more."""
        seq, digest = known.newest
        if seq == 0:
            return
        try:
            found = intact_digest(await self._get_record(log_key(seq), seq, limit))
            why = "" if found == digest else f"log record {seq} is not the one that was there before"
            if found is None and await self._is_extended(known.newest, limit):
                why = ""  # it rotted later: the log went on from it
        except KeyMissingError:
            why = f"log record {seq}, which was there before, is gone"
        except CorruptError:
            why = "" if await self._is_extended(known.newest, limit) else f"log record {seq} was replaced"
        if why:
            raise UntrustedError(
                f"{self.url} was rolled back: {why}.",
                hint=f"To accept it as it is, remove {known.memory.path}.",
                kind="rolled_back",
            )

    async def _is_extended(self, newest: Remembered, limit: int) -> bool:
        """Whether the record after ``newest`` names it as the one before."""
        seq = newest.seq + 1
        try:
            plain = await self._get_record(log_key(seq), seq, limit)
            prev = decode_record(plain, seq)[0].prev
        except (KeyMissingError, CorruptError, FormatError):
            return False
        return prev is not None and prev.digest == newest.digest


@dataclass(slots=True)
class _Known:
    """One run, as this machine knows it.

    Attributes:
        newest: the newest record that was seen.
        noted, noted_at: what the memory holds, and when it was written.
        is_proven: whether the log that is being read was seen to hold ``newest``.
    """

    memory: HeadMemory
    newest: Remembered
    noted: Remembered | None
    noted_at: float = float("-inf")
    is_proven: bool = False


class _Run(msgspec.Struct):
    run: str


_run_decoder = msgspec.json.Decoder(_Run)


def _seen(plain: bytes, seq: int) -> tuple[str, Remembered] | None:
    """The run and the digest of an intact record."""
    digest = intact_digest(plain)
    if digest is None:
        return None
    try:
        return _run_decoder.decode(record_bytes(plain)).run, Remembered(seq, digest)
    except msgspec.MsgspecError:
        return None
