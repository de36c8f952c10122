"""A run as readers see it: opened by url, nothing created, nobody fenced."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from limpet.engine.live import Checkpoint
from limpet.engine.opening import View, fresh_view
from limpet.engine.reader import Reader
from limpet.errors import UsageError
from limpet.format.layout import child_prefix
from limpet.loop import EngineLoop, Operation, Wait, drive, drive_async
from limpet.reading import Reading
from limpet.stores.base import Store
from limpet.stores.retry import Retrying
from limpet.stores.sealed import sealed
from limpet.stores.urls import open_store
from limpet.types import CheckpointInfo
from limpet.workers import Workers

__all__ = ["Run", "open_run"]

_READ_WORKERS = 2


class Run(Reading):
    """A run, to read from: for evaluation, notebooks, serving and tools. Made by ``limpet.open``.

    Every call looks at the store anew, so what a writer commits meanwhile is seen. Use it as a context
    manager (``with`` or ``async with``), or call ``close``.
    """

    def __init__(self, store: Store, *, allow_pickle: bool = False, parent: Run | None = None) -> None:
        self._store = store
        self._allow_pickle = allow_pickle
        self._parent = parent
        self._starting = threading.Lock()
        self._loop: EngineLoop | None = None
        self._threads: Workers | None = None
        self._closed = False
        self._children: list[Run] = []
        self._seen: dict[int, Checkpoint] = {}

    @property
    def url(self) -> str:
        """Where it is."""
        return self._store.url

    @property
    def latest(self) -> CheckpointInfo | None:
        """The newest checkpoint that the last call saw; no I/O."""
        return self._seen[max(self._seen)].info if self._seen else None

    def child(self, name: str) -> Run:
        """The run below this one that was written as ``child(name)``."""
        self._engine.check_caller()
        child = Run(self._store.child(child_prefix(name)), allow_pickle=self._allow_pickle, parent=self)
        self._children.append(child)
        return child

    def close(self) -> None:
        """Release threads and connections. Idempotent."""
        drive(self._close())

    async def close_async(self) -> None:
        """``close`` for coroutines."""
        await drive_async(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close_async()

    def __repr__(self) -> str:
        return f"<Run {self.url}{', closed' if self._closed else ''}>"

    def _close(self) -> Operation[None]:
        self._closed = True
        loop, self._loop = self._loop, None
        if loop is None or self._parent is not None or loop.forked:
            return
        try:
            for store in self._stores():
                closing = loop.call(store.close)
                yield Wait(closing)
                closing.get()
        finally:
            loop.stop()
            if self._threads is not None:
                self._threads.close()

    def _stores(self) -> Iterator[Store]:
        """Those of the children first: they share what the last one to close ends."""
        for child in self._children:
            child._closed = True
            yield from child._stores()
        yield self._store

    def _ready(self) -> Operation[None]:
        self._engine.check_caller()
        yield from ()

    def _view(self) -> Operation[View]:
        view = yield from self._call(fresh_view, self._store, self._seen.get)
        self._seen = {one.info.seq: one for one in view.checkpoints}
        return view

    @property
    def _engine(self) -> EngineLoop:
        if self._closed:
            raise UsageError(f"the run {self.url} is closed.", hint="Open it again.", kind="closed")
        if self._parent is not None:
            return self._parent._engine
        if self._loop is not None:
            return self._loop
        with self._starting:
            if self._loop is None:
                self._threads = Workers(_READ_WORKERS, "limpet-read")
                self._loop = EngineLoop()
            return self._loop

    @property
    def _reader(self) -> Reader:
        return Reader(self._store, self._workers)

    @property
    def _workers(self) -> Workers:
        if self._parent is not None:
            return self._parent._workers
        self._engine  # noqa: B018 - starts the threads too
        if self._threads is None:
            raise AssertionError("threads start with the loop")
        return self._threads

    @property
    def _where(self) -> str:
        return self.url


def open_run(
    url: str | os.PathLike[str],
    *,
    storage: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    key: bytes | None = None,
) -> Run:
    """Open a run to read from it: nothing is created, and no writer is disturbed.

    Args:
        url: a path, or ``file://``, ``s3://``, ``gs://``, ``az://``, ``memory://``.
        storage: options for the store (endpoint, region, credentials, timeouts).
        allow_pickle: read leaves that were pickled; runs code that the checkpoint names.
        key: of a signed run; records that are not signed with it are refused.

    Raises:
        UsageError: the url's scheme or a storage option is not known, or the key is too short.
    """
    return Run(Retrying(sealed(open_store(url, storage), key)), allow_pickle=allow_pickle)
