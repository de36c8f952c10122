"""A store in this process's memory, for tests and for trying things out."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field

from limpet.errors import CorruptError, HeldError
from limpet.stores.base import (
    GET_BYTES_MAX,
    Bytes,
    Entry,
    KeyExistsError,
    KeyMissingError,
    Seen,
    check_size,
    scatter,
    split_key,
)

__all__ = ["MemoryStore"]


@dataclass(eq=False)
class _Space:
    """What all stores of one name share, from any thread and any event loop."""

    objects: dict[str, bytes] = field(default_factory=dict)
    writers: dict[str, tuple[weakref.ref[MemoryStore], str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_spaces: dict[str, _Space] = {}  # for the life of the process: it is the storage
_spaces_lock = threading.Lock()


class MemoryStore:
    """Objects in a dictionary.

    Args:
        name: stores of the same name see the same objects; without one, this store and its children are alone.
        prefix: where the root is within them.
    """

    commit_interval_seconds = 0.1

    def __init__(self, name: str | None = None, prefix: str = "") -> None:
        if name is None:
            space = _Space()
        else:
            with _spaces_lock:
                space = _spaces.setdefault(name, _Space())
        self._share(space, f"memory://{name or ''}", prefix)

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r})"

    async def get(self, key: str, *, limit: int = GET_BYTES_MAX) -> bytes:
        """See ``Store.get``."""
        data = self._find(key)
        check_size(key, len(data), limit)
        return data

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        """See ``Store.get_range``."""
        data = self._find(key)
        if offset + size > len(data):
            raise CorruptError(f"{key} ends at byte {len(data)}, before byte {offset + size}", kind="truncated")
        return data[offset : offset + size]

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        """See ``Store.read_into``; nothing is shown."""
        scatter(await self.get_range(key, offset, sum(map(len, targets))), targets)

    async def list(self, prefix: str) -> list[Entry]:
        """See ``Store.list``."""
        start = self._prefix + prefix
        skip = len(self._prefix)
        with self._space.lock:
            return [Entry(key[skip:], len(data)) for key, data in self._space.objects.items() if key.startswith(start)]

    async def folders(self, prefix: str) -> set[str]:
        """See ``Store.folders``."""
        start = self._prefix + prefix
        with self._space.lock:
            below = [key[len(start) :].partition("/") for key in self._space.objects if key.startswith(start)]
        return {name for name, slash, _ in below if slash}

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        """See ``Store.put``."""
        path = self._at(key)
        data = bytearray()
        async for part in parts:
            for buffer in part:
                data += buffer
            del part
        with self._space.lock:
            self._space.objects[path] = bytes(data)
        return len(data)

    async def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``."""
        path = self._at(key)
        with self._space.lock:
            if path in self._space.objects:
                raise KeyExistsError(f"{key} exists in {self.url}")
            self._space.objects[path] = bytes(data)

    async def settle(self, key: str) -> None:
        """See ``Store.settle``: memory has nothing to settle."""
        self._find(key)

    async def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        with self._space.lock:
            self._space.objects.pop(self._at(key), None)

    async def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``."""
        return None

    async def prepare(self) -> None:
        """See ``Store.prepare``."""

    def acquire_writer_lock(self, owner: str) -> None:
        """See ``Store.acquire_writer_lock``. A store that was dropped without being closed holds nothing."""
        with self._space.lock:
            holder, holder_owner = self._space.writers.get(self._prefix, (lambda: None, ""))
            if holder() not in (None, self):
                raise HeldError(
                    f"another writer of {self.url} is alive: process {os.getpid()}, owner {holder_owner!r}.",
                    hint="Close it, or take over with takeover=True.",
                )
            self._space.writers[self._prefix] = (weakref.ref(self), owner)

    def release_writer_lock(self) -> None:
        """See ``Store.release_writer_lock``."""
        with self._space.lock:
            holder = self._space.writers.get(self._prefix)
            if holder is not None and holder[0]() is self:
                del self._space.writers[self._prefix]

    def spool_folder(self) -> str | None:
        """See ``Store.spool_folder``: there is none."""
        return None

    def child(self, prefix: str) -> MemoryStore:
        """See ``Store.child``."""
        split_key(prefix)
        child = MemoryStore.__new__(MemoryStore)
        child._share(self._space, self.url, prefix, above=self._prefix)
        return child

    async def close(self) -> None:
        """See ``Store.close``: the objects stay."""
        self.release_writer_lock()

    def _share(self, space: _Space, url: str, prefix: str, above: str = "") -> None:
        self._space = space
        self._prefix = f"{above}{prefix}/" if prefix else above
        self.url = f"{url}/{prefix}" if prefix else url

    def _at(self, key: str) -> str:
        split_key(key)
        return self._prefix + key

    def _find(self, key: str) -> bytes:
        with self._space.lock:
            data = self._space.objects.get(self._at(key))
        if data is None:
            raise KeyMissingError(f"there is no {key} in {self.url}")
        return data
