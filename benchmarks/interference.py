"""What does a loop feel of a save that is encoded and written in the background, and what memory does that take?"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from measuring.contender import Contender, Limpet, absent_engines, engines
from measuring.loops import LOOPS, Loop
from measuring.machine import PeakMemory
from measuring.peers import BACKGROUND, absent, durability
from measuring.plots import Plot
from measuring.report import Report, Table
from measuring.running import child_arguments, in_child, options, workplace
from measuring.states import MIB, Arrays, arrays, change

KEPT, P50, P99, P99_RATIO = "speed kept", "p50 step", "p99 step", "p99 / p99 without"
STALL, DURABLE, PEAK = "stall", "until durable", "peak memory above the state"
QUANTILES = {"p1": 1, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "p99.9": 99.9}
QUIET = "no saves"
P50_QUIET = "p50 without saves"
_QUIET_SECONDS_MAX = 6.0
_BUSY_SECONDS_MAX = 120.0
"""A loop is no longer timed after that; the save is waited for all the same."""


@dataclass(slots=True)
class Felt:
    """What one contender did to one loop: a value a round, and every step of all rounds."""

    rounds: dict[str, list[float]] = field(default_factory=dict)
    quiet_steps: list[float] = field(default_factory=list)
    busy_steps: list[float] = field(default_factory=list)

    def add(self, quiet: Sequence[float], busy: Sequence[float], stall: float, durable: float) -> None:
        p99 = float(np.percentile(busy, 99))
        values = {
            KEPT: float(np.mean(quiet) / np.mean(busy)),
            P50: float(np.percentile(busy, 50)),
            P99: p99,
            P99_RATIO: p99 / float(np.percentile(quiet, 99)),
            STALL: stall,
            DURABLE: durable,
            P50_QUIET: float(np.percentile(quiet, 50)),
        }
        for name, value in values.items():
            self.rounds.setdefault(name, []).append(value)
        self.quiet_steps += quiet
        self.busy_steps += busy

    def plain(self, peak_bytes: int) -> dict[str, Any]:
        """With quantiles relative to the median of the same process's quiet steps: some processes run faster."""
        at, normal = list(QUANTILES.values()), float(np.median(self.quiet_steps))
        return {
            "rounds": self.rounds,
            "quantiles": (np.percentile(self.busy_steps, at) / normal).tolist(),
            "quiet quantiles": (np.percentile(self.quiet_steps, at) / normal).tolist(),
            "peak": peak_bytes,
        }


def steps_for(loop: Loop, seconds: float) -> list[float]:
    """The time of each step of so many seconds."""
    return _steps_until(loop, lambda: False, time.perf_counter() + seconds)


def steps_while_saving(loop: Loop, contender: Contender) -> tuple[list[float], float, float]:
    """The time of each step from the end of the call until the save is durable; the stall; and when it was durable."""
    begin = time.perf_counter()
    contender.save()
    stalled = time.perf_counter()
    written = threading.Event()

    def wait() -> None:
        contender.wait()
        written.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    steps = _steps_until(loop, written.is_set, stalled + _BUSY_SECONDS_MAX)
    waiter.join()
    return steps, stalled - begin, time.perf_counter() - begin


def _steps_until(loop: Loop, done: Any, deadline: float) -> list[float]:
    steps: list[float] = []
    before = time.perf_counter()
    while not steps or (not done() and before < deadline):
        loop.step()
        after = time.perf_counter()
        steps.append(after - before)
        before = after
    return steps


def measure(loop: Loop, contender: Contender, rounds: int, quiet_least: float) -> dict[str, Any]:
    """Phases without and with a save take turns, about as long as each other; the first pair is thrown away."""
    felt, quiet_seconds = Felt(), quiet_least
    memory = PeakMemory()
    for number in range(-1, rounds):
        quiet = steps_for(loop, quiet_seconds)
        change(contender.state)
        contender.changed()
        busy, stall, durable = steps_while_saving(loop, contender)
        contender.remove()
        quiet_seconds = max(min(durable, _QUIET_SECONDS_MAX), quiet_least)
        if number >= 0:
            felt.add(quiet, busy, stall, durable)
    return felt.plain(memory.added_bytes())


def ours() -> dict[str, dict[str, Any]]:
    """limpet's settings by the name of the contender."""
    made: dict[str, dict[str, Any]] = {f"engine={name}": given for name, given in engines().items()}
    return made | {"engine=thread, lazy": {**engines()["thread"], "lazy": True}}


