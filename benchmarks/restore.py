"""How long does it take to read a state back?"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

import limpet

from harness import ABSENT_PEERS, MIB, Arrays, Contender, Report, Samples, arrays, options, seconds, turns, workplace

RAW = "plain read into warm memory"
INTO = "limpet read(into=)"
FRESH = "limpet read()"
PICKLE = "pickle.load"


def write_all(state: Arrays, folder: Path) -> None:
    """The same state in every form that is read below."""
    with limpet.Checkpointer(folder / "run") as cp:
        cp.write(state, durable=True)
    with (folder / "state.raw").open("wb") as file:
        for array in state.values():
            array.tofile(file)
    with (folder / "state.pickle").open("wb") as file:
        pickle.dump(state, file, protocol=5)


def plain_read(target: Arrays, folder: Path) -> Contender:
    """The lower bound: bytes of the cached file go straight into memory that was touched before."""

    def read() -> None:
        with (folder / "state.raw").open("rb", buffering=0) as file:
            for array in target.values():
                view = array.view(np.uint8).data
                while view:
                    view = view[file.readinto(view) or 0 :]

    return lambda: seconds(read)


def limpet_read(folder: Path, target: Arrays | None) -> Contender:
    """Opening the run, finding the newest checkpoint, reading it and checking every byte."""

    def read() -> None:
        with limpet.open(folder / "run") as run:
            run.read() if target is None else run.read(into=target)

    return lambda: seconds(read)


def pickle_load(folder: Path) -> Contender:
    """The whole state in fresh memory, unchecked."""

    def read() -> None:
        with (folder / "state.pickle").open("rb") as file:
            pickle.load(file)

    return lambda: seconds(read)


def main() -> None:
    settings = options(__doc__ or "", mib=512).parse_args()
    state = arrays(settings.mib)
    target: Arrays = {name: np.ones_like(array) for name, array in state.items()}
    with workplace(settings.folder, need_bytes=4 * settings.mib * MIB) as folder:
        write_all(state, folder)
        values = turns(
            {
                RAW: plain_read(target, folder),
                INTO: limpet_read(folder, target),
                FRESH: limpet_read(folder, None),
                PICKLE: pickle_load(folder),
            },
            settings.rounds,
        )
    if not all(np.array_equal(target[name], array) for name, array in state.items()):
        raise SystemExit("what was read differs from what was written")
    report = Report(__doc__ or "", vars(settings), absent=ABSENT_PEERS)
    report.samples = {name: Samples(each, "s") for name, each in values.items()}
    report.ratio(INTO, RAW)
    report.ratio(FRESH, PICKLE)
    report.notes.append("files are in the page cache; opening the run is part of what is measured")
    report.finish()


if __name__ == "__main__":
    main()
