"""A process that is there to be killed: it resumes, checks what it got, and goes on saving or reading.

It prints a line for every step that was acknowledged, or read. States are of three sizes: in the record, in one small
pack, in a large one that shares most of its chunks with the one before.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from limpet import Checkpointer, Last


def state_of(step: int) -> dict[str, Any]:
    """The state of ``step``, the same in every process."""
    random = np.random.default_rng(step)
    state: dict[str, Any] = {"step": step, "tiny": random.bytes(20)}
    if step % 3:
        state["some"] = random.random(10_000)
    if step % 3 == 2:
        frozen = np.random.default_rng(0).random(600_000)
        frozen[step % 600_000] = step
        state["frozen"] = frozen
    return state


def check(found: Any) -> int:
    """The step of a state that is, byte for byte, one that some attempt wrote."""
    step = int(found["step"])
    wanted = state_of(step)
    assert found.keys() == wanted.keys()
    assert found["tiny"] == wanted["tiny"]
    for name in ("some", "frozen"):
        if name in wanted:
            assert found[name].tobytes() == wanted[name].tobytes()
    return step


def save(root: str) -> None:
    """Save until killed."""
    with Checkpointer(root, retain=Last(2), takeover=False) as cp:
        found = cp.resume(initial=state_of(0))
        step = check(found.state)
        print("resumed", step if found.info else -1, flush=True)
        for number in range(step + 1, step + 100_000):
            cp.write(state_of(number), step=number).result()
            print("acknowledged", number, flush=True)


def read(root: str) -> None:
    """Read until killed, as a writer does when it resumes."""
    while True:
        with Checkpointer(root) as cp:
            print("read", check(cp.resume().state), flush=True)


if __name__ == "__main__":
    {"save": save, "read": read}[sys.argv[1]](sys.argv[2])
