"""What the demo shows at its end, for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from limpet.cli.demo.attempts import Attempt, Spread, Totals, replayed_steps, totals
from limpet.cli.demo.messages import Finished
from limpet.cli.output import Column, duration, print_table, size

__all__ = ["Outcome", "as_document", "show"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both runs of the demo.

    Attributes:
        url: below which they lie.
        is_kept: whether they are still there.
        steps: training steps of each.
        uninterrupted: the attempts of the run that nobody killed: one.
        interrupted: the attempts of the run that was killed again and again.
        seconds: that all of it took.
    """

    url: str
    is_kept: bool
    steps: int
    uninterrupted: Sequence[Attempt]
    interrupted: Sequence[Attempt]
    seconds: float

    @property
    def kills(self) -> int:
        """How many attempts were killed."""
        return sum(attempt.killed for attempt in self.interrupted)

    @property
    def expected(self) -> Finished | None:
        """What the uninterrupted run had at its end."""
        return self.uninterrupted[-1].finished

    @property
    def actual(self) -> Finished | None:
        """What the interrupted run had at its end."""
        return self.interrupted[-1].finished

    @property
    def is_equal(self) -> bool:
        """Whether both ended with the same bits, in memory and in the store."""
        if self.expected is None or self.actual is None:
            return False
        states = {self.expected.state, self.expected.stored, self.actual.state, self.actual.stored}
        return self.expected.weights == self.actual.weights and len(states) == 1


def show(outcome: Outcome) -> None:
    """Print attempts, stalls, bytes and the verdict on stdout."""
    print()
    _show_attempts(outcome)
    print()
    _show_stalls(outcome)
    print()
    for line in _bytes_written(totals(outcome.interrupted), outcome):
        print(line)
    print()
    _show_verdict(outcome)
    if outcome.is_kept:
        print(f"Both runs were left at {outcome.url}")


def as_document(outcome: Outcome) -> dict[str, Any]:
    """Give all that ``show`` prints as one JSON document; durations in seconds."""
    pickles = Spread.of(seconds for attempt in outcome.uninterrupted for seconds in attempt.pickles_seconds)
    return {
        "equal": outcome.is_equal,
        "kills": outcome.kills,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 3),
        "url": outcome.url if outcome.is_kept else None,
        "uninterrupted": _run_document(outcome.uninterrupted),
        "interrupted": _run_document(outcome.interrupted),
        "pickle_fsync_seconds": _spread_document(pickles),
    }


def _show_attempts(outcome: Outcome) -> None:
    columns = (
        Column("attempt"),
        Column("resumed at step"),
        Column("ended", is_number=False),
        Column("steps replayed"),
        Column("saves"),
        Column("seconds"),
    )
    replayed = replayed_steps(outcome.interrupted)
    rows = [
        [
            str(number),
            str(attempt.resumed.next_step) if attempt.resumed is not None and attempt.resumed.seq else "from nothing",
            f"killed after step {attempt.last_step}" if attempt.killed else "finished",
            str(again),
            str(len(attempt.stalls_seconds)),
            f"{attempt.seconds:.1f}",
        ]
        for number, (attempt, again) in enumerate(zip(outcome.interrupted, replayed, strict=True), start=1)
    ]
    done = totals(outcome.interrupted)
    spent = sum(attempt.seconds for attempt in outcome.interrupted)
    rows.append(["total", "", _kills(outcome), str(sum(replayed)), str(done.saves), f"{spent:.1f}"])
    print_table(f"The run that was killed ({outcome.steps} steps)", columns, rows)


def _show_stalls(outcome: Outcome) -> None:
    pickles = Spread.of(seconds for attempt in outcome.uninterrupted for seconds in attempt.pickles_seconds)
    spreads = (
        ("limpet write, uninterrupted run", totals(outcome.uninterrupted).stall),
        ("pickle + fsync, uninterrupted run", pickles),
        ("limpet write, killed run", totals(outcome.interrupted).stall),
    )
    rows = [
        [name, str(spread.count), duration(spread.median), duration(spread.p99)] for name, spread in spreads if spread
    ]
    columns = (Column("", is_number=False), Column("saves"), Column("median"), Column("p99"))
    print_table("Training stood still for each save", columns, rows)


def _bytes_written(done: Totals, outcome: Outcome) -> list[str]:
    ratio = f"{done.ratio:.2f}" if done.ratio is not None else "unknown"
    lines = [
        f"State {size(done.raw_bytes)}, stored in {size(done.stored_bytes)} (ratio {ratio}).",
        f"The killed run wrote {size(done.new_bytes)}. Of its {done.saves} saves",
        f"  {done.committed} were committed,",
        f"  {done.superseded} superseded by a newer one before they were written,",
        f"  {done.lost_with_writer} unsettled when their process was killed.",
    ]
    if outcome.actual is not None:
        lines.append(f"It recognises {outcome.actual.accuracy:.1%} of the digits held out.")
    return lines


def _show_verdict(outcome: Outcome) -> None:
    if outcome.is_equal and outcome.actual is not None:
        text = (
            f"EQUAL, bit for bit: after {_kills(outcome)} the weights, and all of the state, are those of the "
            f"uninterrupted run.\nweights sha256 {outcome.actual.weights}"
        )
    else:
        text = (
            "NOT EQUAL: the run that was killed did not end where the uninterrupted run did. This is a bug of limpet.\n"
            f"uninterrupted {_digests(outcome.expected)}\nkilled        {_digests(outcome.actual)}"
        )
    if sys.stdout.isatty():
        style = "bold green" if outcome.is_equal else "bold red"
        Console().print(Panel(Text(text), border_style=style, expand=False))
    else:
        print(text)


def _kills(outcome: Outcome) -> str:
    return "1 kill" if outcome.kills == 1 else f"{outcome.kills} kills"


def _digests(finished: Finished | None) -> str:
    if finished is None:
        return "did not finish"
    return f"weights {finished.weights} state {finished.state} stored {finished.stored}"


def _run_document(attempts: Sequence[Attempt]) -> dict[str, Any]:
    done = totals(attempts)
    finished = attempts[-1].finished
    return {
        "attempts": [
            {
                "resumed_at_step": attempt.resumed.next_step if attempt.resumed is not None else None,
                "last_step": attempt.last_step,
                "killed": attempt.killed,
                "steps_replayed": again,
                "saves": len(attempt.stalls_seconds),
                "seconds": round(attempt.seconds, 3),
            }
            for attempt, again in zip(attempts, replayed_steps(attempts), strict=True)
        ],
        "saves": done.saves,
        "committed": done.committed,
        "superseded": done.superseded,
        "lost_with_writer": done.lost_with_writer,
        "stall_seconds": _spread_document(done.stall),
        "raw_bytes": done.raw_bytes,
        "stored_bytes": done.stored_bytes,
        "new_bytes": done.new_bytes,
        "ratio": round(done.ratio, 4) if done.ratio is not None else None,
        "weights_sha256": finished.weights if finished else None,
        "state_sha256": finished.state if finished else None,
        "stored_sha256": finished.stored if finished else None,
        "accuracy": round(finished.accuracy, 4) if finished else None,
    }


def _spread_document(spread: Spread | None) -> dict[str, float] | None:
    return {"count": spread.count, "median": spread.median, "p99": spread.p99} if spread else None
