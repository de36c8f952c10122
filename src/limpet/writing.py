"""Everything that writes, once for both faces: what each call of a ``Checkpointer`` does, step by step."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

from limpet.engine.capture import Spool
from limpet.engine.opening import View
from limpet.engine.reader import Reader
from limpet.engine.save import Save
from limpet.engine.slots import Lease
from limpet.engine.staging import Draft, Snapshot
from limpet.errors import CorruptError, LimpetError, StoreError, UsageError
from limpet.events import Event, Staged, Superseded
from limpet.format import retention
from limpet.format.tree import flatten
from limpet.loop import EngineLoop, Operation, Wait
from limpet.pending import Completion, PendingWrite
from limpet.reading import Reading, Source
from limpet.session import Session, SessionSettings
from limpet.settings import Settings, check_meta, check_step
from limpet.stores.base import Store
from limpet.throttle import HELD_BYTES_MAX, Throttle
from limpet.types import CheckpointInfo, Files, Outcome, Receipt, Swept
from limpet.version import library
from limpet.warm import WarmStart
from limpet.workers import Workers

__all__ = ["Request", "Writing"]

_WARNINGS_IN_A_ROW = 5


class Request:
    """What one call of ``write`` asks for.

    Attributes:
        off_thread: copy big leaves on another thread, because the caller's runs an event loop.
    """

    __slots__ = ("durable", "lazy", "meta", "off_thread", "pin", "started", "step")

    def __init__(
        self, step: object, meta: object, *, pin: bool, durable: bool, lazy: bool = False, off_thread: bool = False
    ) -> None:
        self.started = time.monotonic()
        self.step = check_step(step)
        self.meta = check_meta(meta)
        self.pin = pin
        self.durable = durable
        self.lazy = lazy
        self.off_thread = off_thread
        if lazy and durable:
            raise UsageError("lazy=True returns at once and durable=True waits for the commit: choose one.")


class Writing(Reading):
    """The operations behind ``Checkpointer``."""

    def __init__(self, store: Store, settings: Settings, *, name: str = "", parent: Writing | None = None) -> None:
        self._store = store
        self._settings = settings
        self._name = name
        self._parent = parent
        self._allow_pickle = settings.allow_pickle
        self._children: list[Writing] = []
        self._session: Session | None = None
        self._closed = False
        self._pid = os.getpid()
        self._opening = threading.Lock()
        self._opened: Completion[None] | None = None
        self._throttle = Throttle(settings.every)
        self._failed: deque[PendingWrite] = deque()
        self._warned_in_a_row = 0
        self._lazy: Completion[None] | None = None
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
        session = self._open_session
        if session.settings.hooks:
            session.loop.call_soon(session.emit, event)

    def _fallback_source(self) -> Source | None:
        start_from = self._settings.start_from
        if start_from is None:
            return None
        return WarmStart(start_from, self._settings.storage, self)

    def _closed_error(self) -> UsageError:
        return UsageError(f"the checkpointer of {self._store.url} is closed.", hint="Open a new one.", kind="closed")

    def _ready(self) -> Operation[None]:
        """Open the run if this is the first call; whoever comes meanwhile waits for that."""
        if self._session is not None:
            self._session.loop.check_caller()
        if os.getpid() != self._pid:
            raise UsageError(
                "this checkpointer was made in the process that this one was forked from.",
                hint="Make one of its own in the child.",
                kind="forked",
            )
        while True:
            if self._closed:
                raise self._closed_error()
            with self._opening:
                if self._session is not None:
                    return
                others = self._opened
                mine: Completion[None] = Completion()
                self._opened = others or mine
            if others is None:
                yield from self._open(mine)
                return
            yield Wait(others)

    def _open(self, opened: Completion[None]) -> Operation[None]:
        session: Session | None = None
        try:
            parent = None
            if self._parent is not None:
                yield from self._parent._ready()
                parent = self._parent._open_session
            session = Session(self._store, self._session_settings(), parent)
            yield from session.open()
        except BaseException:
            session = None
            raise
        finally:
            with self._opening:
                self._session = session
                self._opened = None
            opened.set_result(None)

    def _session_settings(self) -> SessionSettings:
        settings = self._settings
        return SessionSettings(
            owner=settings.owner,
            library=library(),
            retain=settings.retain,
            buffers=settings.buffers,
            on_busy=settings.on_busy,
            compression=settings.compression,
            memory_limit=settings.memory_limit,
            takeover=settings.takeover,
            name=self._name,
            note={"start_from": settings.start_from} if settings.start_from else {},
            hooks=settings.hooks,
        )

    def _view(self) -> Operation[View]:
        return (yield from self._call(self._open_session.view_async))

    # A ``write``, from the call to the handle.

    def _write(self, state: Any, request: Request) -> Operation[PendingWrite]:
        yield from self._ready()
        session = self._open_session
        if self._lazy is not None:
            yield Wait(self._lazy)  # commits follow the order of the calls
        self._check_policy(session, request.step)
        if not self._throttle.passes(request.step, forced=request.pin or request.durable):
            return self._throttled(state, request)
        draft = self._draft(state)
        try:
            save = self._save_for(session, request, draft)
            lease = yield from self._admit(session, save, draft, request)
        except BaseException:
            draft.discard()
            raise
        self._throttle.accepted(draft.plan.raw_bytes)
        if lease is None:
            draft.discard()
            return save.handle
        yield from self._stage(session, save, draft, lease, request)
        save.handle._completion.add_callback(lambda: self._ended(save.handle))
        self._raise_unseen(save.handle)
        if request.durable:
            yield Wait(save.handle._completion)
            save.handle._seen = True
            save.handle._completion.get()
        return save.handle

    def _check_policy(self, session: Session, step: int | None) -> None:
        retention.check(session.writer.policy, step)

    def _draft(self, state: Any) -> Draft:
        spool: Spool | None = None

        def capture(leaf: Files, add_buffer: Any) -> Any:
            nonlocal spool
            if spool is None:
                spool = Spool(self._spool_folders())
            return spool.capture(leaf, add_buffer)

        try:
            tree = flatten(state, registry=self._registry, allow_pickle=self._allow_pickle, files=capture)
            draft = Draft.of(tree, spool)
            self._check_fits(draft)
        except BaseException:
            if spool is not None:
                spool.close()
            raise
        return draft

    def _check_fits(self, draft: Draft) -> None:
        pool = self._open_session.pool
        if not pool.fits(draft.plan.slot_bytes):
            raise UsageError(
                f"the state needs {draft.plan.slot_bytes} bytes of buffer; memory_limit allows {pool.limit_bytes}.",
                hint="Raise memory_limit=, or save less.",
                kind="memory_limit",
            )

    def _spool_folders(self) -> list[Path]:
        folder = self._store.spool_folder()
        return [*([Path(folder)] if folder is not None else []), Path(tempfile.gettempdir())]

    def _save_for(self, session: Session, request: Request, draft: Draft) -> Save:
        save = Save(PendingWrite(request.step), request.meta, pinned=request.pin, called=request.started)
        save.supersedable = not (request.pin or request.durable or self._kept_for_its_own_sake(session, save, draft))
        save.paced = save.supersedable and self._settings.on_busy != "wait"
        save.urgent = request.durable
        return save

    def _kept_for_its_own_sake(self, session: Session, save: Save, draft: Draft) -> bool:
        policy = session.writer.policy
        if isinstance(policy, retention.Last):
            return False
        candidate = CheckpointInfo(0, save.step, time.time(), draft.plan.raw_bytes, 0, 0, save.meta)
        return retention.claims(policy, candidate, session.committed)

    def _admit(self, session: Session, save: Save, draft: Draft, request: Request) -> Operation[Lease | None]:
        """A lease, or ``None`` if the write was skipped; waits while the policy says so."""
        nbytes = draft.plan.slot_bytes
        lease = session.queue.admit_nowait(save, nbytes)
        if lease is None and request.off_thread:
            draft.detach_small()
        while lease is None:
            changed = session.queue.changed()
            lease = session.queue.admit_nowait(save, nbytes)
            if lease is None:
                yield Wait(changed)
        if lease == "skip":
            self._resolve_skipped(save.handle, request)
            return None
        return lease

    def _resolve_skipped(self, handle: PendingWrite, request: Request) -> None:
        stalled = time.monotonic() - request.started
        handle._staged.set_result(None)
        handle._completion.set_result(
            Receipt(Outcome.SKIPPED, step=request.step, durable_step=self._durable_step(), stalled_seconds=stalled)
        )

    def _durable_step(self) -> int | None:
        committed = self._open_session.committed
        return committed[-1].step if committed else None

    def _stage(self, session: Session, save: Save, draft: Draft, lease: Lease, request: Request) -> Operation[None]:
        copier = session.threads.copier
        if request.lazy or (request.off_thread and draft.plan.slot_bytes > HELD_BYTES_MAX):
            copied: Completion[None] = Completion()
            if request.lazy:
                self._lazy = copied
            session.threads.urgent.submit(lambda: self._copy_off_thread(session, save, draft, lease, copied))
            if not request.lazy:
                yield Wait(copied, shielded=True)
                copied.get()
            return
        try:
            copier.copy(draft, lease)
        except BaseException as error:
            self._abandon(session, save, draft, lease, error)
            raise
        self._hand_over(session, save, draft, lease)

    def _copy_off_thread(
        self, session: Session, save: Save, draft: Draft, lease: Lease, copied: Completion[None]
    ) -> None:
        try:
            session.threads.copier.copy(draft, lease)
        except BaseException as error:
            self._abandon(session, save, draft, lease, error)
            copied.set_error(error)
        else:
            self._hand_over(session, save, draft, lease)
            copied.set_result(None)

    def _abandon(self, session: Session, save: Save, draft: Draft, lease: Lease, error: BaseException) -> None:
        lease.release()
        draft.discard()
        save.handle._staged.set_error(error)
        session.queue.abandon(save, error)

    def _hand_over(self, session: Session, save: Save, draft: Draft, lease: Lease) -> None:
        save.snapshot = Snapshot(draft, lease)
        save.stalled_seconds = save.staged_seconds = save.elapsed()
        save.handle._staged.set_result(None)
        session.queue.push(save)
        self._tell(Staged(save.step, draft.plan.raw_bytes, save.stalled_seconds))

    def _throttled(self, state: Any, request: Request) -> PendingWrite:
        """A write that ``every=`` does not let pass; a small state is held for ``close`` all the same."""
        handle = PendingWrite(request.step)
        self._resolve_skipped(handle, request)
        if not self._throttle.may_hold():
            self._throttle.leave_out(request.step)
            return handle
        draft = self._draft(state)
        if draft.spool is not None or draft.plan.raw_bytes > HELD_BYTES_MAX:
            draft.discard()
            self._throttle.leave_out(request.step)
            return handle
        save = Save(PendingWrite(request.step), request.meta, supersedable=False, called=request.started)
        self._throttle.hold(save, draft, self._open_session.threads.copier)
        return handle

    # Errors that nobody has looked at.

    def _ended(self, handle: PendingWrite) -> None:
        if handle._completion.error is not None:
            self._failed.append(handle)
        else:
            self._warned_in_a_row = 0

    def _take_unseen(self) -> PendingWrite | None:
        while self._failed:
            handle = self._failed.popleft()
            if not handle._seen:
                handle._seen = True
                return handle
        return None

    def _raise_unseen(self, current: PendingWrite | None) -> None:
        """Raise, or warn of, the failure of an earlier save; ``current`` was staged all the same."""
        handle = self._take_unseen()
        if handle is None:
            return
        error = handle._completion.error
        if error is None:
            return
        if self._settings.on_error == "warn" and self._warned_in_a_row < _WARNINGS_IN_A_ROW:
            self._warned_in_a_row += 1
            warnings.warn(f"limpet: the save of step {handle.step} failed: {error}", RuntimeWarning, stacklevel=4)
            return
        if isinstance(error, LimpetError):
            error.pending = current if current is not None else handle
        raise error

    # The other calls.

    def _save_path(self, path: str | os.PathLike[str], request: Request) -> Operation[PendingWrite]:
        os.stat(path)  # FileNotFoundError now, before anything remote changes
        return (yield from self._write(Files(path), request))

    def _prewarm(self, state: Any) -> Operation[None]:
        yield from self._ready()
        draft = self._draft(state)
        draft.discard()
        self._open_session.pool.prewarm(draft.plan.slot_bytes)

    def _pin(self, at: Any, pinned: bool) -> Operation[CheckpointInfo]:
        yield from self._ready()
        seq = yield from self._seq_of(at)
        return (yield from self._call(self._open_session.writer.pin, seq, pinned))

    def _delete(self, at: Any) -> Operation[None]:
        yield from self._ready()
        seq = yield from self._seq_of(at)
        yield from self._call(self._open_session.writer.delete, seq)

    def _seq_of(self, at: Any) -> Operation[int]:
        if at is None:
            raise UsageError("name a checkpoint: a step, or one of checkpoints().")
        view = yield from self._view()
        return self._candidates(view, at)[0].info.seq

    def _sweep(self) -> Operation[Swept]:
        yield from self._ready()
        return (yield from self._call(self._open_session.writer.sweep))

    def _wait(self, timeout: float | None) -> Operation[None]:
        yield from self._ready()
        if self._lazy is not None:
            yield Wait(self._lazy)
        idle = yield from self._open_session.wait_idle(timeout)
        self._raise_unseen(None)
        if not idle:
            raise TimeoutError(f"{self._store.url}: saves are still being written after {timeout} s; they go on")

    def _close(self, timeout: float | None) -> Operation[None]:
        with self._opening:
            if self._closed or os.getpid() != self._pid:
                self._closed = True
                return
            self._closed = True
            session = self._session
        if session is None:
            return
        session.loop.check_caller()
        errors: list[BaseException] = []
        for child in self._children:
            try:
                yield from child._close(timeout)
            except LimpetError as error:
                errors.append(error)
        if self._lazy is not None:
            yield Wait(self._lazy)
        self._commit_held(session)
        lost = yield from session.close(timeout)
        self._session = None
        self._last_committed = session.committed
        self._warn_left_out(session.committed)
        if lost:
            self._failed.clear()
            raise StoreError(
                f"{self._store.url}: not committed before the deadline of close(): {', '.join(lost)}.",
                hint="Give close() more time, or save more often.",
                kind="late",
            )
        self._raise_unseen(None)
        if errors:
            raise errors[0]

    def _commit_held(self, session: Session) -> None:
        held = self._throttle.take_held()
        if held is None:
            return
        held.handle._completion.add_callback(lambda: self._ended(held.handle))
        session.queue.push(held, admitted=False)

    def _warn_left_out(self, committed: tuple[CheckpointInfo, ...]) -> None:
        if not self._throttle.any_left_out:
            return
        durable = committed[-1].step if committed else None
        warnings.warn(
            f"limpet: step {self._throttle.left_out} was throttled; durable: {durable}.", RuntimeWarning, stacklevel=4
        )
