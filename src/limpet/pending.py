"""Handles on work that goes on in the background, usable from threads, asyncio and trio alike.

``Completion`` is settled once, from any thread; whoever waits is woken by its own event loop's
thread-safe call, so that no loop ever blocks and a cancelled waiter leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from limpet.errors import UsageError
from limpet.workers import refuse_reentry

if TYPE_CHECKING:
    from limpet.types import Receipt

__all__ = ["Completion", "PendingWrite", "Phase", "Staging", "Unseen", "check_may_block", "engine_threads"]

T = TypeVar("T")
_lock = threading.RLock()
"""Guards the settling of every Completion: held for a few assignments only, never around a callback."""
engine_threads: set[int] = set()
"""Threads that every save needs: none of them may ever wait for one."""
_forks = 0
"""How many forks lie between this process and the one that imported this module."""


def _after_fork() -> None:
    global _lock, _forks  # noqa: PLW0603 - another thread may have held it, and is not here to let go of it
    _lock = threading.RLock()
    _forks += 1
    engine_threads.clear()


os.register_at_fork(after_in_child=_after_fork)


def check_may_block(forks: int | None = None) -> None:
    """Refuse to wait where it could never end.

    Args:
        forks: ``_forks`` where the work was begun, if that must have been in this process.

    Raises:
        UsageError: the work goes on in another process, or needs the very thread that would wait.
    """
    if forks is not None and forks != _forks:
        raise UsageError(
            "this save was begun in the process that this one was forked from, and is written there.",
            hint="Wait for it there.",
            kind="forked",
        )
    if threading.get_ident() in engine_threads:
        raise UsageError(
            "a hook runs on limpet's own thread, which would wait for itself.",
            hint="Hand the work to a thread or task of yours.",
            kind="wrong_thread",
        )


class Completion(Generic[T]):
    """A result or an error that arrives once."""

    __slots__ = ("_callbacks", "_error", "_result", "_settled")

    def __init__(self) -> None:
        self._settled = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] | None = None

    def done(self) -> bool:
        """Whether it has settled."""
        return self._settled

    @property
    def error(self) -> BaseException | None:
        """The error it settled with, if any."""
        return self._error

    def set_result(self, result: T) -> bool:
        """Settle with a result; whether this call was the one that settled it."""
        return self._settle(result, None)

    def set_error(self, error: BaseException) -> bool:
        """Settle with an error; whether this call was the one that settled it."""
        return self._settle(None, error)

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` once settled: at once if it is, else on the thread that settles it."""
        with _lock:
            refuse_reentry(_lock)
            if not self._settled:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback()

    def remove_callback(self, callback: Callable[[], None]) -> None:
        """Forget ``callback``, if it still waits."""
        with _lock:
            refuse_reentry(_lock)
            if self._callbacks is not None:
                with contextlib.suppress(ValueError):
                    self._callbacks.remove(callback)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Block this thread until settled; ``False`` after ``timeout_seconds``."""
        if self._settled:
            return True
        # A bare lock: an Event hands its inner lock to and fro, which costs a durable write several switches.
        bell = threading.Lock()
        bell.acquire()
        self.add_callback(bell.release)
        try:
            return bell.acquire(
                timeout=-1 if timeout_seconds is None else min(max(0.0, timeout_seconds), threading.TIMEOUT_MAX)
            )
        finally:
            self.remove_callback(bell.release)

    async def wait_async(self) -> None:
        """Wait for it on asyncio or trio."""
        if self._settled:
            return
        trio = sys.modules.get("trio")
        if trio is not None and _in_trio(trio):
            await self._wait_trio(trio)
        else:
            await self._wait_asyncio()

    def get(self) -> T:
        """The result, or the error raised; only once settled."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # settled without an error: it is a T

    def _settle(self, result: T | None, error: BaseException | None) -> bool:
        with _lock:
            refuse_reentry(_lock)
            if self._settled:
                return False
            self._result = result
            self._error = error
            self._settled = True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()
        return True

    async def _wait_asyncio(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            # The loop may have been closed meanwhile: then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle_future, future)

        self.add_callback(wake)
        try:
            await future
        finally:
            self.remove_callback(wake)

    async def _wait_trio(self, trio: Any) -> None:
        event = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)

        self.add_callback(wake)
        try:
            await event.wait()
        finally:
            self.remove_callback(wake)


