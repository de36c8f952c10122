"""The scheduler under the simulation: what it promises to those who believe it."""

from __future__ import annotations

import asyncio

import pytest
from tests.simulation.world import Process, Violation, World


def spawn(process: Process, coroutine: object) -> None:
    process.call_soon(lambda: process.create_task(coroutine))  # type: ignore[arg-type]


async def tick(process: Process, seconds: float, seen: list[tuple[str, float]], times: int = 3) -> None:
    for _ in range(times):
        await asyncio.sleep(seconds)
        seen.append((process.name, round(process.world.now - 1000, 3)))


def test_time_passes_only_when_nobody_has_anything_to_do() -> None:
    world = World(1)
    seen: list[tuple[str, float]] = []
    for name, seconds in (("slow", 3600.0), ("quick", 1.0)):
        process = Process(world, name)
        spawn(process, tick(process, seconds, seen))
    world.run(most_steps=1000)
    assert seen[:4] == [("quick", 1.0), ("quick", 2.0), ("quick", 3.0), ("slow", 3600.0)]


def test_a_clock_of_another_rate_is_another_time() -> None:
    world = World(1)
    seen: list[tuple[str, float]] = []
    process = Process(world, "fast", rate=2.0)
    spawn(process, tick(process, 10.0, seen, times=1))
    world.run(most_steps=1000)
    assert seen == [("fast", 5.0)]


def test_a_crashed_process_never_runs_again() -> None:
    world = World(1)
    seen: list[tuple[str, float]] = []
    process = Process(world, "short", crash_at=6)
    spawn(process, tick(process, 1.0, seen))
    world.run(most_steps=1000)
    world.clear()
    assert process.dead
    assert len(seen) == 1


def test_a_stalled_process_goes_on_where_it_was_and_finds_its_timers_over() -> None:
    world = World(1)
    seen: list[tuple[str, float]] = []
    process = Process(world, "zombie", stalls={4: 100.0})
    spawn(process, tick(process, 1.0, seen))
    world.run(most_steps=1000)
    assert [when for _, when in seen] == [101.0, 102.0, 103.0]


def test_processes_that_never_come_to_rest_are_a_finding() -> None:
    world = World(1)
    process = Process(world, "busy")

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    spawn(process, spin())
    with pytest.raises(Violation, match="come to rest"):
        world.run(most_steps=1000)
    world.clear()


def test_a_callback_that_fails_is_a_finding() -> None:
    world = World(1)
    process = Process(world, "wrong")
    process.call_soon(lambda: 1 / 0)
    with pytest.raises(Violation, match="ZeroDivisionError"):
        world.run(most_steps=1000)


def test_what_is_left_is_swept_up_without_running_anything() -> None:
    world = World(1)
    process = Process(world, "waits")
    seen: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")
            await asyncio.sleep(1)
            seen.append("went on")

    spawn(process, wait())
    world.run(most_steps=1000)
    world.clear()
    assert seen == ["ended"]
