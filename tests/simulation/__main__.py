"""``python -m tests.simulation 10000``: run so many seeds; the exit status is 1 if an invariant broke."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time

from tests.simulation.batch import Summary, run_parts, run_seeds
from tests.simulation.plan import make_plan
from tests.simulation.shrink import describe, shrink
from tests.simulation.simulate import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--seed", type=int, help="run this one only, and print its trace, made short if it fails")
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.seed is not None:
        return show(asked.seed)
    started = time.monotonic()
    gc.collect()
    gc.freeze()  # the modules stay: no collection between two seeds need look at them
    if asked.json:
        found = run_seeds(asked.first, asked.seeds, step=asked.step)
        print(json.dumps({"seeds": found.seeds, "stats": found.stats, "violations": found.violations}))
        return 0
    found = run_parts(asked.first, asked.seeds, asked.jobs) if asked.jobs > 1 else run_seeds(asked.first, asked.seeds)
    return report(found, time.monotonic() - started)


def report(found: Summary, seconds: float) -> int:
    print(found.show())
    print(f"{seconds:.1f} s, {1000 * seconds / max(1, found.seeds):.1f} ms a seed")
    if found.seeds >= 1000 and found.missing:
        print(f"never happened: {', '.join(found.missing)}")
    for seed, text in sorted(found.violations.items()):
        print(f"seed {seed}: {text}")
    if found.violations:
        show(min(found.violations))
    return 1 if found.violations else 0


def show(seed: int) -> int:
    plan = make_plan(seed)
    result = simulate(plan)
    if result.violation is not None:
        plan, result = shrink(plan)
    print(describe(plan, result))
    return 1 if result.violation is not None else 0


if __name__ == "__main__":
    sys.exit(main())
