"""The engine's surroundings, made deterministic: its clocks, random names, threads and sizes.

Everything else is the code that ships. Sizes are made small, so that a state of a few kilobytes has several
packs, batches and chunks of its own.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

from anyio._core._eventloop import reset_current_async_library, set_current_async_library
from tests.simulation.world import Process, World

import limpet.finding
import limpet.holding
import limpet.session
import limpet.writing
from limpet.engine import chains, encode, index, log, opening, pieces, save, staging, upload
from limpet.engine.memory import MemoryBudget
from limpet.engine.staging import Copier
from limpet.engine.urgency import Encoders
from limpet.format import chunks, layout
from limpet.format.record import Writer
from limpet.pending import Completion

__all__ = ["SimEngine", "SimThreads", "SimWorkers", "surroundings"]

_SIZES: tuple[tuple[Any, str, int], ...] = (
    (chunks, "SHARED_BYTES", 700),
    (chunks, "CHUNK_BYTES", 2048),
    (staging, "SHARED_BYTES", 700),
    (encode, "BATCH_BYTES", 2048),
    (upload, "_PACK_BYTES", 3000),
    (upload, "_INLINE_RAW_MAX", 256),
    (upload, "INLINE_BYTES_MAX", 900),
    (pieces, "_RUN_BYTES", 2048),
    (chains, "_BATCH_BYTES", 2048),
    (index, "_SHARES_MAX", 4),
    (layout, "_RECORDS_PER_FOLDER", 8),
)


@contextlib.contextmanager
def surroundings(world: World, seed: int) -> Iterator[None]:
    """Everything that the engine takes from the machine comes from the seed meanwhile."""
    names = Random(f"names {seed}")
    secrets = SimpleNamespace(token_hex=lambda size: f"{names.getrandbits(size * 8):0{size * 2}x}")

    def here() -> Process:
        assert world.current is not None
        return world.current

    clock = SimpleNamespace(
        monotonic=lambda: here().monotonic(), perf_counter=lambda: here().monotonic(), time=lambda: here().wall()
    )
    places: list[tuple[Any, str, Any]] = [(module, name, size) for module, name, size in _SIZES]
    places += [(module, "secrets", secrets) for module in (log, upload, opening)]
    places += [
        (module, "time", clock) for module in (log, save, encode, limpet.session, limpet.holding, limpet.writing)
    ]
    places += [
        (log, "this_writer", lambda library: Writer("host", 1, library)),
        (limpet.session, "clear_stale_spools", lambda _: None),
        (limpet.finding, "available_bytes", lambda: 1 << 40),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    state = random.getstate()
    random.seed(f"engine {seed}")
    token = set_current_async_library("asyncio")
    try:
        for module, name, value in places:
            setattr(module, name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        random.setstate(state)
        reset_current_async_library(token)


class SimWorkers:
    """Threads of a process: each job runs whole, some virtual time after it was handed in."""

    count = 2

    def __init__(self, process: Process, rng: Random) -> None:
        self._process = process
        self._rng = rng

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        future = self._process.create_future()

        def job() -> None:
            try:
                result = function(*args)
            except Exception as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.submit(job)
        return await future

    def submit(self, job: Callable[[], None]) -> None:
        self._process.call_later(self._rng.random() * 0.004, job)


class SimEngine:
    """What stands for ``EngineLoop``: callers live on the same loop."""

    forked = False

    def __init__(self, process: Process, rng: Random) -> None:
        self._process = process
        self._rng = rng

    def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Completion[Any]:
        completion: Completion[Any] = Completion()

        async def run() -> None:
            try:
                completion.set_result(await function(*args))
            except Exception as error:
                completion.set_error(error)

        self._process.call_soon(lambda: self._process.create_task(run()))
        return completion

    def call_soon(self, function: Callable[..., None], *args: Any) -> bool:
        self._process.call_soon(function, *args)
        return True

    def call_gently(self, function: Callable[[], None]) -> None:
        self._process.call_later(self._rng.random() * 0.002, function)

    def check_caller(self) -> None:
        """Every caller is on this loop, and waits without blocking it."""


class SimThreads:
    """What stands for ``Threads``."""

    def __init__(self, process: Process, rng: Random) -> None:
        self.loop = SimEngine(process, rng)
        self.link = None
        self.encoders = Encoders(*(SimWorkers(process, rng) for _ in range(3)))
        self.urgent = self.encoders.urgent
        self.copier = Copier()
        self.budget = MemoryBudget(1 << 30)
