"""Many seeds, on several processors, and what they met."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.plan import make_plan
from tests.simulation.simulate import simulate

__all__ = ["MUST_HAPPEN", "Summary", "run_parts", "run_seeds"]

ROOT = Path(__file__).parents[2]
MUST_HAPPEN = (
    *(f"{operation}.{kind}" for operation in ("create", "put", "delete") for kind in ("refuse", "lose", "late")),
    *(f"{operation}.{kind}" for operation in ("create", "put", "delete") for kind in ("twice", "stall")),
    *("create.conflict", "create.full", "create.twice_seen", "put.cut", "put.full", "delete.forbid"),
    *("get.refuse", "get.short", "get.flip", "get.stall", "get_range.short", "get_range.flip"),
    *("read_into.short", "read_into.flip", "list.stale", "list.refuse", "list.stall"),
    *("outage.refuse", "outage.lose", "outage.late", "outage.mixed", "rotten"),
    *("records.open", "records.commit", "records.edit", "records.close", "takeovers", "quarantines"),
    *("commits.inline", "commits.packs", "commits.sharing", "commits.sharing_across_epochs"),
    *("crashes", "stalls", "deletes", "sweeps", "swept clean", "fenced", "unknown.landed", "adopted"),
    *("saves.committed", "saves.superseded", "saves.skipped", "saves.FencedError", "saves.CommitUnknownError"),
    *("reads.state", "reads.nothing", "reads.final"),
)
"""What a large batch must have met, each at least once: else it proves less than it says."""


@dataclass
class Summary:
    """What a batch of seeds met."""

    seeds: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    violations: dict[int, str] = field(default_factory=dict)

    def add(self, other: Summary) -> None:
        """Take another batch in."""
        self.seeds += other.seeds
        self.stats += other.stats
        self.violations |= other.violations

    @property
    def missing(self) -> list[str]:
        """What must happen and did not."""
        return [name for name in MUST_HAPPEN if not self.stats[name]]

    def show(self) -> str:
        """For people."""
        groups: dict[str, list[str]] = {}
        for name, count in sorted(self.stats.items()):
            group, dot, rest = name.partition(".")
            groups.setdefault(group if dot else "", []).append(f"{rest or group} {count:,}")
        lines = [f"{group or 'in all'}: {', '.join(counts)}" for group, counts in groups.items()]
        return "\n".join([f"{self.seeds:,} seeds, {len(self.violations)} violations", *lines])


def run_seeds(first: int, count: int, *, step: int = 1, most_violations: int = 20) -> Summary:
    """Run ``count`` seeds from ``first`` on, in steps."""
    summary = Summary()
    for seed in range(first, first + count * step, step):
        result = simulate(make_plan(seed))
        summary.seeds += 1
        summary.stats += result.stats
        if result.violation is not None:
            summary.violations[seed] = str(result.violation)
            if len(summary.violations) >= most_violations:
                break
    return summary


def run_parts(first: int, count: int, jobs: int, timeout_seconds: float | None = None) -> Summary:
    """The same with ``jobs`` processes, each of which takes every so manieth seed."""
    command = [sys.executable, "-m", "tests.simulation", "--json", "--step", str(jobs)]
    parts = [
        subprocess.Popen(
            [*command, str(len(range(part, count, jobs))), "--first", str(first + part)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(jobs)
    ]
    summary = Summary()
    try:
        for part in parts:
            out, _ = part.communicate(timeout=timeout_seconds)
            found = json.loads(out)
            violations = {int(seed): text for seed, text in found["violations"].items()}
            summary.add(Summary(found["seeds"], Counter(found["stats"]), violations))
    finally:
        for part in parts:
            part.kill()
            part.wait()
            assert part.stdout is not None
            part.stdout.close()
    return summary
