"""The content of one restored file on its way into a staging folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from types import TracebackType
from typing import Self

from aiofiles.threadpool import wrap

from limpet.engine.scratch import Scratch
from limpet.errors import CorruptError, LimpetError, StoreError, UsageError
from limpet.format.filetree import File
from limpet.stores.base import Bytes

__all__ = ["NEW_FILE_FLAGS", "FileSink", "StagedFile", "placing", "refusal"]

NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_PIECE_BYTES_MAX = 16 << 20  # of one write: what a cancelled caller may have to wait for
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY})


class StagedFile(io.FileIO):
    """A new file named by its buffer's number: whole writes, and never a close in the middle of one.

    Args:
        folder: the staging folder.
        file: whose content it takes.
        shown: the restored file's path, for messages.
        done: called when it is closed with all of its content; otherwise it is removed.
    """

    def __init__(self, folder: Scratch, file: File, shown: str, done: Callable[[], object]) -> None:
        self.shown = shown
        self._folder = folder
        self._done = done
        self._expected = file.size
        self._size = 0
        self._complete = False
        self._lock = threading.Lock()

        def stage(name: str, _flags: int) -> int:
            return os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=folder.fd)

        super().__init__(str(file.buffer), "xb", opener=stage)

    def write(self, data: Bytes) -> int:  # type: ignore[override]  # fewer types than any buffer
        """Append all of ``data``.

        Raises:
            CorruptError: the file would be longer than the manifest says.
        """
        view = memoryview(data).cast("B")
        with self._lock:
            self._size += len(view)
            if self._size > self._expected:
                raise self._wrong_size(f"{self._size} or more")
            done = 0
            while done < len(view):
                done += super().write(view[done:]) or 0
        return done

    def complete(self) -> None:
        """Check that all content is there, so that ``close`` keeps it.

        Raises:
            CorruptError: the file is shorter than the manifest says.
        """
        if self._size != self._expected:
            raise self._wrong_size(str(self._size))
        self._complete = True

    def close(self) -> None:
        """Close, and keep the file if it was complete, else remove it. Idempotent."""
        with self._lock:
            if self.closed:
                return
            try:
                super().close()
            except BaseException:
                self._complete = False
                raise
            finally:
                self._settle()

    def _settle(self) -> None:
        if self._complete:
            self._done()
            return
        with contextlib.suppress(OSError):
            os.unlink(str(self.name), dir_fd=self._folder.fd)

    def _wrong_size(self, found: str) -> CorruptError:
        return CorruptError(f"the content of {self.shown!r} has {found} bytes instead of {self._expected}.")


class FileSink:
    """Takes the content of one file in order, in pieces of any size, while the event loop goes on.

    Used with ``async with``: leaving the block normally keeps the content, leaving it by an error or a
    cancel removes it.

    Args:
        stage: makes the file; blocks.
        executor: runs the blocking calls; ``None`` for the event loop's own.
    """

    def __init__(self, stage: Callable[[], StagedFile], executor: Executor | None) -> None:
        self._stage = stage
        self._executor = executor

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._executor, self._stage)
        try:
            self._staged = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_result)
            raise
        self._file = wrap(self._staged, loop=loop, executor=self._executor)
        return self

    async def write(self, data: Bytes) -> None:
        """Append ``data``, which must not change until this returns.

        Raises:
            CorruptError: the file would be longer than the manifest says.
            StoreError: no space (``kind="no_space"``), or the target's file system failed.
        """
        view = memoryview(data).cast("B")
        with placing(self._staged.shown):
            for start in range(0, len(view), _PIECE_BYTES_MAX):
                await self._file.write(view[start : start + _PIECE_BYTES_MAX])

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._staged.complete()
                with placing(self._staged.shown):
                    await self._file.close()
        finally:
            # After a failure too, or where a cancel kept the executor from it. This waits for a write that
            # still runs, of one piece at most: closed under it, its descriptor might be another file's by then.
            with contextlib.suppress(OSError):
                self._staged.close()


@contextlib.contextmanager
def placing(shown: str) -> Iterator[None]:
    """Say which restored path a failure of the file system is about, and what it means.

    Raises:
        LimpetError: instead of an ``OSError``; see ``refusal``.
    """
    try:
        yield
    except OSError as error:
        raise refusal(shown, error) from error


def refusal(shown: str, error: OSError) -> LimpetError:
    """What this failure to write ``shown`` means for the user."""
    if error.errno in _NO_SPACE:
        return StoreError(f"no space to restore {shown!r}.", hint="Make room there.", kind="no_space", transient=True)
    if error.errno in _IN_THE_WAY:
        return UsageError(
            f"{shown!r} cannot be restored: a file, directory or link of another kind has that name.",
            hint="Move it away, or restore below a new directory.",
        )
    if error.errno in _DENIED:
        return UsageError(f"{shown!r} may not be written.", hint="Restore below a directory that this user may change.")
    if error.errno == errno.EXDEV:
        return UsageError(
            f"{shown!r} lies on another file system than the directory that is restored to.",
            hint="Restore below a new directory.",
        )
    return StoreError(f"{shown!r} could not be restored: {error.strerror}.")


def _close_result(opening: asyncio.Future[StagedFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
