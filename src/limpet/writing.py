"""Everything that writes, once for both faces: what each call of a ``Checkpointer`` does, step by step."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from limpet.engine.handover import abandon, hand_over_when_copied, set_staged
from limpet.engine.outline import Outline
from limpet.engine.save import Save, interrupted
from limpet.engine.slots import Lease
from limpet.engine.staging import Draft
from limpet.engine.streaming import give_up
from limpet.errors import UsageError
from limpet.events import Staged
from limpet.format import retention
from limpet.holding import Holding
from limpet.lazy import Need
from limpet.loop import Operation, Wait, on_worker
from limpet.pending import PendingWrite, Phase
from limpet.session import Session
from limpet.settings import check_meta, check_step
from limpet.streaming import Streaming, Window, window_for
from limpet.throttle import HELD_BYTES_MAX
from limpet.types import CheckpointInfo, Files, Outcome, Receipt, Swept

__all__ = ["Request", "Writing"]


class Request:
    """What one call of ``write`` asks for.

    Attributes:
        need: of a lazy write, which holds off whoever would change the state.
        window: of a state that is too large to be staged as a whole.
        off_thread: copy big leaves on another thread, because the caller's runs an event loop.
    """

    __slots__ = ("durable", "lazy", "meta", "need", "off_thread", "pin", "started", "step", "window")

    def __init__(
        self, step: object, meta: object, *, pin: bool, durable: bool, lazy: bool = False, off_thread: bool = False
    ) -> None:
        self.started = time.monotonic()
        self.step = check_step(step)
        self.meta = check_meta(meta)
        self.pin = pin
        self.durable = durable
        self.lazy = lazy
        self.need: Need | None = None
        self.window: Window | None = None
        self.off_thread = off_thread
        if lazy and durable:
            raise UsageError("lazy=True returns at once and durable=True waits for the commit: choose one.")


class Writing(Holding):
    """The operations behind ``Checkpointer``."""

    # A ``write``, from the call to the handle.

    def _write(self, state: Any, request: Request) -> Operation[PendingWrite]:
        outline: Outline | None = None
        if request.off_thread and self._session is None:
            self._check_usable()
            outline = self._outline(state)
            outline.detach_small()  # something may be awaited now
        yield from self._ready()
        session = self._open_session
        retention.check(session.writer.policy, request.step)
        if not self._throttle.passes(request.step, forced=request.pin or request.durable):
            return self._throttled(session, state, outline, request)
        draft = yield from self._draft(session, outline or self._outline(state), request)
        save = self._save_for(session, request, draft)
        this_thread = threading.get_ident()
        try:
            session.entered.add(this_thread)
            if not (yield from self._accept(session, save, draft, request)):
                return save.handle
        finally:
            session.entered.discard(this_thread)
        self._raise_unseen(session, save.handle)
        if request.durable:
            yield Wait(save.handle._completion)
            save.handle._seen = True
            save.handle._completion.get()
        return save.handle

    def _write_lazily(self, state: Any, request: Request) -> Operation[PendingWrite]:
        need = request.need = Need()
        try:
            self._lazies.enter(need)
            return (yield from self._write(state, request))
        finally:
            need.returned = True  # first: nothing can interrupt that
            self._lazies.leave(need)

    def _accept(self, session: Session, save: Save, draft: Draft, request: Request) -> Operation[bool]:
        """Admit and stage a save; ``False`` if it was skipped."""
        interruption: BaseException | None = None
        try:
            lease = yield from self._admit(session, save, draft, request)
        except BaseException as error:
            lease = self._admit_again(session, save, draft, error)
            if lease is None:
                draft.discard()
                raise
            interruption = error
        if lease is None:
            draft.discard()
            return False
        try:
            if request.need is not None:
                request.need.handle = save.handle
            self._throttle.accepted(draft.plan.raw_bytes)
            session.unseen.watch(save.handle)
            yield from self._stage(session, save, draft, lease, request)
        except BaseException as error:
            if request.window is not None:
                save.handle._seen = True
                give_up(session.queue, save, draft, lease, error)
            elif isinstance(error, Exception):
                if save.claim_copy():
                    abandon(session.queue, save, draft, lease, error)
            else:  # as in the copy itself: older saves have given up their places for this one
                self._copy(session, save, draft, lease)
            raise
        if interruption is not None:
            raise interruption
        return True

    def _admit_again(self, session: Session, save: Save, draft: Draft, error: BaseException) -> Lease | None:
        """A lease for a save whose admission was interrupted, if older ones had given up their places for it by then."""
        session.queue.leave(save)
        if isinstance(error, Exception):
            session.unseen.saw(error)
        elif save.replaced_steps:
            error.__traceback__ = None  # its frames hold the lease that was on its way here
            lease = session.queue.admit_nowait(save, draft.plan.slot_bytes)
            if lease is not None and lease != "skip":
                return lease
            session.queue.leave(save)
            session.unseen.watch(save.handle)  # those were accepted: if nobody looks, their loss is told at the end
        save.fail(interrupted(error))
        return None

    def _outline(self, state: Any) -> Outline:
        return Outline(
            state,
            registry=self._registry,
            allow_pickle=self._allow_pickle,
            folders=self._spool_folders,
            copy_all=self._place is not None,
            recall=self._recall,
        )

    def _draft(self, session: Session, outline: Outline, request: Request) -> Operation[Draft]:
        """Capture files, on another thread if the caller's must not be stalled, and lay everything out."""
        if outline.has_files and request.off_thread:
            outline.detach_small()
            drafting = on_worker(session.threads.urgent, outline.draft)
            try:
                yield Wait(drafting)
            except BaseException:
                drafting.add_callback(lambda: None if drafting.error else drafting.get().discard())
                raise
            draft = drafting.get()
        else:
            draft = outline.draft()
        try:
            request.window = window_for(session, draft.plan, apart=request.off_thread or request.lazy)
        except BaseException:
            draft.discard()
            raise
        return draft

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
        return session.writer.standing.claims(candidate)

    def _admit(self, session: Session, save: Save, draft: Draft, request: Request) -> Operation[Lease | None]:
        """A lease, or ``None`` if the write was skipped; waits while the policy says so."""
        nbytes = draft.plan.slot_bytes
        if request.window is not None:
            nbytes = request.window.nbytes
            # It is lost if its call is interrupted: it may not take the place of what was accepted.
            save.supersedable = save.supersedable and self._settings.on_busy == "skip"
        lease = session.queue.admit_nowait(save, nbytes)
        if lease is None and request.off_thread:
            draft.detach_small()
        while lease is None:
            changed = session.queue.changed()
            lease = session.queue.admit_nowait(save, nbytes)
            if lease is None:
                session.queue.press()
                yield from _aside(session, Wait(changed), request)
        if lease == "skip":
            self._resolve_skipped(session, save.handle, request)
            return None
        return lease

    def _resolve_skipped(self, session: Session, handle: PendingWrite, request: Request) -> None:
        stalled = time.monotonic() - request.started
        durable_step = session.committed[-1].step if session.committed else None
        handle.phase = Phase.DONE
        handle._staged.set_result(None)
        handle._completion.set_result(
            Receipt(Outcome.SKIPPED, step=request.step, durable_step=durable_step, stalled_seconds=stalled)
        )

    def _stage(self, session: Session, save: Save, draft: Draft, lease: Lease, request: Request) -> Operation[None]:
        if request.window is not None:
            yield from self._stage_in_parts(session, save, draft, lease, request)
        elif request.need is not None:
            copying = session.threads.copier.lazily(draft, lease, self._lazies.volatile())
            hand_over_when_copied(
                session.queue,
                save,
                draft,
                copying,
                push=session.push,
                tell=session.tell,
                check=self._settings.check,
            )
            if request.need.wanted:
                copying.hurry()
        elif request.off_thread and draft.plan.slot_bytes > HELD_BYTES_MAX:
            draft.detach_small()
            copied = on_worker(session.threads.urgent, lambda: self._copy(session, save, draft, lease))
            yield from _aside(session, Wait(copied, shielded=True), request)
            save.handle._seen = copied.error is not None
            copied.get()
        else:
            try:
                self._copy(session, save, draft, lease)
            except BaseException as error:
                # What an interrupted write had already replaced was accepted: that loss is still to be told.
                told = isinstance(error, Exception) or not save.replaced_steps
                save.handle._seen = told and save.handle._completion.error is not None
                raise

    def _stage_in_parts(
        self, session: Session, save: Save, draft: Draft, lease: Lease, request: Request
    ) -> Operation[None]:
        assert request.window is not None
        save.supersedable = save.paced = False
        if request.off_thread or request.lazy:
            draft.detach_small()
        streaming = Streaming(session, save, draft, lease, request.window)
        if request.need is not None and streaming.in_background(self._lazies.volatile(), check=self._settings.check):
            if request.need.wanted:
                request.need.hurry()
            return
        yield from streaming.in_call(off_thread=request.off_thread, aside=lambda wait: _aside(session, wait, request))

    def _copy(self, session: Session, save: Save, draft: Draft, lease: Lease) -> None:
        """Copy the state, and hand it to the engine; on any thread."""
        interruption: BaseException | None = None
        if save.copying is not None and not session.queue.take_copy(save):
            return  # it was copied lazily, and handed over or replaced, before the interruption of the call came here
        try:
            if not save.claim_copy():
                return  # the call that asked for it was interrupted
            try:
                self._hand_over(session, save, draft, lease)
            except BaseException as error:  # from the keyboard, or a signal's handler that ends the program
                if isinstance(error, Exception):
                    raise
                interruption = error
                # The place of an older save may be taken already, and the state is still as it was: finish first.
                self._hand_over(session, save, draft, lease)
        except BaseException as error:
            abandon(session.queue, save, draft, lease, error)
            raise
        if session.settings.hooks:
            session.tell(Staged(save.step, draft.plan.raw_bytes, save.stalled_seconds))
        if interruption is not None:
            raise interruption

    def _hand_over(self, session: Session, save: Save, draft: Draft, lease: Lease) -> None:
        """Copy and push; one that was interrupted may be repeated."""
        if not save.handle._staged.done():  # after that, the memory may be the engine's
            session.threads.copier.copy(draft, lease)
            save.stalled_seconds = save.elapsed()
            set_staged(save, draft, lease)
        session.push(save)

    def _throttled(self, session: Session, state: Any, outline: Outline | None, request: Request) -> PendingWrite:
        """A write that ``every=`` does not let pass; a small state is held for ``close`` all the same."""
        handle = PendingWrite(request.step)
        self._resolve_skipped(session, handle, request)
        if not self._throttle.may_hold():
            self._throttle.leave_out(request.step)
            return handle
        draft = (outline or self._outline(state)).draft()
        if draft.plan.raw_bytes > HELD_BYTES_MAX:
            draft.discard()
            self._throttle.leave_out(request.step, draft.plan.raw_bytes)
            return handle
        save = Save(PendingWrite(request.step), request.meta, supersedable=False, called=request.started)
        self._throttle.hold(save, draft, session.threads.copier)
        return handle

    # The other calls.

    def _save_path(self, path: str | os.PathLike[str], request: Request) -> Operation[PendingWrite]:
        os.stat(path)  # FileNotFoundError now, before anything remote changes
        return (yield from self._write(Files(path), request))

    def _prewarm(self, state: Any, *, off_thread: bool) -> Operation[None]:
        yield from self._ready()
        session = self._open_session
        plan = self._outline(state).plan
        window = window_for(session, plan, apart=False)
        slot_bytes = plan.slot_bytes if window is None else window.nbytes
        if off_thread:
            warming = on_worker(session.threads.urgent, lambda: session.pool.prewarm(slot_bytes))
            yield Wait(warming)
            warming.get()
        else:
            session.pool.prewarm(slot_bytes)

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

    def _drop_damaged(self) -> Operation[tuple[int, ...]]:
        yield from self._ready()
        return (yield from self._call(self._open_session.writer.drop_damaged))

    def _sweep(self) -> Operation[Swept]:
        yield from self._ready()
        return (yield from self._call(self._open_session.writer.sweep))

    def _wait(self, timeout: float | None) -> Operation[None]:
        yield from self._ready()
        session = self._open_session
        deadline = None if timeout is None else time.monotonic() + timeout
        idle = yield from session.wait_idle(None if deadline is None else max(0.0, deadline - time.monotonic()))
        failed = session.unseen.take()
        if failed is not None:
            failed._completion.get()
        if not idle:
            raise TimeoutError(f"{self._store.url}: saves are still being written after {timeout} s; they go on")


def _aside(session: Session, wait: Wait, request: Request) -> Operation[None]:
    """Wait in the middle of a write; of a coroutine's thread, others have their turn meanwhile."""
    this_thread = threading.get_ident()
    try:
        if request.off_thread:
            session.entered.discard(this_thread)
        yield wait
    finally:
        if request.off_thread:
            session.entered.add(this_thread)
