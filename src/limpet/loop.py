"""The engine's own thread, how both faces wait for it, and who drains it when the program ends.

The loop's thread is a daemon, so that nothing can hang the interpreter's end; a guard thread, which is not,
waits for the main thread and drains within a deadline. What the guard needs works after the main thread
has ended: no executor, no new thread. A lost save makes the process end with status 70 (EX_SOFTWARE).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import math
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from limpet.errors import UsageError
from limpet.pending import Completion, engine_threads
from limpet.workers import Workers

__all__ = ["EngineLoop", "ExitGuard", "Operation", "Wait", "drive", "drive_async", "in_thread", "insist", "on_worker"]

with contextlib.suppress(ImportError):
    # anyio imports it at its first use, which would be on the user's running loop: it takes a tenth of a second there.
    import_module("anyio._backends._asyncio")

T = TypeVar("T")
_EXIT_LOST = 70
_POLL_SECONDS = 0.05
_LAST_SECONDS = 0.2
"""For a drain that was interrupted from the keyboard."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A step of an operation: wait until ``completion`` has settled.

    Attributes:
        completion: what to wait for.
        timeout_seconds: the operation goes on after that long; it is told whether it settled.
        shielded: a cancellation is delivered only after it has settled, or its time is over.
        interruptible: a KeyboardInterrupt is delivered at once, even if it is shielded.
    """

    completion: Completion[Any]
    timeout_seconds: float | None = None
    shielded: bool = False
    interruptible: bool = False


Operation: TypeAlias = Generator[Wait, bool, T]
"""One public call, written once for both faces: it yields what to wait for, and returns its result."""


def drive(operation: Operation[T]) -> T:
    """Run an operation in this thread, blocking it."""
    try:
        wait = next(operation)
        while True:
            try:
                settled = wait.completion.wait(wait.timeout_seconds)
            except BaseException as error:  # KeyboardInterrupt: the operation cleans up
                if wait.shielded and not wait.interruptible:
                    wait.completion.wait(wait.timeout_seconds)
                wait = operation.throw(error)
            else:
                wait = operation.send(settled)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # an Operation[T] returns a T


async def drive_async(operation: Operation[T]) -> T:
    """Run an operation in this task, on asyncio or trio, without blocking its loop.

    The other tasks, and a cancellation, get their turn once in every call, also if there was nothing to wait for.
    """
    waited = False
    try:
        wait = next(operation)
        while True:
            waited = waited or not wait.completion.done()
            try:
                settled = await _settled(wait)
            except BaseException as error:  # a cancellation: the operation cleans up
                wait = operation.throw(error)
            else:
                wait = operation.send(settled)
    except StopIteration as stop:
        result: T = stop.value
    if not waited:
        await anyio.lowlevel.checkpoint()
    return result


async def _settled(wait: Wait) -> bool:
    if wait.completion.done():
        return True
    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=wait.shielded, deadline=_deadline(wait.timeout_seconds)) as scope:
        while not wait.completion.done():
            try:
                await wait.completion.wait_async()
            except GeneratorExit:  # the coroutine is thrown away: it must not wait any more
                raise
            except BaseException as error:
                if not wait.shielded or scope.cancel_called:
                    raise
                cancelled = error  # asyncio's Task.cancel() ignores scopes: deliver it afterwards
    if cancelled is not None:
        raise cancelled
    return wait.completion.done()


def _deadline(timeout_seconds: float | None) -> float:
    return math.inf if timeout_seconds is None else anyio.current_time() + timeout_seconds


def insist(wait: Wait) -> Operation[BaseException | None]:
    """Wait in any case; returns the task's cancellation that came meanwhile."""
    try:
        yield wait
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        return error
    return None


def on_worker(workers: Workers, function: Callable[[], T]) -> Completion[T]:
    """Run ``function()`` on a worker thread; what comes of it arrives in the result."""
    completion: Completion[T] = Completion()

    def job() -> None:
        try:
            completion.set_result(function())
        except BaseException as error:
            completion.set_error(error)

    if not workers.submit(job):
        completion.set_error(_closed())
    return completion


def in_thread(function: Callable[[], T], completion: Completion[T]) -> None:
    """Run ``function()`` on a thread of its own; for what would stall the caller's loop before there are any workers.

    Args:
        function: what to run.
        completion: told what comes of it. The caller's own, so that it has it even if this is interrupted.
    """

    def job() -> None:
        try:
            completion.set_result(function())
        except BaseException as error:
            completion.set_error(error)

    threading.Thread(target=job, name="limpet-open", daemon=True).start()


def _closed(when: str = "") -> UsageError:
    return UsageError(f"the checkpointer {when or 'is closed'}.", kind="closed")


