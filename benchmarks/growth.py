"""How do stall and time to durable grow: from 1 MiB to gigabytes, and from one checkpoint to a thousand?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from measuring.contender import Contender, Limpet
from measuring.peers import Dcp, DcpAsyncReused, Deepcopy, Pickle, PlainWrite, TorchSave, absent, present
from measuring.plots import Plot
from measuring.report import Report, Samples, Table
from measuring.running import Run, options, seconds, turns, workplace
from measuring.states import MIB, Arrays, arrays, change

OURS, LAZY = "limpet", "limpet, lazy"
PLAIN = PlainWrite.title
PEERS = (Pickle, Deepcopy, TorchSave, Dcp, DcpAsyncReused)
_LINEAR_FROM_MIB = 64
"""Below, what a save costs besides its bytes hides the slope."""
_SLOPE_MOST = 1.15
_DRIFT_MOST = 1.3
"""What a thousand checkpoints may cost: more than nothing, since figures of this size drift."""
_LAZY_MOST = 0.005


def both(contender: Contender, read_phase: Callable[[], float] | None) -> Callable[[], tuple[float, float]]:
    """Stall and time to durable of one save; where it is lazy, with what is left to wait for after a read phase."""

    def run() -> tuple[float, float]:
        change(contender.state)
        contender.changed()
        begin = time.perf_counter()
        stall = seconds(contender.save)
        if read_phase is not None and isinstance(contender, Limpet) and contender.pending is not None:
            time.sleep(read_phase())
            stall += seconds(contender.pending.staged.wait)
        contender.wait()
        durable = time.perf_counter() - begin
        contender.remove()
        return (stall if contender.background else durable), durable

    return run


def by_size(settings: Any, mib: int, stalls: Table, durables: Table) -> None:
    """One column of both tables."""
    state = arrays(mib)
    column = _size(mib)
    pairs: dict[str, list[tuple[float, float]]] = {}
    copies = [0.0]
    with workplace(settings.folder, (settings.rounds + 8) * 3 * mib * MIB) as folder, ExitStack() as stack:
        ours = [Limpet(folder / "ours", state), Limpet(folder / "lazy", state, "lazy", lazy=True)]
        peers = present(folder, state, PEERS) if mib <= settings.peer_mib else []
        runs: dict[str, Run] = {}
        for contender in (PlainWrite(folder / "plain", state), *ours, *peers):
            stack.callback(contender.close)
            measure = both(contender, (lambda: 3 * copies[0] + 0.05) if contender is ours[1] else None)
            runs[contender.name] = _kept(measure, pairs.setdefault(contender.name, []), contender is ours[0], copies)
        turns(runs, settings.rounds)
    for name, kept in pairs.items():
        counted = kept[-settings.rounds :]
        stalls.put(name, column, [stall for stall, _ in counted], "s")
        durables.put(name, column, [durable for _, durable in counted], "s")


def _kept(
    run: Callable[[], tuple[float, float]], pairs: list[tuple[float, float]], is_ours: bool, copies: list[float]
) -> Run:
    def one() -> float:
        pair = run()
        pairs.append(pair)
        if is_ours:
            copies[0] = pair[0]
        return pair[0]

    return one


def by_count(settings: Any, stalls: Table, durables: Table) -> None:
    """What a save costs after so many checkpoints; all of them are kept."""
    from limpet import Last

    state = arrays(settings.count_mib, 4)
    small: Arrays = {"small": state["layer00"][:64].copy()}
    checkpoints = max(settings.checkpoints)
    with workplace(
        settings.folder, 4 * settings.rounds * len(settings.checkpoints) * settings.count_mib * MIB
    ) as folder:
        ours = Limpet(folder / "run", state, retain=Last(checkpoints * 2))
        taken = 0
        for wanted in settings.checkpoints:
            while taken < wanted:  # small ones: what counts is how many there are
                ours.state = small
                change(small)
                ours.save_and_wait()
                taken += 1
            ours.state = state
            pairs = [both(ours, None)() for _ in range(settings.rounds + 1)][1:]
            taken += settings.rounds + 1
            column = f"{wanted:,}"
            stalls.put(OURS, column, [stall for stall, _ in pairs], "s")
            durables.put(OURS, column, [durable for _, durable in pairs], "s")
        ours.close()


def slope(medians: dict[str, float], sizes: list[int]) -> float:
    """The exponent of growth from 64 MiB on, by least squares on logarithms: 1 is linear, 0 is none."""
    points = [
        (math.log(mib), math.log(medians[_size(mib)]))
        for mib in sizes
        if mib >= _LINEAR_FROM_MIB and _size(mib) in medians
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else math.nan


def _size(mib: int) -> str:
    return f"{mib} MiB" if mib < 1024 else f"{mib / 1024:g} GiB"


def hold_to_bounds(report: Report, settings: Any, tables: list[Table]) -> None:
    stalls, durables, counted_stalls, counted_durables = tables
    stall = {column: cell.median for column, cell in stalls.rows[OURS].items()}
    # A disk may have a cache of its own, and be slower past it: what is ours is judged beside plain writes.
    plain = durables.rows[PLAIN]
    durable = {column: cell.over(plain[column]).median for column, cell in durables.rows[OURS].items()}
    since = f"from {_LINEAR_FROM_MIB} MiB on"
    exponents = {
        f"stall grows with bytes to the power of, {since}": (slope(stall, settings.sizes), _SLOPE_MOST),
        f"time to durable / {PLAIN} grows with bytes to the power of, {since}": (
            slope(durable, settings.sizes),
            _SLOPE_MOST - 1,
        ),
    }
    for name, (exponent, most) in exponents.items():
        if not math.isnan(exponent):
            report.bound(name, Samples([exponent], ""), row=15, most=most)
    largest = _size(max(settings.sizes))
    report.bound(f"{LAZY}, {largest}", stalls.rows[LAZY][largest], row=2, most=_LAZY_MOST)
    first, last = (f"{each(settings.checkpoints):,}" for each in (min, max))
    for what, table in (("stall", counted_stalls), ("time to durable", counted_durables)):
        cells = table.rows[OURS]
        ratio = Samples([cells[last].median / cells[first].median], "x")
        report.bound(f"{what} after {last} checkpoints / after {first}", ratio, row=15, most=_DRIFT_MOST)


def main() -> None:
    parser = options(__doc__ or "", rounds=5)
    sizes = [1, 4, 16, 64, 256, 1024, 4096]
    parser.add_argument("--sizes", type=int, nargs="*", default=sizes, help="MiB (default: %(default)s; 8192 for more)")
    parser.add_argument("--peer-mib", type=int, default=1024, help="the largest for peers (default: %(default)s)")
    parser.add_argument("--checkpoints", type=int, nargs="*", default=[1, 100, 1000], help="(default: %(default)s)")
    parser.add_argument("--count-mib", type=int, default=64, help="size of the states between (default: %(default)s)")
    settings = parser.parse_args()
    report = Report(__doc__ or "", settings, absent=absent(PEERS))
    tables = [
        report.table("stall by size of the state"),
        report.table("time to durable by size of the state"),
        report.table(f"stall, {settings.count_mib} MiB, by number of live checkpoints"),
        report.table(f"time to durable, {settings.count_mib} MiB, by number of live checkpoints"),
    ]
    for mib in settings.sizes:
        by_size(settings, mib, tables[0], tables[1])
    by_count(settings, tables[2], tables[3])
    hold_to_bounds(report, settings, tables)
    for at, name in enumerate(("stall", "durable")):
        label, axis = "seconds (log)", "MiB (log)"
        report.plots.append(Plot(name, at, "lines", label, (), settings.sizes, axis, log=True, log_positions=True))
    report.notes.append(f"peers take part up to {settings.peer_mib} MiB; all values change between saves")
    report.finish()


if __name__ == "__main__":
    main()
