"""One run: a plan played to its end, healed, and looked at."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.simulation.actors import Finale, ReadingActor, Simulation, WritingActor
from tests.simulation.engine import surroundings
from tests.simulation.plan import Actor, Plan
from tests.simulation.world import Violation

__all__ = ["Result", "simulate"]

_MOST_STEPS = 60_000


@dataclass(frozen=True)
class Result:
    """What came of a run: the violation, if there was one, what happened how often, and the trace."""

    violation: Violation | None
    stats: Counter[str]
    trace: list[tuple[Any, ...]]
    live: tuple[int, ...]


def simulate(plan: Plan) -> Result:
    """Play a plan."""
    simulation = Simulation(plan)
    world = simulation.world
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle would make weak references end at other places each time
    try:
        with surroundings(world, plan.seed):
            try:
                _play(simulation)
            except Violation:
                pass
            finally:
                world.clear()
    finally:
        if collecting:
            gc.enable()
    world.stats["steps"] = world.steps
    live = simulation.oracle.live()
    return Result(world.violation, world.stats, world.trace, live)


def _play(simulation: Simulation) -> None:
    world, plan = simulation.world, simulation.plan
    actors: list[WritingActor | ReadingActor] = []
    for number, actor in enumerate(plan.actors):
        kind = WritingActor if actor.writes else ReadingActor
        actors.append(kind(simulation, number, actor, f"{'w' if actor.writes else 'r'}{number}"))
        name = actors[-1].process.name
        blind = plan.outages or plan.rots or actor.stalls or plan.commit_deadline < 3.0
        if not blind and not any(operation == "get" for operation, _ in actor.faults):
            simulation.oracle.clear_sighted.add(name)
    simulation.oracle.patience = 6.0 if plan.commit_deadline > 6.0 else 2.0
    for one in actors:
        one.start()
    for when, choice in plan.rots:
        world.after(when, lambda choice=choice: simulation.disk.rot(choice))  # type: ignore[misc]
    world.run(most_steps=_MOST_STEPS)
    for one in actors:
        if not (one.finished or one.process.dead):
            world.fail("hang", f"{one.process.name} waits for ever")
    simulation.disk.healthy = True
    finale = Finale(simulation, len(actors), Actor(True, 0.0, []), "last")
    finale.start()
    world.run(most_steps=_MOST_STEPS)
    if not finale.finished:
        world.fail("hang", "the last attempt waits for ever")
    if world.violation is not None:
        raise world.violation
