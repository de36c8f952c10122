"""A bound on the bytes that are in flight between encoding and the store."""

from __future__ import annotations

from collections import deque

import anyio

__all__ = ["ByteBudget"]


class ByteBudget:
    """A first-come-first-served semaphore that counts bytes, for one event loop.

    Args:
        limit_bytes: how many may be held at once; a larger request is let through alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    async def acquire(self, nbytes: int) -> None:
        """Wait until ``nbytes`` fit, and hold them."""
        if not self._waiting and self._fits(nbytes):
            self.held_bytes += nbytes
            return
        event = anyio.Event()
        entry = (nbytes, event)
        self._waiting.append(entry)
        try:
            await event.wait()
        except BaseException:
            if event.is_set():
                self.release(nbytes)
            else:
                self._waiting.remove(entry)
                self._admit()
            raise

    def has_room(self, nbytes: int) -> bool:
        """Whether ``acquire(nbytes)`` would not have to wait."""
        return not self._waiting and self._fits(nbytes)

    def release(self, nbytes: int) -> None:
        """Give ``nbytes`` back."""
        self.held_bytes -= nbytes
        self._admit()

    def _fits(self, nbytes: int) -> bool:
        return self.held_bytes == 0 or self.held_bytes + nbytes <= self.limit_bytes

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            nbytes, event = self._waiting.popleft()
            self.held_bytes += nbytes
            event.set()
