"""Small runs to damage, and what reading each of them must give.

Every run has the same log, in two sessions: open (1), commit of step 0 (2), close (3), open (4), commit of step 1 (5),
close (6). Checkpoints 2 and 5 are live. ``FORK`` went its own way after record 3, ``OTHER`` is another run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.faulty import Faulty, Shelf, write_over

from limpet.format.layout import log_key
from limpet.format.record import decode_record
from limpet.stores.memory import MemoryStore

OLDER, NEWEST = 2, 5
HEAD = 6
Objects = dict[str, bytes]


def _floats(dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Values as weights have them, whose exponents compress."""
    return np.random.default_rng(seed).normal(0, 0.02, 3000).astype(dtype)


def _numbers(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 50, 6000, dtype=np.int32)


def _noise(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, 6000, dtype=np.uint8)


STATES: dict[str, Any] = {
    "planes2": lambda step: _floats("f2", step),
    "planes4": lambda step: _floats("f4", step),
    "planes8": lambda step: _floats("f8", step),
    "zstd": _numbers,
    "raw": _noise,
    "body": lambda step: {"step": step, "text": "x" * 100, "few": np.arange(20) + step},
    "shared": lambda step: {"base": np.resize(_noise(9), 270_000), "head": _noise(step)},
}
"""How the state of a step is made; named after the codec of its chunk, or after where its bytes lie."""


@dataclass(frozen=True)
class World:
    """One run.

    Attributes:
        name: of its kind of state.
        objects: all of it, sound.
    """

    name: str
    objects: Objects

    def state(self, step: int) -> Any:
        return STATES[self.name](step)

    def holds(self, found: Any, step: int) -> bool:
        """Whether ``found`` is, bit for bit, the state of ``step``."""
        return _same(found, self.state(step))

    def pack(self, seq: int) -> str:
        """Key of the pack that the checkpoint's manifest lies in; empty if it is in the record."""
        commit = decode_record(self.objects[log_key(seq)], seq)[0].commit
        assert commit is not None
        return commit.manifest.key


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict) and list(found) == list(wanted) and all(_same(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, np.ndarray):
        return (
            type(found) is np.ndarray
            and (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            and found.tobytes() == wanted.tobytes()
        )
    return type(found) is type(wanted) and bool(found == wanted)


def store_of(objects: Objects) -> Faulty:
    """A fresh store that holds these objects."""
    store = Faulty(MemoryStore())
    shelf = Shelf(store.store)
    for key, data in objects.items():
        shelf.replace(key, data)
    return store


def _session(store: Faulty, name: str, step: int, salt: int) -> Objects:
    with write_over(store, compression="zstd") as cp:
        cp.write(STATES[name](step + salt), step=step, durable=True)
    return Shelf(store.store).objects


def make(name: str) -> tuple[World, Objects, Objects]:
    """A run, the same run as it went on elsewhere, and another run altogether."""
    store = Faulty(MemoryStore())
    begun = _session(store, name, 0, 0)
    world = World(name, _session(store, name, 1, 0))
    fork = _session(store_of(begun), name, 1, 100)
    elsewhere = Faulty(MemoryStore())
    _session(elsewhere, name, 0, 200)
    other = _session(elsewhere, name, 1, 200)
    assert [decode_record(world.objects[log_key(seq)], seq)[0].kind for seq in range(1, HEAD + 1)] == [
        "open", "commit", "close", "open", "commit", "close",
    ]  # fmt: skip
    return world, fork, other
