"""How long until a save is committed?"""

from __future__ import annotations

import os
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
from stall import pickle_and_fsync

RAW = "plain write + fsync"
LIMPET = "limpet write(durable=True)"
PICKLE = "pickle + fsync"


def plain_write(state: Arrays, folder: Path) -> Contender:
    """The disk's own speed: the bytes of the arrays, one after another, and one fsync."""
    path = folder / "state.raw"

    def save() -> None:
        with path.open("wb", buffering=0) as file:
            for array in state.values():
                view = array.view(np.uint8).data
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())

    def run() -> float:
        change(state)
        try:
            return seconds(save)
        finally:
            path.unlink(missing_ok=True)

    return run


def limpet_durable(cp: Checkpointer, state: Arrays) -> Contender:
    """From the call to the commit."""

    def run() -> float:
        change(state)
        return seconds(lambda: cp.write(state, durable=True))

    return run


def main() -> None:
    settings = options(__doc__ or "", mib=512).parse_args()
    state = arrays(settings.mib)
    need_bytes = (settings.rounds + 6) * settings.mib * MIB
    with (
        workplace(settings.folder, need_bytes) as folder,
        Checkpointer(folder / "run", retain=Last(1), on_busy="wait") as cp,
    ):
        contenders = {
            RAW: plain_write(state, folder),
            LIMPET: limpet_durable(cp, state),
            PICKLE: pickle_and_fsync(state, folder),
        }
        values = turns(contenders, settings.rounds)
    report = Report(__doc__ or "", vars(settings), absent=ABSENT_PEERS)
    report.samples = {name: Samples(each, "s") for name, each in values.items()}
    report.ratio(LIMPET, RAW)
    report.ratio(LIMPET, PICKLE)
    report.finish()


if __name__ == "__main__":
    main()