def _settle_future(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _in_trio(trio: Any) -> bool:
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    # Inside trio's guest mode an asyncio loop may run too: the innermost library decides.
    try:
        asyncio.current_task()
    except RuntimeError:
        return True
    return False


class Staging:
    """Whether a state has been copied: ``wait()`` in threads, ``await`` in coroutines."""

    __slots__ = ("_completion", "_forks", "_hurry")

    def __init__(
        self, completion: Completion[None], forks: int | None = None, hurry: Callable[[], None] | None = None
    ) -> None:
        self._completion = completion
        self._forks = _forks if forks is None else forks
        self._hurry = hurry

    def done(self) -> bool:
        """Whether the state may be changed."""
        return self._completion.done()

    def wait(self, timeout: float | None = None) -> None:
        """Block until the state may be changed; what is still to copy is copied at full speed.

        Args:
            timeout: in seconds; ``None`` waits for ever.

        Raises:
            TimeoutError: it took longer.
            LimpetError: the copy failed; the state may be changed.
        """
        self._want()
        if not self._completion.wait(timeout):
            raise TimeoutError(f"the state was not staged within {timeout} s")
        self._completion.get()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> None:
        self._want()
        await self._completion.wait_async()
        self._completion.get()

    def _want(self) -> None:
        if not self._completion.done():
            check_may_block(self._forks)
            if self._hurry is not None:
                self._hurry()


class Phase:
    """Names of the phases that a save goes through, in order."""

    STAGING = "staging"
    WAITING = "waiting"
    WRITING = "writing"
    COMMITTING = "committing"
    DONE = "done"


class PendingWrite:
    """One accepted save: a handle to wait on, in threads, asyncio and trio.

    Awaiting it, or ``result()``, gives the ``Receipt`` once this state, or a newer one, is durable, and
    raises the error if the save failed. The error of a save that nobody looked at is raised once by
    the next ``write``, and at the latest by ``close``.
    """

    __slots__ = ("__weakref__", "_completion", "_forks", "_hurry", "_seen", "_staged", "phase", "step")

    def __init__(self, step: int | None) -> None:
        self.step = step
        self.phase = Phase.STAGING
        self._completion: Completion[Receipt] = Completion()
        self._staged: Completion[None] = Completion()
        self._seen = False
        self._forks = _forks
        self._hurry: Callable[[], None] | None = None

    @property
    def staged(self) -> Staging:
        """Waits until the state may be changed; at once, unless the save is lazy.

        It settles whatever ends the save: a newer one that takes its place, a failure, ``close``. The error of a
        copy that failed is raised here; every other one by ``result()`` alone.
        """
        return Staging(self._staged, self._forks, self._hurry)

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._completion.done()

    def result(self, timeout: float | None = None) -> Receipt:
        """Block until this state, or a newer one, is durable.

        Args:
            timeout: in seconds; ``None`` waits for ever.

        Returns:
            What became of the save.

        Raises:
            TimeoutError: it took longer; the save goes on.
            LimpetError: the save failed.
        """
        self._want()
        if not self._completion.wait(timeout):
            raise TimeoutError(f"{self!r} did not end within {timeout} s; it goes on")
        self._seen = True
        return self._completion.get()

    def __await__(self) -> Generator[Any, Any, Receipt]:
        return self._result_async().__await__()

    async def _result_async(self) -> Receipt:
        self._want()
        await self._completion.wait_async()
        self._seen = True
        return self._completion.get()

    def _want(self) -> None:
        if not self._completion.done():
            check_may_block(self._forks)
            if self._hurry is not None:
                self._hurry()

    def __repr__(self) -> str:
        step = "" if self.step is None else f"step={self.step}, "
        return f"<PendingWrite {step}{self._describe()}>"

    def _describe(self) -> str:
        if not self._completion.done():
            return self.phase
        if self._completion.error is not None:
            return f"failed: {type(self._completion.error).__name__}"
        return str(self._completion.get().outcome)


class Unseen:
    """The saves that failed and whose error nobody has looked at yet; for use from several threads.

    Attributes:
        warned_in_a_row: how many warnings were given in place of errors since the last save that went well.
    """

    def __init__(self) -> None:
        self.warned_in_a_row = 0
        self._failed: deque[PendingWrite] = deque()
        self._last: BaseException | None = None

    def watch(self, handle: PendingWrite) -> None:
        """Note ``handle`` if it fails."""
        # Weak: whoever settles a handle holds it, and it must not keep itself alive through its own callback.
        reference = weakref.ref(handle)

        def settled() -> None:
            handle = reference()
            if handle is None:
                return
            if handle._completion.error is None:
                self.warned_in_a_row = 0
            else:
                self._failed.append(handle)

        handle._completion.add_callback(settled)

    def take(self, but: PendingWrite | None = None) -> PendingWrite | None:
        """The oldest one, ``but`` apart; it counts as looked at from now on."""
        for handle in list(self._failed):
            if handle is but:
                continue
            try:
                self._failed.remove(handle)
            except ValueError:  # another thread was faster
                continue
            if not handle._seen and handle._completion.error is not self._last:
                handle._seen = True
                self._last = handle._completion.error
                return handle
        return None

    def take_all(self) -> list[PendingWrite]:
        """All of them, the oldest first."""
        return list(iter(self.take, None))

    def saw(self, error: BaseException) -> None:
        """The caller was given ``error``: every save that fails with the same one counts as looked at."""
        self._last = error
