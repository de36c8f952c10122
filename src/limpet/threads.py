from __future__ import annotations

import time

from limpet.engine.memory import MemoryBudget, default_limit_bytes
from limpet.engine.staging import Copier
from limpet.engine.urgency import Encoders
from limpet.loop import EngineLoop
from limpet.remote.launch import Launched
from limpet.remote.link import Link

__all__ = ["Threads"]


class Threads:
    """The loop and the threads, and the writer's process if there is to be one, that a run and its children share."""

    def __init__(self, memory_limit: int | None, *, with_process: bool, launched: Launched | None = None) -> None:
        self.loop = EngineLoop()
        self.encoders = Encoders()
        self.urgent = self.encoders.urgent
        self.copier = Copier()
        self.budget = MemoryBudget(memory_limit if memory_limit is not None else default_limit_bytes())
        # Started now: a drain at the program's end cannot start any.
        if with_process:
            self.urgent.start()
        else:
            self.encoders.start()
        try:
            self.link = Link(self.loop.call_soon, launched) if with_process else None
        except BaseException:
            self.link = None
            self.close(0.0)
            raise

    def close(self, timeout_seconds: float) -> None:
        """End them all, within about that long."""
        deadline = time.monotonic() + timeout_seconds
        if self.link is not None:
            self.link.end(timeout_seconds)
        for end in (self.loop.stop, *self.encoders.closers):
            end(max(0.0, deadline - time.monotonic()))
        self.copier.close()
