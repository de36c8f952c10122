"""How long does ``write`` hold up its caller, from the second save on?"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from limpet import Checkpointer, Last

from harness import (
    ABSENT_PEERS,
    MIB,
    Arrays,
    Contender,
    Report,
    Samples,
    arrays,
    change,
    options,
    seconds,
    turns,
    workplace,
)

COPY = "np.copyto, warm memory"
IDLE = "limpet write"
BUSY = "limpet write, a save in flight"
PICKLE = "pickle + fsync"


def copy_into_warm_memory(state: Arrays) -> Contender:
    """The lower bound: one thread copies into memory that was touched before."""
    warm = {name: np.zeros_like(array) for name, array in state.items()}
    for array in warm.values():
        array.fill(1)

    def copy() -> None:
        for name, array in state.items():
            np.copyto(warm[name], array)

    def run() -> float:
        change(state)
        return seconds(copy)

    return run


def limpet_write(cp: Checkpointer, state: Arrays) -> Contender:
    """One save; it is waited for after the measured call, so that contenders do not meet."""

    def run() -> float:
        change(state)
        start_to_staged, settle = _write(cp, state)
        settle()
        return start_to_staged

    return run


def limpet_write_while_saving(cp: Checkpointer, state: Arrays) -> Contender:
    """The second of two saves in a row: the first one is still being written meanwhile."""

    def run() -> float:
        change(state)
        _, settle_first = _write(cp, state)
        change(state)
        measured, settle_second = _write(cp, state)
        settle_first()
        settle_second()
        return measured

    return run


def _write(cp: Checkpointer, state: Arrays) -> tuple[float, Callable[[], object]]:
    pending = []
    took = seconds(lambda: pending.append(cp.write(state)))
    return took, pending[0].result


def pickle_and_fsync(state: Arrays, folder: Path) -> Contender:
    """What many scripts do, with the flush that makes it count."""
    path = folder / "state.pickle"

    def save() -> None:
        with path.open("wb") as file:
            pickle.dump(state, file, protocol=5)
            file.flush()
            os.fsync(file.fileno())

    def run() -> float:
        change(state)
        try:
            return seconds(save)
        finally:
            path.unlink(missing_ok=True)

    return run


def main() -> None:
    parser = options(__doc__ or "", mib=1024)
    parser.add_argument("--arrays", type=int, default=64, help="how many arrays (default: %(default)s)")
    settings = parser.parse_args()
    state = arrays(settings.mib, settings.arrays)
    need_bytes = (3 * settings.rounds + 6) * settings.mib * MIB
    with (
        workplace(settings.folder, need_bytes) as folder,
        Checkpointer(folder / "run", retain=Last(1), on_busy="wait") as cp,
    ):
        contenders = {
            COPY: copy_into_warm_memory(state),
            IDLE: limpet_write(cp, state),
            BUSY: limpet_write_while_saving(cp, state),
            PICKLE: pickle_and_fsync(state, folder),
        }
        values = turns(contenders, settings.rounds)
    report = Report(__doc__ or "", vars(settings), absent=ABSENT_PEERS)
    report.samples = {name: Samples(each, "s") for name, each in values.items()}
    report.ratio(IDLE, COPY, at_most=1.3)
    report.ratio(PICKLE, IDLE, at_least=8)
    report.ratio(BUSY, COPY)
    report.notes.append("one round is thrown away first: the first save makes the buffers")
    report.finish()


if __name__ == "__main__":
    main()
