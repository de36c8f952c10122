"""When the engine looks into its queue: at once, or when the time between two commits is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from limpet.engine.queue import SaveQueue
from limpet.engine.save import Save

__all__ = ["Pacer"]


class Pacer:
    """Starts the saves of a queue, each when it is its turn. Lives on the engine's loop.

    Args:
        queue: where callers put their saves.
        interval_seconds: between the starts of two paced saves, at least.
        clock: monotonic seconds.
        start: begins to write a save.
    """

    def __init__(
        self, queue: SaveQueue, *, interval_seconds: float, clock: Callable[[], float], start: Callable[[Save], None]
    ) -> None:
        self._queue = queue
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._start = start
        self._last_start = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Start every save whose turn it is. A paced one makes it look again by itself."""
        self.stop()
        while isinstance(found := self._queue.start_nowait(self._seconds_left), Save):
            self._last_start = self._clock()
            self._start(found)
        if found is not None:
            self._timer = asyncio.get_running_loop().call_later(found, self.look)

    def stop(self) -> None:
        """Do not look again by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _seconds_left(self) -> float:
        return max(0.0, self._last_start + self._interval_seconds - self._clock())
