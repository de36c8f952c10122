"""What the local store does to the disk, written down in order, with the place in the source of every fsync."""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limpet.stores import local, local_files, local_objects
from limpet.stores.base import Bytes
from limpet.stores.local_files import FileOps

__all__ = ["Journal", "Op", "Site", "call_sites"]

_MODULES = {
    Path(module.__file__ or "").name: Path(module.__file__ or "") for module in (local, local_files, local_objects)
}
_SYNCS = {"fsync", "fsync_dir"}
_THROUGH = {"seal", "sync_folder", "_sync_parent"}
"""They only pass a request on: the decision to make something durable is their callers'."""
Site = tuple[str, str, int]
"""File, function and line of one decision to make something durable."""


@dataclass(frozen=True, slots=True)
class Op:
    """One change of the disk, or (``acked``) the moment at which somebody was told that a record is in the log.

    Attributes:
        kind: the system call's name, ``create`` for an open that makes a file.
        path: relative to the journal's base; for ``acked`` the run's folder.
        target: of a link or rename.
        seq: of the record that was acknowledged.
        site: of an fsync.
    """

    kind: str
    path: str
    target: str = ""
    data: bytes = b""
    seq: int = 0
    site: Site | None = None


class Journal(FileOps):
    """Does everything but the fsyncs, and writes down what changes the disk below ``base``."""

    def __init__(self, base: Path) -> None:
        self.ops: list[Op] = []
        self._base = str(base)
        self._paths: dict[int, str] = {}
        self._lock = threading.RLock()  # held while a call is made: the order of the list is the order on the disk

    def acked(self, run: str, seq: int) -> None:
        """Somebody was told that record ``seq`` of the run is in the log."""
        with self._lock:
            self.ops.append(Op("acked", run, seq=seq))

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        with self._lock:
            fd = super().open(path, flags, mode, dir_fd=dir_fd)
            self._paths[fd] = self._at(path, dir_fd)
            if flags & os.O_CREAT:
                self._note("create", self._paths[fd])
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._paths.pop(fd, None)
            super().close(fd)

    def writev(self, fd: int, buffers: Sequence[Bytes]) -> int:
        with self._lock:
            written = super().writev(fd, buffers)
            self._note("write", self._paths[fd], data=b"".join(buffers)[:written])
            return written

    def fsync(self, fd: int) -> None:
        with self._lock:
            self._note("fsync", self._paths[fd], site=_site())

    def fsync_dir(self, fd: int) -> None:
        with self._lock:
            self._note("fsync_dir", self._paths[fd], site=_site())

    def link(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        with self._lock:
            super().link(source, target, source_fd=source_fd, target_fd=target_fd)
            self._note("link", self._at(source, source_fd), self._at(target, target_fd))

    def rename(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        with self._lock:
            super().rename(source, target, source_fd=source_fd, target_fd=target_fd)
            self._note("rename", self._at(source, source_fd), self._at(target, target_fd))

    def unlink(self, name: str, *, dir_fd: int) -> None:
        with self._lock:
            super().unlink(name, dir_fd=dir_fd)
            self._note("unlink", self._at(name, dir_fd))

    def mkdir(self, path: str, *, dir_fd: int | None = None) -> None:
        with self._lock:
            super().mkdir(path, dir_fd=dir_fd)
            self._note("mkdir", self._at(path, dir_fd))

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        with self._lock:
            super().rmdir(name, dir_fd=dir_fd)
            self._note("rmdir", self._at(name, dir_fd))

    def _at(self, path: str, dir_fd: int | None) -> str:
        if dir_fd is not None:
            return f"{self._paths[dir_fd]}/{path}".removeprefix("/")
        return "" if path == self._base else os.path.relpath(path, self._base)

    def _note(self, kind: str, path: str, target: str = "", **more: Any) -> None:
        if not path.startswith(".."):  # above the base everything was there before, and stays
            self.ops.append(Op(kind, path, target, **more))


def _site() -> Site | None:
    """Who decided to make something durable: the innermost frame of the store that does not only pass it on."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        name = os.path.basename(code.co_filename)
        if name in _MODULES and code.co_name not in _THROUGH:
            return name, code.co_name, frame.f_lineno
        frame = frame.f_back
    raise AssertionError("an fsync came from nowhere")


def call_sites() -> dict[str, Site]:
    """Every decision to make something durable in the source of the local store, by a name that reads well."""
    sites: dict[str, Site] = {}
    for name, path in _MODULES.items():
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name in _THROUGH | _SYNCS:
                continue
            count: Counter[str] = Counter()
            for call in _calls(function):
                count[call[0]] += 1
                sites[f"{function.name}-{call[0].strip('_')}-{count[call[0]]}"] = (name, function.name, call[1])
    return sites


def _calls(function: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _SYNCS | _THROUGH:
                found.append((called, node.lineno))
    return sorted(found, key=lambda each: each[1])
