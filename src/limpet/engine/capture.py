"""Files as they are at the call.

A file is copied before ``write`` returns: small ones into memory, others into a spool, where the file system
can share the blocks (a reflink) until one side changes. Never a hard link: that is a second name of the
same bytes, and whoever opens the first name for writing changes the saved file, even after a delete.
Each file is consistent in itself; several are as long as nobody changes the directory during the call.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from limpet.engine.copying import copy_file, opened, read_up_to
from limpet.engine.scratch import Scratch, clear_stale
from limpet.errors import LimpetError, StoreError, UnsupportedLeafError, UsageError
from limpet.failpoints import reach
from limpet.format.buffers import Buffer, FileSlice
from limpet.format.filetree import (
    DEPTH_MAX,
    Directory,
    File,
    FileTree,
    Link,
    Root,
    encode_file_tree,
    is_inward,
    to_name,
)
from limpet.types import Files

__all__ = ["Spool", "clear_stale_spools", "read_slice"]

_PREFIX = "limpet-spool-"
_SMALL_BYTES = 1 << 20
_HELD_BYTES_MAX = 64 << 20
_TRIES = 3
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
# A FIFO that was swapped in must not hang the open; a directory needs no such care.
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY
_INT64_MAX = 2**63 - 1


class Spool:
    """The copies of files that one save holds until it has ended.

    Args:
        folders: where copies may lie, in order of preference; the first one on the source's file system is
            taken, since only there blocks can be shared, else the first one that can be used.

    Attributes:
        nbytes: bytes of the copies in the spool.
        held_bytes: bytes of the small files that were read into memory.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.nbytes = 0
        self.held_bytes = 0
        self._folders = tuple(folders)
        self._scratches: dict[Path, Scratch] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # a close waits until a capture on another thread has ended
        self._closed = False

    def capture(self, leaf: Files, add_buffer: Callable[[Buffer], int]) -> Any:
        """Copy what is at ``leaf.path`` now; a link there is followed.

        Args:
            leaf: names the file or directory.
            add_buffer: takes each file's content, returns its index in the manifest.

        Returns:
            The leaf's payload for the manifest, plain JSON data.

        Raises:
            FileNotFoundError: there is nothing at the path.
            UnsupportedLeafError: a device, socket or pipe, a link that leads outside, or a leaf without a path.
            UsageError: a file may not be read, or kept changing while it was copied.
            StoreError: no space for the copies (``kind="no_space"``), or reading failed.
        """
        if leaf.path is None:
            raise UnsupportedLeafError(
                "a Files leaf that came from a checkpoint has no path to save from.",
                hint="Call its restore() and put Files(path) of the result into the state.",
            )
        with self._lock:
            if self._closed:
                raise UsageError("files were captured for a save that has ended.")
            return encode_file_tree(_capture(leaf.path, self, add_buffer))

    @property
    def folders(self) -> list[tuple[str, int]]:
        """Path of each folder that holds copies, and the descriptor whose lock keeps it."""
        return [(str(folder / scratch.name), scratch.lock_fd) for folder, scratch in self._scratches.items()]

    def close(self) -> None:
        """Remove the copies. Idempotent; waits for a capture that is under way."""
        with self._lock:
            self._closed = True
            scratches, self._scratches = self._scratches, {}
        for scratch in scratches.values():
            scratch.remove()

    def lies_in(self, found: os.stat_result) -> bool:
        """Whether this directory is one of the folders for copies: to copy it would never end."""
        return any(os.path.samestat(found, folder) for folder in self._folder_stats())

    def take(self, fd: int, size: int) -> tuple[Buffer | None, bool]:
        """Copy an open file of ``size`` bytes, to memory or to the spool.

        Returns:
            The copy (``None`` of an empty file), and whether it was made in one atomic step.
        """
        if size <= _SMALL_BYTES and self.held_bytes + size <= _HELD_BYTES_MAX:
            data = read_up_to(fd, size + 1)
            self.held_bytes += len(data)
            return (Buffer(data, len(data), immutable=True) if data else None), False
        return self._copy_out(fd, size)

    def drop(self, buffer: Buffer | None) -> None:
        """Forget a copy that is of no use, since its file changed meanwhile."""
        if buffer is None:
            return
        if isinstance(buffer.data, FileSlice):
            self.nbytes -= buffer.nbytes
            with contextlib.suppress(FileNotFoundError):
                Path(buffer.data.path).unlink()
        else:
            self.held_bytes -= buffer.nbytes

    def _copy_out(self, fd: int, size: int) -> tuple[Buffer, bool]:
        full: OSError | None = None
        for scratch, folder in self._usable(os.fstat(fd).st_dev):
            name = str(next(self._numbers))
            try:
                copied, atomic = copy_file(fd, size, scratch.fd, name)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                full = error
                continue
            reach("save.captured")
            self.nbytes += copied
            path = str(folder / scratch.name / name)
            return Buffer(FileSlice(path, copied), copied, immutable=True), atomic
        raise self._no_room(size, full)

    def _usable(self, device: int) -> Iterator[tuple[Scratch, Path]]:
        """The folders that can be used, those on ``device`` first; made when they are first needed."""
        for folder in sorted(self._folders, key=lambda folder: _device(folder) != device):
            scratch = self._scratches.get(folder)
            if scratch is None:
                try:
                    with opened(folder, _DIR_FLAGS) as folder_fd:
                        scratch = Scratch(folder_fd, f"{_PREFIX}{os.getpid()}-")
                except OSError:
                    continue
                self._scratches[folder] = scratch
            yield scratch, folder

    def _no_room(self, size: int, full: OSError | None) -> StoreError:
        folders = ", ".join(repr(str(folder)) for folder in self._folders)
        hint = "Make room there, or set TMPDIR to a folder that has it."
        if full is not None:
            return StoreError(f"no space for a copy of {size} bytes in {folders}.", hint=hint, kind="no_space")
        return StoreError(f"none of the folders for copies can be written: {folders}.", hint=hint)

    def _folder_stats(self) -> Iterator[os.stat_result]:
        for folder in self._folders:
            with contextlib.suppress(OSError):
                yield folder.stat()


