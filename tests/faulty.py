"""A store that goes wrong by script, and what tests of the protocol build on it.

Each fault is for one operation (``create``, ``put``, ``get`` ...) and for keys that hold a text; it strikes a number
of times. What it can do: raise before the operation is applied, raise after (the answer is lost), wait,
apply twice, cut the bytes short, flip one of their bits.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from limpet import Checkpointer, Run, StoreError
from limpet.engine.timing import Timing
from limpet.pending import Completion
from limpet.stores.base import Bytes, Entry, Seen, Store, scatter
from limpet.stores.memory import MemoryStore
from limpet.stores.retry import Retrying, RetryPolicy
from limpet.writing import Writing

PATIENCE_SECONDS = 10.0
"""How long a test waits for what must come: only a failing test ever waits so long."""
QUICK = Timing(commit_deadline=0.3, open_deadline=5.0, upload_deadline=0.3, grace=0.0)
"""Deadlines that a test can sit out, and no grace."""
EVER = 10**9


def down(message: str = "503 service unavailable") -> StoreError:
    """What a store raises that may work later."""
    return StoreError(message, transient=True)


def forbidden() -> StoreError:
    """What a store raises that will not work later."""
    return StoreError("403 forbidden", kind="access")


@dataclass
class Fault:
    """What goes wrong with the next calls of ``operation`` on keys that hold ``match``."""

    operation: str
    match: str = ""
    times: int = 1
    skip: int = 0
    before: StoreError | None = None
    after: StoreError | None = None
    waits: bool = False
    duplicate: bool = False
    short: bool = False
    flip: bool = False
    _reached: threading.Event = field(default_factory=threading.Event)
    _open: Completion[None] = field(default_factory=Completion)

    def takes(self, operation: str, key: str) -> bool:
        """Whether it strikes this call."""
        if operation != self.operation or self.match not in key or self.times <= 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True

    def wait_until_reached(self) -> None:
        """Block until a call waits here."""
        assert self._reached.wait(PATIENCE_SECONDS), f"no {self.operation} came"

    def release(self) -> None:
        """Let the calls that wait go on, and later ones pass."""
        self.waits = False
        self._open.set_result(None)

    async def hold(self) -> None:
        self._reached.set()
        if self.waits:
            await self._open.wait_async()

    def bent(self, data: Bytes) -> bytes:
        """The bytes as this fault leaves them."""
        bent = bytearray(data)
        if self.short:
            del bent[len(bent) // 2 :]
        if self.flip and bent:
            bent[len(bent) // 2] ^= 0x10
        return bytes(bent)


_SOUND = Fault("")


class Faulty:
    """A store whose calls are counted and go wrong by script. Commits are not paced.

    Attributes:
        calls: (operation, key) of every call so far, in order.
    """

    commit_interval_seconds = 0.0

    def __init__(self, store: Store | None = None) -> None:
        self.store: Any = store if store is not None else MemoryStore()
        self.url = self.store.url
        self.calls: list[tuple[str, str]] = []
        self._faults: list[Fault] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def script(self, operation: str, match: str = "", **what: Any) -> Fault:
        """Add a fault; faults strike in the order in which they were added."""
        fault = Fault(operation, match, **what)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()

    def count(self, operation: str, match: str = "") -> int:
        """How many calls of ``operation`` came so far, on keys that hold ``match``."""
        return sum(name == operation and match in key for name, key in self.calls)

    def counts(self) -> Counter[str]:
        """How many calls of each operation came so far."""
        return Counter(name for name, _ in self.calls)

    async def get(self, key: str, **options: int) -> bytes:
        return await self._strike("get", key, lambda: self.store.get(key, **options))

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        return await self._strike("get_range", key, lambda: self.store.get_range(key, offset, size))

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        async def read() -> Bytes:
            await self.store.read_into(key, offset, targets)
            return b"".join(targets)

        scatter(await self._strike("read_into", key, read), targets)

    async def list(self, prefix: str) -> list[Entry]:
        return await self._strike("list", prefix, lambda: self.store.list(prefix))

    async def folders(self, prefix: str) -> set[str]:
        return await self._strike("list", prefix, lambda: self.store.folders(prefix))

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        fault = self._enter("put", key)
        await fault.hold()
        if fault.before is not None:
            async for _ in parts:
                break  # the connection broke in the middle of the upload
            raise copy(fault.before)  # a new one each time: it takes what its frames hold along
        size = await self.store.put(key, _bent_parts(parts, fault), size_hint=size_hint)
        if fault.after is not None:
            raise copy(fault.after)  # a new one each time: it takes what its frames hold along
        return int(size)

    async def create(self, key: str, data: bytes) -> None:
        await self._strike("create", key, lambda: self.store.create(key, data))

    async def settle(self, key: str) -> None:
        await self._strike("settle", key, lambda: self.store.settle(key))

    async def delete(self, key: str) -> None:
        await self._strike("delete", key, lambda: self.store.delete(key))

    def _enter(self, operation: str, key: str) -> Fault:
        self.calls.append((operation, key))
        return next((fault for fault in self._faults if fault.takes(operation, key)), _SOUND)

    async def _strike(self, operation: str, key: str, call: Callable[[], Awaitable[Any]]) -> Any:
        fault = self._enter(operation, key)
        await fault.hold()
        if fault.before is not None:
            raise copy(fault.before)  # a new one each time: it takes what its frames hold along
        result = await call()
        if fault.duplicate:
            result = await call()
        if fault.after is not None:
            raise copy(fault.after)  # a new one each time: it takes what its frames hold along
        return fault.bent(result) if fault.short or fault.flip else result


async def _bent_parts(parts: AsyncIterable[Sequence[Bytes]], fault: Fault) -> AsyncIterator[Sequence[Bytes]]:
    async for part in parts:
        yield [fault.bent(buffer) for buffer in part] if fault.short or fault.flip else part


def retrying(store: Store, deadline_seconds: float = 0.05) -> Retrying:
    """A store that tries again, for as long as a test can sit out."""
    return Retrying(store, RetryPolicy(0.001, 2.0, 0.01, deadline_seconds))


def write_over(
    store: Store, *, timing: Timing = QUICK, deadline_seconds: float = 0.05, **settings: Any
) -> Checkpointer:
    """A ``Checkpointer`` whose run lies in ``store``, with any of its settings."""
    checkpointer = Checkpointer("memory://only-for-its-settings", **{"owner": "test", **settings})
    Writing.__init__(checkpointer, retrying(store, deadline_seconds), checkpointer._settings)
    checkpointer._timing = timing
    return checkpointer


def read_over(store: Store, *, deadline_seconds: float = 0.05) -> Run:
    """A ``Run`` that lies in ``store``."""
    return Run(retrying(store, deadline_seconds))


class Shelf:
    """The objects of a memory store, to look at and to damage."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    @property
    def objects(self) -> dict[str, bytes]:
        """A copy of what is there."""
        return dict(self._store._space.objects)

    def keys(self, match: str = "") -> list[str]:
        """Keys that hold ``match``, in order."""
        return sorted(key for key in self.objects if match in key)

    def packs(self) -> list[str]:
        """Keys of all packs."""
        return self.keys("data/")

    def replace(self, key: str, data: bytes) -> None:
        """Put other bytes under a key."""
        self._store._space.objects[key] = data

    def remove(self, key: str) -> None:
        """Take an object away."""
        del self._store._space.objects[key]

    def flip(self, key: str, at: int | None = None) -> None:
        """Flip a bit of the byte ``at`` (default: the middle one)."""
        data = bytearray(self.objects[key])
        data[len(data) // 2 if at is None else at] ^= 0x04
        self.replace(key, bytes(data))

    def cut(self, key: str, to: int = 10) -> None:
        """Cut an object short."""
        self.replace(key, self.objects[key][:to])
