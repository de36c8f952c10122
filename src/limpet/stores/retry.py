"""Repeating what a store could not do at the moment.

Only calls that may be repeated blindly are: reads, lists, deletes and the like. ``create`` and ``put`` pass
through untouched, since after a failure the engine must first find out what happened to them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from limpet.errors import StoreError
from limpet.stores.base import GET_BYTES_MAX, NO_SPACE, Bytes, Entry, Seen, Store

__all__ = ["RetryPolicy", "Retrying", "backoff_delays"]

T = TypeVar("T")
OnRetry = Callable[[str, str, StoreError, int], None]
"""Called before each wait with the operation, the key, the error and the number of the attempt that failed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on trying, and how often.

    Attributes:
        first_seconds: the longest first wait.
        factor: by how much each wait may be longer than the one before.
        longest_seconds: no wait is longer.
        deadline_seconds: after this long, counted from the first attempt, the last error is raised.
    """

    first_seconds: float = 0.1
    factor: float = 2.0
    longest_seconds: float = 5.0
    deadline_seconds: float = 60.0


def backoff_delays(policy: RetryPolicy, jitter: Callable[[], float] = random.random) -> Iterator[float]:
    """Waits in seconds, without end: exponential, each between half of its bound and all of it.

    Half of each wait is random, so that clients which failed together do not come back together, and the other half
    is not, so that none comes back at once ("equal jitter" in
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Args:
        policy: the bounds.
        jitter: random numbers in [0, 1).
    """
    bound = min(policy.first_seconds, policy.longest_seconds)
    while True:
        yield bound * (1 + jitter()) / 2
        bound = min(bound * policy.factor, policy.longest_seconds)


class Retrying:
    """A store that tries again what failed with a transient ``StoreError``.

    Args:
        store: the store that does the work.
        policy: bounds of the waits.
        sleep: waits for so many seconds.
        clock: monotonic seconds.
        jitter: random numbers in [0, 1).
        on_retry: told of every retry before its wait; may be set later.
    """

    def __init__(
        self,
        store: Store,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        on_retry: OnRetry | None = None,
    ) -> None:
        self.store = store
        self.url = store.url
        self.commit_interval_seconds = store.commit_interval_seconds
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self.on_retry = on_retry

    def __repr__(self) -> str:
        return f"Retrying({self.store!r})"

    async def get(self, key: str, *, limit: int = GET_BYTES_MAX) -> bytes:
        """See ``Store.get``."""
        return await self._retry("get", key, lambda: self.store.get(key, limit=limit))

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        """See ``Store.get_range``."""
        return await self._retry("get_range", key, lambda: self.store.get_range(key, offset, size))

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        """See ``Store.read_into``."""
        await self._retry("read_into", key, lambda: self.store.read_into(key, offset, targets, seen))

    async def list(self, prefix: str) -> list[Entry]:
        """See ``Store.list``."""
        return await self._retry("list", prefix, lambda: self.store.list(prefix))

    async def folders(self, prefix: str) -> set[str]:
        """See ``Store.folders``."""
        return await self._retry("list", prefix, lambda: self.store.folders(prefix))

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        """See ``Store.put``. Tried once: ``parts`` can be read once, and a retry takes a new key."""
        return await self.store.put(key, parts, size_hint=size_hint)

    async def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``. Tried once: the caller reads back before it decides."""
        await self.store.create(key, data)

    async def settle(self, key: str) -> None:
        """See ``Store.settle``."""
        await self._retry("settle", key, lambda: self.store.settle(key))

    async def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        await self._retry("delete", key, lambda: self.store.delete(key))

    async def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``."""
        return await self._retry("free_bytes", "", self.store.free_bytes)

    async def prepare(self) -> None:
        """See ``Store.prepare``."""
        await self._retry("prepare", "", self.store.prepare)

    def acquire_writer_lock(self, owner: str) -> None:
        """See ``Store.acquire_writer_lock``."""
        self.store.acquire_writer_lock(owner)

    def release_writer_lock(self) -> None:
        """See ``Store.release_writer_lock``."""
        self.store.release_writer_lock()

    def spool_folder(self) -> str | None:
        """See ``Store.spool_folder``."""
        return self.store.spool_folder()

    def child(self, prefix: str) -> Retrying:
        """See ``Store.child``: it retries in the same way."""
        return Retrying(
            self.store.child(prefix),
            self._policy,
            sleep=self._sleep,
            clock=self._clock,
            jitter=self._jitter,
            on_retry=self.on_retry,
        )

    async def close(self) -> None:
        """See ``Store.close``."""
        await self.store.close()

    async def _retry(self, operation: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        deadline = self._clock() + self._policy.deadline_seconds
        delays = backoff_delays(self._policy, self._jitter)
        attempt = 1
        while True:
            try:
                return await call()
            except StoreError as error:
                delay = next(delays)
                # A full store is not mended by waiting: whoever asked must make room, or be told at once.
                if not error.transient or error.kind == NO_SPACE or self._clock() + delay > deadline:
                    raise
                if self.on_retry is not None:
                    self.on_retry(operation, key, error, attempt)
            await self._sleep(delay)
            attempt += 1