def read_slice(piece: FileSlice, offset: int, size: int) -> memoryview:
    """``size`` bytes of a captured file from ``offset``; needs no executor, so it works to the very end.

    Raises:
        StoreError: the copy is gone or shorter than it was.
    """
    view = np.empty(size, dtype=np.uint8).data
    done = 0
    try:
        with opened(piece.path, _FILE_FLAGS | os.O_NOFOLLOW) as fd:
            while done < size and (count := os.preadv(fd, [view[done:]], offset + done)):
                done += count
    except OSError as error:
        raise StoreError(f"the copy of a captured file cannot be read: {error}.") from error
    if done < size:
        raise StoreError(f"the copy of a captured file was cut short: {piece.path!r} ends at byte {offset + done}.")
    return view


def clear_stale_spools(folder: Path) -> int:
    """Remove spools in ``folder`` whose process is gone; returns how many there were."""
    try:
        with opened(folder, _DIR_FLAGS) as folder_fd:
            return clear_stale(folder_fd, _PREFIX)
    except OSError:
        return 0


def _capture(path: Path, spool: Spool, add_buffer: Callable[[Buffer], int]) -> FileTree:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, "there is no file or directory to save at", str(path)) from None
    walk = _Walk(path, spool, add_buffer)
    with walk.reading(b""):
        if stat.S_ISDIR(found.st_mode):
            return walk.directory(os.open(path, _DIR_FLAGS))
        if stat.S_ISREG(found.st_mode):
            with opened(path, _FILE_FLAGS) as fd:
                walk.file(fd, 0, os.fsencode(path.name), b"")
            return FileTree(root=None, dirs=walk.dirs, files=walk.files, links=walk.links)
    raise _special(str(path))


@dataclass(slots=True)
class _Level:
    """A directory that the walk is in: its index, descriptor, path below the root, names yet to come."""

    index: int
    fd: int
    path: bytes
    names: Iterator[bytes]


