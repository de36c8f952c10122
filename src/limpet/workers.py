"""Worker threads that outlive the main thread's end and know their priority.

Rules that ``concurrent.futures`` and ``asyncio.to_thread`` cannot keep, and why this exists: a
drain that runs after the main thread has ended must still get work done (the standard pools
refuse it), and workers that compress beside a training loop must be niced before they start
(on Linux a priority belongs to a thread, is inherited by the threads that it starts, and an
unprivileged thread cannot raise it again).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["Workers", "lower_priority"]

T = TypeVar("T")
_LOWEST_NICE = 19


def lower_priority() -> None:
    """Give the calling thread the lowest priority, where the system can do that for one thread."""
    if sys.platform != "linux":
        return
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_NICE)
    except OSError:
        return


class Workers:
    """A fixed set of daemon threads that run plain functions for an asyncio event loop.

    Args:
        count: how many threads; they start on first use.
        name: prefix of the threads' names.
        niced: whether they run at the lowest priority (they must then never hold a lock that
            an un-niced thread waits for).
    """

    def __init__(self, count: int, name: str, *, niced: bool = False) -> None:
        self.count = count
        self._name = name
        self._niced = niced
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(*args)`` on a worker; return what it returns, raise what it raises.

        A cancelled caller leaves at once; the function itself runs on to its end.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = function(*args)
            except BaseException as error:  # the caller's to judge; a worker must not die
                _deliver(loop, future, None, error)
            else:
                _deliver(loop, future, result, None)

        self.submit(job)
        return await future

    def submit(self, job: Callable[[], None]) -> None:
        """Queue ``job``, which must not raise, from any thread."""
        self.start()
        self._queue.put(job)

    def start(self) -> None:
        """Start the threads, if they do not run yet."""
        if self._threads:
            return
        with self._lock:
            if self._threads or self._closed:
                return
            threads = [
                threading.Thread(target=self._work, name=f"{self._name}-{index}", daemon=True)
                for index in range(self.count)
            ]
            for thread in threads:
                thread.start()
            self._threads = threads

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Let queued jobs finish and end the threads.

        Returns:
            Whether all of them ended within ``timeout_seconds``.
        """
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout_seconds)
        return not any(thread.is_alive() for thread in threads)

    def _work(self) -> None:
        if self._niced:
            lower_priority()
        while (job := self._queue.get()) is not None:
            job()
            del job


def _deliver(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[T],
    result: T | None,
    error: BaseException | None,
) -> None:
    def settle() -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop has closed: nobody waits any more
