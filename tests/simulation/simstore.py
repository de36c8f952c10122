"""A simulated store: one disk, and a client of it for each process, whose requests go wrong as planned.

A request that was sent is applied at its own time, whatever became of its caller: after an error, a
cancellation or a crash it may still land, up to an hour later.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from random import Random
from typing import Any, Protocol

from tests.simulation.plan import Fault, Outage
from tests.simulation.world import Crashed, Process, World

from limpet.errors import CorruptError, StoreError
from limpet.stores.base import NO_SPACE, Bytes, Entry, KeyExistsError, KeyMissingError, Seen, scatter

__all__ = ["Disk", "SimStore", "Watcher"]

_STALE_SECONDS = 30.0
_SOUND = Fault("")
_HITS = {
    "all": {"create", "put", "delete", "get", "get_range", "read_into", "list"},
    "writes": {"create", "put", "delete"},
    "create": {"create"},
}


class Watcher(Protocol):
    """Is told of everything that the disk does, at the moment it does it."""

    def created(self, key: str, data: bytes, process: Process) -> None: ...
    def put(self, key: str, data: bytes, process: Process) -> None: ...
    def deleted(self, key: str, process: Process) -> None: ...
    def issues_delete(self, process: Process) -> None: ...


class Disk:
    """The objects, as everybody sees them."""

    def __init__(self, world: World, outages: Sequence[Outage]) -> None:
        self.world = world
        self.watcher: Watcher
        self.objects: dict[str, bytes] = {}
        self.appeared: dict[str, float] = {}
        self.vanished: dict[str, tuple[float, int]] = {}
        self.rotten: set[str] = set()
        self.healthy = False
        self._outages = outages

    def outage(self, actor: int, operation: str) -> Outage | None:
        """What keeps this actor's request from being answered now."""
        now = self.world.now - 1000.0
        for outage in self._outages:
            hits = operation in _HITS[outage.hits] and outage.actor in (None, actor)
            if hits and outage.start <= now < outage.start + outage.seconds:
                return outage
        return None

    def create(self, key: str, data: bytes, process: Process) -> None:
        if key in self.objects:
            raise KeyExistsError(f"{key} exists")
        self.objects[key] = data
        self.appeared[key] = self.world.now
        self.watcher.created(key, data, process)

    def put(self, key: str, data: bytes, process: Process) -> None:
        self.watcher.put(key, data, process)
        if key not in self.objects:
            self.appeared[key] = self.world.now
        self.objects[key] = data

    def delete(self, key: str, process: Process) -> None:
        if key in self.objects:
            self.watcher.deleted(key, process)
            self.vanished[key] = (self.world.now, len(self.objects.pop(key)))

    def rot(self, choice: int) -> None:
        """Damage one object for good."""
        keys = sorted(key for key in self.objects if key != "limpet.json")
        if not keys or self.healthy:
            return
        key = keys[choice % len(keys)]
        data = bytearray(self.objects[key])
        data[choice // 7 % len(data)] ^= 1 << choice % 8
        self.objects[key] = bytes(data)
        self.rotten.add(key)
        self.world.stats["rotten"] += 1
        self.world.note("disk", "rots", key)

    def list(self, prefix: str, rng: Random, stale: bool) -> list[Entry]:
        """What lies below a prefix, in any order; a stale listing shows it as it was a little before."""
        since = self.world.now - (rng.uniform(0, _STALE_SECONDS) if stale else -1)
        entries = [
            Entry(key, len(data))
            for key, data in self.objects.items()
            if key.startswith(prefix) and self.appeared[key] <= since
        ]
        if stale:
            entries += [
                Entry(key, size)
                for key, (when, size) in self.vanished.items()
                if key.startswith(prefix) and when > since and key not in self.objects
            ]
        rng.shuffle(entries)
        return entries


class SimStore:
    """What one process sees of the disk. See ``Store`` for the contract."""

    url = "sim://run"

    def __init__(
        self,
        disk: Disk,
        process: Process,
        number: int,
        rng: Random,
        faults: dict[tuple[str, int], Fault],
        interval: float,
    ) -> None:
        self.commit_interval_seconds = interval
        self._disk = disk
        self._process = process
        self._number = number
        self._rng = rng
        self._faults = faults
        self._bent: set[tuple[str, int]] = set()

    async def get(self, key: str, *, limit: int = 0) -> bytes:
        data = await self._read("get", key, lambda: self._find(key))
        return bytes(data)

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        return await self._read("get_range", key, lambda: self._slice(key, offset, size), offset)

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        size = sum(map(len, targets))
        scatter(await self._read("read_into", key, lambda: self._slice(key, offset, size), offset), targets)

    async def list(self, prefix: str) -> list[Entry]:
        fault = self._enter("list")
        await self._pass("list", prefix, fault)
        return self._disk.list(prefix, self._rng, fault.kind == "stale")

    async def folders(self, prefix: str) -> set[str]:
        below = [entry.key[len(prefix) :].partition("/") for entry in await self.list(prefix)]
        return {name for name, slash, _ in below if slash}

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        fault = self._enter("put")
        pieces: list[bytes] = []
        async for part in parts:
            pieces += [bytes(buffer) for buffer in part]
            del part
            await self._wait(self._latency())
            if fault.kind == "cut":
                self._count("put", "cut")
                raise StoreError("the connection broke", transient=True)
        data = b"".join(pieces)
        await self._write("put", key, fault, lambda: self._disk.put(key, data, self._process))
        return len(data)

    async def create(self, key: str, data: bytes) -> None:
        await self._write(
            "create", key, self._enter("create"), lambda: self._disk.create(key, bytes(data), self._process)
        )

    async def delete(self, key: str) -> None:
        self._disk.watcher.issues_delete(self._process)
        await self._write("delete", key, self._enter("delete"), lambda: self._disk.delete(key, self._process))

    async def settle(self, key: str) -> None:
        self._alive()

    async def free_bytes(self) -> int | None:
        return None

    async def prepare(self) -> None:
        self._alive()

    def acquire_writer_lock(self, owner: str) -> None:
        """Another host's: there is none here."""

    def release_writer_lock(self) -> None:
        """See above."""

    def spool_folder(self) -> str | None:
        return None

    def child(self, prefix: str) -> SimStore:
        raise NotImplementedError

    async def close(self) -> None:
        self._alive()

    # How a request goes.

    def _alive(self) -> None:
        if self._process.dead:
            raise Crashed

    def _enter(self, operation: str) -> Fault:
        """What is planned for this request."""
        self._alive()
        number = self._process.requests[operation]
        self._process.requests[operation] += 1
        if self._disk.healthy:
            return _SOUND
        outage = self._disk.outage(self._number, operation)
        if outage is None:
            return self._faults.get((operation, number), _SOUND)
        self._count("outage", outage.kind)
        kind = self._rng.choice(("refuse", "lose", "late")) if outage.kind == "mixed" else outage.kind
        return Fault(kind, self._rng.uniform(0, self._rng.choice((5, 60, 3600))))

    def _count(self, operation: str, kind: str) -> None:
        self._disk.world.stats[f"{operation}.{kind}"] += 1

    def _latency(self) -> float:
        return 0.001 + self._rng.random() * (0.2 if self._rng.random() < 0.1 else 0.02)

    async def _wait(self, seconds: float) -> None:
        """Wait as on the network: nobody's clock counts."""
        future = self._process.create_future()
        self._disk.world.after(seconds, lambda: self._answer(future, None, None))
        await future

    def _answer(self, future: Any, result: Any, error: Exception | None) -> None:
        if self._process.dead or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    async def _pass(self, operation: str, key: str, fault: Fault) -> None:
        """The way there of a read, which may end here."""
        if fault.kind in ("refuse", "lose", "late", "forbid"):
            self._count(operation, "refuse")
            await self._wait(self._latency())
            self._disk.world.note(self._process.name, operation, key, fault.kind)
            raise _refusal(fault.kind)
        if fault.kind:
            self._count(operation, fault.kind)
        await self._wait(self._latency() + (fault.delay if fault.kind == "stall" else 0.0))

    async def _read(self, operation: str, key: str, find: Callable[[], bytes], offset: int = 0) -> bytes:
        fault = self._enter(operation)
        await self._pass(operation, key, fault)
        found: bytes | StoreError | CorruptError
        try:
            found = find()
        except (StoreError, CorruptError) as error:
            found = error
        await self._wait(self._latency())
        self._disk.world.note(self._process.name, operation, key, type(found).__name__)
        if isinstance(found, Exception):
            raise found
        return self._bend(operation, key, offset, fault, found)

    def _bend(self, operation: str, key: str, offset: int, fault: Fault, data: bytes) -> bytes:
        """A transient fault is over when the same thing is asked for again."""
        if fault.kind not in ("flip", "short") or (key, offset) in self._bent or not data:
            self._bent.discard((key, offset))
            return data
        self._bent.add((key, offset))
        self._disk.world.note(self._process.name, operation, key, fault.kind)
        if fault.kind == "short":
            if operation != "get":
                raise CorruptError(f"{key} ends too soon", kind="truncated")
            return data[: self._rng.randrange(len(data))]
        flipped = bytearray(data)
        flipped[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        return bytes(flipped)

    async def _write(self, operation: str, key: str, fault: Fault, apply: Callable[[], None]) -> None:
        world = self._disk.world
        future = self._process.create_future()

        def strike(answer: bool, error: StoreError | None = None) -> None:
            try:
                apply()
            except KeyExistsError as exists:
                outcome, failure = "exists", error or exists
            else:
                outcome, failure = "applied", error
            world.note(self._process.name, operation, key, outcome, fault.kind)
            if answer:
                world.after(self._latency(), lambda: self._answer(future, None, failure))

        there = self._latency()
        self._plan_write(fault, there, future, strike)
        if fault.kind:
            self._count(operation, fault.kind)
        await future

    def _plan_write(self, fault: Fault, there: float, future: Any, strike: Callable[..., None]) -> None:
        """When a request is applied and when it is answered."""
        world = self._disk.world
        kind = fault.kind
        if kind in ("refuse", "forbid", "conflict", "full"):
            world.after(there, lambda: self._answer(future, None, _refusal(kind)))
        elif kind == "lose":
            world.after(there, lambda: strike(True, _refusal(kind)))
        elif kind == "late":
            world.after(there, lambda: self._answer(future, None, _refusal(kind)))
            world.after(there + fault.delay, lambda: strike(False))
        elif kind == "twice":
            world.after(there, lambda: strike(True))
            world.after(there + fault.delay, lambda: strike(False))
        elif kind == "twice_seen":
            world.after(there, lambda: strike(False))
            world.after(there + 0.01, lambda: strike(True))
        elif kind == "stall":
            world.after(there + fault.delay, lambda: strike(True))
        else:
            world.after(there, lambda: strike(True))

    def _find(self, key: str) -> bytes:
        data = self._disk.objects.get(key)
        if data is None:
            raise KeyMissingError(f"there is no {key}")
        return data

    def _slice(self, key: str, offset: int, size: int) -> bytes:
        data = self._find(key)
        if offset + size > len(data):
            raise CorruptError(f"{key} ends too soon", kind="truncated")
        return data[offset : offset + size]


def _refusal(kind: str) -> StoreError:
    if kind == "forbid":
        return StoreError("403 forbidden", kind="access")
    if kind == "conflict":
        return KeyExistsError("409 conflict")
    if kind == "full":
        return StoreError("no space left", kind=NO_SPACE, transient=True)
    return StoreError("503 service unavailable", transient=True)
