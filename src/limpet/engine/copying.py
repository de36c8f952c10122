"""Copying one open file, as cheaply as the system can, without holding the interpreter lock meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["copy_file", "opened", "read_up_to"]

_KERNEL_PIECE_BYTES = 64 << 20
_PLAIN_PIECE_BYTES = 1 << 20
# linux/fs.h: _IOW(0x94, 9, int); the module has the name from Python 3.12 on.
_FICLONE: int = getattr(fcntl, "FICLONE", 0x40049409)


def copy_file(source_fd: int, size: int, folder_fd: int, name: str) -> tuple[int, bool]:
    """Copy an open file to a new one; a failed copy leaves none.

    Args:
        source_fd: the file to copy, from its start.
        size: how many bytes of it.
        folder_fd: the directory for the copy.
        name: of the copy in it.

    Returns:
        The bytes copied (fewer at an early end), and whether it was one atomic step (then it may be more).

    Raises:
        OSError: reading or writing failed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
    try:
        if _reflink(source_fd, fd):
            return os.fstat(fd).st_size, True
        return _copy_plain(source_fd, fd, _copy_in_kernel(source_fd, fd, size), size), False
    except BaseException:
        os.unlink(name, dir_fd=folder_fd)
        raise
    finally:
        os.close(fd)


def _reflink(source_fd: int, fd: int) -> bool:
    """Share the source's blocks, copy on write (btrfs, XFS and others); at once, whatever the size."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(fd, _FICLONE, source_fd)
    except OSError:
        return False  # another file system, or one that cannot; a real fault shows in the copy that follows
    return True


def _copy_in_kernel(source_fd: int, fd: int, size: int) -> int:
    """Copy without a way through this process, as far as the system can; returns how far that was."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < size:
        try:
            count = os.copy_file_range(source_fd, fd, min(size - done, _KERNEL_PIECE_BYTES), done, done)
        except OSError:
            break  # a file system that cannot; a real fault, a full disk say, shows in the copy that goes on
        if count == 0:  # the end, or one of the file systems that answer 0 for what they cannot do
            break
        done += count
    return done


def _copy_plain(source_fd: int, fd: int, done: int, size: int) -> int:
    while done < size and (piece := os.pread(source_fd, min(size - done, _PLAIN_PIECE_BYTES), done)):
        rest = memoryview(piece)
        while rest:
            count = os.pwrite(fd, rest, done)
            rest = rest[count:]
            done += count
    return done


def read_up_to(fd: int, size: int) -> bytes:
    """The first ``size`` bytes of an open file, or all of it if it has fewer."""
    data = os.pread(fd, size, 0)
    while len(data) < size and (more := os.pread(fd, size - len(data), len(data))):
        data += more
    return data


@contextlib.contextmanager
def opened(path: str | bytes | Path, flags: int, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor that is closed at the end of the block."""
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
