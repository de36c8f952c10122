"""System calls of the local store, recorded or made to fail."""

from __future__ import annotations

import errno
import os
from typing import Any

from limpet.stores.local_files import FileOps

__all__ = ["Failing", "Recording"]

LOOKS = ("fstat", "preadv", "scandir", "stat")
"""Calls that change nothing."""
WATCHED = ("open", "close", "writev", "fsync", "fsync_dir", "link", "rename", "unlink", "mkdir", "rmdir", *LOOKS)


class Recording(FileOps):
    """Writes down what was done to what, as ``"rename 1234-ab > x.pack"``; temporary names become ``*``."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._names: dict[int, str] = {}

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in WATCHED:
            return method

        def call(*args: Any, **keywords: Any) -> Any:
            self.before(name, args)
            result = method(*args, **keywords)
            if name == "open":
                self._names[result] = args[0]
            self.done.append(f"{name} {self._shown(name, args)}")
            return result

        return call

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        """A place to fail from."""

    def changes(self) -> list[str]:
        """What was done that matters to durability and visibility."""
        return [each for each in self.done if each.split()[0] not in ("open", "close", *LOOKS)]

    def _shown(self, name: str, args: tuple[Any, ...]) -> str:
        if name in ("link", "rename"):
            return f"{self._short(args[0])} > {args[1]}"
        target = args[0] if isinstance(args[0], str) else self._names.get(args[0], "?")
        return self._short(target)

    def _short(self, name: str) -> str:
        return "*" if name.startswith(f"{os.getpid()}-") else os.path.basename(name)


class Failing(Recording):
    """Fails the calls named ``name``, from the ``first`` to the ``last``, counted from 1, with ``code``."""

    def __init__(self, name: str, code: int = errno.EIO, first: int = 1, last: int | None = None) -> None:
        super().__init__()
        self._plan: tuple[str, int, int, float] = (name, code, first, float("inf") if last is None else last)
        self.count = 0
        self.armed = True

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        wanted, code, first, last = self._plan
        if name != wanted or not self.armed:
            return
        self.count += 1
        if first <= self.count <= last:
            self.done.append(f"{name} {self._shown(name, args)} FAILED")
            if name == "close":  # on Linux the descriptor is free whatever close(2) answers
                os.close(args[0])
            raise OSError(code, os.strerror(code))
