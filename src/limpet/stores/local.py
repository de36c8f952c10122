"""A folder as a store: durable on return, confined to its root.

Two rules hold the threads together. What a thread writes through it alone touches (its ``Folders``), so no lock is
shared between a low-priority thread and anyone else; and small commits never queue behind bulk data,
because they have a lane of their own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any, TypeVar

from limpet.errors import StoreError, UsageError
from limpet.stores.base import GET_BYTES_MAX, NO_SPACE, Bytes, Entry, Seen, split_key
from limpet.stores.lanes import end_lanes
from limpet.stores.local_direct import Gathering
from limpet.stores.local_files import FileOps, Folders, explained, make_root
from limpet.stores.local_lock import WriterLock
from limpet.stores.local_objects import (
    LOCK_NAME,
    OWN_NAMES,
    TEMPORARY_NAME,
    PendingFile,
    clear_folder,
    create_file,
    delete_file,
    list_files,
    list_folders,
    read_into,
    read_range,
    read_whole,
    settle_file,
)
from limpet.stores.local_reserve import Reserve
from limpet.workers import STEADY_NICE, Workers

__all__ = ["LocalStore"]

T = TypeVar("T")


class _Lanes:
    """Threads and open folders that a store shares with its children; the last one to close ends them.

    ``control`` makes commits, ``data`` writes and removes packs at low priority, ``reads`` reads.
    """

    def __init__(self, files: FileOps, root: str) -> None:
        self.control = Workers(1, "limpet-files")
        self.data = Workers(1, "limpet-packs", nice=STEADY_NICE)
        self.reads = Workers(2, "limpet-reads")
        self.control_folders = Folders(files, root)
        self.data_folders = Folders(files, root)
        self.gathering = Gathering()
        self.reserve = Reserve(files, root)
        self.users = 0
        self.pid = os.getpid()

    async def close(self) -> None:
        """End the threads after what they were given, and close the folders."""
        self.control.submit(self.control_folders.close)
        self.data.submit(self.data_folders.close)
        self.data.submit(self.gathering.close)
        await end_lanes(self.control, self.data, self.reads)


class LocalStore:
    """Objects as files of a folder, with the fsync discipline that makes acknowledged commits outlive a crash.

    Args:
        path: the folder; it need not exist before ``prepare``.
        files: the system calls, for tests.
    """

    url: str
    commit_interval_seconds = 0.1
    _root: str
    _home: tuple[str, ...]
    _files: FileOps
    _lanes: _Lanes
    _lock: WriterLock | None
    _closed: bool

    def __init__(self, path: str | os.PathLike[str], *, files: FileOps | None = None) -> None:
        self._share(os.path.abspath(path), (), files or FileOps(), None)

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    async def get(self, key: str, *, limit: int = GET_BYTES_MAX) -> bytes:
        """See ``Store.get``."""
        return await self._run(self._lanes.control, read_whole, self._files, self._root, self._at(key), limit)

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        """See ``Store.get_range``."""
        return await self._run(self._lanes.reads, read_range, self._files, self._root, self._at(key), offset, size)

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        """See ``Store.read_into``."""
        lane = self._lanes.reads
        await self._run(lane, read_into, self._files, self._root, self._at(key), offset, targets, seen)

    async def list(self, prefix: str) -> list[Entry]:
        """See ``Store.list``. The store's own temporary files and lock are left out."""
        segments = split_key(prefix.removesuffix("/")) if prefix else ()
        return await self._run(self._lanes.reads, list_files, self._files, self._root, self._home, segments)

    async def folders(self, prefix: str) -> set[str]:
        """See ``Store.folders``."""
        segments = split_key(prefix.removesuffix("/")) if prefix else ()
        return await self._run(self._lanes.reads, list_folders, self._files, self._root, self._home, segments)

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        """See ``Store.put``. A cancelled put is cleaned up by its thread, soon after this has returned."""
        lane = self._lanes.data
        pending = PendingFile(self._lanes.data_folders, self._home, self._at(key), self._lanes.gathering)
        try:
            async for part in parts:
                await self._run(lane, pending.write, part)
                del part  # asking for the next one says that these buffers are free
            size = await self._run(lane, pending.publish)
            if self._lanes.reserve.is_spent:  # there is room again
                lane.submit(self._lanes.reserve.keep)
            return size
        except Exception:
            await self._run(lane, pending.abandon)
            raise
        except BaseException:
            lane.submit(pending.abandon)  # after the job that may still run there: one thread, in order
            raise

    async def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``. Kind ``create_unknown`` if it is visible but may not outlive a loss of power."""
        await self._run(self._lanes.control, self._create, self._at(key), data)

    async def settle(self, key: str) -> None:
        """See ``Store.settle``."""
        await self._run(self._lanes.control, settle_file, self._lanes.control_folders, self._at(key))

    async def delete(self, key: str) -> None:
        """See ``Store.delete``. A folder that it leaves empty goes too, save those right below the root."""
        keep = len(self._home) + 1
        await self._run(self._lanes.data, delete_file, self._files, self._root, self._at(key), keep)

    async def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``: what an unprivileged process may still write to the file system."""
        return await self._run(self._lanes.reads, self._free_bytes)

    async def prepare(self) -> None:
        """Create the root, durably, and find out whether files can be made in it.

        Raises:
            UsageError: a file stands where the root should be.
            StoreError: kind ``access`` if the folder is not writable.
        """
        await self._run(self._lanes.control, self._at_any_price, self._prepare)
        # A drain at the program's end cannot start a thread any more (CPython 3.12 refuses it).
        self._lanes.data.start()
        self._lanes.reads.start()

    def acquire_writer_lock(self, owner: str) -> None:
        """See ``Store.acquire_writer_lock``. Temporary files of writers that died are removed on the way."""
        self._check_usable()
        if self._lock is not None and self._lock.is_held:
            return
        with explained(f"locking {self.url}/{LOCK_NAME}"):
            make_root(self._files, self._root)
            folders = Folders(self._files, self._root)
            try:
                self._lock = WriterLock.acquire(folders.writable(self._home), LOCK_NAME, owner, self.url)
            finally:
                folders.close()
        self.clear_temporary()

    def release_writer_lock(self) -> None:
        """See ``Store.release_writer_lock``."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def clear_temporary(self) -> None:
        """Remove what writers that died left in ``tmp/``; nothing unless this store holds the writer lock."""
        if self._lock is not None and self._lock.is_held:
            clear_folder(self._files, self._root, (*self._home, TEMPORARY_NAME))

    def spool_folder(self) -> str | None:
        """See ``Store.spool_folder``: the folder of temporary files, which a dead writer's successor clears."""
        return os.path.join(self._root, *self._home, TEMPORARY_NAME)

    def child(self, prefix: str) -> LocalStore:
        """See ``Store.child``. The child has a lock of its own and shares the threads."""
        self._check_usable()
        child = LocalStore.__new__(LocalStore)
        child._share(self._root, (*self._home, *split_key(prefix)), self._files, self._lanes)
        return child

    async def close(self) -> None:
        """See ``Store.close``. Threads end with the last of this store and its children."""
        if self._closed:
            return
        self._closed = True
        self.release_writer_lock()
        self._lanes.users -= 1
        if self._lanes.users == 0 and self._lanes.pid == os.getpid():
            await self._lanes.close()

    def _share(self, root: str, home: tuple[str, ...], files: FileOps, lanes: _Lanes | None) -> None:
        self.url = "/".join((root, *home))
        self._root = root
        self._home = home
        self._files = files
        self._lanes = lanes or _Lanes(files, root)
        self._lanes.users += 1
        self._lock = None
        self._closed = False

    def _at(self, key: str) -> tuple[str, ...]:
        """The path of a key below the root. The lock is off limits: closing a descriptor of it would give it up."""
        segments = split_key(key)
        if segments[0] in OWN_NAMES:
            raise UsageError(f"{key!r} is reserved for the local store itself")
        return (*self._home, *segments)

    async def _run(self, lane: Workers, function: Callable[..., T], *args: Any) -> T:
        self._check_usable()
        return await lane.run(function, *args)

    def _check_usable(self) -> None:
        if self._closed:
            raise UsageError(f"the store {self.url} is closed")
        if self._lanes.pid != os.getpid():
            raise UsageError(f"the store {self.url} was opened before a fork", hint="Open it in the child.")

    def _create(self, segments: tuple[str, ...], data: bytes) -> None:
        self._at_any_price(create_file, self._lanes.control_folders, self._home, segments, data)

    def _at_any_price(self, function: Callable[..., T], *args: Any) -> T:
        """Try again on what was kept back for this, if the disk is full: nothing has been published then."""
        try:
            return function(*args)
        except StoreError as error:
            if error.kind != NO_SPACE or not self._lanes.reserve.release():
                raise
        return function(*args)

    def _prepare(self) -> None:
        with explained(f"preparing {self.url}"):
            make_root(self._files, self._root)
            probe = PendingFile(self._lanes.control_folders, self._home, (*self._home, "probe"))
        try:
            probe.write([])
        finally:
            probe.abandon()
        self._lanes.reserve.keep()

    def _free_bytes(self) -> int:
        path = self._root
        while not os.path.exists(path):
            path = os.path.dirname(path)
        with explained(f"asking for the free space of {path}"):
            return self._files.free_bytes(path)
