"""How many bytes does a commit add, where everything changed and where little did?"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from measuring.contender import Contender, Limpet, setting_exists
from measuring.peers import PEERS, DcpAsync, DcpAsyncReused, Deepcopy, absent, present
from measuring.plots import Plot
from measuring.report import Report, Samples, Table
from measuring.running import options, workplace
from measuring.states import MIB, Arrays, arrays, bf16, missing_bf16

OURS, DELTA, ZSTD = "limpet", "limpet, delta", "pickle + zstd -1, in memory"
WRITERS = tuple(peer for peer in PEERS if peer not in (Deepcopy, DcpAsync, DcpAsyncReused))
"""The others write what these write."""
_LAYERS = 100
_ROW_VALUES = 64
_WHOLE_CHAIN = 9
"""Saves: eight deltas, and what is stored in full after them."""

Step = Callable[[Any], None]
"""Changes a state as one step of its kind does."""


def dense(mib: int) -> tuple[Any, Step]:
    """Trained fp32 weights, every one of them changed."""
    state = arrays(mib)

    def step(state: Arrays) -> None:
        for array in state.values():
            np.multiply(array, np.float32(1.0009765625), out=array)

    return state, step


def dense_bf16(mib: int) -> tuple[Any, Step]:
    """The same weights, rounded."""
    state = {name: bf16(array) for name, array in arrays(2 * mib).items()}

    def step(state: dict[str, Any]) -> None:
        for index, array in enumerate(state.values()):
            state_bits = array.view(np.uint16)
            np.copyto(state_bits, np.roll(state_bits, index + 1))

    return state, step


def incompressible(mib: int) -> tuple[Any, Step]:
    """Bits that nothing can shrink, in fp32."""
    random = np.random.default_rng(2)
    state = {"noise": np.empty(mib * MIB // 4, np.float32)}

    def step(state: Arrays) -> None:
        state["noise"].view(np.uint8)[:] = random.integers(0, 256, mib * MIB, dtype=np.uint8)

    step(state)
    return state, step


def frozen_base(mib: int) -> tuple[Any, Step]:
    """100 layers, of which one is trained."""
    state = arrays(mib, _LAYERS)

    def step(state: Arrays) -> None:
        np.multiply(state["layer00"], np.float32(1.0009765625), out=state["layer00"])

    return state, step


def touched_rows(mib: int, *, scattered: bool) -> tuple[Any, Step]:
    """An embedding table of which 1 % of the rows change: here and there, or next to each other."""
    table = arrays(mib, 1)["layer00"].reshape(-1, _ROW_VALUES)
    random = np.random.default_rng(3)
    count = max(1, len(table) // 100)

    def step(state: Arrays) -> None:
        start = int(random.integers(0, len(table) - count + 1))
        rows = random.choice(len(table), count, replace=False) if scattered else np.arange(start, start + count)
        state["embedding"][rows] *= np.float32(1.0009765625)

    return {"embedding": table}, step


def small_rate(mib: int, rate: float) -> tuple[Any, Step]:
    """bf16 weights that follow fp32 ones, which a step moves by about the learning rate."""
    master = {name: array.copy() for name, array in arrays(2 * mib).items()}
    random = np.random.default_rng(4)

    def step(state: dict[str, Any]) -> None:
        for name, array in master.items():
            np.add(array, random.standard_normal(array.size, dtype=np.float32) * np.float32(rate), out=array)
            np.copyto(state[name], bf16(array))

    return {name: bf16(array) for name, array in master.items()}, step


def added_by_limpet(folder: Path, state: Any, step: Step, saves: int, **settings: Any) -> list[float]:
    """What each save after the first added to the store; coding is on, however fast the disk is."""
    limpet = Limpet(folder, state, compression="zstd", **settings)
    added = []
    for number in range(saves + 1):
        if number:
            step(state)
        limpet.save()
        assert limpet.pending is not None
        receipt = limpet.pending.result()
        added.append(float(receipt.new_bytes))
    limpet.close()
    return added[1:]


def added_by_peer(peer: Contender) -> float:
    """The size of all files of one save."""
    peer.changed()
    peer.save_and_wait()
    return float(sum(path.stat().st_size for path in peer.folder.rglob("*") if path.is_file()))


def raw_bytes(state: Any) -> int:
    return sum(array.nbytes for array in state.values())


def measure(title: str, made: tuple[Any, Step], settings: Any, table: Table) -> int:
    """One column: what each library adds per commit. The size of the state is returned."""
    state, step = made
    size = raw_bytes(state)
    with workplace(settings.folder, 6 * size) as folder, ExitStack() as stack:
        # numpy does not know bf16: most peers refuse its arrays
        peers = present(folder, state, WRITERS) if all(each.dtype == np.float32 for each in state.values()) else []
        for peer in peers:
            stack.callback(peer.close)
            table.put(peer.name, title, [added_by_peer(peer)], "B")
        packed = zstandard.ZstdCompressor(level=1).compress(pickle.dumps(state, protocol=5))
        table.put(ZSTD, title, [float(len(packed))], "B")
        table.put(OURS, title, added_by_limpet(folder / "ours", state, step, settings.rounds), "B")
        if setting_exists("delta"):
            saves = max(settings.rounds, _WHOLE_CHAIN)
            added = added_by_limpet(folder / "delta", state, step, saves, delta=True)
            table.put(DELTA, title, added, "B")
    return size


DENSE, DENSE16, NOISE = "dense fp32", "dense bf16", "incompressible"
FROZEN, ROWS, BLOCK = "1 % of layers trained", "1 % of rows, scattered", "1 % of rows, adjacent"
SLOW4, SLOW5, SLOW6 = "bf16, rate 1e-4", "bf16, rate 1e-5", "bf16, rate 1e-6"
CASES: dict[str, Callable[[int], tuple[Any, Step]]] = {
    DENSE: dense,
    DENSE16: dense_bf16,
    NOISE: incompressible,
    FROZEN: frozen_base,
    ROWS: lambda mib: touched_rows(mib, scattered=True),
    BLOCK: lambda mib: touched_rows(mib, scattered=False),
    SLOW4: lambda mib: small_rate(mib, 1e-4),
    SLOW5: lambda mib: small_rate(mib, 1e-5),
    SLOW6: lambda mib: small_rate(mib, 1e-6),
}
_NEEDS_BF16 = (DENSE16, SLOW4, SLOW5, SLOW6)


def hold_to_bounds(report: Report, table: Table, sizes: dict[str, int]) -> None:
    def fewer(case: str, row: str = OURS) -> Samples:
        return Samples([sizes[case] / value for value in table.rows[row][case].values], "x")

    least = {DENSE: (5, 1.19), DENSE16: (5, 1.46), NOISE: (5, 1 / 1.001), FROZEN: (7, 50.0), ROWS: (7, 50.0)}
    for case, (number, wanted) in least.items():
        if case in sizes:
            with_delta = case == ROWS and DELTA in table.rows
            name = DELTA if with_delta else OURS
            report.bound(f"{case}: raw / new bytes, {name}", fewer(case, name), row=number, least=wanted)
    report.bound(f"{BLOCK}: raw / new bytes, {OURS}", fewer(BLOCK))
    for case in (each for each in (SLOW4, SLOW5, SLOW6) if each in sizes):
        if DELTA in table.rows:
            added = table.rows[DELTA][case].values
            mean = Samples([sizes[case] * len(added) / sum(added)], "x")
            report.bound(f"{case}: raw / new bytes, {DELTA}, mean of whole chains", mean, row=6, least=2.5)
        else:
            report.refuse(f"{case}: raw / new bytes", "this version has no delta=", row=6)


def main() -> None:
    settings = options(__doc__ or "", mib=256, rounds=3).parse_args()
    missing = missing_bf16()
    report = Report(__doc__ or "", settings, absent=absent(WRITERS) | missing)
    if not setting_exists("delta"):
        report.absent[DELTA] = "this version has no such setting"
    table = report.table(f"bytes that a save adds, {settings.mib} MiB")
    cases = {name: make for name, make in CASES.items() if not (missing and name in _NEEDS_BF16)}
    sizes = {name: measure(name, make(settings.mib), settings, table) for name, make in cases.items()}
    hold_to_bounds(report, table, sizes)
    for name in cases:
        table.put("raw", name, [float(sizes[name])], "B")
    report.plots = [
        Plot(name, 0, "bars", f"bytes, {case}", (case,)) for name, case in (("dense", DENSE), ("frozen", FROZEN))
    ]
    report.notes.append(
        "coding is on for limpet (compression='zstd'): 'auto' leaves bytes raw where the disk is faster"
    )
    report.notes.append("libraries that write the same format count once")
    report.finish()


if __name__ == "__main__":
    main()
