"""The system calls of the local store, what their failures mean, and the folders it works in.

The rules: no symbolic link below the root is followed, and a folder is used for writing only after an
fsync of its parent. Everything here blocks: it runs on worker threads, each ``Folders`` on one thread only.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from limpet.errors import StoreError, UsageError
from limpet.stores.base import Bytes

__all__ = [
    "FOLDER_FLAGS",
    "FileOps",
    "Folders",
    "close_read",
    "explained",
    "file_error",
    "folder",
    "make_root",
    "open_root",
    "sync_folder",
]

_OPEN_FOLDERS = 32
_RENAME_NOREPLACE = 1  # linux/fs.h
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
_MAY_PASS = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_log = logging.getLogger("limpet.stores")


class FileOps:
    """Every call that the local store makes into the system, one method each.

    Tests subclass it to fail, stop or record any of them.
    """

    weak_folders = False
    """Whether this file system was found to have no fsync of folders."""

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def writev(self, fd: int, buffers: Sequence[Bytes]) -> int:
        return os.writev(fd, buffers)

    def set_direct(self, fd: int, direct: bool) -> bool:
        """Have what is written go past the page cache, or through it again; whether the file system goes along."""
        flag = getattr(os, "O_DIRECT", 0)
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if direct else flags & ~flag)
        except OSError:
            return False
        return flag != 0

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":  # there fsync stops at the drive's cache: fcntl(2)
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def fsync_dir(self, fd: int) -> None:
        os.fsync(fd)

    def link(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)

    def rename(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def rename_new(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        """``renameat2(RENAME_NOREPLACE)``: where hard links do not exist, the other atomic create."""
        import ctypes

        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if call(source_fd, os.fsencode(source), target_fd, os.fsencode(target), _RENAME_NOREPLACE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)

    def mkdir(self, path: str, *, dir_fd: int | None = None) -> None:
        os.mkdir(path, 0o700, dir_fd=dir_fd)

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        os.rmdir(name, dir_fd=dir_fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def scandir(self, fd: int) -> list[os.DirEntry[str]]:
        with os.scandir(fd) as entries:
            return list(entries)

    def allocate(self, fd: int, size: int) -> None:
        """Take room for ``size`` bytes, as far as the file system goes along."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:  # macOS
            os.pwrite(fd, bytes(size), 0)

    def free_bytes(self, path: str) -> int:
        figures = os.statvfs(path)
        return figures.f_bavail * figures.f_frsize


def file_error(error: OSError, what: str) -> StoreError:
    """What a failed system call means to the caller; ``what`` says what was tried, and where."""
    words = f"{what}: {error.strerror or error}"
    code = error.errno
    if code in _NO_SPACE:
        return StoreError(words, kind="no_space", transient=True, hint="Free some space; nothing was published.")
    if code in _DENIED:
        return StoreError(words, kind="access", hint="The folder is not writable or not readable by this user.")
    if code in _MISPLACED:
        return StoreError(words, kind="unsafe_path", hint="A link or a file stands in the way; links are not followed.")
    if code == errno.ENOENT:
        return StoreError(words, hint="The run's folder was removed or is not there yet.")
    return StoreError(words, transient=code in _MAY_PASS)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Let an ``OSError`` of the block come out as a ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise file_error(error, what) from error