def contender_of(name: str, folder: Path, state: Arrays) -> Contender:
    for peer in BACKGROUND:
        if peer.title == name:
            return peer(folder / "peer", state)
    short = name.removeprefix("limpet, ")
    return Limpet(folder / "limpet", state, short, **ours()[short])


def child(loop_title: str, name: str, mib: int, rounds: int, quiet_least: float, folder: Path) -> None:
    kind = next(each for each in LOOPS if each.title == loop_title)
    with closing(kind()) as loop, closing(contender_of(name, folder, arrays(mib))) as contender:
        plain = measure(loop, contender, rounds, quiet_least)
    print(json.dumps(plain))


def fill(table: Table, steps: Table, name: str, felt: dict[str, Any]) -> None:
    """Put what a child measured into the tables."""
    rounds = felt["rounds"]
    units = {KEPT: "%", P50_QUIET: "s", P50: "s", P99: "s", P99_RATIO: "x", STALL: "s", DURABLE: "s"}
    if QUIET not in steps.rows:  # of the first contender's child; each has its own to be compared with
        for column, value in zip(QUANTILES, felt["quiet quantiles"], strict=True):
            steps.put(QUIET, column, [value], "x")
    for column, unit in units.items():
        table.put(name, column, rounds[column], unit)
    table.put(name, PEAK, [felt["peak"]], "B")
    for column, value in zip(QUANTILES, felt["quantiles"], strict=True):
        steps.put(name, column, [value], "x")


def hold_to_bounds(report: Report, table: Table, loop: type[Loop], max_lag: float) -> None:
    row = None if loop.title.endswith("free") else 4
    for name in (f"limpet, {short}" for short in ours()):
        cells = table.rows[name]
        report.bound(f"{loop.title}: speed kept, {name}", cells[KEPT], row=row, least=0.95)
        report.bound(f"{loop.title}: p99 step / p99 without saves, {name}", cells[P99_RATIO], row=row, most=1.5)
        report.bound(f"{loop.title}: until durable, {name}", cells[DURABLE], row=row, most=max_lag)


def main() -> None:
    parser = options(__doc__ or "", mib=1024, rounds=5)
    names = [loop.__name__ for loop in LOOPS]
    parser.add_argument("--loops", nargs="*", choices=names, default=names, help="which (default: all)")
    parser.add_argument("--max-lag", type=float, default=60.0, help="seconds a save may take (default: %(default)s)")
    parser.add_argument("--quiet-seconds", type=float, default=1.0, help="a phase without saves (default: %(default)s)")
    settings = parser.parse_args()
    loops = [loop for loop in LOOPS if loop.__name__ in settings.loops]
    missing = {loop.title: loop.missing() for loop in loops if loop.missing()}
    report = Report(__doc__ or "", settings, absent=absent(BACKGROUND) | absent_engines() | missing)
    titles = [*(f"limpet, {short}" for short in ours()), *(peer.title for peer in BACKGROUND if not peer.missing())]
    for loop in (each for each in loops if not each.missing()):
        table = report.table(f"{loop.title}: {settings.mib} MiB saved in the background")
        steps = report.table(
            f"{loop.title}: step time while a save runs / median step without, quantiles of all rounds"
        )
        for title in titles:
            with workplace(settings.folder, (settings.rounds + 4) * settings.mib * MIB) as folder:
                sizes = settings.mib, settings.rounds, settings.quiet_seconds
                fill(table, steps, title, in_child(loop.title, title, *sizes, folder))
        positions = list(range(len(QUANTILES)))
        name = loop.__name__.removesuffix("Loop").lower()
        report.plots.append(
            Plot(
                name,
                len(report.tables) - 1,
                "lines",
                "x the median step (log)",
                (),
                positions,
                "quantile of step times",
                True,
            )
        )
        hold_to_bounds(report, table, loop, settings.max_lag)
    report.notes += [
        "phases without and with a save take turns in one process; a contender has a process of its own, and so its peak memory",
        "speed kept: steps a second from the end of the call until the save is durable; the stall itself stands beside it",
        "libraries that do not write in the background have no row: the loop stands still until they are done",
        *durability(BACKGROUND),
    ]
    report.finish()


if __name__ == "__main__":
    if (given := child_arguments()) is not None:
        child(given[0], given[1], int(given[2]), int(given[3]), float(given[4]), Path(given[5]))
    else:
        main()
