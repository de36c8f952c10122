"""Starting child processes, talking to them, and judging from outside how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.process.programs import place, state_of

import limpet

SEEDLING = Path(__file__).with_name("seedling.py")
HANG_SECONDS = 30.0
"""A child that runs longer hangs: every scenario ends by itself within a few seconds."""
NEVER_SAID = ("panicked at", "RUST_BACKTRACE", "Fatal Python error", "_enter_buffered_busy", "deadlock")
"""What no ending may print, whatever else it says."""
_GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: as ``subprocess`` gives it: negative for a signal.
        lines: what it printed.
        stderr: all of it.
        seconds: from its last nudge to its end.
        hung: it had to be killed; ``stderr`` shows where its threads were.
    """

    code: int
    lines: list[str]
    stderr: str
    seconds: float
    hung: bool = False

    def steps(self, word: str) -> list[int]:
        """The numbers of the lines that begin with ``word``."""
        return [int(line.split()[1]) for line in self.lines if line.startswith(f"{word} ")]


class Nursery:
    """Starts children: forks of a process that has its imports behind it, or fresh interpreters."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._seedling = subprocess.Popen(
            [sys.executable, str(SEEDLING), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self._answers = self._channel.makefile("r")

    def start(self, program: str, *arguments: object, cold: bool = False) -> Child:
        """Start ``program`` of ``programs.py``."""
        task = [program, *map(str, arguments)]
        stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the child has it as long as it lives
        if cold:
            process = subprocess.Popen(
                [sys.executable, str(SEEDLING), "--cold", *task],
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
            return Child(process.pid, process.stdout, stderr, process.wait)
        ours, theirs = os.pipe()
        socket.send_fds(self._channel, [json.dumps(task).encode()], [theirs, stderr.fileno()])
        os.close(theirs)
        pid = int(self._answers.readline())
        return Child(pid, os.fdopen(ours, "rb", 0), stderr, lambda: int(self._answers.readline()))

    def close(self) -> None:
        """End the process that the children come from."""
        self._answers.close()
        self._channel.close()
        self._seedling.wait()


@dataclass
class Child:
    """A child that runs. Its nudges are signals; what it prints on stdout is read line by line."""

    pid: int
    stdout: IO[bytes]
    stderr: IO[str]
    wait: Any
    lines: list[str] = field(default_factory=list)
    nudged: float = field(default_factory=time.monotonic)
    _deadline: float = field(default_factory=lambda: time.monotonic() + HANG_SECONDS)
    _rest: bytes = b""

    def read_until(self, word: str) -> str:
        """Read lines up to the next one that begins with ``word``; empty if the child ends before it comes."""
        while (line := self._read_line()) is not None:
            if line.startswith(word):
                return line
        return ""

    def pause(self, seconds: float) -> None:
        """Let it run, for no longer than it lives: what a person does between two presses of Ctrl-C."""
        select.select([self.stdout], [], [], seconds)

    def nudge(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        self.nudged = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> Ended:
        """Read it to its end, and kill it if that does not come."""
        while self._read_line() is not None:
            pass
        hung = time.monotonic() >= self._deadline
        if hung:
            self.nudge(signal.SIGUSR1)
            time.sleep(_GRACE_SECONDS)  # faulthandler writes where every thread is
            os.killpg(self.pid, signal.SIGKILL)
        code = self.wait()
        seconds = time.monotonic() - self.nudged
        self.stdout.close()
        self.stderr.seek(0)
        said = self.stderr.read()
        self.stderr.close()
        return Ended(code, self.lines, said, seconds, hung)

    def _read_line(self) -> str | None:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.stdout], [], [], max(0.0, self._deadline - time.monotonic()))
            piece = os.read(self.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        self.lines.append(line.decode())
        return self.lines[-1]


def newest(root: str, name: str | None = None) -> int | None:
    """The step of what a reader finds, checked against what was written at that step, bit for bit."""
    url, storage = place(root)
    with limpet.open(url, storage=storage) as run:
        if name is not None:
            run = run.child(name)
        found = run.read(strict=True)
    if found is None:
        return None
    expected = state_of(found["step"])
    assert found.keys() == expected.keys()
    assert found["data"].tobytes() == expected["data"].tobytes()
    return int(found["step"])


def judge(ended: Ended, code: int | tuple[int, ...], *, says: str = "", quiet: bool = False) -> None:
    """What holds for every ending: no hang, the exit code, nothing of what is never said."""
    report = f"\nexit code {ended.code} after {ended.seconds:.2f} s, stdout {ended.lines[-5:]}, stderr:\n{ended.stderr}"
    assert not ended.hung, f"it hung{report}"
    assert ended.code in (code if isinstance(code, tuple) else (code,)), f"expected exit code {code}{report}"
    assert not any(words in ended.stderr for words in NEVER_SAID), report
    assert re.search(says, ended.stderr), f"expected {says!r}{report}"
    assert not (quiet and ended.stderr), f"expected silence{report}"
