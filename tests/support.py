"""What tests of saves share: a checkpointer over any store, and a store whose calls wait and fail on command."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from limpet import Checkpointer, StoreError
from limpet.pending import Completion
from limpet.stores.base import Bytes, Entry, Store
from limpet.stores.memory import MemoryStore
from limpet.stores.retry import Retrying
from limpet.writing import Writing

T = TypeVar("T")
PATIENCE_SECONDS = 10.0
"""How long a test waits for what must come: only a failing test ever waits so long."""


def checkpointer_over(store: Store, **settings: Any) -> Checkpointer:
    """A ``Checkpointer`` whose run lies in ``store``, with any of its settings."""
    checkpointer = Checkpointer("memory://only-for-its-settings", **settings)
    Writing.__init__(checkpointer, Retrying(store), checkpointer._settings)
    return checkpointer


class Hold:
    """Calls that wait until ``release``."""

    def __init__(self, match: str, times: int | None) -> None:
        self.match = match
        self.left = times
        self._arrived = threading.Event()
        self._open: Completion[None] = Completion()

    def wait_until_reached(self) -> None:
        """Block until a call waits here."""
        assert self._arrived.wait(PATIENCE_SECONDS), "no call came"

    async def reached(self) -> None:
        """The same for coroutines."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while not self._arrived.is_set():
                await anyio.sleep(0.001)

    def release(self) -> None:
        """Let the calls go on, and every later one pass."""
        self._open.set_result(None)

    async def stop(self) -> None:
        self._arrived.set()
        await self._open.wait_async()


class Gated:
    """A store whose calls can be held, failed and counted from the test's thread.

    Commits are not paced, so that every save is written at once.
    """

    commit_interval_seconds = 0.0

    def __init__(self, store: Store | None = None, above: Gated | None = None) -> None:
        self.store = store if store is not None else MemoryStore()
        self.url = self.store.url
        self.calls: list[tuple[str, str]] = above.calls if above else []
        self._holds: dict[str, list[Hold]] = above._holds if above else {}
        self._failures: dict[str, deque[StoreError]] = above._failures if above else {}

    def hold(self, operation: str, match: str = "", times: int | None = None) -> Hold:
        """Make the next calls of ``operation`` (all, or the first ``times``) on keys that hold ``match`` wait."""
        hold = Hold(match, times)
        self._holds.setdefault(operation, []).append(hold)
        return hold

    def fail(self, operation: str, *errors: StoreError) -> None:
        """Make the next calls of ``operation`` raise these."""
        self._failures.setdefault(operation, deque()).extend(errors)

    def count(self, operation: str, match: str = "") -> int:
        """How many calls of ``operation`` came so far."""
        return sum(name == operation and match in key for name, key in self.calls)

    async def get(self, key: str, **options: int) -> bytes:
        await self._enter("get", key)
        return await self.store.get(key, **options)

    async def list(self, prefix: str) -> list[Entry]:
        await self._enter("list", prefix)
        return await self.store.list(prefix)

    async def folders(self, prefix: str) -> set[str]:
        await self._enter("list", prefix)
        return await self.store.folders(prefix)

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        await self._enter("put", key)
        return await self.store.put(key, parts, size_hint=size_hint)

    async def create(self, key: str, data: bytes) -> None:
        await self._enter("create", key)
        await self.store.create(key, data)

    async def settle(self, key: str) -> None:
        await self._enter("settle", key)
        await self.store.settle(key)

    async def delete(self, key: str) -> None:
        await self._enter("delete", key)
        await self.store.delete(key)

    def child(self, prefix: str) -> Gated:
        return Gated(self.store.child(prefix), self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def _enter(self, operation: str, key: str) -> None:
        self.calls.append((operation, key))
        for hold in self._holds.get(operation, ()):
            if hold.match in key and hold.left != 0:
                hold.left = None if hold.left is None else hold.left - 1
                await hold.stop()
        failures = self._failures.get(operation)
        if failures:
            raise failures.popleft()


def down(message: str = "the store is down", *, transient: bool = False) -> StoreError:
    """What a store raises that does not work."""
    return StoreError(message, transient=transient)


RunAsync = Callable[..., Any]


@pytest.fixture(params=["asyncio", "trio"])
def run_async(request: pytest.FixtureRequest) -> RunAsync:
    """Runs a coroutine function to its end, once on asyncio and once on trio."""

    def run(function: Callable[..., Awaitable[T]], *args: Any) -> T:
        async def bounded() -> T:
            with anyio.fail_after(PATIENCE_SECONDS):
                return await function(*args)

        return anyio.run(bounded, backend=request.param)

    return run


def run_script(code: str, *arguments: object, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as a script of its own, with the tests' folder on its path."""
    root = Path(__file__).parents[1]
    script = f"import sys; sys.path[:0] = [{str(root)!r}]\n{textwrap.dedent(code)}"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def noise(seed: int, nbytes: int = 64 << 10) -> Any:
    """An array of bytes that no codec shrinks and no two seeds share."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


class HeldPieces:
    """Lazy copies, cut into small pieces, each of which waits until it is let go. ``Copier.copy`` is left alone.

    Args:
        patch: puts it in its place.
        piece_bytes: of one piece.
    """

    def __init__(self, patch: pytest.MonkeyPatch, piece_bytes: int = 64 << 10) -> None:
        from limpet.engine import cutting, lazy

        self.copied = 0
        self._held = 0
        self._allowed = 0.0
        self._changed = threading.Condition()
        self._copy = lazy.copy_piece
        patch.setattr(lazy, "copy_piece", self._copy_piece)
        patch.setattr(cutting, "_PIECE_BYTES", piece_bytes)

    def wait_until_held(self) -> None:
        """Block until a piece waits here."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held, PATIENCE_SECONDS), "no piece came"

    def let_go(self, pieces: float = float("inf")) -> None:
        """Let so many more pieces be copied; by default all."""
        with self._changed:
            self._allowed += pieces
            self._changed.notify_all()

    def hold(self) -> None:
        """Hold every later piece again."""
        with self._changed:
            self._allowed = 0.0

    def let_go_and_wait(self, pieces: int) -> None:
        """The same, and block until they are copied and another one waits."""
        self.let_go(pieces)
        with self._changed:
            assert self._changed.wait_for(lambda: not self._allowed and self._held, PATIENCE_SECONDS), "no piece came"

    def _copy_piece(self, target: Any, source: Any) -> None:
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._allowed >= 1, PATIENCE_SECONDS), "never let go"
            self._allowed -= 1
            self._held -= 1
            self.copied += 1
        self._copy(target, source)
