"""When a save is due: a pure decision, on a clock that the caller gives."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TypeAlias

from limpet.errors import UsageError

__all__ = ["Due", "Every", "Interval", "check_period", "due"]


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
        check_period("Every", self.steps, self.seconds)


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


def check_period(name: str, steps: object, seconds: object) -> None:
    """Check what ``name(steps=..., seconds=...)`` was given: one of both, and a number above zero.

    Raises:
        UsageError: it is something else.
    """
    if (steps is None) == (seconds is None):
        raise UsageError(
            f"{name}(steps={steps!r}, seconds={seconds!r}): exactly one of them counts.",
            hint=f"Use {name}(steps=100) or {name}(seconds=60).",
        )
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise UsageError(f"{name}(steps={steps!r}) is not a number of steps.", hint="Give a whole number, 1 or more.")
    if seconds is not None and not _is_duration(seconds):
        raise UsageError(f"{name}(seconds={seconds!r}) is not a duration.", hint="Give a finite number above zero.")


def _is_duration(value: object) -> bool:
    # The bound refuses infinity, and whole numbers that no float can hold; every comparison refuses NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
