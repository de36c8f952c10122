"""A writer that is stopped, or dies, at each of its steps, and its successor: every place once, not a sample."""

from __future__ import annotations

import bisect
import functools
from dataclasses import replace

import pytest
from tests.simulation.plan import Action, Actor, Plan
from tests.simulation.simulate import Result, simulate

TINY, OWN, SHARED, BOTH = 0, 1, 2, 3
HOURS = 7200.0
FIRST = [
    Action("durable", choice=BOTH),
    Action("write", choice=SHARED),
    Action("write", 0.05, choice=BOTH),
    Action("pinned", choice=OWN),
    Action("sweep", 0.05),
    Action("write", choice=TINY),
    Action("delete", choice=1),
    Action("write", choice=BOTH),
    Action("durable", choice=SHARED),
    Action("sweep"),
    Action("close"),
]
SECOND = [
    Action("read"),
    Action("durable", choice=SHARED),
    Action("write", choice=OWN),
    Action("delete", 0.1),
    Action("durable", choice=BOTH),
    Action("sweep"),
    Action("write", choice=SHARED),
    Action("close", 5.0),
]


quarters = pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.heavy) for part in (1, 2, 3))])


def plan(**first: object) -> Plan:
    """Two attempts, the second of which begins when the first has had all the time that it needs."""
    writer = Actor(True, 0.0, FIRST, keep=1, buffers=3, on_busy="wait")
    reader = Actor(False, 9.0, [Action("read"), Action("verify", 1.0), Action("read", HOURS)])
    successor = Actor(True, 10.0, SECOND, keep=1, buffers=3, on_busy="wait")
    return Plan(7, [replace(writer, **first), successor, reader], grace=1.0, interval=0.0)  # type: ignore[arg-type]


def stopped_at(step: int) -> Result:
    return simulate(plan(stalls={step: HOURS}))


def killed_at(step: int) -> Result:
    return simulate(plan(crash_at=step))


@functools.cache
def steps() -> int:
    """How many the first writer takes to its end."""
    return bisect.bisect(range(1, 5000), False, key=lambda step: not killed_at(step).stats["crashes"])


def test_the_writer_takes_enough_steps_to_be_worth_it() -> None:
    assert killed_at(steps()).stats["crashes"] == 1
    assert killed_at(steps() + 1).stats["crashes"] == 0
    assert steps() > 200


@quarters
def test_a_writer_that_is_stopped_anywhere_harms_nobody_when_it_goes_on(part: int) -> None:
    results = {step: stopped_at(step) for step in range(1 + part, steps() + 1, 4)}
    assert {step: str(result.violation) for step, result in results.items() if result.violation} == {}
    # It was replaced, and was told so.
    assert sum(result.stats["fenced"] > 0 for result in results.values()) > len(results) // 2


@quarters
def test_a_writer_that_dies_anywhere_leaves_what_was_acknowledged(part: int) -> None:
    results = {step: killed_at(step) for step in range(1 + part, steps() + 1, 4)}
    assert {step: str(result.violation) for step, result in results.items() if result.violation} == {}
    assert sum(result.stats["crashes"] for result in results.values()) > len(results) // 2
