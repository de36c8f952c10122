"""The real engine over a simulated store: whatever happens, no invariant of the protocol breaks.

``python -m tests.simulation 10000`` runs more seeds; ``--seed N`` shows one, made short if it fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import blake3
import pytest
from tests.simulation.batch import ROOT, run_parts, run_seeds
from tests.simulation.mutations import MUTATIONS, NEEDS_AN_OLDER_PYTHON
from tests.simulation.plan import Plan, make_plan
from tests.simulation.shrink import decisions, describe, shrink
from tests.simulation.simulate import simulate

QUICK_SEEDS = 120
SEEDS = 10_000
MUTANT_SEEDS = 3000


def fingerprint(seed: int) -> str:
    return blake3.blake3(repr(simulate(make_plan(seed)).trace).encode()).hexdigest()


def test_no_invariant_breaks_in_the_first_seeds() -> None:
    found = run_seeds(0, QUICK_SEEDS)
    assert found.violations == {}
    assert found.seeds == QUICK_SEEDS
    for name in ("takeovers", "fenced", "crashes", "stalls", "deletes", "reads.state", "create.lose", "create.late"):
        assert found.stats[name], name


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_no_invariant_breaks_in_ten_thousand_seeds() -> None:
    found = run_parts(0, SEEDS, jobs=2, timeout_seconds=800)
    assert found.violations == {}
    assert found.seeds == SEEDS
    assert found.missing == []


class TestASeed:
    def test_gives_the_same_run_each_time(self) -> None:
        for seed in range(10):
            assert fingerprint(seed) == fingerprint(seed)

    def test_gives_the_same_run_in_every_process(self) -> None:
        """Whatever the hashes of texts are: no order of a set decides anything."""
        seeds = range(20, 30)
        code = f"from tests.simulation.test_simulation import *; print([fingerprint(seed) for seed in {seeds}])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "77"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == str([fingerprint(seed) for seed in seeds])

    def test_gives_other_runs_than_other_seeds(self) -> None:
        assert len({fingerprint(seed) for seed in range(10)}) == 10

    @pytest.mark.parametrize("seed", range(100, 105))
    def test_gives_the_same_run_whatever_the_wall_clocks_say(self, seed: int) -> None:
        """Ten years off, jumping to and fro: nothing that is committed, kept, deleted or read changes."""
        right, wrong = (simulate(with_clocks(make_plan(seed), skew)) for skew in (0.0, 3.2e8))
        assert right.violation is None
        assert (right.live, right.trace) == (wrong.live, wrong.trace)


def with_clocks(plan: Plan, skew: float) -> Plan:
    return replace(plan, actors=[replace(actor, skew_seconds=skew) for actor in plan.actors])


def caught(name: str, seeds: int) -> int | None:
    """The first seed that notices a broken rule."""
    for seed in range(seeds):
        with MUTATIONS[name]():
            if simulate(make_plan(seed)).violation is not None:
                return seed
    return None


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_seeds_meet_every_rule(name: str) -> None:
    """``test_cases.py`` has the shortest run for each; this is how far one has to look without knowing it."""
    if name in NEEDS_AN_OLDER_PYTHON and sys.version_info >= (3, 13):
        pytest.skip("this Python refuses to clear the frame of a coroutine that waits")
    assert caught(name, MUTANT_SEEDS) is not None


def test_a_failing_seed_is_made_short_and_shown_with_its_trace() -> None:
    name = "acknowledged_before_the_create"
    seed = caught(name, QUICK_SEEDS)
    assert seed is not None
    plan = make_plan(seed)
    with MUTATIONS[name]():
        long = simulate(plan)
        short, result = shrink(plan)
    assert long.violation is not None
    assert result.violation is not None
    assert result.violation.rule == long.violation.rule == "acknowledged"
    assert len(decisions(short)) <= 2 < len(decisions(plan))  # a write is enough
    text = describe(short, result)
    assert f"seed {seed}: acknowledged: " in text
    assert "VIOLATION" in text
