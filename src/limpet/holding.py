"""A writer's hold on a run: when it is opened and closed, and which failures nobody has looked at yet."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from limpet.engine.opening import View
from limpet.engine.reader import Reader
from limpet.engine.save import Save
from limpet.engine.timing import Timing
from limpet.errors import CorruptError, LimpetError, StoreError, UsageError
from limpet.events import Event
from limpet.finding import Source, Wanted
from limpet.format.assemble import MISSING
from limpet.format.tree import Recall
from limpet.lazy import LazySaves, Mutating
from limpet.loop import EngineLoop, Operation, Wait, in_thread
from limpet.pending import Completion, PendingWrite, engine_threads
from limpet.reading import Reading
from limpet.remote.launch import Launched
from limpet.remote.messages import Place
from limpet.session import Session, SessionSettings
from limpet.settings import Settings
from limpet.stores.base import Store
from limpet.throttle import Throttle
from limpet.types import CheckpointInfo
from limpet.version import library
from limpet.warm import WarmStart
from limpet.workers import Workers, reentrant, refuse_reentry, still_at_work

__all__ = ["Holding"]

_WARNINGS_IN_A_ROW = 5
_LOOK_AGAIN_SECONDS = 1.0


class Holding(Reading):
    """What is behind a ``Checkpointer`` before and after its writes.

    Args:
        store: the root; it is contacted at the first call.
        settings: validated.
        name: of a child run.
        parent: of a child run.
        reopen: a store like ``store``, for the next try after one that failed: that closes what it had.
        place: what a writer in a process of its own makes the same store from; ``None`` for threads of this one.

    Raises:
        UsageError: there is to be such a process, and nothing that it could make the store from.
    """

    _timing = Timing()

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        name: str = "",
        parent: Holding | None = None,
        reopen: Callable[[], Store] | None = None,
        place: Place | None = None,
    ) -> None:
        if settings.engine == "process" and place is None:
            raise UsageError(
                f"{store.url}: a writer in a process of its own makes its store from a url, and cannot use this object.",
                hint='Use engine="thread".',
                kind="engine",
            )
        self._place = place
        # It imports what it needs while the caller makes ready.
        self._early = Launched() if place is not None and parent is None else None
        self._store = store
        self._settings = settings
        self._name = name
        self._parent = parent
        self._reopen = reopen
        self._allow_pickle = settings.allow_pickle
        self._children: list[Holding] = []
        self._session: Session | None = None
        self._closed = False
        self._pid = os.getpid()
        self._opening = threading.RLock()
        self._opened: Completion[None] | None = None
        self._throttle = Throttle(settings.every)
        self._lazies: LazySaves = LazySaves(None if parent is None else parent._lazies)
        self._recall = Recall()
        self._warm: WarmStart | None = None
        self._last_committed: tuple[CheckpointInfo, ...] = ()

    @property
    def _open_session(self) -> Session:
        if self._session is None:
            raise self._closed_error()
        return self._session

    @property
    def _engine(self) -> EngineLoop:
        return self._open_session.loop

    @property
    def _reader(self) -> Reader:
        return self._open_session.writer.reader

    @property
    def _workers(self) -> Workers:
        return self._open_session.threads.urgent

    @property
    def _where(self) -> str:
        return self._store.url

    def _found_damaged(self, error: CorruptError) -> None:
        session = self._open_session
        if error.pack is not None:
            session.loop.call_soon(session.writer.discard, error.pack)

    def _tell(self, event: Event) -> None:
        self._open_session.tell(event)

    def _fallback_source(self) -> Source | None:
        start_from = self._settings.start_from
        if self._warm is None and start_from is not None:
            self._warm = WarmStart(start_from, self._settings.storage, self, self._settings.key)
        return self._warm

    def _find(self, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo] | None]:
        if wanted.into is MISSING:
            return (yield from super()._find(wanted))
        filling = Mutating(self._lazies)
        yield from filling.begin()
        try:
            return (yield from super()._find(wanted))
        finally:
            filling.end()

    def _closed_error(self) -> UsageError:
        return UsageError(f"the checkpointer of {self._store.url} is closed.", hint="Open a new one.", kind="closed")

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                "this checkpointer was made in the process that this one was forked from.",
                hint="Make one of its own in the child.",
                kind="forked",
            )
        session = self._session
        if session is not None:
            session.loop.check_caller()
            if threading.get_ident() in session.entered:
                raise reentrant()
        elif threading.get_ident() in engine_threads:
            raise UsageError(
                "a hook or an event called a run that is not open yet, which would make limpet's thread wait for itself.",
                hint="Open it first, or hand the work to a thread or task of yours.",
                kind="wrong_thread",
            )
        if self._closed or (session is not None and session.ending):
            raise self._closed_error()

    def _is_open(self) -> bool:
        return self._session is not None

    def _ready(self) -> Operation[None]:
        """Open the run if this is the first call; whoever comes meanwhile waits for that."""
        while True:
            self._check_usable()
            if self._is_open():  # the usual answer: no lock for that
                return
            mine: Completion[None] = Completion()
            try:
                with self._opening:
                    refuse_reentry(self._opening)
                    if self._session is not None:
                        return
                    others = self._opened
                    if others is None:
                        self._opened = mine
                if others is None:
                    yield from self._open()
                    return
            finally:
                # Without a call before the first line has done it all: an interrupt may come in any.
                if self._opened is mine:
                    self._opened = None
                mine.set_result(None)
            # Not for ever: an interrupt may have come just before that last line.
            yield Wait(others, timeout_seconds=_LOOK_AGAIN_SECONDS)

    def _open(self) -> Operation[None]:
        beginning: Completion[Session] = Completion()
        try:
            parent = None
            if self._parent is not None:
                yield from self._parent._ready()
                parent = self._parent._open_session
            yield from self._begin_session(parent, beginning)
            session = beginning.get()
            yield from session.open()
            session.before_drain = _committing_what_is_held(self._throttle, session)
            self._session = session
        except BaseException:
            beginning.add_callback(lambda: None if beginning.error else beginning.get().discard())
            if self._reopen is not None:
                self._store = self._reopen()
            raise

    def _begin_session(self, parent: Session | None, beginning: Completion[Session]) -> Operation[None]:
        """A session with its threads. What they import takes a while, so they are made on another thread."""
        if parent is not None:
            beginning.set_result(Session(self._store, self._session_settings(), parent))
            return
        early, self._early = self._early, None
        try:
            in_thread(lambda: Session(self._store, self._session_settings(), launched=early), beginning)
        except RuntimeError as error:  # from Python 3.12 on
            raise UsageError(
                f"{self._store.url} cannot be opened now that the program ends: {error}.",
                hint="Open it, by any call, before the main thread ends.",
                kind="closed",
            ) from error
        yield Wait(beginning, shielded=True)

    def _session_settings(self) -> SessionSettings:
        settings = self._settings
        return SessionSettings(
            owner=settings.owner,
            library=library(),
            retain=settings.retain,
            buffers=settings.buffers,
            on_busy=settings.on_busy,
            compression=settings.compression,
            delta=settings.delta,
            memory_limit=settings.memory_limit,
            takeover=settings.takeover,
            name=self._name,
            note={"start_from": settings.start_from} if settings.start_from else {},
            hooks=settings.hooks,
            timing=self._timing,
            place=self._place,
        )

    def _view(self) -> Operation[View]:
        return (yield from self._call(self._open_session.view_async))

    # Errors that nobody has looked at.

    def _raise_unseen(self, session: Session, current: PendingWrite) -> None:
        """Raise, or warn of, the failure of an earlier save; ``current`` was staged all the same."""
        unseen = session.unseen
        handle = unseen.take(but=current)
        if handle is None or handle._completion.error is None:
            return
        error = handle._completion.error
        if self._settings.on_error == "warn" and unseen.warned_in_a_row < _WARNINGS_IN_A_ROW:
            unseen.warned_in_a_row += 1
            warnings.warn(f"limpet: the save of step {handle.step} failed: {error}", RuntimeWarning, stacklevel=4)
            return
        if isinstance(error, LimpetError):
            error.pending = current
        raise error

    def _close(self, timeout: float | None) -> Operation[None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        session = yield from self._begin_close(deadline)
        if session is None:
            return
        problems: list[BaseException] = []
        for child in self._children:
            problems += yield from _outcome(child._close(_left(deadline)))
        session.before_drain()
        if self._warm is not None:
            problems += yield from _outcome(self._warm.end())
        in_a_hurry = any(isinstance(problem, KeyboardInterrupt) for problem in problems)
        lost, interruption = yield from session.close(0.0 if in_a_hurry else _left(deadline))
        self._session = None
        self._last_committed = session.committed
        self._throttle.close()
        self._warn_left_out(session.committed)
        if lost:
            problems.append(self._late(lost))
        if interruption is not None:
            problems.append(interruption)
        _raise_first(problems + _failures(session))

    def _begin_close(self, deadline: float | None) -> Operation[Session | None]:
        """Refuse every call from now on; the session to close, if there is one."""
        while True:
            if os.getpid() != self._pid:  # threads and store are the parent process's
                self._closed = True
                return None
            with self._opening:
                refuse_reentry(self._opening)
                if self._closed:
                    return None
                if self._session is not None:
                    self._session.loop.check_caller()
                    if threading.get_ident() in self._session.entered:
                        raise reentrant()
                opened = self._opened
                if opened is None:
                    self._closed = True
                    if self._early is not None:
                        self._early.end(0.0)
                    return self._session
            if deadline is not None and time.monotonic() >= deadline:
                raise StoreError(
                    f"{self._store.url}: not closed: another call was still opening the run at the deadline of close().",
                    hint="Close it again once that call has ended.",
                    kind="late",
                )
            left = _LOOK_AGAIN_SECONDS if deadline is None else min(_LOOK_AGAIN_SECONDS, _left(deadline) or 0.0)
            yield Wait(opened, timeout_seconds=left, shielded=True)

    def _late(self, lost: list[str]) -> StoreError:
        hanging = still_at_work()
        threads = f" Still at work: {', '.join(hanging)}." if hanging else ""
        return StoreError(
            f"{self._store.url}: not committed before the deadline of close(): {', '.join(lost)}.{threads}",
            hint="Give close() more time, or save more often.",
            kind="late",
        )

    def _warn_left_out(self, committed: tuple[CheckpointInfo, ...]) -> None:
        if not self._throttle.any_left_out:
            return
        durable = committed[-1].step if committed else None
        warnings.warn(
            f"limpet: step {self._throttle.left_out} was throttled; durable: {durable}.", RuntimeWarning, stacklevel=4
        )


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _committing_what_is_held(throttle: Throttle, session: Session) -> Callable[[], None]:
    """Hands the newest throttled state to the engine. It knows no face: the exit guard must not keep that alive."""

    def commit() -> None:
        held: Save | None = throttle.take_held()
        if held is not None:
            session.unseen.watch(held.handle)
            session.push(held, admitted=False)

    return commit


def _outcome(operation: Operation[object]) -> Operation[list[BaseException]]:
    """What an operation raised, as a list: what comes after it must happen all the same."""
    try:
        cancelled = yield from operation
    except GeneratorExit:
        raise
    except BaseException as error:
        return [error]
    return [cancelled] if isinstance(cancelled, BaseException) else []


def _failures(session: Session) -> list[BaseException]:
    """The errors of the saves that nobody looked at, but for those that came too late: those are named already."""
    failures: list[BaseException] = []
    for handle in session.unseen.take_all():
        error = handle._completion.error
        if error is not None and not (isinstance(error, LimpetError) and error.kind == "late"):
            if isinstance(error, LimpetError):
                error.pending = handle
            failures.append(error)
    return failures


def _raise_first(problems: list[BaseException]) -> None:
    """Raise an interruption, if there is one, else the first error, with a note of each of the others."""
    if not problems:
        return
    interruptions = [problem for problem in problems if not isinstance(problem, Exception)]
    first = (interruptions or problems)[0]
    for other in problems:
        if other is not first:
            first.add_note(f"limpet: closing met this too: {other}")
    raise first
