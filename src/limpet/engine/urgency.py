"""How hard a save presses on the machine: as little as lets it be durable in time."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from limpet.workers import LOWEST_NICE, STEADY_NICE, Workers

__all__ = ["MAX_LAG_SECONDS", "Encoders", "Urgency", "urgency"]

MAX_LAG_SECONDS = 30.0
"""From the call to the commit, as long as the store keeps up."""
_TOO_EARLY = 0.1
"""Within this share of the lag nothing is concluded from how far a save has come."""
_MARGIN = 0.7
"""A save is to be encoded within this share of the lag; the rest is for its upload and commit."""
_THREADS = 2


class Urgency(IntEnum):
    """Which threads a save is encoded on.

    Attributes:
        BACKGROUND: those that take what the program leaves over.
        STEADY: those that take about a tenth of a core each, also if the program wants all of it.
        URGENT: those that take as much as the program's own.
    """

    BACKGROUND = 0
    STEADY = 1
    URGENT = 2


def urgency(elapsed_seconds: float, share_encoded: float, *, max_lag_seconds: float = MAX_LAG_SECONDS) -> Urgency:
    """How a save goes on that nobody waits for.

    Args:
        elapsed_seconds: since the call.
        share_encoded: of its bytes, 0 to 1.
        max_lag_seconds: within which it should be durable.
    """
    if elapsed_seconds >= max_lag_seconds:
        return Urgency.URGENT
    if elapsed_seconds < _TOO_EARLY * max_lag_seconds:
        return Urgency.BACKGROUND
    # At the rate so far it will be encoded after elapsed / share seconds.
    in_time = elapsed_seconds <= _MARGIN * max_lag_seconds * share_encoded
    return Urgency.BACKGROUND if in_time else Urgency.STEADY


class Encoders:
    """The threads that saves are encoded on, for each urgency.

    Args:
        background, steady, urgent: for tests; made here if they are not given.
    """

    def __init__(
        self, background: Workers | None = None, steady: Workers | None = None, urgent: Workers | None = None
    ) -> None:
        self.urgent = urgent or Workers(_THREADS, "limpet-urgent")
        self._workers = {
            Urgency.BACKGROUND: background or Workers(_THREADS, "limpet-encode", nice=LOWEST_NICE),
            Urgency.STEADY: steady or Workers(_THREADS, "limpet-steady", nice=STEADY_NICE),
            Urgency.URGENT: self.urgent,
        }

    def at(self, urgency: Urgency) -> Workers:
        """Those of this urgency."""
        return self._workers[urgency]

    def start(self) -> None:
        """Start them all: a drain at the program's end cannot start any."""
        for workers in self._workers.values():
            workers.start()

    @property
    def closers(self) -> list[Callable[[float], bool]]:
        """What ends them, each within so many seconds."""
        return [workers.close for workers in self._workers.values()]