@dataclass(slots=True)
class _Walk:
    """One pass over a source, in the order of the names' bytes, without following a link."""

    source: Path
    spool: Spool
    add_buffer: Callable[[Buffer], int]
    dirs: list[Directory] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def directory(self, fd: int) -> FileTree:
        """Capture the directory that ``fd`` is open on; closes it."""
        levels: list[_Level] = []
        try:
            root = os.fstat(fd)
            self._push(levels, fd, 0, b"")
            while levels:
                name = next(levels[-1].names, None)
                if name is None:
                    os.close(levels.pop().fd)
                else:
                    self._entry(levels, name)
        finally:
            for level in levels:
                os.close(level.fd)
        return FileTree(Root(_mode(root), _mtime_ns(root)), self.dirs, self.files, self.links)

    def file(self, fd: int, parent: int, name: bytes, path: bytes) -> None:
        """Capture the open regular file ``fd`` as an entry."""
        for _ in range(_TRIES):
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                break
            buffer, atomic = self.spool.take(fd, before.st_size)
            size = buffer.nbytes if buffer is not None else 0
            if atomic or (size == before.st_size and _version(before) == _version(os.fstat(fd))):
                index = self.add_buffer(buffer) if buffer is not None and size else None
                self.files.append(File(parent, to_name(name), _mode(before), _mtime_ns(before), size, index))
                return
            self.spool.drop(buffer)
        raise _changed(self._shown(path))

    @contextlib.contextmanager
    def reading(self, path: bytes) -> Iterator[None]:
        """Say which source failed, and what that means."""
        try:
            yield
        except OSError as error:
            raise _failed(self._shown(path), error) from error

    def _push(self, levels: list[_Level], fd: int, index: int, path: bytes) -> None:
        """Go into the directory ``fd``, which is closed on the way out."""
        levels.append(_Level(index, fd, path, iter(())))
        if self.spool.lies_in(os.fstat(fd)):
            raise UsageError(
                f"{self._shown(path)!r} is where this run keeps its own data, so it cannot be part of a save.",
                hint="Save the directories beside it.",
            )
        if len(levels) > DEPTH_MAX + 1:
            raise UnsupportedLeafError(f"{self._shown(path)!r} lies deeper than {DEPTH_MAX} directories.")
        levels[-1].names = iter(sorted(map(os.fsencode, os.listdir(fd))))

    def _entry(self, levels: list[_Level], name: bytes) -> None:
        level = levels[-1]
        path = level.path + b"/" + name if level.path else name
        with self.reading(path):
            found = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                with opened(name, _FILE_FLAGS | os.O_NOFOLLOW, level.fd) as fd:
                    self.file(fd, level.index, name, path)
            elif stat.S_ISDIR(found.st_mode):
                fd = os.open(name, _DIR_FLAGS | os.O_NOFOLLOW, dir_fd=level.fd)
                self.dirs.append(Directory(level.index, to_name(name), _mode(found), _mtime_ns(found)))
                self._push(levels, fd, len(self.dirs), path)
            elif stat.S_ISLNK(found.st_mode):
                self._link(os.readlink(name, dir_fd=level.fd), level.index, name, path)
            else:
                raise _special(self._shown(path))

    def _link(self, target: bytes, parent: int, name: bytes, path: bytes) -> None:
        if not is_inward(target, path.count(b"/")):
            raise UnsupportedLeafError(
                f"the link {self._shown(path)!r} points to {os.fsdecode(target)!a}, outside of what is saved"
                " (or to where only its surroundings can tell).",
                hint="Make it a relative link with '..' only at its start, or save what it points to.",
            )
        self.links.append(Link(parent, to_name(name), to_name(target)))

    def _shown(self, path: bytes) -> str:
        return str(self.source / os.fsdecode(path))


def _failed(path: str, error: OSError) -> LimpetError:
    if error.errno in _GONE:
        return _changed(path)
    if error.errno in _DENIED:
        return UsageError(f"{path!r} may not be read.", hint="Give this user the right to, or save something else.")
    return StoreError(f"{path!r} could not be captured: {error.strerror}.")


def _changed(path: str) -> UsageError:
    return UsageError(
        f"{path!r} changed while it was captured.",
        hint="Nobody may change what is saved until save() or write() has returned.",
    )


def _special(path: str) -> UnsupportedLeafError:
    return UnsupportedLeafError(
        f"{path!r} is a device, a socket or a pipe; only files, directories and links can be saved.",
        hint="Take it out of the directory, or give the parts that matter Files leaves of their own.",
    )


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _device(folder: Path) -> int | None:
    try:
        return folder.stat().st_dev
    except OSError:
        return None


def _mode(found: os.stat_result) -> int:
    return found.st_mode & 0o777


def _mtime_ns(found: os.stat_result) -> int:
    return max(-_INT64_MAX, min(found.st_mtime_ns, _INT64_MAX))
