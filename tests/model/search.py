"""Breadth first through all states: the first violation that is met has a shortest trace."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from tests.model.surroundings import World
from tests.model.world import Config, State


@dataclass(frozen=True)
class Found:
    """What a search found. ``broken`` is empty if every state was seen and none violates an invariant.

    ``kinds``: of steps that were taken, their numbers left out.
    """

    states: int
    kinds: frozenset[str] = frozenset()
    broken: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = "\n".join(f"  {number:2}. {step}" for number, step in enumerate(self.trace, 1))
        return f"{self.broken or 'no violation'} ({self.states} states)\n{steps}"


def explore(config: Config, off: frozenset[str] = frozenset(), limit: int = 10_000_000) -> Found:
    """Every state that can be reached without the rules in ``off``, up to the first violation.

    Raises:
        AssertionError: there are more than ``limit`` states.
    """
    world = World(config, off)
    start = config.start()
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    waiting = deque([start])
    taken: set[str] = set()
    while waiting:
        state = waiting.popleft()
        for step, after in world.successors(state):
            taken.add(step)
            edge = (state, step)
            if came_from.setdefault(after, edge) is not edge:
                continue
            if after.broken:
                return Found(len(came_from), _kinds(taken), after.broken, _trace(came_from, after))
            waiting.append(after)
        assert len(came_from) <= limit, f"more than {limit} states"
    return Found(len(came_from), _kinds(taken))


def _kinds(steps: set[str]) -> frozenset[str]:
    return frozenset(re.sub(r"\[.*?\]|\d+", "#", step) for step in steps)


def _trace(came_from: dict[State, tuple[State, str] | None], end: State) -> tuple[str, ...]:
    steps: list[str] = []
    at = came_from[end]
    while at is not None:
        steps.append(at[1])
        at = came_from[at[0]]
    return tuple(reversed(steps))
