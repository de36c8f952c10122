"""What does a write of 8 bytes cost in the call, and how many durable ones fit in a second?"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from pathlib import Path

from limpet import Checkpointer, Last

from measuring.plots import Plot
from measuring.report import Report
from measuring.running import Run, options, turns, workplace

STATE = b"12345678"
TIGHT = "write, one right after another"
SPACED = "write, one every 2 ms"
DURABLE = "limpet write(durable=True)"
BARE = "create + fsync + link + directory fsync"


def time_in_the_call(cp: Checkpointer, calls: int, pause_seconds: float) -> Run:
    """The median of many calls."""

    def run() -> float:
        took = []
        for _ in range(calls):
            start = time.perf_counter()
            cp.write(STATE)
            took.append(time.perf_counter() - start)
            if pause_seconds:
                time.sleep(pause_seconds)
        cp.wait()
        return statistics.median(took)

    return run


def durable_rate(cp: Checkpointer, calls: int) -> Run:
    """Commits a second, one after another."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            cp.write(STATE, durable=True)
        return calls / (time.perf_counter() - start)

    return run


def bare_rate(folder: Path, calls: int) -> Run:
    """The least that a durable create on a folder takes: what POSIX asks for, and nothing around it."""
    folder.mkdir()
    numbers = itertools.count()
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # closed with the process

    def create(number: int) -> None:
        staged, name = folder / f"{number}.tmp", folder / f"{number}"
        descriptor = os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, STATE)
        os.fsync(descriptor)
        os.close(descriptor)
        os.link(staged, name)
        os.fsync(directory)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            create(next(numbers))
        rate = calls / (time.perf_counter() - start)
        for staged in folder.glob("*.tmp"):
            staged.unlink()
        return rate

    return run


def main() -> None:
    parser = options(__doc__ or "", rounds=9)
    parser.add_argument("--calls", type=int, default=200, help="calls a round (default: %(default)s)")
    settings = parser.parse_args()
    with workplace(settings.folder, need_bytes=1 << 28) as folder:
        with Checkpointer(folder / "calls", retain=Last(3)) as cp:
            calls = turns(
                {
                    TIGHT: time_in_the_call(cp, settings.calls, 0.0),
                    SPACED: time_in_the_call(cp, settings.calls, 0.002),
                },
                settings.rounds,
            )
        with Checkpointer(folder / "durable", retain=Last(3)) as cp:
            rates = turns(
                {
                    DURABLE: durable_rate(cp, settings.calls),
                    BARE: bare_rate(folder / "bare", settings.calls),
                },
                settings.rounds,
            )
    report = Report(__doc__ or "", settings)
    table = report.table("time in the call, 8 bytes")
    for name, values in calls.items():
        table.put(name, "median of a round", values, "s")
    report.bound(TIGHT, table[TIGHT], row=13, most=30e-6)
    report.bound(SPACED, table[SPACED])
    durable = report.table("durable saves of 8 bytes, one after another")
    for name, values in rates.items():
        durable.put(name, "rate", values, "1/s")
    report.bound(f"{DURABLE} / {BARE}", durable[DURABLE].over(durable[BARE]), least=0.6)
    report.plots = [Plot("calls", 0, "bars", "seconds"), Plot("durable", 1, "bars", "saves a second")]
    report.finish()


if __name__ == "__main__":
    main()
