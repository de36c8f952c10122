"""How stores end their threads, and what they do without those that a fork has lost."""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from contextlib import suppress
from pathlib import Path

from limpet.errors import UsageError
from limpet.workers import Workers

__all__ = ["end_lanes", "refuse_after_fork", "use_client"]

_FIRST_PAUSE_SECONDS = 0.0002
_LONGEST_PAUSE_SECONDS = 0.05
_REST_SECONDS = 0.05
_LONGEST_REST_SECONDS = 1.0
_TASKS = Path("/proc/self/task")
_client_of = 0
"""The process that used obstore first: its threads, one set for all stores, are there."""


def use_client() -> None:
    """A request is made: obstore's threads start now, in this process, if they do not run yet.

    Raises:
        UsageError: kind ``forked``.
    """
    global _client_of  # noqa: PLW0603 - obstore has one runtime for a process
    if _client_of == 0:
        _client_of = os.getpid()
        atexit.register(_let_client_rest)
    refuse_after_fork()


def _let_client_rest() -> None:
    """Let obstore's threads end what they do for the last answers, before the interpreter ends under their feet.

    One that wants the interpreter lock later than that is ended by CPython in the middle of native code, which aborts
    the process.
    """
    if _client_of != os.getpid():
        return
    deadline = time.monotonic() + _LONGEST_REST_SECONDS
    time.sleep(_REST_SECONDS)
    while _client_runs() and time.monotonic() < deadline:
        time.sleep(_REST_SECONDS)


def _client_runs() -> bool:
    with suppress(OSError):  # not Linux, or a thread has ended meanwhile
        for task in _TASKS.iterdir():
            name, _, state = (task / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("tokio") and state.split()[0] == "R":
                return True
    return False


def refuse_after_fork() -> None:
    """Refuse an object store in a fork of a process that has used one: every request would hang (obstore #441).

    Raises:
        UsageError: kind ``forked``.
    """
    if _client_of not in (0, os.getpid()):
        raise UsageError(
            "this process was forked from one that had used an object store, whose client's threads stayed there.",
            hint="Start processes that use object stores with the method 'spawn' or 'forkserver'.",
            kind="forked",
        )


async def end_lanes(*lanes: Workers, timeout_seconds: float = 5.0) -> bool:
    """End the threads after what they were given, without blocking the loop.

    Returns:
        Whether all of them ended in time; one that hangs in the kernel (a dead disk, say) does not.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    pause = _FIRST_PAUSE_SECONDS
    while [lane for lane in lanes if not lane.close(0)]:  # each of them is told to end
        if loop.time() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return True
