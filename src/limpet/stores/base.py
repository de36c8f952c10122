"""What limpet needs from a store, and nothing more.

Each method's documentation is its contract; ``tests/stores`` runs one suite against every adapter.
Foreign exceptions never leave an adapter: they come out as the errors below.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from limpet.errors import CorruptError, StoreError, UsageError
from limpet.format.record import RECORD_BYTES_MAX

__all__ = [
    "GET_BYTES_MAX",
    "NOT_DURABLE",
    "NO_SPACE",
    "ORPHANED",
    "Bytes",
    "Entry",
    "KeyExistsError",
    "KeyMissingError",
    "Seen",
    "Store",
    "check_size",
    "scatter",
    "split_key",
]

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Anything with a C-contiguous buffer of unsigned bytes (format ``B``, one dimension)."""
Seen: TypeAlias = Callable[[int, memoryview], None]
"""Is shown a piece of what is read, and its position in it; on any thread."""


NOT_DURABLE = "create_unknown"
"""``kind`` of the error of a create whose object is visible, but may not survive a power loss."""


GET_BYTES_MAX = RECORD_BYTES_MAX
"""What ``get`` reads at most unless told otherwise: nothing that the engine reads whole is larger than a record."""


NO_SPACE = "no_space"
"""``kind`` of the error of a store that is full: waiting does not help, making room does."""


ORPHANED = "orphaned"
"""``kind`` of the ``HeldError`` for a writer in a process of its own whose trainer is dead: it leaves by itself."""


class KeyMissingError(StoreError):
    """The store says positively that the key does not exist."""

    default_kind = "key_missing"


class KeyExistsError(StoreError):
    """A create found the key taken (by another writer, or by our own create whose answer was lost)."""

    default_kind = "key_exists"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    key: str
    size: int


class Store(Protocol):
    """Objects under one root, addressed by keys such as ``log/0000000000000/0000000000000007.json``.

    Keys are built by ``limpet.format.layout`` only: segments of ``[0-9a-z._-]``, no leading slash.
    All methods run on the engine's asyncio loop and never block it. Every failure that is not
    named below is a ``StoreError`` that carries the store's own words, with ``transient`` telling
    whether the same request may work later (503, timeouts, resets, 409 races, EIO, ENOSPC: yes; 403,
    a missing bucket, bad credentials: no). Credentials never appear in a message or ``repr``.
    """

    url: str
    """Where the root is, for people; without credentials and query."""
    commit_interval_seconds: float
    """The shortest time between two commits that a newer one could replace."""

    async def get(self, key: str, *, limit: int = GET_BYTES_MAX) -> bytes:
        """The whole object, which is small: a record or a marker.

        Raises ``KeyMissingError``; ``CorruptError`` (kind ``too_large``) for one of more than ``limit`` bytes, before
        any of them is read: whoever can write to a bucket must not fill the memory of those who read it.
        """
        ...

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        """Exactly ``size`` bytes from ``offset``.

        Raises ``KeyMissingError``; ``CorruptError`` if the object ends before ``offset + size``
        (a short answer is never returned).
        """
        ...

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        """Fill ``targets`` (writable, contiguous bytes), one after the other, from ``offset``; errors as ``get_range``.

        A store through whose hands the bytes go may show them to ``seen`` while they are in the processor's cache:
        all of them, in order, from position 0 again if it begins anew. What ``seen`` raises ends the read.
        """
        ...

    async def list(self, prefix: str) -> list[Entry]:
        """Every object whose key starts with ``prefix``, which is empty or ends with ``/``.

        In any order; an absent prefix gives an empty list. Objects that limpet did not write may
        be among them. A bucket or root that does not exist is an error for stores that can tell,
        an empty list for a local folder that is not there yet.
        """
        ...

    async def folders(self, prefix: str) -> set[str]:
        """The next segment of every key that starts with ``prefix`` and has more than one segment after it.

        ``prefix`` as for ``list``. One request for up to 1000 of them, however many
        objects lie below: it is how the newest of very many objects is found. One whose objects are all gone may be among them.
        """
        ...

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        """Write a new object from the concatenation of all buffers of all parts; its size.

        Durable when it returns. ``key`` was never used before. Nothing is visible under ``key`` until
        everything is; if the iterable raises, or the caller is cancelled, nothing ever is, and
        temporary space is freed (an object store may have taken the last request in before the cancel: then
        the whole object exists, never a part of it). The buffers of a part may be in use until the next part has been
        asked for or the call has returned, no longer than that unless it fails (an adapter that uploads
        from the caller's memory may then hold on to a buffer; it drops its reference when done).
        ``size_hint`` is about how many bytes will come, 0 if unknown. At most a few parts are held in memory.
        """
        ...

    async def create(self, key: str, data: bytes) -> None:
        """Write a small object if, and only if, ``key`` does not exist, atomically; durable on return.

        Raises ``KeyExistsError`` if it does. After any other error the object may or may not exist,
        now or later.
        """
        ...

    async def settle(self, key: str) -> None:
        """Make an object that was read durable, with its name (local: fsync of file and folder).

        Whoever extends a record calls it first: the process that created it may have died before its fsync.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; one that is absent is a success."""
        ...

    async def free_bytes(self) -> int | None:
        """How much room is left, or ``None`` where there is no such limit."""
        ...

    async def prepare(self) -> None:
        """Get ready for writing: make the root (local), or prove that the bucket can be reached.

        Reading never calls it: it is what may create something.
        """
        ...

    def acquire_writer_lock(self, owner: str) -> None:
        """Take this host's advisory lock on being the writer of this root, where there is one.

        Raises ``HeldError`` if another writer on this host (another process, or another store object of this
        one) holds it. It is advice for people, never what safety rests on.
        """
        ...

    def release_writer_lock(self) -> None:
        """Give it back; harmless when not held."""
        ...

    def spool_folder(self) -> str | None:
        """A folder on the same file system as the root where large temporary copies may lie, if there is one."""
        ...

    def child(self, prefix: str) -> Store:
        """The same store, rooted at ``prefix`` (a path of safe segments) below this root."""
        ...

    async def close(self) -> None:
        """Release threads, descriptors and connections. Idempotent."""
        ...


def check_size(where: str, size: int, limit: int) -> None:
    """Raise the ``CorruptError`` of ``Store.get`` if an object of ``size`` bytes is above ``limit``."""
    if size > limit:
        raise CorruptError(f"{where} has {size} bytes; at most {limit} are allowed.", kind="too_large")


def scatter(found: Bytes, targets: Sequence[memoryview]) -> None:
    """Copy what was read whole to the ``targets`` of a ``Store.read_into``."""
    rest = memoryview(found)
    for target in targets:
        target[:] = rest[: len(target)]
        rest = rest[len(target) :]


def split_key(key: str) -> tuple[str, ...]:
    """The segments of a key, or of a prefix without its last slash, after checking that none leads elsewhere.

    Raises:
        UsageError: for an empty key, an empty segment, ``.``, ``..`` or a NUL.
    """
    segments = tuple(key.split("/"))
    if any(segment in ("", ".", "..") or "\0" in segment for segment in segments):
        raise UsageError(f"{key!r} is not a key", hint="Keys are relative paths without empty, '.' or '..' segments.")
    return segments
