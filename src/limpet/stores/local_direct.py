"""Writing a file past the page cache, where the system can: O_DIRECT of Linux.

What goes straight from the writer's memory to the disk neither waits for cache pages nor pushes anybody's
out. The rule of open(2): memory, place in the file and size must be whole blocks. What is not (a chunk
that was compressed, all that follows it, a slot's odd end) is gathered in memory that is, and the file's
end, which is no whole block as a rule, takes the ordinary way. A file system that refuses any of it gets all of it
in the ordinary way.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from limpet.pages import KEPT_TO_OURSELVES, private_pages
from limpet.stores.base import Bytes
from limpet.stores.local_files import FileOps

__all__ = ["DIRECT_FROM_BYTES", "Gathering", "Output"]

DIRECT_FROM_BYTES = 1 << 20
"""What begins with less is written through the page cache: a flush of the disk costs it more than a copy."""
_BLOCK = 4096
"""At least the logical block of every disk in use; one with larger ones refuses, and is written the ordinary way."""
_GATHER_BYTES = 16 << 20
_BUFFERS_PER_WRITE = 1024  # IOV_MAX on Linux and macOS


class Gathering:
    """Aligned memory for the outputs of one thread; what one of them has done with is the next one's."""

    def __init__(self) -> None:
        self._spare: list[npt.NDArray[np.uint8]] = []

    def take(self) -> npt.NDArray[np.uint8] | None:
        """Page-aligned memory; ``None`` if there is none."""
        if self._spare:
            return self._spare.pop()
        try:
            return np.frombuffer(private_pages(_GATHER_BYTES, *KEPT_TO_OURSELVES), np.uint8)
        except (OSError, MemoryError):  # ENOMEM: mmap(2) says it in its own way
            return None

    def give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        """It is not used any more; one piece is kept."""
        if not self._spare:
            self._spare.append(memory)

    def close(self) -> None:
        """Free what is kept."""
        self._spare.clear()


class Output:
    """Appends to an open, empty file.

    Args:
        files: the system calls.
        fd: of the file.
        gathering: memory for what must be aligned; ``None`` to write through the page cache.
    """

    def __init__(self, files: FileOps, fd: int, gathering: Gathering | None) -> None:
        self.size = 0
        """Bytes that were taken; until ``finish`` some of them may wait here."""
        self._files = files
        self._fd = fd
        self._gathering = gathering
        self._direct = gathering is not None and files.set_direct(fd, True)
        self._memory: npt.NDArray[np.uint8] | None = None
        self._held = 0

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers, which may change afterwards."""
        straight: list[memoryview] = []
        for buffer in buffers:
            view = memoryview(buffer)
            self.size += len(view)
            whole = self._straight_bytes(view)
            if whole:
                straight.append(view[:whole])
            if whole < len(view):
                self._write_out(straight)
                straight = []
                self._gather(view[whole:])
        self._write_out(straight)

    def finish(self) -> None:
        """Write what still waits. Nothing may follow."""
        if self._memory is not None:
            waits = self._memory[: self._held].data
            whole = self._held - self._held % _BLOCK
            self._write_out([waits[:whole]])
            self._use_page_cache()
            self._write_out([waits[whole:]])
        self.discard()

    def discard(self) -> None:
        """Forget what still waits. Idempotent."""
        memory, self._memory, self._held = self._memory, None, 0
        if memory is not None and self._gathering is not None:
            self._gathering.give_back(memory)

    def _straight_bytes(self, view: memoryview) -> int:
        """How much of ``view`` can be written from where it is."""
        if not self._direct:
            return len(view)
        return 0 if self._held or _address(view) % _BLOCK else len(view) - len(view) % _BLOCK

    def _gather(self, view: memoryview) -> None:
        if self._memory is None and self._gathering is not None:
            self._memory = self._gathering.take()
            if self._memory is None:
                self._use_page_cache()
        while self._direct and self._memory is not None and view:
            piece = view[: self._memory.size - self._held]
            # Not by slices of memoryviews: they hold the interpreter lock.
            np.copyto(self._memory[self._held : self._held + len(piece)], np.frombuffer(piece, np.uint8))
            self._held += len(piece)
            view = view[len(piece) :]
            if self._held == self._memory.size:
                self._held = 0
                self._write_out([self._memory.data])
        self._write_out([view])

    def _write_out(self, views: Sequence[memoryview]) -> None:
        left = [view for view in views if view]
        while left:
            try:
                written = self._files.writev(self._fd, left[:_BUFFERS_PER_WRITE])
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._use_page_cache()
                continue
            _advance(left, written)
            if written % _BLOCK:
                self._use_page_cache()

    def _use_page_cache(self) -> None:
        if self._direct:
            self._direct = False
            self._files.set_direct(self._fd, False)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]) if view else 0


def _advance(views: list[memoryview], written: int) -> None:
    """Drop from ``views`` what a write, which may be short, has taken."""
    done = 0
    while done < len(views) and written >= len(views[done]):
        written -= len(views[done])
        done += 1
    del views[:done]
    if written:
        views[0] = views[0][written:]
