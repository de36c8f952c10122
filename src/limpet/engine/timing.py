"""Deadlines and clocks of the engine, in one place, so that tests can replace them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Deadlines and clocks of the engine, in seconds; tests replace them.

    Attributes:
        commit_deadline: how long an unclear create is resolved before it is called unknown.
        open_deadline: how long a takeover races for the next record.
        upload_deadline: how long one pack is tried again, from its first failure.
        grace: how long data stays after it left the live set, for slow readers.
        clock: monotonic.
        sleep: waits.
    """

    commit_deadline: float = 60.0
    open_deadline: float = 60.0
    upload_deadline: float = 120.0
    grace: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
