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
import re
import sys
import threading
import time
from collections.abc import Callable
from operator import methodcaller
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

from limpet.errors import UsageError

__all__ = [
    "LOWEST_NICE",
    "STEADY_NICE",
    "Workers",
    "lower_priority",
    "reentrant",
    "refuse_reentry",
    "still_at_work",
    "to_its_end",
]

T = TypeVar("T")
LOWEST_NICE = 19
"""The scheduler gives a thread 1.5 % of what one of the program's gets on the same core (weights 15 and 1024)."""
STEADY_NICE = 10
"""11 % (weight 110): not much in the way, and yet done in bounded time."""


def lower_priority(nice: int) -> None:
    """Set the calling thread's niceness (nice(2)), where the system can do that for one thread."""
    if sys.platform != "linux":
        return
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except OSError:
        return


def refuse_reentry(section: threading.RLock) -> None:
    """Refuse a call that interrupted its own thread in the middle of ``section``; to be asked right inside of it.

    A signal handler, and a finalizer too, runs on top of whatever its thread does. One that comes back into a section
    would wait for ever for a plain lock, and would see half of a step with one that lets it in. (A class of ours around
    the lock would not do: an interrupt between its lines could leave the lock taken.)

    Raises:
        UsageError: kind ``reentrant``.
    """
    if _depth(section) > 1:
        raise reentrant()


def _depth_in_words(section: threading.RLock) -> int:
    return int(re.search(r"count=(\d+)", repr(section))[1])  # type: ignore[index]


_depth: Callable[[threading.RLock], int] = (
    methodcaller("_recursion_count") if hasattr(threading.RLock(), "_recursion_count") else _depth_in_words
)
"""How often its owner has entered it. The first releases of CPython 3.11 and 3.12 tell that in the ``repr`` only."""


def reentrant() -> UsageError:
    """The error for a call that came on top of another one, on the same thread, and would wait for it."""
    return UsageError(
        "called from a signal handler or a finalizer that interrupted another call of limpet on this thread.",
        hint="Only set a flag there, and write in the loop.",
        kind="reentrant",
    )


def to_its_end(do: Callable[[], None]) -> None:
    """Run ``do()``, which may be repeated, until nothing has interrupted it; then raise what did."""
    interruption: BaseException | None = None
    while True:
        try:
            do()
            break
        except Exception:
            raise
        except BaseException as error:  # from the keyboard, or a signal's handler that ends the program
            interruption = error
    if interruption is not None:
        raise interruption


def still_at_work() -> list[str]:
    """Names of the threads that were told to end and have not, in this process: something that they wait for hangs."""
    return sorted(thread.name for workers in list(_closing) for thread in workers._threads if thread.is_alive())


class Workers:
    """A fixed set of daemon threads that run plain functions for an asyncio event loop.

    Args:
        count: how many threads; they start on first use.
        name: prefix of the threads' names.
        nice: how far they give way to the program, 0 to 19 (above 0 they must never hold a lock that
            an un-niced thread waits for).
    """

    def __init__(self, count: int, name: str, *, nice: int = 0) -> None:
        self.count = count
        self._name = name
        self._nice = nice
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()
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

        if not self.submit(job):
            raise UsageError(f"{self._name} takes no more work: its owner is closed.", kind="closed")
        return await future

    def submit(self, job: Callable[[], None]) -> bool:
        """Queue ``job``, which must not raise, from any thread; ``False`` once closed: then nobody will ever run it."""
        self.start()
        with self._lock:
            if self._closed:
                return False
            self._queue.put(job)
            return True

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
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            self._closed = True
            threads = self._threads
        _closing.add(self)
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _work(self) -> None:
        if self._nice:
            lower_priority(self._nice)
        while (job := self._queue.get()) is not None:
            try:
                job()
            except BaseException:  # a defect of ours, or thrown into this thread: it is needed on
                sys.excepthook(*sys.exc_info())
            del job


_closing: WeakSet[Workers] = WeakSet()


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
