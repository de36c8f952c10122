"""Making a failing plan short: take decisions out for as long as the same rule still breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.plan import Plan
from tests.simulation.simulate import Result, simulate

__all__ = ["describe", "shrink"]

Decision = tuple[Any, ...]
"""The kind of a decision, and where in the plan it is."""


def shrink(plan: Plan, most_runs: int = 600) -> tuple[Plan, Result]:
    """A plan with as few decisions as can be found that breaks the rule that ``plan`` breaks, and its result."""
    result = simulate(plan)
    if result.violation is None:
        raise ValueError(f"the plan of seed {plan.seed} breaks nothing")
    rule = result.violation.rule
    kept = decisions(plan)
    runs = 0

    def breaks(candidate: Sequence[Decision]) -> bool:
        nonlocal runs, result
        runs += 1
        again = simulate(without(plan, set(kept) - set(candidate)))
        if again.violation is None or again.violation.rule != rule:
            return False
        result = again
        return True

    size = len(kept) // 2
    while size and runs < most_runs:
        before = len(kept)
        kept = _pass(kept, size, breaks)
        size = min(size // 2, len(kept) // 2) if size > 1 or len(kept) == before else size
    return without(plan, set(decisions(plan)) - set(kept)), result


def _pass(kept: list[Decision], size: int, breaks: Callable[[Sequence[Decision]], bool]) -> list[Decision]:
    start = 0
    while start < len(kept):
        candidate = kept[:start] + kept[start + size :]
        if breaks(candidate):
            kept[:] = candidate
        else:
            start += size
    return kept


def decisions(plan: Plan) -> list[Decision]:
    """Everything that can be taken out of a plan."""
    found: list[Decision] = []
    for number, actor in enumerate(plan.actors):
        found += [("action", number, index) for index in range(len(actor.script))]
        found += [("fault", number, *where) for where in actor.faults]
        found += [("stall", number, step) for step in actor.stalls]
        found += [("crash", number)] if actor.crash_at is not None else []
        found += [("clock", number)] if actor.skew_seconds or actor.rate != 1.0 else []
    found += [("outage", index) for index in range(len(plan.outages))]
    found += [("rot", index) for index in range(len(plan.rots))]
    return found


def without(plan: Plan, gone: set[Decision]) -> Plan:
    """The plan without some of its decisions. Actors keep their numbers, which their luck hangs on."""
    actors = []
    for number, actor in enumerate(plan.actors):
        clock = ("clock", number) in gone
        actors.append(
            replace(
                actor,
                script=[one for index, one in enumerate(actor.script) if ("action", number, index) not in gone],
                faults={where: one for where, one in actor.faults.items() if ("fault", number, *where) not in gone},
                stalls={step: one for step, one in actor.stalls.items() if ("stall", number, step) not in gone},
                crash_at=None if ("crash", number) in gone else actor.crash_at,
                skew_seconds=0.0 if clock else actor.skew_seconds,
                rate=1.0 if clock else actor.rate,
            )
        )
    return replace(
        plan,
        actors=actors,
        outages=[one for index, one in enumerate(plan.outages) if ("outage", index) not in gone],
        rots=[one for index, one in enumerate(plan.rots) if ("rot", index) not in gone],
    )


def describe(plan: Plan, result: Result) -> str:
    """A plan and its trace, for people."""
    lines = [
        f"seed {plan.seed}: {result.violation}",
        f"  deadlines: commit {plan.commit_deadline:g} s, open {plan.open_deadline:g} s,",
        f"  upload {plan.upload_deadline:g} s, retry {plan.retry_deadline:g} s, grace {plan.grace:g} s",
    ]
    for number, actor in enumerate(plan.actors):
        if not actor.script:
            continue
        lines.append(f"  {'w' if actor.writes else 'r'}{number} from {actor.start:.3f} s, keeps {actor.keep}:")
        lines += [f"    {one.kind} after {one.pause:.3f} s ({one.choice}, {one.flag})" for one in actor.script]
        lines += [f"    {op} {index}: {one.kind} {one.delay:.3f} s" for (op, index), one in actor.faults.items()]
        lines += [f"    stalls at step {step} for {seconds:g} s" for step, seconds in actor.stalls.items()]
        if actor.crash_at is not None:
            lines.append(f"    crashes at step {actor.crash_at}")
    lines += [f"  {one}" for one in plan.outages]
    lines += [f"  an object rots after {when:.3f} s ({choice})" for when, choice in plan.rots]
    lines += ["  trace:", *("    " + " ".join(map(str, line)) for line in result.trace)]
    return "\n".join(lines)
