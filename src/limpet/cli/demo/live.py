"""Shows attempts as they run: bars on a terminal, one line an event elsewhere, nothing for ``--json``."""

from __future__ import annotations

import sys
from typing import Self, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from limpet.cli.demo.attempts import Attempt
from limpet.cli.demo.messages import Message, Resumed, Stepped

__all__ = ["Bars", "Lines", "Silence"]


class Silence:
    """Shows nothing."""

    def begun(self, number: int, attempt: Attempt) -> None:
        """Show nothing."""

    def told(self, attempt: Attempt, message: Message) -> None:
        """Show nothing."""

    def ended(self, attempt: Attempt) -> None:
        """Show nothing."""


class Lines:
    """One line for each attempt's start and end.

    Args:
        label: of the run, such as ``uninterrupted``.
        steps: of the whole run.
        stream: takes the lines; stdout when left out.
    """

    def __init__(self, label: str, steps: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._steps = steps
        self._stream = stream or sys.stdout
        self._name = label

    def begun(self, number: int, attempt: Attempt) -> None:
        """Remember which attempt it is."""
        self._name = f"{self._label}, attempt {number}"

    def told(self, attempt: Attempt, message: Message) -> None:
        """Say where an attempt starts."""
        if isinstance(message, Resumed):
            self._print(_start(message))

    def ended(self, attempt: Attempt) -> None:
        """Say how it ended."""
        self._print(f"{_end(attempt, self._steps)}, {attempt.seconds:.1f} s")

    def _print(self, text: str) -> None:
        print(f"{self._name}: {text}", file=self._stream, flush=True)


class Bars:
    """A bar for each attempt, on a terminal; ``with Bars(...)`` while they run.

    Args:
        label: of the run.
        steps: of the whole run.
    """

    def __init__(self, label: str, steps: int) -> None:
        self._label = label
        self._steps = steps
        self._bar = TaskID(0)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begun(self, number: int, attempt: Attempt) -> None:
        """Add its bar."""
        name = f"{self._label}, attempt {number}"
        self._bar = self._progress.add_task(name, total=self._steps, note="starting")

    def told(self, attempt: Attempt, message: Message) -> None:
        """Move its bar."""
        if isinstance(message, Resumed):
            self._progress.update(self._bar, completed=message.next_step, note=_start(message))
        elif isinstance(message, Stepped):
            self._progress.update(self._bar, completed=message.step + 1)

    def ended(self, attempt: Attempt) -> None:
        """Stop its bar, and say how it ended."""
        colour = "red" if attempt.killed else "green"
        start = f"{_start(attempt.resumed)}, " if attempt.resumed else ""
        self._progress.update(self._bar, note=f"{start}[{colour}]{_end(attempt, self._steps)}[/{colour}]")
        self._progress.stop_task(self._bar)


def _start(resumed: Resumed) -> str:
    return f"resumed at step {resumed.next_step}" if resumed.seq else "started from nothing"


def _end(attempt: Attempt, steps: int) -> str:
    if not attempt.killed:
        return f"finished {steps} steps"
    where = f"after step {attempt.last_step}" if attempt.last_step is not None else "before its first step"
    return f"killed (SIGKILL) {where}"