def sync_folder(files: FileOps, fd: int) -> None:
    """fsync a folder; where the file system has no such thing (some network mounts), say so once and go on."""
    try:
        files.fsync_dir(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        if not files.weak_folders:
            files.weak_folders = True
            _log.warning("this file system cannot fsync folders: a loss of power may undo the newest commits")


def close_read(files: FileOps, fd: int) -> None:
    """Close what nothing was written to: that an error is reported then says nothing about any data."""
    with suppress(OSError):
        files.close(fd)


def open_root(files: FileOps, root: str) -> int:
    """A descriptor of the root, which may be reached through links.

    Raises:
        UsageError: if a file stands there.
    """
    try:
        return files.open(root, FOLDER_FLAGS)
    except NotADirectoryError:
        raise _not_a_folder(root) from None


def _not_a_folder(root: str) -> UsageError:
    return UsageError(f"{root} is a file, or lies below one", hint="Give a folder for the run.")


@contextmanager
def folder(files: FileOps, root: str, segments: Sequence[str]) -> Iterator[int]:
    """A descriptor of an existing folder below ``root``, reached without following links."""
    fd = open_root(files, root)
    try:
        for segment in segments:
            below = files.open(segment, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            close_read(files, fd)
            fd = below
        yield fd
    finally:
        close_read(files, fd)


def make_root(files: FileOps, root: str) -> None:
    """Create ``root`` and what is missing above it, durably.

    Raises:
        UsageError: if a file stands in the way.
    """
    missing = []
    lowest = root
    while not os.path.lexists(lowest):
        missing.append(lowest)
        lowest = os.path.dirname(lowest)
    for path in reversed(missing):
        try:
            files.mkdir(path)
        except FileExistsError:
            pass
        except NotADirectoryError:
            raise _not_a_folder(root) from None
        _sync_parent(files, path)
    try:  # what was there may have been made just now, by a process that was killed before its fsync
        _sync_parent(files, lowest)
    except OSError as error:
        if error.errno not in _DENIED:  # above the root we may have no rights
            raise


def _sync_parent(files: FileOps, path: str) -> None:
    fd = files.open(os.path.dirname(path), FOLDER_FLAGS)
    try:
        sync_folder(files, fd)
    finally:
        close_read(files, fd)


@dataclass(frozen=True, slots=True)
class _OpenFolder:
    fd: int
    identity: tuple[int, int]


class Folders:
    """Descriptors of the folders that one thread writes into, made durable on first use and kept open.

    Creating a folder, or finding one that a killed process may have created, is followed by an fsync of its parent:
    otherwise a loss of power could take the folder, and every acknowledged file in it, away.
    """

    def __init__(self, files: FileOps, root: str) -> None:
        self.files = files
        self.root = root
        self._open: OrderedDict[tuple[str, ...], _OpenFolder] = OrderedDict()

    def writable(self, segments: tuple[str, ...]) -> int:
        """A descriptor of the folder, created if need be; open until ``trim`` or ``close``, or until its path leads elsewhere."""
        known = self._open.get(segments)
        if known is not None and self._still_there(segments, known):
            self._open.move_to_end(segments)
            return known.fd
        fd = self._reopen(segments)
        try:
            identity = self.files.fstat(fd)
        except BaseException:
            close_read(self.files, fd)
            raise
        self._open[segments] = _OpenFolder(fd, (identity.st_dev, identity.st_ino))
        return fd

    def trim(self) -> None:
        """Close the folders that were used longest ago. Called between operations, never within one."""
        while len(self._open) > _OPEN_FOLDERS:
            self._drop(next(iter(self._open)))

    def close(self) -> None:
        """Close all descriptors."""
        for segments in list(self._open):
            self._drop(segments)

    def _reopen(self, segments: tuple[str, ...]) -> int:
        self._drop(segments)
        if not segments:
            return open_root(self.files, self.root)
        parent = self.writable(segments[:-1])
        with suppress(FileExistsError):
            self.files.mkdir(segments[-1], dir_fd=parent)
        sync_folder(self.files, parent)
        return self.files.open(segments[-1], FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent)

    def _still_there(self, segments: tuple[str, ...], known: _OpenFolder) -> bool:
        """Whether the path still leads to what is open: a folder that was moved away must not take commits along."""
        try:
            found = self.files.stat("/".join((self.root, *segments)))
        except OSError:
            return False
        return known.identity == (found.st_dev, found.st_ino)

    def _drop(self, segments: tuple[str, ...]) -> None:
        known = self._open.pop(segments, None)
        if known is not None:
            close_read(self.files, known.fd)
