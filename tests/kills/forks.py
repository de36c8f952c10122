"""The test's end of the zygote: start a life, wait until it has died, and read what it had been told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.kills.life import LIFE, Live, Place, live_after

ROOT = Path(__file__).parents[2]

__all__ = ["Ended", "Zygote", "run_zygote"]


@dataclass(frozen=True)
class Ended:
    """What became of a life.

    Attributes:
        how: ``{"signal": 9}``, ``{"exit": 0}`` or ``{"stopped": 19}``.
        lines: of its report.
        errors: what it wrote to its standard error.
        first: index of its first act.
    """

    how: dict[str, int]
    lines: list[list[str]]
    errors: str
    first: int = 0

    @property
    def was_struck(self) -> bool:
        """Whether the point that was asked for was reached."""
        if self.how == {"exit": 0}:
            return False
        assert self.how in ({"signal": signal.SIGKILL}, {"stopped": signal.SIGSTOP}), f"{self.how}\n{self.errors}"
        return True

    def indices(self, word: str) -> list[int]:
        """Of the acts that the report says this of."""
        return [int(line[1]) for line in self.lines if line[0] == word]

    @property
    def points(self) -> int:
        """How many points a life passed that was not struck."""
        return int(self.lines[-1][1])

    def allowed(self) -> list[Live]:
        """Every live set that may be found: that of the last act which ended, or of a later one which began."""
        assert self.indices("refused") == [], self.lines
        states = live_after(LIFE)
        newest_done = max(self.indices("done"), default=self.first - 1)
        newest_begun = max(self.indices("begin"), default=self.first - 1)
        return states[newest_done + 1 : newest_begun + 2]


class Zygote:
    """Forks lives; see ``tests.kills.zygote``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()

    def fork(self, place: Place, report: Path, *, wait: bool = False, **arguments: Any) -> int:
        """Start a life; its process id."""
        arguments = {"report": str(report), **asdict(place), **arguments}
        errors = str(report.with_suffix(".errors"))
        return int(self._ask(do="fork", job="life", errors=errors, wait=wait, arguments=arguments)["pid"])

    def wait(self, pid: int, report: Path, first: int = 0) -> Ended:
        """Wait until a life has ended or was stopped."""
        how = self._ask(do="wait", pid=pid)
        return Ended(how, *self._told(report), first)

    def live(self, place: Place, report: Path, *, first: int = 0, **arguments: Any) -> Ended:
        """A life from ``fork`` to its end."""
        return self.wait(self.fork(place, report, first=first, **arguments), report, first)

    def _told(self, report: Path) -> tuple[list[list[str]], str]:
        lines = [line.split() for line in report.read_text().splitlines()] if report.exists() else []
        errors = report.with_suffix(".errors")
        return lines, errors.read_text() if errors.exists() else ""

    def _ask(self, **request: Any) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the zygote died with {self._process.wait()}"
        answer: dict[str, int] = json.loads(line)
        return answer


@contextmanager
def run_zygote() -> Iterator[Zygote]:
    """A zygote that has started, and its end."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.kills.zygote"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Zygote(process)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
