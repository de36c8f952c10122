"""Virtual time, and one deterministic asyncio loop for each simulated process.

Handles of one process run in the order that asyncio promises. Which of several processes goes on, how long a
request takes and when a timer goes off come from the seed, never from the machine. A stalled process keeps
what is ready until it goes on; a crashed one is never run again, though what it has sent may still land.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import sys
from asyncio import events, tasks
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from itertools import count
from random import Random
from typing import Any

__all__ = ["Crashed", "Process", "Violation", "World"]

_TICK = 1e-6
"""No timer is due at once: rounding between two clocks must not make a loop that stands still."""


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Crashed(BaseException):
    """A dead process asked for something: it runs its last ``finally`` blocks while it is swept up."""


class _Handle:
    """What asyncio calls a handle, for ready callbacks and timers alike."""

    __slots__ = ("_args", "_callback", "_context", "_gone", "_when")

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context | None, when: float
    ) -> None:
        self._callback: Callable[..., Any] | None = callback
        self._args = args
        self._context = contextvars.copy_context() if context is None else context
        self._gone = False
        self._when = when

    def cancel(self) -> None:
        self._gone = True
        self._callback = None
        self._args = ()

    def cancelled(self) -> bool:
        return self._gone

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        if self._callback is not None:
            self._context.run(self._callback, *self._args)


class World:
    """The clock, the scheduler and everything that happens outside of the processes."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.rng = Random(f"world {seed}")
        self.stats: Counter[str] = Counter()
        self.trace: list[tuple[Any, ...]] = []
        self.processes: list[Process] = []
        self.violation: Violation | None = None
        self.steps = 0
        self.current: Process | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._over = False

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Let ``event`` happen at a time."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let ``event`` happen in so many seconds."""
        self.at(self.now + seconds, event)

    def note(self, *what: Any) -> None:
        """One line of the trace."""
        self.trace.append((round(self.now - 1000.0, 6), *what))

    def fail(self, rule: str, text: str) -> None:
        """An invariant does not hold: the run ends at the next step."""
        if self.violation is None and not self._over:
            self.violation = Violation(rule, text)
            self.note("VIOLATION", rule, text)

    def run(self, *, most_steps: int) -> None:
        """Go on until nothing is left to happen.

        Raises:
            Violation: an invariant does not hold, or the processes never come to rest.
        """
        end = self.steps + most_steps
        while self.violation is None:
            ready = [process for process in self.processes if process.ready and not process.stalled]
            if ready:
                process = ready[0] if len(ready) == 1 else ready[self.rng.randrange(len(ready))]
                self._switch(process)
                process.step()
                # Nobody else wakes before something happens.
                while len(ready) == 1 and process.ready and not process.stalled and self.violation is None:
                    if self.steps > end:
                        break
                    process.step()
                if self.steps > end:
                    self.fail("rest", f"the processes do not come to rest within {most_steps} steps")
            elif self._events:
                self.now, _, event = heapq.heappop(self._events)
                event()
            else:
                self._switch(None)
                return
        self._switch(None)
        raise self.violation

    def _switch(self, process: Process | None) -> None:
        if self.current is not process:
            self.current = process
            events._set_running_loop(process)

    def clear(self) -> None:
        """Sweep up every task that is left, in order, so that nothing runs later from a collector."""
        self._over = True
        self._events.clear()
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # generators that waited in a ``finally``
        try:
            for process in self.processes:
                process.bury()
        finally:
            sys.unraisablehook = hook


class Process(asyncio.AbstractEventLoop):
    """One simulated operating-system process: an event loop with clocks of its own.

    Args:
        world: where it lives.
        name: for the trace.
        skew_seconds: by how much its wall clock jumps, forwards and backwards.
        rate: seconds of its monotonic clock in one of the world's.
        crash_at: it dies before this step of its own.
        stalls: before which of its own steps it stops, and for how many seconds.
    """

    def __init__(
        self,
        world: World,
        name: str,
        *,
        skew_seconds: float = 0.0,
        rate: float = 1.0,
        crash_at: int | None = None,
        stalls: dict[int, float] | None = None,
    ) -> None:
        self.world = world
        self.name = name
        self.skew_seconds = skew_seconds
        self.dead = False
        self.steps = 0
        self.requests: Counter[str] = Counter()
        self._rate = rate
        self._crash_at = crash_at
        self._stalls = dict(stalls or {})
        self.stalled = False
        self.ready: deque[_Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        world.processes.append(self)

    def step(self) -> None:
        """Run its next callback, unless this is where it stalls or dies."""
        self.steps += 1
        self.world.steps += 1
        if self.steps == self._crash_at:
            self.crash()
            return
        stall = self._stalls.pop(self.steps, None)
        if stall is not None:
            self.stall(stall)
            return
        handle = self.ready.popleft()
        try:
            handle.run()
        except Exception as error:  # asyncio would log it: here it is a finding
            self.call_exception_handler({"message": "callback failed", "exception": error})

    def crash(self) -> None:
        """Never run again."""
        self.world.stats["crashes"] += 1
        self.world.note(self.name, "crashes")
        self.exit()

    def exit(self) -> None:
        """The process is gone, whatever its tasks were doing."""
        self.dead = True
        self.ready.clear()

    def stall(self, seconds: float) -> None:
        """Stop for so long, as by SIGSTOP: the clock goes on."""
        self.world.stats["stalls"] += 1
        self.world.note(self.name, f"stalls for {seconds:g} s")
        self.stalled = True

        def go_on() -> None:
            self.stalled = False

        self.world.after(seconds, go_on)

    def monotonic(self) -> float:
        """What ``time.monotonic`` says in this process."""
        return self.world.now * self._rate

    def wall(self) -> float:
        """What ``time.time`` says in this process: a wrong clock jumps to and fro."""
        return 1.7e9 + self.world.now + self.skew_seconds * (int(self.world.now) % 3 - 1)

    def bury(self) -> None:
        """End every task that is left without letting it do anything."""
        self.exit()
        self.world._switch(self)
        for task in self._tasks:
            if task.done():
                continue
            task._log_destroy_pending = False
            tasks._enter_task(self, task)
            for _ in range(20):
                try:
                    task.get_coro().close()
                except RuntimeError:  # it waits in a ``finally``: once more
                    continue
                except BaseException:
                    pass
                break
            tasks._leave_task(self, task)
        self.world._switch(None)
        self._tasks.clear()
        self.ready.clear()

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.monotonic()

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:  # type: ignore[override]
        handle = _Handle(callback, args, context, 0.0)
        if not self.dead:
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:  # type: ignore[override]
        handle = _Handle(callback, args, context, self.time() + delay)
        self.world.after(max(delay / self._rate, 0.0) + _TICK, lambda: self._due(handle))
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:  # type: ignore[override]
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _due(self, handle: _Handle) -> None:
        if not self.dead and not handle.cancelled():
            self.ready.append(handle)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.dead or isinstance(error, Crashed):
            return
        with contextlib.suppress(Exception):
            self.world.fail("unhandled", f"{self.name}: {context.get('message')}: {error!r}")
