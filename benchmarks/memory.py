"""How much memory is taken above the state itself?"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from limpet import Checkpointer, Last, UsageError

from measuring.contender import Contender, absent_engines, engines
from measuring.machine import PeakMemory
from measuring.peers import PEERS, absent
from measuring.plots import Plot
from measuring.report import Report
from measuring.running import Run, child_arguments, in_child, options, turns, workplace
from measuring.states import MIB, arrays, change

SAVES = 4
SLACK_BYTES = 256 * MIB
TWO, PROCESS = "limpet, two buffers", "limpet, two buffers, engine=process"
LAZY, ONE = "limpet, lazy", "limpet, buffers=1"
LIMITED, LIMITED_LAZY = "limpet, streamed in memory_limit=", "limpet, streamed in memory_limit=, lazy"
LIMIT = 0.25
"""Of the state: what ``memory_limit`` allows, for buffers that the state does not fit into."""
CASES: dict[str, dict[str, Any]] = {
    TWO: {"buffers": 2},
    **({PROCESS: {"buffers": 2, **engines()["process"]}} if "process" in engines() else {}),
    LAZY: {"buffers": 1},
    ONE: {"buffers": 1},
    LIMITED: {},
    LIMITED_LAZY: {},
}
STREAMED = (LIMITED, LIMITED_LAZY)
BOUNDS = {TWO: 2.0, PROCESS: 2.0, LAZY: 1.0, ONE: 1.0} | dict.fromkeys(STREAMED, LIMIT)
"""How many times the state; some slack is added."""

Measured = tuple[PeakMemory, int]


def measure_limpet(case: str, mib: int, folder: Path) -> Measured:
    """Every buffer is in use: a save starts while the one before it is being written."""
    state = arrays(mib)
    change(state)
    settings = CASES[case] | ({"memory_limit": int(LIMIT * mib * MIB)} if case in STREAMED else {})
    memory = PeakMemory()  # before limpet is opened, so that its threads, processes and buffers count
    with Checkpointer(folder / "run", retain=Last(1), on_busy="wait", **settings) as cp:
        for _ in range(SAVES):
            change(state)
            pending = cp.write(state, lazy=case in (LAZY, LIMITED_LAZY))
            pending.staged.wait()
        cp.wait()
        return memory, memory.added_bytes()


def measure_peer(peer: type[Contender], mib: int, folder: Path) -> Measured:
    """Each save is waited for, as nearly all of them do; what they import is there before."""
    state = arrays(mib)
    change(state)
    contender = peer(folder / "peer", state)
    memory = PeakMemory()
    for _ in range(SAVES):
        change(state)
        contender.changed()
        contender.save_and_wait()
        contender.remove()
    added = memory.added_bytes()
    contender.close()
    return memory, added


def child(case: str, mib: int, folder: Path) -> None:
    by_title = {peer.title: peer for peer in PEERS}
    try:
        memory, added = (
            measure_peer(by_title[case], mib, folder) if case in by_title else measure_limpet(case, mib, folder)
        )
    except UsageError as error:  # of states so small that less than the least window was allowed
        if case not in STREAMED:
            raise
        print(json.dumps({"refused": f"{type(error).__name__}: {error}"}))
        return
    print(json.dumps({"added": added, "resettable": memory.resettable}))


def main() -> None:
    settings = options(__doc__ or "", mib=1024, rounds=3).parse_args()
    report = Report(__doc__ or "", settings, absent=absent() | absent_engines())
    refused: dict[str, str] = {}

    def measure(case: str) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            answer = in_child(case, settings.mib, place)
        if "refused" in answer:
            refused[case] = answer["refused"]
            return 0.0
        if not answer["resettable"]:
            report.notes.append(f"{case}: the peak could not be set back; it includes the making of the state")
        return float(answer["added"])

    cases = [*CASES, *(peer.title for peer in PEERS if not peer.missing())]
    with workplace(settings.folder, need_bytes=(SAVES + 2) * settings.mib * MIB) as folder:
        runs: dict[str, Run] = {case: partial(measure, case) for case in cases}
        values = turns(runs, settings.rounds, warmups=0)
    state_bytes = settings.mib * MIB
    table = report.table(f"peak memory above a state of {settings.mib} MiB, {SAVES} saves")
    for case in cases:
        if case not in refused:
            table.put(case, "peak", values[case], "B")
    for case in CASES:
        if case in refused:
            report.refuse(case, refused[case], row=11)
        else:
            report.bound(case, table[case], row=11, most=BOUNDS[case] * state_bytes + SLACK_BYTES)
    report.plots.append(Plot("peak", 0, "bars", "bytes"))
    report.notes.append("each in a child process of its own; what was imported before the first save counts for nobody")
    report.finish()


if __name__ == "__main__":
    if (given := child_arguments()) is not None:
        child(given[0], int(given[1]), Path(given[2]))
    else:
        main()
