"""How long does it take to read a state back, from files that the page cache holds?"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from measuring.contender import Contender, Limpet
from measuring.peers import (
    Dcp,
    Flytekit,
    Orbax,
    OrbaxJax,
    Pickle,
    PickleZstd,
    Safetensors,
    TorchSave,
    absent,
    present,
)
from measuring.plots import Plot
from measuring.report import Report, Table
from measuring.running import Run, options, seconds, turns, workplace
from measuring.states import MIB, Arrays, arrays, equal

READERS = (Pickle, PickleZstd, Flytekit, TorchSave, Dcp, Safetensors, Orbax, OrbaxJax)
BARE = "bare read, {} threads"
ONE = "bare read, one thread"
RAW = "limpet, compression off"
AUTO = "limpet, compression on"
FRESH, LIVE = "into fresh memory", "into live arrays"


class BareRead(Contender):
    """What no reader can beat: the bytes of a file, unchecked, by ``threads`` threads at once."""

    flushes = True

    def __init__(self, folder: Path, state: Arrays, threads: int) -> None:
        self._threads = threads
        super().__init__(folder, state)

    @property
    def name(self) -> str:
        return ONE if self._threads == 1 else BARE.format(self._threads)

    def save(self) -> None:
        with (self.folder / "raw").open("wb") as file:
            for array in self.state.values():
                array.tofile(file)

    def restore(self) -> Any:
        fresh = {name: np.empty_like(array) for name, array in self.state.items()}
        self.restore_into(fresh)
        return fresh

    def restore_into(self, target: Arrays) -> None:
        places, offset = [], 0
        for array in target.values():
            places.append((array, offset))
            offset += array.nbytes
        share = -(-len(places) // self._threads)
        shares = [places[begin : begin + share] for begin in range(0, len(places), share)]
        others = [threading.Thread(target=self._read, args=(each,)) for each in shares[1:]]
        for thread in others:
            thread.start()
        self._read(shares[0])
        for thread in others:
            thread.join()

    def _read(self, places: list[tuple[np.ndarray[Any, Any], int]]) -> None:
        descriptor = os.open(self.folder / "raw", os.O_RDONLY)
        try:
            for array, start in places:
                view, offset = array.view(np.uint8).data, start
                while view:
                    taken = os.preadv(descriptor, [view], offset)
                    view, offset = view[taken:], offset + taken
        finally:
            os.close(descriptor)


def forget_free_memory() -> None:
    """Have the allocator give back what it keeps, where it can: a process that restores has just begun."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def into_fresh(contender: Contender) -> Run:
    """The state in memory of its own; freeing it is not measured."""
    checked = [False]

    def run() -> float:
        held: list[Any] = []
        forget_free_memory()
        took = seconds(lambda: held.append(contender.restore()))
        _check_once(contender, held[0], checked)
        return took

    return run


def into_live(contender: Contender, target: Arrays) -> Run:
    """The state in arrays that were touched before."""
    checked = [False]

    def run() -> float:
        if not checked[0]:
            for array in target.values():
                array.fill(1)
        took = seconds(lambda: contender.restore_into(target))
        _check_once(contender, target, checked)
        return took

    return run


def _check_once(contender: Contender, restored: Any, checked: list[bool]) -> None:
    if not checked[0] and not equal(contender.state, restored):
        raise SystemExit(f"{contender.name}: what was read differs from what was written")
    checked[0] = True


def written(folder: Path, state: Arrays, stack: ExitStack) -> list[Contender]:
    """Every contender, with the state saved once; limpet's writers are closed again."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # "auto" may leave everything raw on a fast disk: what is asked is what decoding costs, so it is made to encode.
    ours = [
        Limpet(folder / "raw", state, "compression off", compression="off"),
        Limpet(folder / "coded", state, "compression on", compression="zstd"),
    ]
    bare = [BareRead(folder / f"bare{threads}", state, threads) for threads in dict.fromkeys((cores, 1))]
    others = present(folder, state, READERS)
    for contender in (*ours, *bare, *others):
        contender.save_and_wait()
    for limpet in ours:
        limpet.close()
    for peer in others:
        stack.callback(peer.close)
    return [*bare, *ours, *others]


def hold_to_bounds(report: Report, tables: dict[str, Table], fastest: str) -> None:
    warm = tables[LIVE][fastest]
    for column in (FRESH, LIVE):
        ours = tables[column][RAW]
        report.bound(f"{fastest}, warm memory / {RAW}, {column}", warm.over(ours), row=10, least=0.55)
    for peer in (TorchSave, Safetensors, Dcp, Orbax):
        for column in (FRESH, LIVE):
            if peer.title in tables[column].rows:
                ratio = tables[column][peer.title].over(tables[column][RAW])
                report.bound(f"{peer.title} / {RAW}, {column}", ratio, row=10, least=1.0)


def main() -> None:
    settings = options(__doc__ or "", mib=1024).parse_args()
    state = arrays(settings.mib)
    target: Arrays = {name: np.ones_like(array) for name, array in state.items()}
    with workplace(settings.folder, need_bytes=13 * settings.mib * MIB) as folder, ExitStack() as stack:
        contenders = written(folder, state, stack)
        runs: dict[str, Run] = {}
        make: dict[str, Callable[[Contender], Run]] = {FRESH: into_fresh, LIVE: lambda one: into_live(one, target)}
        for contender in contenders:
            runs |= {f"{column} {contender.name}": make[column](contender) for column in make}
        values = turns(runs, settings.rounds)
    report = Report(__doc__ or "", settings, absent=absent(READERS))
    tables = {column: report.table(f"restore of {settings.mib} MiB {column}") for column in make}
    for column, table in tables.items():
        for contender in contenders:
            table.put(contender.name, "time", values[f"{column} {contender.name}"], "s")
    hold_to_bounds(report, tables, contenders[0].name)
    report.plots = [Plot(name, at, "bars", "seconds") for at, name in enumerate(("fresh", "live"))]
    report.notes += [
        "limpet opens the run, finds the newest checkpoint and checks every byte; bare reads and most peers check none",
        "into live arrays: limpet and DCP fill them; what the others restored is copied there",
        "before each restore into fresh memory the allocator gives back what it keeps (malloc_trim)",
        "torch.load(mmap=True) and the like are left out: they read nothing until the values are used",
    ]
    report.finish()


if __name__ == "__main__":
    main()
