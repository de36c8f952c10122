"""Restoring saved files, so that nothing leaves the target.

Content is streamed into a private folder inside the target, and so on its file system, and is renamed
into place only when all of it is there: until then a failure leaves what the target held as it was. Every
step is relative to the descriptor of an open directory and follows no link: neither the checkpoint nor
whoever else may write to the target can lead a file elsewhere. A restore that was killed leaves that
folder; the next one there removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Self

from limpet.engine.descent import Descent
from limpet.engine.scratch import Scratch, clear_stale
from limpet.engine.staged import NEW_FILE_FLAGS, FileSink, StagedFile, placing, refusal
from limpet.errors import CorruptError
from limpet.failpoints import reach
from limpet.format.filetree import Directory, File, Link, decode_file_tree, entry_path, name_bytes
from limpet.stores.base import Bytes

__all__ = ["Extraction"]

_PREFIX = ".limpet-restore-"
_NEW = "new"  # an empty file or a link, just before its rename; content has its buffer's number for a name


class Extraction:
    """One restore of a ``Files`` leaf: takes the content of each file, then puts all of it in place.

    All methods block, so an event loop runs them (and this constructor) on a worker; only the sinks are
    asynchronous. ``write_whole`` and sinks of different files may work side by side; ``finish`` and
    ``close`` come after all of them. As a context manager it closes itself.

    Args:
        payload: the leaf's payload in the manifest.
        sizes: the manifest's buffers' sizes in bytes, by index.
        target: the directory to restore below, made if it is missing; ``None`` for a new temporary one.

    Attributes:
        files: those that have content, in the order of their buffers: ``file.buffer`` says which one to
            fetch, ``file.size`` how many bytes it has.
        path: the directory that is restored below.

    Raises:
        CorruptError: the payload could not have come from a save; nothing was touched.
        UsageError: the target is a file or may not be written, or something in it is in the way.
        StoreError: the target's file system failed.
    """

    def __init__(self, payload: Any, sizes: Sequence[int], target: Path | None) -> None:
        self._tree = decode_file_tree(payload, sizes)
        content = {file.buffer: file for file in self._tree.files if file.buffer is not None}
        self.files: tuple[File, ...] = tuple(content[buffer] for buffer in sorted(content))
        self._by_buffer = content
        self._written: set[int] = set()
        self._closed = self._finished = False
        self._temporary = target is None
        self.path, self._made = _make_target(target)
        with contextlib.ExitStack() as undo:
            undo.callback(self._discard_target)
            with placing(str(self.path)):
                self._root_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, self._root_fd)
            if not self._made:
                self._refuse_what_is_in_the_way()
            with placing(str(self.path)):
                clear_stale(self._root_fd, _PREFIX)
                self._scratch = Scratch(self._root_fd, _PREFIX)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sink(self, buffer: int, executor: Executor | None = None) -> FileSink:
        """An async context manager that takes the content of one file, in order, in pieces of any size.

        Args:
            buffer: of one of ``files``. After a failure it may be asked for again.
            executor: runs the blocking calls; the event loop's own by default.
        """
        return FileSink(partial(self._stage, buffer), executor)

    def write_whole(self, buffer: int, data: Bytes) -> None:
        """Take the content of one file at once: for small ones, where a stream costs more than the bytes.

        Raises:
            CorruptError: it is not as long as the manifest says.
            StoreError: no space (``kind="no_space"``), or the target's file system failed.
        """
        with self._placing(self._by_buffer[buffer]), self._stage(buffer) as staged:
            staged.write(data)
            staged.complete()

    def finish(self) -> Path:
        """Put everything in place: directories, files, links, then the directories' modes and times.

        Returns:
            The target for a saved directory; the file in it for a saved file.

        Raises:
            CorruptError: a file's content never came.
            UsageError: something in the target is in the way or may not be changed.
            StoreError: the target's file system failed.
        """
        for file in self.files:
            if file.buffer not in self._written:
                raise CorruptError(f"the content of {self._shown(file)!r} was not restored.")
        reach("restore.staged")
        with contextlib.closing(Descent(self._tree, self._root_fd)) as descent:
            created = self._place_dirs(descent)
            self._place_files(descent)
            self._place_links(descent)
            self._scratch.remove()  # before the root's time is set, which this changes
            self._seal_dirs(descent, created)
        self._finished = True
        self.close()
        if self._tree.root is None:
            return self.path / os.fsdecode(name_bytes(self._tree.files[0].name))
        return self.path

    def close(self) -> None:
        """Remove what was not put in place, the target too if this restore made it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._scratch.remove()
        os.close(self._root_fd)
        if not self._finished:
            self._discard_target()

    def _stage(self, buffer: int) -> StagedFile:
        file = self._by_buffer[buffer]
        shown = self._shown(file)
        with placing(shown):
            return StagedFile(self._scratch, file, shown, partial(self._written.add, buffer))

    @contextlib.contextmanager
    def _placing(self, entry: Directory | File | Link) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refusal(self._shown(entry), error) from error

    def _shown(self, entry: Directory | File | Link) -> str:
        return str(self.path / entry_path(self._tree, entry.parent, entry.name))

    def _refuse_what_is_in_the_way(self) -> None:
        """Look before anything is fetched; ``finish`` does not rely on it."""
        there = {0}
        with contextlib.closing(Descent(self._tree, self._root_fd)) as descent:
            for index, entry in enumerate(self._tree.dirs, 1):
                mode = self._mode_at(descent, entry) if entry.parent in there else None
                if mode is None:
                    continue
                if not stat.S_ISDIR(mode):
                    raise refusal(self._shown(entry), NotADirectoryError(errno.ENOTDIR, ""))
                there.add(index)
            leaves: list[File | Link] = [*self._tree.files, *self._tree.links]
            for leaf in leaves:
                mode = self._mode_at(descent, leaf) if leaf.parent in there else None
                if mode is not None and stat.S_ISDIR(mode):
                    raise refusal(self._shown(leaf), IsADirectoryError(errno.EISDIR, ""))

    def _mode_at(self, descent: Descent, entry: Directory | File | Link) -> int | None:
        with self._placing(entry):
            try:
                fd = descent.open(entry.parent)
                return os.stat(name_bytes(entry.name), dir_fd=fd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return None

    def _place_dirs(self, descent: Descent) -> set[int]:
        """Make the directories, open to this user until the end; returns the indexes of the new ones."""
        created = set() if not self._made or self._temporary else {0}
        for index, entry in enumerate(self._tree.dirs, 1):
            with self._placing(entry):
                try:
                    os.mkdir(name_bytes(entry.name), 0o700, dir_fd=descent.open(entry.parent))
                    created.add(index)
                except FileExistsError:
                    fd = descent.open(index)
                    mode = stat.S_IMODE(os.fstat(fd).st_mode)
                    if mode & 0o700 != 0o700:
                        os.fchmod(fd, mode | 0o700)
        return created

    def _place_files(self, descent: Descent) -> None:
        staging = self._scratch.fd
        for file in self._tree.files:
            with self._placing(file):
                name = _NEW if file.buffer is None else str(file.buffer)
                if file.buffer is None:
                    os.close(os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=staging))
                os.chmod(name, file.mode, dir_fd=staging)
                os.utime(name, ns=(file.mtime_ns, file.mtime_ns), dir_fd=staging, follow_symlinks=False)
                self._rename(descent, name, file)

    def _place_links(self, descent: Descent) -> None:
        """Links come last: while files are placed, none of the checkpoint's links exists."""
        for link in self._tree.links:
            with self._placing(link):
                os.symlink(name_bytes(link.target), _NEW, dir_fd=self._scratch.fd)
                self._rename(descent, _NEW, link)

    def _rename(self, descent: Descent, staged: str, entry: File | Link) -> None:
        """Into place; whatever file or link has that name is replaced, never opened."""
        parent_fd = descent.open(entry.parent)
        os.rename(staged, name_bytes(entry.name), src_dir_fd=self._scratch.fd, dst_dir_fd=parent_fd)
        reach("restore.placed")

    def _seal_dirs(self, descent: Descent, created: set[int]) -> None:
        """Set modes and times, children before parents, so that no directory is closed before its content."""
        for index in range(len(self._tree.dirs), 0, -1):
            entry = self._tree.dirs[index - 1]
            with self._placing(entry):
                try:
                    _seal(descent.open(index), entry.mode, entry.mtime_ns)
                except PermissionError:
                    if index in created:  # one that was there, and is someone else's, keeps what it has
                        raise
        if 0 in created and self._tree.root is not None:
            with placing(str(self.path)):
                _seal(self._root_fd, self._tree.root.mode, self._tree.root.mtime_ns)

    def _discard_target(self) -> None:
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._made:
            with contextlib.suppress(OSError):
                self.path.rmdir()


def _make_target(target: Path | None) -> tuple[Path, bool]:
    """The directory to restore below, and whether it is new."""
    if target is None:
        with placing(tempfile.gettempdir()):
            return Path(tempfile.mkdtemp(prefix="limpet-")), True
    with placing(str(target)):
        if target.is_dir():
            return target, False
        target.mkdir(parents=True)
        return target, True


def _seal(fd: int, mode: int, mtime_ns: int) -> None:
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
    os.utime(fd, ns=(mtime_ns, mtime_ns))
