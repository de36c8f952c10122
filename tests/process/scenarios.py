"""The endings of a process, each with what must come of it; see ``judge`` for what holds for all of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.process.children import Child

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
LOST = 70


def alone(child: Child) -> None:
    """It ends by itself."""


def nudged(*signals: int, after: str = "ready") -> Callable[[Child], None]:
    """It gets signals, one after the other, once it is ready."""

    def nudge(child: Child) -> None:
        child.read_until(after)
        for number in signals:
            child.nudge(number)
            child.pause(0.1)

    return nudge


@dataclass(frozen=True)
class Scenario:
    """A program, what happens to it, and how it must end.

    Attributes:
        program: of ``programs.py``, with its arguments.
        code: the exit code.
        commits: what must be durable: everything ``accepted``, or only what was ``acknowledged``. A reader finds just
            that; after a signal, which may come between a write and its line, that or something newer.
        exactly: the step that a reader must find, if it is not the last of ``commits``.
        says: a pattern that stderr must match.
        quiet: stderr must be empty.
        child: the name of the child run to look at.
        prints: lines that must come.
        seconds: from the last nudge to the end, at most.
        during: what happens to it.
    """

    program: tuple[str, ...]
    code: int | tuple[int, ...] = 0
    commits: str = "accepted"
    exactly: int | None = None
    says: str = ""
    quiet: bool = False
    child: str | None = None
    prints: tuple[str, ...] = ()
    seconds: float = 15.0
    during: Callable[[Child], None] = field(default=alone)

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(self.program)


def of(*program: str, **what: object) -> Scenario:
    """A scenario, written briefly."""
    return Scenario(program, **what)  # type: ignore[arg-type]


ENDINGS = [
    of("ends", quiet=True),
    of("ends_with_a_child_run", child="shard", quiet=True),
    of("ends_with_two_runs", quiet=True),
    of("ends_as_a_module_global", quiet=True),
    of("raises", code=1, says="RuntimeError: boom"),
    of("raises_in_with", code=1, says="RuntimeError: boom"),
    of(
        "raises_in_with_while_closing_is_late",
        code=1,
        commits="acknowledged",
        says=r"RuntimeError: boom\n.*closing failed too: .*step=1",
    ),
    of("exits", "0", quiet=True),
    of("exits", "3", code=3, quiet=True),
    of("exits", "so long", code=1, says="so long"),
    of("exits_in_with", "3", code=3, quiet=True),
    of("exits_at_once", code=5, commits="acknowledged", quiet=True),
    of("loses_a_save", "exit", code=LOST, says="step=7.*the store is down"),
    of("loses_a_save", "exit 3", code=LOST, says="step=7.*the store is down"),
    of("loses_a_save", "raise", code=LOST, says="(?s)RuntimeError: boom.*step=7.*the store is down"),
    of("has_a_stuck_store_at_its_end", "put", code=LOST, says="step=7"),
    of("has_a_stuck_store_at_its_end", "create", code=LOST, says="step=7"),
    of("has_a_stuck_and_a_sound_run_at_its_end", code=LOST, says="step=7"),
    of("writes_from_an_exit_hook", quiet=True, prints=("refused closed",)),
    of("opens_in_an_exit_hook", prints=("hook ended",)),
]
SIGNALS = [
    of("loops", code=-INT, says="KeyboardInterrupt", during=nudged(INT)),
    of("loops", "with", code=-INT, says="KeyboardInterrupt", during=nudged(INT)),
    of("loops", code=(-INT, LOST), commits="acknowledged", says="KeyboardInterrupt", during=nudged(INT, INT)),
    of("loops", "with", code=(-INT, LOST), commits="acknowledged", says="KeyboardInterrupt", during=nudged(INT, INT)),
    of("loops", code=-TERM, commits="acknowledged", quiet=True, during=nudged(TERM)),
    of("loops", code=-HUP, commits="acknowledged", quiet=True, during=nudged(HUP)),
    of("loops", "handled", code=128 + TERM, quiet=True, during=nudged(TERM)),
    of("loops", "handled", code=128 + HUP, quiet=True, during=nudged(HUP)),
    of("closes_for_long", code=-INT, commits="acknowledged", says="closing met this too: .*step=7", during=nudged(INT)),
    of("closes_for_long", code=-INT, commits="acknowledged", says="KeyboardInterrupt", during=nudged(INT, INT)),
    of("drains_for_long", code=LOST, commits="acknowledged", says="step=7", during=nudged(INT)),
    of("drains_for_long", code=LOST, commits="acknowledged", says="step=7", during=nudged(INT, INT)),
    of("opens_for_long", code=-INT, says="KeyboardInterrupt", during=nudged(INT)),
    of("opens_for_long", code=-INT, says="KeyboardInterrupt", during=nudged(INT, INT)),
    of("is_blocked_in_a_durable_write", code=LOST, says="step=7", during=nudged(TERM)),
    of("is_blocked_in_a_durable_write", code=LOST, says="(?s)KeyboardInterrupt.*step=7", during=nudged(INT)),
    of("is_blocked_in_a_durable_write", code=LOST, says="step=7", during=nudged(INT, INT)),
    of("is_blocked_in_a_durable_write_that_goes_through", code=128 + TERM, quiet=True, during=nudged(TERM)),
    of("is_blocked_in_a_durable_write_that_goes_through", code=-INT, says="KeyboardInterrupt", during=nudged(INT)),
    *(of("is_busy", where, code=128 + TERM, quiet=True, during=nudged(TERM)) for where in ("sleep", "zlib", "numpy")),
    of("writes_in_its_handler", during=nudged(*[TERM] * 60)),
    of("closes_in_its_handler", code=7, quiet=True, prints=("closed",), during=nudged(TERM)),
]
THREADS = [
    of("writes_from_many_threads", quiet=True),
    of("ends_before_its_threads", quiet=True),
    of("ends_while_a_daemon_thread_writes", quiet=True, prints=("refused closed",)),
]
FORGOTTEN = [
    of("forgets", "plainly", quiet=True),
    of("forgets", "cycle", quiet=True),
    of("forgets_and_opens_again", quiet=True, prints=("opened again",)),
    of("forgets_a_stuck_one", code=LOST, says="step=7"),
    # The collector finalizes in no order: 9 is committed, or refused because the checkpointer went first.
    of("writes_when_collected", "now", quiet=True),
    of("writes_when_collected", "at the end", exactly=1),
]
FORKS = [
    *(
        of("forks", moment, ending, says="on purpose" if ending == "raise" else "", quiet=ending != "raise")
        for moment in ("before", "after", "in mid-save")
        for ending in ("exit", "os._exit", "raise", "collect")
    ),
    *(of("forks", moment, "own", quiet=True, prints=("own 5",)) for moment in ("before", "after", "in mid-save")),
    of("uses_it_in_a_fork", quiet=True),
    *(of("forks_workers", method, quiet=True, seconds=25) for method in ("fork", "forkserver", "spawn")),
    of("forks_loaders", quiet=True),
]
COROUTINES = [
    *(of("runs_async", library, "plain", quiet=True) for library in ("asyncio", "trio")),
    of("runs_async", "asyncio", "pending", quiet=True),
    *(of("runs_async", library, "raise", code=1, says="boom") for library in ("asyncio", "trio")),
    *(of("runs_async", library, "exit", code=4) for library in ("asyncio", "trio")),
    *(
        of("runs_async", library, how, code=-INT, says="KeyboardInterrupt", during=nudged(INT))
        for library in ("asyncio", "trio")
        for how in ("loop", "in with")
    ),
    of("closes_async_for_long", code=(-INT, LOST), commits="acknowledged", during=nudged(INT, INT, INT)),
    of("opens_in_a_coroutine", quiet=True, prints=("stall",)),
]
STUCK = [
    of("forgets_to_close_on_a_hung_disk", code=LOST, says="step=1.*still at work: limpet-"),
    *(
        of("closes_on_a_hung_disk", timeout, commits="acknowledged", prints=("late", "message"))
        for timeout in ("0", "1")
    ),
]
ALL = [*ENDINGS, *SIGNALS, *THREADS, *FORGOTTEN, *FORKS, *COROUTINES, *STUCK]

_SLOW = ("forkserver", "spawn")
_OFTEN = """ends|ends_with_a_child_run|raises_in_with_while_closing_is_late|exits 3|exits_at_once|loses_a_save exit 3
has_a_stuck_and_a_sound_run_at_its_end|opens_in_an_exit_hook|loops|loops handled|closes_for_long|drains_for_long
opens_for_long|is_blocked_in_a_durable_write|is_blocked_in_a_durable_write_that_goes_through|is_busy numpy
writes_in_its_handler|closes_in_its_handler|writes_from_many_threads|ends_while_a_daemon_thread_writes
forgets_and_opens_again|forgets_a_stuck_one|writes_when_collected now|forks after collect|forks in mid-save exit
uses_it_in_a_fork|forks_loaders|runs_async asyncio pending|runs_async asyncio loop|runs_async trio in with
closes_async_for_long|forgets_to_close_on_a_hung_disk|closes_on_a_hung_disk 1"""
_NAMES = _OFTEN.replace("\n", "|").split("|")
QUICKLY = list({scenario.name: scenario for scenario in reversed(ALL) if scenario.name in _NAMES}.values())
"""One of each kind, within the default run's time."""
_ON_ANY_STORE = {"ends", "exits", "exits_at_once", "raises_in_with", "ends_with_two_runs", "loops", "forks", "is_busy"}
_ON_ANY_STORE |= {"forks_workers", "forks_loaders", "runs_async", "forgets", "ends_while_a_daemon_thread_writes"}
ON_S3 = [
    *(scenario for scenario in ALL if scenario.program == ("forks", "in mid-save", "exit")),
    *(scenario for scenario in ALL if scenario.program == ("runs_async", "asyncio", "pending")),
    *(of("forks", moment, "own", quiet=True, prints=("refused forked",)) for moment in ("after", "in mid-save")),
    *(
        scenario
        for scenario in ALL
        if scenario.program[0] in _ON_ANY_STORE and scenario.program[-1] not in (*_SLOW, "own")
    ),
]
"""What differs with a client that has threads of its own."""
