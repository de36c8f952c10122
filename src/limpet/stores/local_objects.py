"""Objects as files that keep what they acknowledged through a crash or a loss of power.

The rules: data goes to a fresh file in ``tmp/``, is fsynced, and only then gets its name; the folder that
holds the name is fsynced after it. A file whose fsync failed is abandoned: the kernel may have dropped its
dirty pages, and a second fsync would report success (https://wiki.postgresql.org/wiki/Fsync_Errors).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from limpet.errors import CorruptError, StoreError, UsageError
from limpet.stores.base import Bytes, Entry, KeyExistsError, KeyMissingError, Seen, check_size
from limpet.stores.local_direct import DIRECT_FROM_BYTES, Gathering, Output
from limpet.stores.local_files import FOLDER_FLAGS, FileOps, Folders, close_read, explained, folder, sync_folder
from limpet.stores.local_reserve import RESERVE_NAME
from limpet.stores.showing import show_and_fill

__all__ = [
    "LOCK_NAME",
    "OWN_NAMES",
    "TEMPORARY_NAME",
    "PendingFile",
    "clear_folder",
    "create_file",
    "delete_file",
    "list_files",
    "read_into",
    "read_range",
    "read_whole",
    "settle_file",
]

TEMPORARY_NAME = "tmp"
LOCK_NAME = "writer.lock"
OWN_NAMES = frozenset({TEMPORARY_NAME, LOCK_NAME, RESERVE_NAME})
"""What the store keeps in a run's root for itself: no objects."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in the way must not block the open
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_NO_RENAME_NEW = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class PendingFile:
    """A file that is being written under a temporary name and gets its own only when it is whole and durable.

    Args:
        folders: of the thread on which all methods are called.
        home: segments of the run's root, which has the ``tmp`` folder.
        segments: the key's, home included.
        gathering: of the same thread, for files that may be large: they go past the page cache, if they can.
    """

    def __init__(
        self,
        folders: Folders,
        home: tuple[str, ...],
        segments: tuple[str, ...],
        gathering: Gathering | None = None,
    ) -> None:
        self.size = 0
        self._gathering = gathering
        self._output: Output | None = None
        self._folders = folders
        self._files = folders.files
        self._temporary = (*home, TEMPORARY_NAME)
        self._folder = segments[:-1]
        self._name = segments[-1]
        self._temporary_name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._fd: int | None = None
        self._begun = False
        self._placed = False

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers."""
        with explained(f"writing {self._where}"):
            fd = self._begin()
            if self._output is None:
                is_large = sum(map(len, buffers)) >= DIRECT_FROM_BYTES
                self._output = Output(self._files, fd, self._gathering if is_large else None)
            self._output.write(buffers)
            self.size = self._output.size

    def publish(self) -> int:
        """Make the file durable and visible; its size."""
        with explained(f"publishing {self._where}"):
            self.seal()
            source_fd = self._folders.writable(self._temporary)
            target_fd = self._folders.writable(self._folder)
            self._placed = True
            try:
                self._files.rename(self._temporary_name, self._name, source_fd=source_fd, target_fd=target_fd)
            except FileNotFoundError as error:
                raise self._vanished() from error
            sync_folder(self._files, target_fd)
        self._folders.trim()
        return self.size

    def publish_new(self) -> None:
        """The same, if the name is free; atomically.

        Raises:
            KeyExistsError: the name is taken.
            StoreError: kind ``create_unknown`` if the name stands but may not outlive a loss of power.
        """
        with explained(f"creating {self._where}"):
            self.seal()
            source_fd = self._folders.writable(self._temporary)
            target_fd = self._folders.writable(self._folder)
            try:
                self._place_new(source_fd, target_fd)
            except FileExistsError:
                raise KeyExistsError(f"{self._where} exists") from None
            except FileNotFoundError as error:
                raise self._vanished() from error
            finally:
                self._unlink(source_fd, self._temporary_name)
        self._sync_created(target_fd)
        self._folders.trim()

    def seal(self) -> None:
        """fsync and close: nothing more can be written."""
        fd = self._begin()
        try:
            if self._output is not None:
                self._output.finish()
            self._files.fsync(fd)
        finally:  # also after a failed fsync: the file is never touched again
            self._fd = None
            self._files.close(fd)

    def abandon(self) -> None:
        """Remove every trace, the published name included. Never raises."""
        if self._output is not None:
            self._output.discard()
        with suppress(OSError, UsageError):
            if self._fd is not None:
                fd, self._fd = self._fd, None
                self._files.close(fd)
        with suppress(OSError, UsageError):
            if self._begun:
                self._unlink(self._folders.writable(self._temporary), self._temporary_name)
        with suppress(OSError, UsageError):
            if self._placed:
                self._unlink(self._folders.writable(self._folder), self._name)

    @property
    def _where(self) -> str:
        return "/".join((self._folders.root, *self._folder, self._name))

    def _begin(self) -> int:
        if self._fd is None:
            if self._begun:
                raise OSError(errno.EBADF, "the file was abandoned")
            folder_fd = self._folders.writable(self._temporary)
            self._begun = True
            self._fd = self._files.open(self._temporary_name, _FRESH, dir_fd=folder_fd)
        return self._fd

    def _place_new(self, source_fd: int, target_fd: int) -> None:
        place = {"source_fd": source_fd, "target_fd": target_fd}
        try:
            self._files.link(self._temporary_name, self._name, **place)
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        try:
            self._files.rename_new(self._temporary_name, self._name, **place)
        except OSError as error:
            if error.errno not in _NO_RENAME_NEW:
                raise
            raise StoreError(
                f"{self._folders.root} is on a file system without an atomic create",
                hint="It has neither hard links nor renameat2(RENAME_NOREPLACE); choose another folder.",
                kind="no_atomic_create",
            ) from error

    def _sync_created(self, fd: int) -> None:
        try:
            sync_folder(self._files, fd)
        except OSError as error:
            raise StoreError(
                f"creating {self._where}: the folder's fsync failed: {error.strerror}",
                hint="It exists now, but may be gone after a loss of power.",
                kind="create_unknown",
            ) from error

    def _vanished(self) -> StoreError:
        """Whoever takes the lock clears ``tmp/``, where a writer that took over without the lock may be at work."""
        words = f"writing {self._where}: its temporary file, or its folder, was removed meanwhile"
        return StoreError(words, transient=True)

    def _unlink(self, folder_fd: int, name: str) -> None:
        with suppress(OSError):
            self._files.unlink(name, dir_fd=folder_fd)


def create_file(folders: Folders, home: tuple[str, ...], segments: tuple[str, ...], data: bytes) -> None:
    """Write ``data`` under a name that must be free; durable on return. Raises as ``PendingFile.publish_new``."""
    pending = PendingFile(folders, home, segments)
    try:
        pending.write([data])
        pending.publish_new()
    except KeyExistsError:
        raise
    except BaseException:
        pending.abandon()
        raise


def settle_file(folders: Folders, segments: tuple[str, ...]) -> None:
    """Make a file that somebody created, its name, and the folders above it durable."""
    files = folders.files
    with _reading("settling", folders.root, segments):
        with _opened(files, folders.root, segments) as fd:
            files.fsync(fd)
        sync_folder(files, folders.writable(segments[:-1]))


def read_whole(files: FileOps, root: str, segments: tuple[str, ...], limit: int) -> bytes:
    """All bytes of a file of at most ``limit``."""
    with _reading("reading", root, segments), _opened(files, root, segments) as fd:
        size = files.fstat(fd).st_size
        check_size("/".join(segments), size, limit)
        data = bytearray(size)
        _fill(files, fd, memoryview(data), 0, segments)
        return bytes(data)


def read_range(files: FileOps, root: str, segments: tuple[str, ...], offset: int, size: int) -> memoryview:
    """``size`` bytes of a file from ``offset``; nothing is allocated for a range that is not there."""
    with _reading("reading", root, segments), _opened(files, root, segments) as fd:
        if offset + size > files.fstat(fd).st_size:
            raise _short(segments, offset + size, files.fstat(fd).st_size)
        data = np.empty(size, np.uint8).data  # unlike a bytearray's, its memory is not cleared first
        _fill(files, fd, data, offset, segments)
        return data


def read_into(
    files: FileOps,
    root: str,
    segments: tuple[str, ...],
    offset: int,
    targets: Sequence[memoryview],
    seen: Seen | None = None,
) -> None:
    """Fill ``targets`` from ``offset`` of a file on; see ``Store.read_into``."""
    with _reading("reading", root, segments), _opened(files, root, segments) as fd:
        if seen is not None:
            show_and_fill(
                lambda target, at: _fill(files, fd, target, offset + at, segments), targets, seen, offset=offset
            )
            return
        for target in targets:
            _fill(files, fd, target, offset, segments)
            offset += len(target)


def delete_file(files: FileOps, root: str, segments: tuple[str, ...], keep_folders: int) -> None:
    """Remove a file; its folder too, when it got empty and lies more than ``keep_folders`` levels below the root."""
    with explained(f"deleting {'/'.join((root, *segments))}"), suppress(FileNotFoundError):
        with folder(files, root, segments[:-1]) as fd:
            files.unlink(segments[-1], dir_fd=fd)
        if len(segments) - 1 > keep_folders:
            with folder(files, root, segments[:-2]) as fd, suppress(OSError):  # not empty, as a rule
                files.rmdir(segments[-2], dir_fd=fd)


def clear_folder(files: FileOps, root: str, segments: tuple[str, ...]) -> None:
    """Remove the files of a folder, if it exists; one that cannot be removed stays."""
    with suppress(OSError), folder(files, root, segments) as fd:
        for entry in files.scandir(fd):
            with suppress(OSError):
                files.unlink(entry.name, dir_fd=fd)


def list_files(files: FileOps, root: str, home: tuple[str, ...], prefix: tuple[str, ...]) -> list[Entry]:
    """Every regular file below ``home/prefix``, with keys relative to ``home``; none if the folder is absent."""
    found: list[Entry] = []
    with explained(f"listing {'/'.join((root, *home, *prefix))}"):
        try:
            with folder(files, root, (*home, *prefix)) as fd:
                _collect(files, fd, prefix, found)
        except FileNotFoundError:
            return []
    return found


def list_folders(files: FileOps, root: str, home: tuple[str, ...], prefix: tuple[str, ...]) -> set[str]:
    """The names of the folders in ``home/prefix``; none if it is absent."""
    with explained(f"listing {'/'.join((root, *home, *prefix))}"):
        try:
            with folder(files, root, (*home, *prefix)) as fd:
                found = {entry.name for entry in files.scandir(fd) if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            return set()
    return found if prefix else found - {TEMPORARY_NAME}


def _collect(files: FileOps, fd: int, at: tuple[str, ...], found: list[Entry]) -> None:
    base = "".join(f"{segment}/" for segment in at)
    for entry in files.scandir(fd):
        if not at and entry.name in OWN_NAMES:
            continue
        with suppress(FileNotFoundError):  # removed meanwhile
            if entry.is_dir(follow_symlinks=False):
                below = files.open(entry.name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    _collect(files, below, (*at, entry.name), found)
                finally:
                    close_read(files, below)
            elif entry.is_file(follow_symlinks=False):
                found.append(Entry(base + entry.name, entry.stat(follow_symlinks=False).st_size))


@contextmanager
def _opened(files: FileOps, root: str, segments: tuple[str, ...]) -> Iterator[int]:
    with folder(files, root, segments[:-1]) as folder_fd:
        fd = files.open(segments[-1], _READ, dir_fd=folder_fd)
    try:
        if not stat.S_ISREG(files.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, "not a regular file")
        yield fd
    finally:
        close_read(files, fd)


@contextmanager
def _reading(verb: str, root: str, segments: tuple[str, ...]) -> Iterator[None]:
    """Let the block's ``OSError`` come out as a ``StoreError``, an absent file as ``KeyMissingError``."""
    path = "/".join((root, *segments))
    with explained(f"{verb} {path}"):
        try:
            yield
        except FileNotFoundError:
            raise KeyMissingError(f"there is no {path}") from None


def _fill(files: FileOps, fd: int, target: memoryview, offset: int, segments: tuple[str, ...]) -> None:
    done = 0
    while done < len(target):
        count = files.preadv(fd, [target[done:]], offset + done)
        if count == 0:
            raise _short(segments, offset + len(target), offset + done)
        done += count


def _short(segments: tuple[str, ...], wanted: int, found: int) -> CorruptError:
    return CorruptError(
        f"{'/'.join(segments)} ends at byte {found}, before byte {wanted}",
        hint="The object was truncated.",
        kind="truncated",
    )
