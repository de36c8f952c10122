"""When a save is due: a pure decision, on a clock that the caller gives."""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

from limpet.errors import UsageError

__all__ = ["Due", "Every", "Interval", "check_period", "due", "plain_number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """Save once in so many steps, or once in so many seconds.

    Args:
        steps: a save is due when ``step // steps`` is not what it was at the last one. So with
            ``steps=100``, a loop that calls ``write`` at steps 0, 7, 14 ... saves at 0, 105, 203 ...
        seconds: a save is due when the last one is at least that long ago.

    Raises:
        UsageError: both or neither are given, or not a number above zero (steps: a whole one).
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        steps, seconds = check_period("Every", self.steps, self.seconds)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "seconds", seconds)


Interval: TypeAlias = Every
"""What ``every=`` accepts; a further kind joins this union and gets its own branch in ``due``."""


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a save is due, and why or why not."""

    due: bool
    reason: str


def due(every: Interval, *, step: int | None, now: float, last_step: int | None, last_time: float | None) -> Due:
    """Decide whether to save now.

    Args:
        every: the interval.
        step: the step to be saved.
        now: seconds on a monotonic clock.
        last_step: the step of the last save, ``None`` if it had none or there was none.
        last_time: when the last save was taken, on the same clock; ``None`` if there was none.

    Raises:
        UsageError: the interval counts steps, and ``step`` is ``None``.
    """
    if every.steps is not None:
        return _due_by_steps(every.steps, step, last_step)
    assert every.seconds is not None
    return _due_by_seconds(every.seconds, now, last_time)


def _due_by_steps(steps: int, step: int | None, last_step: int | None) -> Due:
    if step is None:
        raise UsageError(
            f"every=Every(steps={steps}) counts steps, and this write has none.",
            hint="Give write(..., step=...) or use Every(seconds=...).",
        )
    if last_step is None:
        return Due(True, "no step was saved yet")
    if step // steps != last_step // steps:
        return Due(True, f"step {step} is in another interval of {steps} steps than step {last_step}")
    return Due(False, f"step {last_step} was saved; the next is due at step {(last_step // steps + 1) * steps}")


def _due_by_seconds(seconds: float, now: float, last_time: float | None) -> Due:
    if last_time is None:
        return Due(True, "nothing was saved yet")
    elapsed = now - last_time
    if elapsed >= seconds:
        return Due(True, f"the last save is {elapsed:.3g} s ago")
    return Due(False, f"the next save is due in {seconds - elapsed:.3g} s")


def check_period(name: str, steps: object, seconds: object) -> tuple[int | None, float | None]:
    """What ``name(steps=..., seconds=...)`` was given, as Python's own numbers: one of both, above zero.

    Raises:
        UsageError: it is something else.
    """
    if (steps is None) == (seconds is None):
        raise UsageError(
            f"{name}(steps={steps!r}, seconds={seconds!r}): exactly one of them counts.",
            hint=f"Use {name}(steps=100) or {name}(seconds=60).",
        )
    if steps is not None:
        count = plain_number(steps)
        if not isinstance(count, int) or count < 1:
            raise UsageError(
                f"{name}(steps={steps!r}) is not a number of steps.", hint="Give a whole number, 1 or more."
            )
        return count, None
    period = plain_number(seconds)
    # The bound refuses infinity, and whole numbers that no float can hold; every comparison refuses NaN.
    if period is None or not 0 < period <= sys.float_info.max:
        raise UsageError(f"{name}(seconds={seconds!r}) is not a duration.", hint="Give a finite number above zero.")
    return None, period


def plain_number(value: Any) -> int | float | None:
    """A number, another library's too, as Python's own; ``None`` for anything else, above all truth values."""
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":
        return None
    if getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, OverflowError):
        return None
