"""How long does a save hold up its caller, from the second one on?"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from measuring.contender import Contender, Limpet
from measuring.peers import (
    PEERS,
    DcpAsync,
    DcpAsyncReused,
    Deepcopy,
    Flytekit,
    Orbax,
    OrbaxJax,
    Pickle,
    absent,
    durability,
    jax_leaves,
    present,
)
from measuring.plots import Plot
from measuring.report import Report, Table
from measuring.running import Run, options, seconds, turns, workplace
from measuring.states import MIB, Arrays, arrays, change

COPY = "np.copyto, warm memory"
IDLE = "limpet"
BUSY = "limpet, a save in flight"
LAZY = "limpet, lazy"
BYTES = "limpet, immutable: bytes"
JAX = "limpet, immutable: jax arrays"
_READ_PHASE = 2.0
"""How much longer than the plain copy a step only reads its state, where staging is lazy."""
_READ_PHASE_SECONDS_MIN = 0.05


def copy_into_warm_memory(state: Arrays) -> Run:
    """The lower bound: one thread copies into memory that was touched before."""
    warm = {name: np.ones_like(array) for name, array in state.items()}

    def copy() -> None:
        for name, array in state.items():
            np.copyto(warm[name], array)

    def run() -> float:
        change(state)
        return seconds(copy)

    return run


def second_of_two(limpet: Limpet) -> Run:
    """The second of two saves in a row: the first one is still being written meanwhile."""

    def run() -> float:
        change(limpet.state)
        limpet.save()
        first = limpet.pending
        change(limpet.state)
        took = seconds(limpet.save)
        limpet.wait()
        assert first is not None
        first.result()
        return took

    return run


def lazy(limpet: Limpet, read_phase_seconds: Callable[[], float]) -> Run:
    """The call, and what is left to wait for after a read phase that is longer than the copy."""

    def staged() -> None:
        assert limpet.pending is not None
        limpet.pending.staged.wait()

    def run() -> float:
        change(limpet.state)
        took = seconds(limpet.save)
        time.sleep(read_phase_seconds())
        took += seconds(staged)
        limpet.wait()
        return took

    return run


def immutable(limpet: Limpet, state: Arrays, leaves: Callable[[Arrays], Any]) -> Run:
    """Leaves that nobody can change are made anew in each round, as a step makes them."""

    def run() -> float:
        change(state)
        limpet.state = leaves(state)
        took = seconds(limpet.save)
        limpet.wait()
        return took

    return run


def bytes_leaves(state: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.items()}


def contend(folder: Path, state: Arrays, stack: ExitStack) -> dict[str, Run]:
    """Every contender's run."""

    def limpet(place: str, **settings: Any) -> Limpet:
        made = Limpet(folder / place, state, **settings)
        stack.callback(made.close)
        return made

    copy, took = copy_into_warm_memory(state), [0.0]

    def timed_copy() -> float:
        took[0] = copy()
        return took[0]

    ours = limpet("ours")
    runs = {
        COPY: timed_copy,
        IDLE: ours.stall(),
        BUSY: second_of_two(ours),
        LAZY: lazy(limpet("lazy", lazy=True), lambda: max(_READ_PHASE_SECONDS_MIN, _READ_PHASE * took[0])),
        BYTES: immutable(limpet("bytes"), state, bytes_leaves),
    }
    if not OrbaxJax.missing():
        runs[JAX] = immutable(limpet("jax"), state, jax_leaves)
    peers: list[Contender] = present(folder, state, flush=True)
    for peer in peers:
        stack.callback(peer.close)
    return runs | {peer.name: peer.stall() for peer in peers}


def hold_to_bounds(report: Report, table: Table, leaves: int) -> None:
    ours = table[IDLE]
    report.bound(f"{IDLE} / {COPY}", ours.over(table[COPY]), row=1, most=1.2)
    report.bound(f"{BUSY} / {COPY}", table[BUSY].over(table[COPY]))
    wanted = ((Pickle, 18.0), (Deepcopy, 1.6), (Flytekit, 28.0), (DcpAsync, 1.0), (DcpAsyncReused, 1.0), (Orbax, 1.0))
    for peer, least in wanted:
        if peer.title in table.rows:
            report.bound(f"{peer.title} / {IDLE}", table[peer.title].over(ours), row=1, least=least)
    report.bound(LAZY, table[LAZY], row=2, most=0.005)
    most = 0.001 + 2e-6 * leaves
    for name in (BYTES, JAX):
        if name in table.rows:
            report.bound(f"{name}, {leaves} leaves", table[name], row=3, most=most)
    if JAX in table.rows and OrbaxJax.title in table.rows:
        report.bound(f"{OrbaxJax.title} / {JAX}", table[OrbaxJax.title].over(table[JAX]), row=3, least=1.0)


def main() -> None:
    parser = options(__doc__ or "", mib=1024)
    parser.add_argument("--arrays", type=int, default=64, help="how many arrays (default: %(default)s)")
    settings = parser.parse_args()
    state = arrays(settings.mib, settings.arrays)
    need_bytes = (6 * settings.rounds + 12) * settings.mib * MIB
    with workplace(settings.folder, need_bytes) as folder, ExitStack() as stack:
        values = turns(contend(folder, state, stack), settings.rounds)
    missing = absent() | ({JAX: OrbaxJax.missing()} if JAX not in values else {})
    report = Report(__doc__ or "", settings, absent=missing, notes=durability(PEERS))
    table = report.table(f"stall of one save, {settings.mib} MiB of fp32 in {settings.arrays} arrays")
    for name, each in values.items():
        table.put(name, "stall", each, "s")
    hold_to_bounds(report, table, settings.arrays)
    report.plots.append(Plot("stall", 0, "bars", "seconds (log)", log=True))
    report.notes.append("one round is thrown away first: the first save makes the buffers")
    report.notes.append(
        f"lazy: the call, and what is left to wait for after {_READ_PHASE:g} x the time of the plain copy"
    )
    report.finish()


if __name__ == "__main__":
    main()
