"""What is true after a death: nothing that was staged is lost, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.remote.trainer import STEPS, state_of

import limpet
from limpet import Checkpointer

PROGRAM = Path(__file__).with_name("trainer.py")
PATIENCE_SECONDS = 20.0


@dataclass
class Trained:
    """What a trainer said, and how it ended."""

    code: int
    stderr: str
    pushed: list[int] = field(default_factory=list)
    writer: int | None = None
    children: list[int] = field(default_factory=list)
    closed: bool = False


def train(folder: Path, how: str, at: int = 0) -> Trained:
    """Run the trainer to its end."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, PROGRAM, folder, how, str(at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )
    trained = Trained(done.returncode, done.stderr)
    for line in done.stdout.splitlines():
        match line.split():
            case ["pushed", step]:
                trained.pushed.append(int(step))
            case ["writer", pid]:
                trained.writer = int(pid)
            case ["child", pid]:
                trained.children.append(int(pid))
            case ["closed"]:
                trained.closed = True
    return trained


def is_alive(pid: int) -> bool:
    """Whether there is such a process, zombies apart."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def equal(expected: object, found: object) -> bool:
    """Bit for bit."""
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and expected.tobytes() == found.tobytes()
    return expected == found


def check_run(folder: Path, pushed: list[int], *, exactly: bool = False, locked: bool = False) -> None:
    """The successor finds the newest pushed state, whole; every commit is of a step of its own.

    Args:
        folder: of the trainer.
        pushed: steps whose writes have returned; the one after them may be there too, unless ``exactly``.
        locked: somebody lives who holds the locks of the trainer's folders: they may lie there still.
    """
    with Checkpointer(folder / "run") as cp:  # waits for an orphan, if there is one
        steps = [info.step for info in cp.checkpoints()]
        assert steps == list(range(len(steps)))
        newest = steps[-1] if steps else -1
        least = pushed[-1] if pushed else -1
        assert newest == least if exactly else newest in (least, least + 1)
        for step in steps:
            found = cp.read(at=step)
            expected = state_of(step, folder / "expected") if step % 2 == 0 else state_of(step)
            file = expected.pop("file", None)
            if file is not None:
                assert found.pop("file").restore().read_bytes() == file.path.read_bytes()
            assert expected.keys() == found.keys()
            assert all(equal(expected[name], found[name]) for name in expected)
    # One that is empty was being made, or removed, when its owner was killed; the next attempts see to that.
    assert locked or not [spool for spool in (folder / "run").rglob("limpet-spool-*") if any(spool.iterdir())]
    assert newest <= STEPS - 1


def end(pids: list[int]) -> None:
    """Kill what a test has left running on purpose."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


assert limpet
