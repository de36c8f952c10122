"""Room kept back for the log: on a full disk a run can still be taken over, and told what to drop.

Making room needs records, and records need room. The file is given up for them alone, never for data, and
is made again once data finds room. It is best effort: whoever else fills the disk may take what it frees.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from limpet.stores.local_files import FileOps, close_read, folder

__all__ = ["RESERVE_NAME", "Reserve"]

RESERVE_NAME = "reserve"
_BYTES = 256 << 10
"""Room for some sixty records; few enough bytes for folders with thousands of runs."""
_FREE_BYTES_MIN = 16 * _BYTES
"""On a disk with less than this it is not worth the room that it takes."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Reserve:
    """A file without content in the root of a run, which its children share.

    Args:
        files: the system calls.
        root: where it lies.
    """

    def __init__(self, files: FileOps, root: str) -> None:
        self._files = files
        self._root = root
        self.is_spent = False

    def keep(self) -> None:
        """Have the room, unless the disk is too full for that. Never raises."""
        with suppress(OSError):
            if self._files.free_bytes(self._root) < _FREE_BYTES_MIN:
                return
            with folder(self._files, self._root, ()) as root_fd:
                fd = self._files.open(RESERVE_NAME, _FLAGS, dir_fd=root_fd)
            try:
                found = self._files.fstat(fd)
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_blocks * 512 < _BYTES:
                    self._files.allocate(fd, _BYTES)
            finally:
                close_read(self._files, fd)
            self.is_spent = False

    def release(self) -> bool:
        """Give the room up; whether there was any. Never raises."""
        self.is_spent = True
        try:
            with folder(self._files, self._root, ()) as root_fd:
                self._files.unlink(RESERVE_NAME, dir_fd=root_fd)
        except OSError:
            return False
        return True
