"""How things are measured: contenders take turns, one warm-up round is thrown away, children report by JSON.

``turns`` runs contenders A B, then B A, and so on, so that what drifts (a disk's cache, a neighbour's load, the clock
of a CPU) hits all of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring.report import RESULTS
from measuring.states import MIB

Run = Callable[[], float]
"""Prepares, does one run, cleans up, and returns what it measured, preparation and cleaning left out."""

CHILD = "--child"


def turns(runs: Mapping[str, Run], rounds: int, *, warmups: int = 1) -> dict[str, list[float]]:
    """One value a round for each contender; the order is reversed from round to round.

    The first ``warmups`` rounds are thrown away: buffers are made there, and files and code loaded.
    """
    values: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(-warmups, rounds):
        for name in order:
            value = runs[name]()
            if number >= 0:
                values[name].append(value)
        order.reverse()
        print("." if number >= 0 else "w", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return values


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def workplace(folder: str | None, need_bytes: int) -> Iterator[Path]:
    """A folder on the disk that is measured, removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="limpet-bench-", dir=folder))
    try:
        free = shutil.disk_usage(root).free
        if free < need_bytes:
            sys.exit(
                f"{root} has {free // MIB} MiB free and this run needs {need_bytes // MIB}: use --folder or a smaller --mib"
            )
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def options(question: str, *, mib: int | None = None, rounds: int = 7) -> argparse.ArgumentParser:
    """The options that all questions share."""
    parser = argparse.ArgumentParser(description=question)
    if mib is not None:
        parser.add_argument("--mib", type=int, default=mib, help="size of the state (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count (default: %(default)s)")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--results", default=str(RESULTS), help="where JSON and plots go (default: %(default)s)")
    return parser


def in_child(case: str, *arguments: object) -> Any:
    """Run this very script again as ``--child case arguments...``; what it prints last, read as JSON."""
    command = [sys.executable, sys.argv[0], CHILD, case, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child_arguments() -> list[str] | None:
    """Case and arguments if this is such a child."""
    return sys.argv[2:] if sys.argv[1:2] == [CHILD] else None
