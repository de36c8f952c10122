"""Makes ``docs/golden/format-1``: one small run with every kind of record, codec and leaf that format 1 has.

    python tests/golden/make.py format-1

And ``format-2``: a run whose checkpoints are deltas from those before. The files pin the format: they are made once, and changed by no version that still writes format 1. What differs from
machine to machine (clock, host, random digits) is fixed here, so that a second run gives the same files, as long as
zstd compresses alike.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
import tempfile
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from unittest import mock
from uuid import UUID

import numpy as np

import limpet
from limpet.engine import log, opening, staging, upload
from limpet.format import chunks
from limpet.format.record import Writer

FOLDER = Path(__file__).parents[2] / "docs" / "golden" / "format-1"
DELTA_FOLDER = FOLDER.with_name("format-2")
CHILD = "shard-3"
TIME = 1_700_000_000.25
DIRECTORY_TIME_NS = 1_700_000_000_123_456_789

Point = namedtuple("Point", "x y", module="golden")


@dataclass
class Settings:
    rate: float
    layers: list


class Mode(Enum):
    TRAIN = 1
    EVAL = 2


class Access(Flag):
    READ = 1
    WRITE = 2


class Celsius:
    def __init__(self, degrees):
        self.degrees = degrees

    def __eq__(self, other):
        return type(other) is Celsius and other.degrees == self.degrees

    __hash__ = None


class Meter:
    def __init__(self):
        self.total = 5

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


for cls in (Settings, Mode, Access, Celsius, Meter):
    cls.__module__ = "golden"  # whatever this file is imported as


def register():
    for cls in (Point, Settings, Mode, Access):
        limpet.register(cls)
    limpet.register(Celsius, lambda value: value.degrees, Celsius, name="golden.Celsius")


def scalars():
    return {
        "none": None,
        "bools": [True, False],
        "ints": [0, -1, 2**53 - 1, -(2**53), 2**200],
        "floats": [0.0, -0.0, 1.5, 1e300, 5e-324, float("inf"), float("-inf"), float("nan")],
        "complex": complex(-0.0, 2.5),
        "text": ["", "limpet", "Käfer \U0001f41a", "lone \ud800", "long " * 300],
        "bytes": [b"", b"\x00\xff", bytearray(b"mutable")],
        "stream": io.BytesIO(b"from its position"),
        "times": [
            datetime(2024, 2, 29, 23, 59, 59, 999_999),
            datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30), "here")),
            date(1, 1, 1),
            time(1, 2, 3, 4, tzinfo=UTC),
            timedelta(days=-1, microseconds=1),
        ],
        "exact": [Decimal("1.10"), Decimal("-Infinity"), Fraction(-3, 7), UUID(int=42)],
        "paths": [PurePosixPath("/a/b"), PureWindowsPath("c:/d")],
    }


def containers():
    return {
        "keys": {"a": 1, 2: 2, True: 3, 0.5: 4, b"k": 5, None: 6, (1, ("x", None)): 7, 2**60: 8},
        "odict": OrderedDict(z=1, a=2),
        "ddict": defaultdict(list, {"k": [1]}),
        "counter": Counter("abracadabra"),
        "list": [[], [1, [2]]],
        "tuple": ((), (1,)),
        "deque": deque([1, 2], maxlen=3),
        "sets": [set(), {1, 2.5, "three", (4, b"5"), frozenset({6}), Mode.EVAL, np.int8(7)}, frozenset({None})],
        "namedtuple": Point(1, "two"),
        "dataclass": Settings(0.1, [1, 2]),
        "enums": [Mode.TRAIN, Access.READ | Access.WRITE],
        "custom": Celsius(36.6),
        "stateful": Meter(),
    }


def arrays():
    record = np.array([(1, b"ab", [0.5, 1.5])], dtype=[("n", ">i4"), ("s", "S3"), ("v", "<f8", (2,))])
    return {
        "dtypes": [
            np.arange(3, dtype=name) for name in ("i1", "<u2", ">i4", "<u8", "<f2", ">f4", "<f8", "<c8", "<c16")
        ],
        "bool": np.array([True, False]),
        "shapes": [
            np.zeros(()),
            np.zeros((0, 3)),
            np.arange(6).reshape(2, 3),
            np.asfortranarray(np.arange(6).reshape(2, 3)),
        ],
        "strided": np.arange(10)[::-2],
        "text": np.array(["a", "bcd"]),
        "raw": np.array([b"a", b"bc"]),
        "times": [np.array(["2024-02-29", "NaT"], dtype="M8[D]"), np.array([1, -1], dtype="m8[ns]")],
        "record": record,
        "scalars": [
            np.float32(0.1),
            np.int64(-1),
            np.bool_(True),
            np.datetime64("2024-01-01"),
            np.str_("s"),
            np.bytes_(b"b"),
        ],
        "generators": [random.Random(7), np.random.default_rng(7), np.random.MT19937(7), np.random.RandomState(7)],
    }


def noise(kind, size):
    """Weights as training leaves them: noisy mantissas, similar exponents."""
    return (np.random.default_rng(3).standard_normal(size) * 0.02).astype(kind)


STATES = {
    0: lambda: b"limpet",
    1: scalars,
    2: containers,
    3: arrays,
    4: lambda: {"w": noise("<f4", 6000)},
    5: lambda: {"w": noise("<f8", 3000)},
    6: lambda: {"w": noise("<f2", 12_001)},
    7: lambda: {"n": np.random.default_rng(3).integers(0, 1000, 6000)},
    8: lambda: {"b": np.random.default_rng(3).bytes(20_000)},
    # Chunks of 4 MiB: two that are equal, and the rest. And a chunk that step 8 wrote.
    9: lambda: {"zeros": np.zeros((9 << 20) // 4, "<f4"), "b": STATES[8]()["b"]},
    13: lambda: {"w": noise("<f4", 4001), "attempt": 1},
    # What the attempt before wrote is referred to, and the rest is tiny: a body in the record, and a pack.
    14: lambda: {"w": noise("<f4", 4001), "attempt": 2},
}
"""By step. Step 14 is written by a second attempt."""

DIRECTORY, TORCH, JAX, SECOND = 10, 11, 12, 14


def directory(root):
    """What step 10 saves."""
    (root / "empty").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "sub" / "data.bin").write_bytes(bytes(range(256)))
    (root / "none").write_bytes(b"")
    (root / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"name")
    (root / "link").symlink_to("sub/data.bin")
    (root / "sub" / "data.bin").chmod(0o640)
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o740)
            os.utime(path, ns=(DIRECTORY_TIME_NS, DIRECTORY_TIME_NS))
    root.chmod(0o750)
    os.utime(root, ns=(DIRECTORY_TIME_NS, DIRECTORY_TIME_NS))
    return root


def torch_state():
    import torch

    base = torch.arange(12, dtype=torch.float32)
    return {
        "shared": [base[:6].reshape(2, 3), base[6:], base.reshape(3, 4).t()],
        "bf16": torch.tensor([1.5, -2.0]).bfloat16(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 3),
        "size": torch.Size([2, 3]),
        "generator": torch.Generator().manual_seed(7),
    }


def jax_state():
    import jax
    import ml_dtypes

    return {
        "x": jax.numpy.arange(6, dtype="float32").reshape(2, 3),
        "bf16": jax.numpy.ones(3, dtype="bfloat16"),
        "key": jax.random.key(7),
        "ml": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
    }


def make(folder, work):
    """Write the run. Retention keeps everything but step 0, which is deleted."""
    register()
    keep = limpet.Last(50) | limpet.Best("loss", 2) | limpet.Periodic(steps=5)
    with limpet.Checkpointer(folder, retain=keep, owner="golden", compression="zstd") as cp:
        for step in range(SECOND):
            if step == DIRECTORY:
                cp.save(directory(work / "saved"), step=step, durable=True)
                continue
            state = {TORCH: torch_state, JAX: jax_state, **STATES}[step]()
            cp.write(state, step=step, meta={"loss": 1 / (step + 1)}, pin=step == 1, durable=True)
        cp.pin(4)
        cp.delete(0)
        with cp.child(CHILD) as child:
            child.write({"items": 3}, step=0, durable=True)
    with limpet.Checkpointer(folder, retain=limpet.Last(50), owner="golden", compression="zstd") as cp:
        assert cp.resume().next_step == SECOND
        cp.write(STATES[SECOND](), step=SECOND, durable=True)
        cp.write("without a step", durable=True)


def fixed():
    """Everything that chance, the clock or the machine decides, decided."""
    numbers = count(1)
    secrets = SimpleNamespace(token_hex=lambda size: f"{next(numbers):0{2 * size}x}")
    patches = [mock.patch.object(module, "secrets", secrets) for module in (log, opening, upload)]
    patches.append(mock.patch.object(log, "time", SimpleNamespace(time=lambda: TIME)))
    patches.append(mock.patch.object(log, "this_writer", return_value=Writer("host", 1, "limpet 0.1.0")))
    return patches


def trained(step):
    """What training does to weights: halves and doubles change at every step, floats every other one, at last nothing."""
    random = np.random.default_rng(3)
    state = {"h": noise("<f2", 6001), "f": noise("<f4", 3000), "d": noise("<f8", 2000), "step": step}
    for past in range(1, min(step, LAST_TRAINED) + 1):
        for name, every in (("h", 1), ("f", 2), ("d", 1)):
            if past % every == 0:
                w = state[name]
                state[name] = (w + random.standard_normal(w.size) * 1e-4 * np.abs(w)).astype(w.dtype)
    return state


LAST_TRAINED, DELTA_SECOND = 4, 5
DELTA_SEQS = [6, 9]


def make_deltas(folder, _work):
    """Two of six checkpoints are left, and the packs that they build on. The last is of a second attempt.

    Every array has chunks of its own, as large ones have.
    """
    for module in (chunks, staging):
        mock.patch.object(module, "SHARED_BYTES", 1000).start()
    with limpet.Checkpointer(folder, retain=limpet.Last(2), owner="golden", compression="zstd", delta=True) as cp:
        for step in range(DELTA_SECOND):
            cp.write(trained(step), step=step, durable=True)
        cp.sweep()
    with limpet.Checkpointer(folder, retain=limpet.Last(2), owner="golden", compression="zstd") as cp:
        assert cp.resume().next_step == DELTA_SECOND
        cp.write(trained(DELTA_SECOND), step=DELTA_SECOND, durable=True)
        cp.sweep()


RUNS = {FOLDER: make, DELTA_FOLDER: make_deltas}


def main(name):
    [(made, write)] = [(made, write) for made, write in RUNS.items() if made.name == name]
    shutil.rmtree(made, ignore_errors=True)
    for patch in fixed():
        patch.start()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write(work / "run", work)
        for path in sorted((work / "run").rglob("*")):
            relative = path.relative_to(work / "run")
            if path.is_file() and path.name not in ("writer.lock", "reserve"):
                (made / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, made / relative)
    print(f"{made}: {sum(path.stat().st_size for path in made.rglob('*') if path.is_file())} bytes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
