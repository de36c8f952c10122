"""Where a process can be struck: at every call of its store, at every system call of a folder, at every failpoint.

A ``Strike`` counts the passages of one kind of point and sends this process a signal at the n-th. It never
touches the run itself: what it strikes is the real code over the real store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from limpet.failpoints import watch
from limpet.stores.base import Store
from limpet.stores.local_files import FileOps

__all__ = ["Strike", "StruckFiles", "StruckStore"]

STORE_CALLS = {"get", "get_range", "read_into", "list", "folders", "create", "settle", "delete", "prepare", "close"}
FILE_CALLS = {"open", "writev", "fsync", "fsync_dir", "link", "rename", "rename_new", "unlink", "mkdir", "rmdir"}


@dataclass
class Strike:
    """Sends ``signal`` to this process at passage ``at`` of points of ``kind``; counts them all.

    Attributes:
        kind: ``"store"``, ``"file"``, ``"point"``, or ``"point:"`` and the name of one.
        at: counted from 1; 0 never strikes.
        signal: its number.
        passed: labels of every point so far.
    """

    kind: str
    at: int = 0
    signal: int = 9
    passed: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.kind.startswith("point"):
            watch(self._at_failpoint)

    def reach(self, kind: str, label: str) -> None:
        """The process is at a point."""
        if kind != self.kind:
            return
        with self._lock:
            self.passed.append(label)
            now = len(self.passed) == self.at
        if now:
            os.kill(os.getpid(), self.signal)

    def _at_failpoint(self, name: str) -> None:
        self.reach("point" if self.kind == "point" else f"point:{name}", name)


class StruckStore:
    """A store that is a point before and after each of its calls. Commits are not paced."""

    commit_interval_seconds = 0.0

    def __init__(self, store: Store, strike: Strike) -> None:
        self.store: Any = store
        self.url = store.url
        self._strike = strike

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        return self._around(name, found) if name in STORE_CALLS else found

    async def put(self, key: str, parts: Any, *, size_hint: int = 0) -> int:
        """See ``Store.put``."""
        put = self._around("put", self.store.put)
        return int(await put(key, parts, size_hint=size_hint))

    def acquire_writer_lock(self, owner: str) -> None:
        """See ``Store.acquire_writer_lock``."""
        self._strike.reach("store", "lock before")
        try:
            self.store.acquire_writer_lock(owner)
        finally:
            self._strike.reach("store", "lock after")

    def child(self, prefix: str) -> StruckStore:
        """See ``Store.child``."""
        return StruckStore(self.store.child(prefix), self._strike)

    def _around(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def struck(*args: Any, **keywords: Any) -> Any:
            label = " ".join([name, *(str(arg) for arg in args[:1])])
            self._strike.reach("store", f"{label} before")
            try:
                return await call(*args, **keywords)
            finally:
                self._strike.reach("store", f"{label} after")

        return struck


class StruckFiles(FileOps):
    """System calls that are a point before each one that changes something."""

    def __init__(self, strike: Strike) -> None:
        self._strike = strike

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in FILE_CALLS:
            return found
        strike = super().__getattribute__("_strike")

        def struck(*args: Any, **keywords: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                strike.reach("file", f"{name} {args[0]}")
            return found(*args, **keywords)

        return struck
