"""Deadlines and clocks of the engine, in one place, so that tests can replace them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from limpet.errors import StoreError

__all__ = ["Timing"]

T = TypeVar("T")


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

    async def within(self, deadline: float, call: Awaitable[T], *, share: float = 1.0) -> T:
        """What ``call`` gives, if it comes within this share of the time that is left; a moment is left always.

        Raises:
            StoreError: it did not come; whether it takes effect is not known.
        """
        left = max((deadline - self.clock()) * share, self.commit_deadline / 20)
        with anyio.move_on_after(left):
            return await call
        raise StoreError(f"no answer came within {left:.3g} s", transient=True)
