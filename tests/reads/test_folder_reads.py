"""Reading from a folder checks bytes on their way to their places: all that holds elsewhere holds there."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faulty import read_over, write_over

import limpet
from limpet import CorruptError
from limpet.stores import showing
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps

MIB = 1 << 20


def several() -> dict[str, Any]:
    """Arrays that share chunks and runs, that fill chunks, and that fill runs."""
    random = np.random.default_rng(1)
    sizes = {"tiny": 10, "small": 5000, "half": 300_000, "chunk": 4 * MIB, "odd": 5 * MIB + 3, "runs": 20 * MIB}
    state = {name: random.integers(0, 256, size, dtype=np.uint8) for name, size in sizes.items()}
    return {**state, "weights": random.standard_normal(MIB, dtype=np.float32), "zeros": np.zeros(MIB)}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(found[name].tobytes() == array.tobytes() for name, array in wanted.items())


@pytest.fixture(scope="module", params=["off", "zstd"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with limpet.Checkpointer(folder, compression=request.param) as cp:
        cp.write(several(), step=1, durable=True)
    return folder


def test_all_arrays_come_back_fresh_and_in_place(run: Path) -> None:
    live = {name: np.empty_like(array) for name, array in several().items()}
    with limpet.open(run) as reader:
        assert same(reader.read(), several())
        assert reader.read(into=live) is live
    assert same(live, several())


@pytest.mark.parametrize("name", several())
def test_every_leaf_can_be_read_alone(run: Path, name: str) -> None:
    with limpet.open(run) as reader:
        assert reader.read(select=name).tobytes() == several()[name].tobytes()


@pytest.mark.parametrize("part", range(8))
def test_a_flipped_bit_anywhere_is_found(run: Path, part: int) -> None:
    pack = next(run.glob("data/*/*.pack"))
    at = pack.stat().st_size * part // 8 + part
    with pack.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 4]))
    try:
        with limpet.open(run) as reader, pytest.raises(CorruptError, match=r"damaged at byte|digest|manifest"):
            reader.read(at=1, strict=True)
    finally:
        with pack.open("r+b") as file:
            file.seek(at)
            file.write(byte)


class FailsOnce(FileOps):
    """The read with this number fails in a way that may pass."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.failed = False

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        self.number -= 1
        if self.number == 0:
            self.failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().preadv(fd, buffers, offset)


@pytest.mark.parametrize("number", [5, 20, 40, 70])
def test_a_read_that_begins_anew_checks_anew(tmp_path: Path, number: int, monkeypatch) -> None:
    monkeypatch.setattr(showing, "_PATIENCE", float("inf"))  # by pieces, however busy the machine is
    with write_over(LocalStore(tmp_path), compression="off") as cp:
        cp.write(several(), durable=True)
    files = FailsOnce(number)
    with read_over(LocalStore(tmp_path, files=files), deadline_seconds=60) as reader:
        assert same(reader.read(), several())
    assert files.failed
