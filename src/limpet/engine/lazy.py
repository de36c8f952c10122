"""Copies that go on after the call: in pieces, by whatever thread has time, and stopped between two of them.

One thread of low priority copies, save after save in the order of the calls. Whoever waits for a copy has threads of
full priority join it; the waiting thread itself never copies, so that nothing that interrupts it can leave a piece
half accounted for. A copy that was paused writes nothing: its memory may be given to somebody else.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from limpet.engine.slots import Lease
from limpet.workers import STEADY_NICE, Workers

__all__ = ["Copying", "Crew", "Piece", "copy_piece"]

Piece: TypeAlias = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Where to, and where from: equal shapes and dtypes."""


class Crew:
    """The threads that lazy copies run on; they start with the first one.

    Args:
        helpers: threads of full priority, for copies that somebody waits for.
    """

    def __init__(self, helpers: Workers) -> None:
        # At the lowest priority a piece that somebody waits for could take a second.
        self._background = Workers(1, "limpet-lazy", nice=STEADY_NICE)
        self._helpers = helpers

    def begin(self, work: Callable[[], None]) -> bool:
        """Do ``work`` in the background, after what was begun earlier; ``False`` if no thread will ever do it."""
        with contextlib.suppress(RuntimeError):  # the main thread has ended, and no thread can be started any more
            return self._background.submit(work)
        return False

    def join(self, work: Callable[[], None]) -> None:
        """Do ``work`` on every helper as well. Never blocks; where there is none, the background goes on alone."""
        with contextlib.suppress(RuntimeError):
            for _ in range(self._helpers.count):
                self._helpers.submit(work)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End the background thread."""
        self._background.close(timeout_seconds)


class Copying:
    """What is left to copy of one save: ``then`` says what comes after it, ``begin`` starts it.

    Args:
        pieces: in the order in which they are copied.
        crew: whose threads do it.
        lease: the memory that it goes to.
        release: gives up both sides; called if it is ended before it is complete.
        buffers: indices of those that the pieces belong to.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        crew: Crew,
        lease: Lease,
        release: Callable[[], None],
        buffers: Sequence[int] = (),
    ) -> None:
        self.lease = lease
        self.buffers = buffers
        self._pieces = deque(pieces)
        self._crew = crew
        self._release = release
        self._finish: Callable[[BaseException | None], None] | None = None
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._busy = 0
        self._paused: bool = False
        self._ended: bool = False
        self.wanted = threading.Event()
        """Set once somebody waits for it."""

    def then(self, finish: Callable[[BaseException | None], None]) -> None:
        """Call ``finish`` once, on the thread that copied the last piece, with what went wrong, if anything did."""
        self._finish = finish

    def begin(self) -> None:
        """Copy in the background; here and now if nothing is left, or no thread could do it."""
        if not self._pieces or not self._crew.begin(self._work):
            self._work()

    def hurry(self) -> None:
        """Somebody waits for it: copy at full speed. Never blocks. Idempotent."""
        if not self.wanted.is_set():
            self.wanted.set()
            self._crew.join(self._work)

    def pause(self) -> bool:
        """Stop between two pieces; once this has returned, nothing is written until ``resume``.

        Returns:
            Whether it is paused now; ``False`` if it has ended.
        """
        with self._changed:
            if self._ended:
                return False
            self._paused = True
            while self._busy:
                self._changed.wait()
            return True

    def resume(self) -> None:
        """Go on after a ``pause``; nothing happens without one. Never finishes here: the caller may hold a lock."""
        with self._changed:
            resumes, self._paused = self._paused and not self._ended, False
        if resumes:
            self._crew.begin(self._work)  # its thread runs since the first ``begin``
            if self.wanted.is_set():
                self._crew.join(self._work)

    def end(self) -> bool:
        """Stop for good, without ``finish``; whether there was anything to stop. Idempotent."""
        if not self.pause():
            return False
        with self._changed:
            ends, self._ended = not self._ended, True
            self._pieces.clear()
            self._finish = None
        if ends:
            self._release()
        return ends

    def _work(self) -> None:
        """Copy piece after piece, beside other threads that do, until none is left."""
        with self._changed:
            if self._paused or self._ended:
                return
            self._busy += 1
        try:
            self._copy_pieces()
        except BaseException as error:  # the save's to tell: it is not staged
            error.__traceback__ = None  # its frames hold the memory
            self._error = error
            self._pieces.clear()
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
            if not self._is_complete():
                return
            self._ended = True
            finish, self._finish = self._finish, None  # it holds the save, whose handle may hold this
        assert finish is not None
        finish(self._error)

    def _is_complete(self) -> bool:
        return not (self._busy or self._pieces or self._paused or self._ended)

    def _copy_pieces(self) -> None:
        while not self._paused:
            try:
                target, source = self._pieces.popleft()
            except IndexError:
                return
            copy_piece(target, source)


def copy_piece(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
    """Copy one piece; numpy holds no lock meanwhile."""
    np.copyto(target, source)
