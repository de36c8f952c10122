"""What the demo learned from its children's messages: plain data and the figures drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from limpet.cli.demo.messages import Finished, Message, Pickled, Resumed, Saved, Settled, Stepped

__all__ = ["Attempt", "Spread", "Totals", "replayed_steps", "totals"]


@dataclass(slots=True)
class Attempt:
    """One life of a child, filled as its messages arrive.

    Attributes:
        resumed: where it started; ``None`` until it said so.
        last_step: the last step that it finished; ``None`` before the first.
        killed: whether we killed it.
        stalls_seconds: how long each ``write`` held up its training.
        pickles_seconds: how long each synchronous pickle + fsync did.
        receipts: of the saves whose end it lived to see.
        finished: what it had at the end, if it got there.
        seconds: how long it lived.
    """

    resumed: Resumed | None = None
    last_step: int | None = None
    killed: bool = False
    stalls_seconds: list[float] = field(default_factory=list)
    pickles_seconds: list[float] = field(default_factory=list)
    receipts: list[Settled] = field(default_factory=list)
    finished: Finished | None = None
    seconds: float = 0.0

    def take(self, message: Message) -> None:
        """Note what ``message`` says."""
        match message:
            case Resumed():
                self.resumed = message
            case Stepped(step=step):
                self.last_step = step
            case Saved(stalled_seconds=seconds):
                self.stalls_seconds.append(seconds)
            case Settled():
                self.receipts.append(message)
            case Pickled(seconds=seconds):
                self.pickles_seconds.append(seconds)
            case Finished():
                self.finished = message

    @property
    def reached(self) -> int:
        """The first step that it did not finish."""
        if self.last_step is not None:
            return self.last_step + 1
        return self.resumed.next_step if self.resumed is not None else 0


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 99th percentile (nearest rank) of ``count`` durations, in seconds."""

    count: int
    median: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread | None:
        """Give the spread of ``seconds``, or ``None`` where there are none."""
        ordered = sorted(seconds)
        if not ordered:
            return None
        return cls(len(ordered), _nearest_rank(ordered, 0.5), _nearest_rank(ordered, 0.99))


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run's attempts did together.

    ``committed`` and the bytes count each checkpoint once, also one whose commit its writer did not live to
    report: the next attempt resumed from it. One that was replaced before anybody spoke of it is missed.
    """

    saves: int
    committed: int
    superseded: int
    lost_with_writer: int
    new_bytes: int
    raw_bytes: int
    stored_bytes: int
    stall: Spread | None

    @property
    def ratio(self) -> float | None:
        """Bytes of a state in memory for one byte in the store, at the newest checkpoint."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else None


def replayed_steps(attempts: Sequence[Attempt]) -> list[int]:
    """Give, for each attempt, how many steps it did that the one before had already done."""
    replayed = [0] * len(attempts)
    furthest = 0
    for number, attempt in enumerate(attempts):
        if attempt.resumed is not None:
            replayed[number] = max(0, furthest - attempt.resumed.next_step)
        furthest = max(furthest, attempt.reached)
    return replayed


def totals(attempts: Sequence[Attempt]) -> Totals:
    """Add up what ``attempts``, all of one run, did."""
    receipts = [receipt for attempt in attempts for receipt in attempt.receipts]
    committed = {receipt.seq: receipt for receipt in receipts if receipt.outcome == "committed"}
    resumed = {a.resumed.seq: a.resumed for a in attempts if a.resumed is not None and a.resumed.seq}
    checkpoints: dict[int, Settled | Resumed] = {**resumed, **committed}
    newest = checkpoints[max(checkpoints)] if checkpoints else None
    saves = sum(len(attempt.stalls_seconds) for attempt in attempts)
    superseded = sum(1 for receipt in receipts if receipt.outcome == "superseded")
    return Totals(
        saves=saves,
        committed=len(checkpoints),
        superseded=superseded,
        lost_with_writer=max(0, saves - len(checkpoints) - superseded),
        new_bytes=sum(checkpoint.new_bytes for checkpoint in checkpoints.values()),
        raw_bytes=newest.raw_bytes if newest else 0,
        stored_bytes=newest.stored_bytes if newest else 0,
        stall=Spread.of(seconds for attempt in attempts for seconds in attempt.stalls_seconds),
    )


def _nearest_rank(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
