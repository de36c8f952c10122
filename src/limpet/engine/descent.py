"""Directories below a root, reached without ever following a link."""

from __future__ import annotations

import os

from limpet.format.filetree import FileTree, name_bytes

__all__ = ["Descent"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Descent:
    """Opens directories of a tree below a root, one name at a time, never through a link.

    Args:
        tree: says what lies where.
        root_fd: descriptor of its root, which stays the caller's.
    """

    def __init__(self, tree: FileTree, root_fd: int) -> None:
        self._dirs = tree.dirs
        self._root_fd = self._fd = root_fd
        self._index = 0

    def open(self, index: int) -> int:
        """The descriptor of a directory by its index; valid until the next call.

        Raises:
            OSError: it is missing, or something else (a link, say) has its name.
        """
        way: list[int] = []
        while index not in {0, self._index}:
            way.append(index)
            index = self._dirs[index - 1].parent
        if index != self._index:
            self.close()
        for step in reversed(way):
            self._move(os.open(name_bytes(self._dirs[step - 1].name), _FLAGS, dir_fd=self._fd), step)
        return self._fd

    def close(self) -> None:
        """Back to the root, whose descriptor stays open."""
        self._move(self._root_fd, 0)

    def _move(self, fd: int, index: int) -> None:
        left, self._fd, self._index = self._fd, fd, index
        if left != self._root_fd:
            os.close(left)
