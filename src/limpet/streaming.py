"""Staging a state that ``memory_limit`` does not hold: through a window of that size, as fast as the store takes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from numpy.lib.array_utils import byte_bounds

from limpet.engine.checking import ChangedTooEarly
from limpet.engine.save import Save
from limpet.engine.slots import Lease
from limpet.engine.staging import Draft, Volatile
from limpet.engine.streaming import StreamedSnapshot, give_up
from limpet.errors import UsageError
from limpet.events import Staged
from limpet.format.buffers import Buffer
from limpet.format.chunks import SHARED_BYTES, Plan
from limpet.format.segments import cut_segments, half_of, least_window
from limpet.loop import Operation, Wait, drive, on_worker
from limpet.session import Session

__all__ = ["Streaming", "Window", "window_for"]

_PAGE = 2 << 20
"""Buffers are leased in whole ones."""
_LEAST_BYTES = 16 << 20


class Window(NamedTuple):
    """Memory that a state is staged through.

    Attributes:
        nbytes: to lease: all that the limit allows.
        part_bytes: of one segment at most.
    """

    nbytes: int
    part_bytes: int


def window_for(session: Session, plan: Plan, *, apart: bool) -> Window | None:
    """The window to stage a state through; ``None`` if there is room for it as a whole.

    Args:
        session: whose memory it is.
        plan: the state's layout.
        apart: small leaves are copied beforehand, each by itself, and take their part of the limit.

    Raises:
        UsageError: kind ``memory_limit``: the state does not fit, nor can it be staged through what there is.
    """
    limit_bytes = session.pool.limit_bytes
    if session.pool.fits(plan.slot_bytes):
        return None
    small_bytes = sum(at.nbytes for at in plan.buffers if at.nbytes < SHARED_BYTES) if apart else 0
    nbytes = limit_bytes // _PAGE * _PAGE
    least_bytes = max(_LEAST_BYTES, -(-(least_window(plan) + small_bytes) // _PAGE) * _PAGE)
    in_process = session.settings.place is not None
    if nbytes >= least_bytes and session.settings.memory_limit is not None and not in_process:
        return Window(nbytes, half_of(nbytes - small_bytes))
    if in_process:
        hint = f'Give it {plan.slot_bytes} bytes, or use engine="thread": it writes a larger state part by part.'
        reason = ' With engine="process" all of it must fit.'
    else:
        hint = f"Give it {min(plan.slot_bytes, least_bytes)} bytes or more, or save less."
        reason = ""
    raise UsageError(
        f"the state needs {plan.slot_bytes} bytes of buffer; memory_limit allows {limit_bytes}.{reason}",
        hint=hint,
        kind="memory_limit",
    )


class Streaming:
    """The staging of one admitted save, segment by segment.

    Args:
        session: the run.
        save: neither supersedable nor paced: the one who waits for it is in the middle of a call.
        draft: its state.
        lease: of the window.
        window: its measures.
    """

    def __init__(self, session: Session, save: Save, draft: Draft, lease: Lease, window: Window) -> None:
        self._session = session
        self._save = save
        self._draft = draft
        self._lease = lease
        self._stream = StreamedSnapshot(
            draft, lease, cut_segments(draft.plan.chunks, window.part_bytes), window.part_bytes
        )
        self._urgent = save.urgent
        self._wanted = threading.Event()
        self._check: ChangedTooEarly | None = None
        save.snapshot = self._stream

    def in_call(self, *, off_thread: bool, aside: Callable[[Wait], Operation[None]]) -> Operation[None]:
        """Stage it while the caller waits. A store that fails ends this early: then the handle has the error.

        Args:
            off_thread: copy on another thread.
            aside: waits.
        """
        self._save.urgent = True
        yield from self._stage(off_thread=off_thread, aside=aside)

    def in_background(self, volatile: Volatile, *, check: bool) -> bool:
        """Stage it on a thread of its own, which may wait for the store.

        Args:
            volatile: whether memory may change although nobody waits for its copy.
            check: fail the save if the state is changed before it was staged.

        Returns:
            Whether it was begun: not if something is volatile, or no thread can be started any more.
        """
        buffers = self._draft.tree.buffers
        large = [index for index, _ in self._draft.plan.copies if buffers[index].nbytes >= SHARED_BYTES]
        if any(volatile(*_span(buffers[index])) for index in large):
            return False
        if check:
            self._check = ChangedTooEarly(self._draft, large)
        self._save.handle._hurry = self._hurry
        self._save.stalled_seconds = self._save.elapsed()
        try:
            threading.Thread(target=self._run, name="limpet-stream", daemon=True).start()
        except RuntimeError:  # the main thread has ended
            return False
        return True

    def _run(self) -> None:
        try:
            drive(self._stage(off_thread=False, aside=_wait))
        except BaseException as error:  # the handle has it
            error.__traceback__ = None  # its frames hold the state
            give_up(self._session.queue, self._save, self._draft, self._lease, error)
        finally:
            self._save.handle._hurry = None  # it holds this, which holds the handle

    def _hurry(self) -> None:
        """Somebody waits until the state may change."""
        self._save.urgent = True
        self._wanted.set()

    def _stage(self, *, off_thread: bool, aside: Callable[[Wait], Operation[None]]) -> Operation[None]:
        stream, copier, workers = self._stream, self._session.threads.copier, self._session.threads.urgent
        for index in range(stream.parts):
            room = stream.room(index)
            if not room.done():
                yield from aside(Wait(room))
            if off_thread:
                copied = on_worker(workers, lambda index=index: stream.fill(index, copier))  # type: ignore[misc]
                yield from aside(Wait(copied, shielded=True))
                goes_on = copied.get()
            else:
                goes_on = stream.fill(index, copier)
            if not goes_on:
                return
            if index == 0:
                self._session.push(self._save)
            if index == stream.parts - 1:
                self._settle()
            stream.hand_over(index)
        if self._session.settings.hooks:
            self._session.tell(Staged(self._save.step, self._draft.plan.raw_bytes, self._save.stalled_seconds))

    def _settle(self) -> None:
        """Everything was copied: the state may change."""
        changed = None if self._check is None else self._check.error_of_live(self._wanted)
        if changed is not None:
            raise changed
        save = self._save
        save.staged_seconds = save.elapsed()
        save.stalled_seconds = save.stalled_seconds or save.staged_seconds
        save.urgent = self._urgent
        save.handle._hurry = None
        save.handle._staged.set_result(None)


def _span(buffer: Buffer) -> tuple[int, int]:
    """The memory that a large buffer is copied from."""
    flat = buffer.flat()
    first, end = byte_bounds(buffer.data if flat is None else flat)  # type: ignore[arg-type]  # gathered: an array
    return first, end


def _wait(wait: Wait) -> Operation[None]:
    yield wait
