"""What does a checkpoint at every step cost a loop of long steps that leave a core idle?"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from measuring.contender import Limpet, absent_engines, engines
from measuring.peers import DcpAsyncReused, Deepcopy, Pickle, absent, present
from measuring.plots import Plot
from measuring.report import Report
from measuring.running import Run, options, turns, workplace
from measuring.states import MIB, Arrays, arrays

OURS = "limpet, lazy"
WITHOUT = "no saves"
PEERS = (Deepcopy, DcpAsyncReused, Pickle)
_CHANGED = 0.02


class Step:
    """A step of so many seconds on one core: reads most of the time, then changes 2 % of the state."""

    def __init__(self, state: Arrays, step_seconds: float) -> None:
        self._state = state
        self._block = np.ones(1 << 16, dtype=np.float32)  # stays in the processor's cache
        self._changes = 0
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < min(1.0, step_seconds):
            self._work(20)
            count += 20
        self._count = max(1, int(count * step_seconds / (time.perf_counter() - start)))

    def _work(self, count: int) -> None:
        for _ in range(count):
            np.sqrt(self._block, out=self._block)

    def read(self) -> None:
        """The long part: forward and backward, say."""
        self._work(self._count)

    def change(self) -> None:
        """The short part: the values of another 2 % of the arrays, which are whole layers."""
        names = list(self._state)
        count = max(1, round(_CHANGED * len(names)))
        for index in range(count):
            array = self._state[names[(self._changes + index) % len(names)]]
            np.multiply(array, np.float32(1.0009765625), out=array)
        self._changes += count


def without(step: Step, steps: int) -> Run:
    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step.read()
            step.change()
        return (time.perf_counter() - start) / steps

    return run


def with_limpet(limpet: Limpet, step: Step, steps: int, committed: list[int]) -> Run:
    """A lazy save begins each step; the change waits until what it changes was staged."""

    def run() -> float:
        saves = []
        start = time.perf_counter()
        for _ in range(steps):
            limpet.save()
            assert limpet.pending is not None
            saves.append(limpet.pending)
            step.read()
            limpet.pending.staged.wait()
            step.change()
        took = (time.perf_counter() - start) / steps
        outcomes = [str(save.result().outcome) for save in saves]
        committed.append(outcomes.count("committed"))
        return took

    return run


def with_peer(peer: Any, step: Step, steps: int) -> Run:
    """A save before each step, after the one before it is written."""

    def run() -> float:
        start = time.perf_counter()
        for index in range(steps):
            if index:
                peer.wait()
                peer.remove()
            peer.save()
            step.read()
            step.change()
        took = (time.perf_counter() - start) / steps
        peer.wait()
        peer.remove()
        return took

    return run


def main() -> None:
    parser = options(__doc__ or "", mib=1024, rounds=5)
    parser.add_argument("--steps", type=int, default=8, help="steps a round (default: %(default)s)")
    parser.add_argument("--step-seconds", type=float, default=1.0, help="(default: %(default)s)")
    settings = parser.parse_args()
    state = arrays(settings.mib, 50)
    step = Step(state, settings.step_seconds)
    committed: list[int] = []
    runs: dict[str, Run] = {WITHOUT: without(step, settings.steps)}
    need_bytes = (6 + 2 * settings.steps * settings.rounds) * settings.mib * MIB // 10 + 8 * settings.mib * MIB
    ours = []
    with workplace(settings.folder, need_bytes) as folder, ExitStack() as stack:
        for engine, given in engines().items():
            limpet = Limpet(folder / engine, state, f"lazy, engine={engine}", lazy=True, **given)
            stack.callback(limpet.close)
            runs[limpet.name] = with_limpet(limpet, step, settings.steps, committed)
            ours.append(limpet.name)
        for peer in present(folder, state, PEERS):
            stack.callback(peer.close)
            runs[peer.name] = with_peer(peer, step, settings.steps)
        values = turns(runs, settings.rounds)
    report = Report(__doc__ or "", settings, absent=absent(PEERS) | absent_engines())
    table = report.table(f"time of a step, {settings.mib} MiB of which {_CHANGED:.0%} change, saved at every step")
    for name, each in values.items():
        table.put(name, "step", each, "s")
    for name in values:
        if name != WITHOUT:
            row, most = (14, 1.03) if name in ours else (None, None)
            report.bound(f"{name} / {WITHOUT}", table[name].over(table[WITHOUT]), row=row, most=most)
    share = [each / settings.steps for each in committed]
    cell = report.table("saves that were committed, of all").put("limpet", "share", share, "%")
    report.bound("every step durable: the share that was committed", cell, row=14, least=1.0)
    report.plots.append(Plot("step", 0, "bars", "seconds"))
    report.finish()


if __name__ == "__main__":
    main()
