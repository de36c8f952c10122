"""Writers that create the same objects at the same moment, each with a store of its own, on threads or as processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from limpet.errors import StoreError
from limpet.stores.base import KeyExistsError, Store
from limpet.stores.urls import open_store

__all__ = ["Race", "race_processes", "race_threads"]

_BARRIER_SECONDS = 60.0


class Barrier(Protocol):
    """What threads and processes have in common."""

    def wait(self, timeout: float | None = None) -> int: ...


@dataclass
class Race:
    """How it ended.

    Attributes:
        winners: of each object, the writers that were told it is theirs.
        unclear: of each object, the writers that got an error that does not say.
        held: of each object, whose bytes it has.
    """

    winners: dict[str, list[int]] = field(default_factory=dict)
    unclear: dict[str, list[str]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    def check(self, objects: int) -> None:
        """Each object has one winner, and the winner's bytes.

        A writer whose request failed may have won without being told; then nobody else was.
        """
        assert len(self.held) == objects
        for name, holder in self.held.items():
            winners = self.winners[name]
            assert winners == [holder] or (not winners and self.unclear[name]), (name, winners, self.unclear[name])


def race_threads(open_one: Callable[[], Store], objects: int, writers: int, side_by_side: int = 1) -> Race:
    """Race on threads; ``side_by_side`` objects at a time, for servers that answer late."""
    barrier = threading.Barrier(writers)
    with ThreadPoolExecutor(writers) as pool:
        jobs = [
            pool.submit(_write, open_one, number, list(_batches(objects, side_by_side)), barrier)
            for number in range(writers)
        ]
        answers = [job.result() for job in jobs]
    return _judge(answers, asyncio.run(_contents(open_one, objects)))


def race_processes(url: str, storage: Mapping[str, Any], objects: int, writers: int, side_by_side: int = 1) -> Race:
    """The same with a process for each writer."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(writers), context.SimpleQueue()
    batches = list(_batches(objects, side_by_side))
    processes = [
        context.Process(target=_write_and_tell, args=(url, storage, number, batches, barrier, answers))
        for number in range(writers)
    ]
    for process in processes:
        process.start()
    try:
        told = dict(answers.get() for _ in processes)
    finally:
        for process in processes:
            process.join(_BARRIER_SECONDS)
            process.kill()
    held = asyncio.run(_contents(partial(open_store, url, storage), objects))
    return _judge([told[number] for number in range(writers)], held)


def _batches(objects: int, side_by_side: int) -> Iterator[list[str]]:
    names = [f"log/{number // 1000:013d}/{number:016d}.json" for number in range(1, objects + 1)]
    for first in range(0, objects, side_by_side):
        yield names[first : first + side_by_side]


def _write(
    open_one: Callable[[], Store], number: int, batches: Sequence[list[str]], barrier: Barrier
) -> dict[str, str]:
    """What one writer was told of each object: "" if it is its own, else the kind of the error."""
    return asyncio.run(_write_async(open_one(), number, batches, barrier))


async def _write_async(store: Store, number: int, batches: Sequence[list[str]], barrier: Barrier) -> dict[str, str]:
    answers: dict[str, str] = {}

    async def one(name: str) -> None:
        try:
            await store.create(name, f"{number}".encode() * 50)
        except KeyExistsError:
            answers[name] = "exists"
        except StoreError as error:
            answers[name] = error.message
        else:
            answers[name] = ""

    try:
        await store.prepare()
        for batch in batches:
            order = random.sample(batch, len(batch))
            barrier.wait(_BARRIER_SECONDS)
            await asyncio.gather(*map(one, order))
    finally:
        await store.close()
    return answers


def _write_and_tell(
    url: str, storage: Mapping[str, Any], number: int, batches: Sequence[list[str]], barrier: Barrier, answers: Any
) -> None:
    try:
        told = _write(partial(open_store, url, storage), number, batches, barrier)
    except BaseException as error:
        told = {batches[0][0]: repr(error)}
        raise
    finally:
        answers.put((number, told))


async def _contents(open_one: Callable[[], Store], objects: int) -> dict[str, int]:
    """Whose bytes each object has; an object of mixed bytes has nobody's."""
    store = open_one()
    held = {}
    try:
        for (name,) in _batches(objects, 1):
            data = await store.get(name)
            held[name] = int(data[:1]) if data == data[:1] * 50 else -1
    finally:
        await store.close()
    return held


def _judge(answers: Sequence[Mapping[str, str]], held: dict[str, int]) -> Race:
    race = Race(held=held)
    for name in held:
        told = [each.get(name, "no answer") for each in answers]
        race.winners[name] = [number for number, answer in enumerate(told) if answer == ""]
        race.unclear[name] = [answer for answer in told if answer not in ("", "exists")]
    return race
