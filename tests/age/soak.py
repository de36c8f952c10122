"""A long life: thousands of commits into a folder, small and large states in turn, one request in twenty going wrong.

``python -m tests.age.soak --commits 10000`` prints what grew. The engine is the real one; only its store has a
seeded layer of faults: errors before and after a request took effect, and reads that come short.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
from tests.faulty import down, write_over

from limpet import Checkpointer, Last, Periodic, StoreError
from limpet.engine.timing import Timing
from limpet.stores.base import Bytes, Store
from limpet.stores.local import LocalStore

KEPT = 3
WINDOW = 50
WARM_SHARE = 0.3
MEASURED_FROM = 0.4
TENTHS = 10


class Flaky:
    """A store of which a share of the requests fails, half of them before they take effect and half after."""

    commit_interval_seconds = 0.0

    def __init__(self, store: Store, share: float, seed: int) -> None:
        self.store: Any = store
        self.url = store.url
        self.faults: Counter[str] = Counter()
        self._share = share
        self._random = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name not in ("get", "get_range", "read_into", "list", "folders", "create", "settle", "delete"):
            return method

        async def flaky(*args: Any, **keywords: Any) -> Any:
            return await self._strike(name, lambda: method(*args, **keywords))

        return flaky

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        async def write() -> int:
            return int(await self.store.put(key, parts, size_hint=size_hint))

        return int(await self._strike("put", write))

    async def _strike(self, operation: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._random.random() >= self._share:
            return await call()
        self.faults[operation] += 1
        if self._random.random() < 0.5:
            raise down()
        await call()
        raise down()


@dataclass
class Grown:
    """What a soak found.

    Attributes:
        commits: acknowledged.
        takeovers: openings after the first.
        faults: by operation.
        rss_mib: the resident memory in each tenth of the soak: medians.
        threads, descriptors: the same; folders that are written into are kept open, so a few come and go.
        packs: there at the end after a sweep, and needed by what is live.
        seconds: of the whole.
    """

    commits: int = 0
    takeovers: int = 0
    failed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    rss_mib: list[float] = field(default_factory=list)
    threads: tuple[float, float] = (0, 0)
    descriptors: tuple[float, float] = (0, 0)
    packs: tuple[int, int] = (0, 0)
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Of the resident memory after warm-up, as a share: the highest of the later tenths beside the first of them."""
        after = self.rss_mib[int(TENTHS * MEASURED_FROM) :]
        return max(after) / after[0] - 1


class Soak:
    """One soak in ``folder``.

    Args:
        folder: of the run.
        commits: how many.
        share: of requests that go wrong.
        seed: of the faults.
        lives: how many attempts; all but the last are part of the warm-up.
    """

    def __init__(self, folder: Path, commits: int, *, share: float = 0.05, seed: int = 1, lives: int = 4) -> None:
        self._folder = folder
        self._commits = commits
        self._share = share
        self._seed = seed
        self._lives = lives
        self._frozen = np.random.default_rng(0).random(60_000, dtype=np.float32)
        self._grown = Grown()
        self._samples: list[tuple[int, int, int]] = []
        self._process = psutil.Process()

    def run(self) -> Grown:
        """Commit, measure, and read back what is live at the end."""
        started = time.perf_counter()
        faults: Counter[str] = Counter()
        warm = int(self._commits * WARM_SHARE)
        ends = [warm * (life + 1) // (self._lives - 1) for life in range(self._lives - 1)] + [self._commits]
        for life, (first, last) in enumerate(pairwise([0, *ends])):
            store = Flaky(LocalStore(str(self._folder)), self._share, self._seed + life)
            self._live(store, first, last)
            faults += store.faults
        self._grown.takeovers = self._lives - 1
        self._grown.faults = dict(faults)
        self._grown.packs = self._packs()
        after = int(len(self._samples) * MEASURED_FROM)
        early, late = self._samples[after : after + WINDOW], self._samples[-WINDOW:]
        _, self._grown.threads, self._grown.descriptors = (
            (statistics.median(before), statistics.median(then))
            for before, then in zip(zip(*early, strict=True), zip(*late, strict=True), strict=True)
        )
        rss = [sample[0] / 2**20 for sample in self._samples]
        tenth = max(1, len(rss) // TENTHS)
        self._grown.rss_mib = [round(statistics.median(rss[at * tenth : (at + 1) * tenth]), 2) for at in range(TENTHS)]
        self._grown.seconds = time.perf_counter() - started
        return self._grown

    def _live(self, store: Flaky, first: int, last: int) -> None:
        """One attempt."""
        timing = Timing(grace=0.5, sleep=lambda seconds: anyio.sleep(seconds / 20))
        retain = Last(KEPT) | Periodic(steps=max(1, self._commits // 4))
        with write_over(store, retain=retain, timing=timing, deadline_seconds=5.0) as cp:
            for _ in range(2):  # both buffers are made on demand: now, not in the middle of what is measured
                cp.write(self._state(0), step=first)
            cp.wait()
            for step in range(first, last):
                self._commit(cp, step)
            if last == self._commits:
                self._end(cp, store)

    def _commit(self, cp: Checkpointer, step: int) -> None:
        try:
            cp.write(self._state(step), step=step, durable=True)
            self._grown.commits += 1
        except StoreError:  # more faults in a row than the deadlines allow
            self._grown.failed += 1
        if step % 10 == 0:
            _give_back_free_pages()
            figures = (self._process.memory_info().rss, threading.active_count(), self._process.num_fds())
            self._samples.append(figures)

    def _end(self, cp: Checkpointer, store: Flaky) -> None:
        store._share = 0.0
        self._commit(cp, self._commits)
        assert np.array_equal(cp.read()["frozen"], self._frozen)
        for info in cp.checkpoints():
            cp.verify(at=info)
        cp.sweep()
        self._needed = {key for seq in cp._open_session.writer.live.checkpoints.values() for key in seq.packs}

    def _state(self, step: int) -> dict[str, Any]:
        """Tiny ones that travel in the record, small ones, and now and then a large one; a part never changes."""
        state: dict[str, Any] = {"step": step, "frozen": self._frozen}
        sizes = {0: 4_000_000, 50: 1_000_000}
        size = sizes.get(step % 100, (100, 30_000)[step % 2])
        state["own"] = np.random.default_rng(step).integers(0, 256, size, dtype=np.uint8)
        return state

    def _packs(self) -> tuple[int, int]:
        there = {path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.pack")}
        return len(there), len(self._needed)


def _give_back_free_pages() -> None:
    """What the C library keeps of freed memory is neither used nor lost (malloc_trim(3), glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def soak(folder: Path, commits: int, **settings: Any) -> Grown:
    """Run one and give what grew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return Soak(folder, commits, **settings).run()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        grown = soak(Path(folder) / "run", options.commits, seed=options.seed)
    print(json.dumps({**asdict(grown), "growth": grown.growth}, indent=1))


if __name__ == "__main__":
    main()