class EngineLoop:
    """An asyncio event loop in a daemon thread."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ready: Completion[None] = Completion()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._context: contextvars.Context
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsettled: set[Completion[Any]] = set()
        self._bell = Workers(1, "limpet-bell")
        self._bell.start()
        self._thread = threading.Thread(target=self._run, name="limpet-loop", daemon=True)
        self._thread.start()
        self._ready.wait()
        self._ready.get()
        self._thread_id = self._thread.ident

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> Completion[T]:
        """Run ``await function(*args)`` on the loop, from any thread; what comes of it arrives in the result."""
        completion: Completion[T] = Completion()
        self._unsettled.add(completion)  # before the loop is asked: its end settles whatever is in here
        if self.call_soon(self._spawn, function, args, completion):
            completion.add_callback(lambda: self._unsettled.discard(completion))
        else:
            self._unsettled.discard(completion)
            completion.set_error(_closed())
        return completion

    def call_soon(self, function: Callable[..., None], *args: Any) -> bool:
        """Run ``function(*args)`` on the loop, from any thread; ``False`` if the loop has ended."""
        try:
            # Not in the caller's context: what says there that trio runs is not true here, and it may hold a lot.
            self._loop.call_soon_threadsafe(function, *args, context=self._context)
        except RuntimeError:
            return False
        return True

    def call_gently(self, function: Callable[[], None]) -> None:
        """``call_soon`` for callers that must not be held up.

        The write to the loop's socket lets go of the interpreter lock, and the loop's thread would take it for as long
        as it has something to do. A queue wakes the bell's thread without that; it rings when the lock is free.
        """
        self._bell.submit(lambda: self._ring(function))

    def _ring(self, function: Callable[[], None]) -> None:
        self.call_soon(function)

    def check_caller(self) -> None:
        """Refuse calls that could never end: from a forked child, or from the loop's own thread.

        Raises:
            UsageError: the caller is one of them.
        """
        if os.getpid() != self._pid:
            raise UsageError(
                "this process was forked from the one that opened the checkpointer, whose threads stayed there.",
                hint="Open a Checkpointer or a Run of its own in the child.",
                kind="forked",
            )
        if threading.get_ident() == self._thread_id:
            raise UsageError(
                "called from limpet's own thread (a hook, or an event), which would wait for itself.",
                hint="Hand the work to a thread or task of yours.",
                kind="wrong_thread",
            )

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that the loop runs in."""
        return os.getpid() != self._pid

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """End the loop and its thread; whether it ended in time. Idempotent."""
        self._bell.close(timeout_seconds)
        self.call_soon(self._stop.set)
        if threading.get_ident() != self._thread.ident:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        engine_threads.add(threading.get_ident())
        try:
            anyio.run(self._main, backend="asyncio")
        except BaseException as error:  # the starter is told; nobody else could be
            self._ready.set_error(error)
        finally:
            engine_threads.discard(threading.get_ident())
            # Calls that came after the last look at the loop's queue, and tasks cancelled before their first step.
            for completion in list(self._unsettled):
                completion.set_error(_closed("was closed meanwhile"))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._stop = asyncio.Event()
        self._ready.set_result(None)
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...], completion: Completion[T]) -> None:
        async def run() -> None:
            try:
                completion.set_result(await function(*args))
            except asyncio.CancelledError:  # the loop ends; whoever waits was not cancelled
                completion.set_error(_closed("was closed meanwhile"))
            except BaseException as error:
                completion.set_error(error)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class ExitGuard:
    """Drains when the program ends without ``close``, or forgets its checkpointer.

    It waits for the main thread, and then for every other thread of the program that keeps the
    interpreter alive: they may still write.

    Args:
        drain: commits what was accepted, within its own deadline; returns what was lost, for the message.
        describe: what is lost if nothing more is done, for the message; ``""`` if there is nothing.
    """

    def __init__(self, drain: Callable[[], str], describe: Callable[[], str]) -> None:
        self._drain = drain
        self._describe = describe
        self._released = threading.Event()
        self._drained = threading.Event()
        self._claim = threading.Lock()
        self._forgotten = False
        self._thread = threading.Thread(target=self._watch, name="limpet-guard", daemon=False)
        _guards.add(self)

    def start(self) -> None:
        """Begin to watch: once the owner has it in hand, who may be interrupted at any time."""
        self._thread.start()

    def release(self) -> None:
        """The owner closes in good order: the guard is not needed any more."""
        self._released.set()
        _guards.discard(self)
        if threading.current_thread() is not self._thread:
            with contextlib.suppress(RuntimeError):  # never started
                self._thread.join()

    def forget(self) -> None:
        """Nobody can write any more: drain now. Only a flag, since finalizers call this in the middle of anything."""
        self._forgotten = True

    def end(self) -> None:
        """The interpreter goes on ending, although this has not ended: somebody pressed Ctrl-C while it waited.

        If that was meant for another thread, whose end the guard waited for, the drain is still to come. If it was
        meant for the drain, what is not committed yet is lost.
        """
        with contextlib.suppress(KeyboardInterrupt):
            if self._drain_once():
                return
            self._drained.wait(_LAST_SECONDS)  # not join(): one that is interrupted believes the thread to be dead
        if not self._drained.is_set() and (lost := self._describe()):
            _losses.append(lost)

    def _watch(self) -> None:
        # Polled: nothing public tells a thread that the main thread has ended and that it was released, at once.
        while not self._released.wait(_POLL_SECONDS):
            if self._forgotten or (not threading.main_thread().is_alive() and not _others_alive()):
                self._drain_once()
                return

    def _drain_once(self) -> bool:
        """Drain, unless that has begun already on another thread; whether it was done here."""
        if not self._claim.acquire(blocking=False):
            return False
        with contextlib.suppress(BaseException):
            lost = "limpet: the drain at the end of the program failed"
            lost = self._drain()
        if lost:
            _losses.append(lost)
        self._drained.set()
        return True


_guards: set[ExitGuard] = set()
_losses: list[str] = []


def _others_alive() -> bool:
    return any(
        not thread.daemon and not thread.name.startswith("limpet-guard") and thread is not threading.main_thread()
        for thread in threading.enumerate()
    )


def _end_loudly() -> None:
    """Runs after every other exit hook, because it was registered first: a thread cannot set the exit status."""
    for guard in list(_guards):
        guard.end()
    if not _losses:
        return
    for loss in _losses:
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{loss}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(_EXIT_LOST)


def _after_fork() -> None:
    _losses.clear()
    _guards.clear()


atexit.register(_end_loudly)
os.register_at_fork(after_in_child=_after_fork)
