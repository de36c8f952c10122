"""A trainer that writes with a process of its own, and dies as it is told: ``trainer.py FOLDER HOW [AT]``.

It says ``writer PID`` once the run is open, and ``pushed STEP`` as soon as a write has returned.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import limpet
from limpet import Checkpointer, Files, Last
from limpet.remote import channel

STEPS = 5
BIG = 300_000


def state_of(step: int, folder: Path | None = None) -> dict[str, Any]:
    """What is saved at ``step``: leaves that lie in a slot, in the message itself, and in a spooled file."""
    rng = np.random.default_rng(step)
    if step % 2:
        return {"step": step, "small": rng.random(10)}
    state = {"step": step, "big": rng.random(BIG), "frozen": rng.bytes(BIG), "small": [1, "two"]}
    if folder is not None:
        file = folder / "model.bin"
        file.write_bytes(rng.bytes(2 << 20))
        state["file"] = Files(file)
    return state


def die() -> None:
    """Here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


def say(*words: object) -> None:
    """Print at once."""
    print(*words, flush=True)


def counting(at: int) -> Callable[[object], None]:
    """Dies at the ``at``-th call."""
    left = iter(range(1, at))

    def count(_: object) -> None:
        if next(left, None) is None:
            die()

    return count


def main(folder: Path, how: str, at: int) -> None:
    if how == "sent":
        channel.sent = counting(at)
    if how == "received":
        channel.received = counting(at)
    (folder / "source").mkdir(exist_ok=True)
    cp = Checkpointer(folder / "run", engine="process", on_busy="wait", retain=Last(100))
    cp.__enter__()
    say("writer", cp._open_session.threads.link.pid)
    for step in range(STEPS):
        cp.write(state_of(step, folder / "source"), step=step)
        say("pushed", step)
    if how == "killed":
        die()
    if how == "segfault":
        ctypes.string_at(0)
    if how == "left open":
        return
    if how == "exit":
        os._exit(3)
    if how == "exec":
        os.execv(sys.executable, [sys.executable, "-c", ""])
    if how == "forked":
        if (child := os.fork()) == 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            signal.pause()
        say("child", child)
        die()
    cp.close()
    say("closed")


if __name__ == "__main__":
    assert limpet
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
