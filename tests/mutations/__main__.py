"""``python -m tests.mutations [--only NAME ...] [--list]``: break limpet in every listed way; each must be noticed."""

from __future__ import annotations

import argparse
import sys
import time

from tests.mutations.listed import MUTATIONS
from tests.mutations.running import baseline, try_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="show what there is")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if not arguments.only or mutation.name in arguments.only]
    if not chosen:
        parser.error("no such mutation; see --list")
    if arguments.list:
        for mutation in chosen:
            print(f"{mutation.name:45} {' '.join(mutation.tests)}")
        return 0
    started = time.monotonic()
    if failing := baseline(chosen):
        print("without any mutation these fail:", *failing, sep="\n")
        return 1
    print(f"{'mutation':45} {'seconds':>7}  caught by")
    bad = 0
    for outcome in try_all(chosen):
        bad += not outcome.good
        print(f"{outcome.name:45} {outcome.seconds:7.1f}  {outcome.caught_by or outcome.problem}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught in {time.monotonic() - started:.0f} s, the baseline included")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
