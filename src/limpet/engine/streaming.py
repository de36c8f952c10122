"""A snapshot that is never in memory as a whole: one segment is written while the next is copied.

Two sides share it. The stager copies a segment as soon as a half of the window is empty; the upload reads it once it was
copied, and says when it is durable. Either may end before the other: it breaks the snapshot off, which wakes both; once it was
released, nothing is read from the caller's memory any more, nor written to ours.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from limpet.engine.handover import abandon
from limpet.engine.lazy import Piece
from limpet.engine.queue import SaveQueue
from limpet.engine.save import Save, interrupted
from limpet.engine.slots import Lease
from limpet.engine.staging import Copier, Draft, Snapshot
from limpet.errors import LimpetError
from limpet.format.segments import Segment
from limpet.pending import Completion, Phase
from limpet.workers import to_its_end

__all__ = ["StreamedSnapshot", "give_up"]

_LOOK_AGAIN_SECONDS = 0.02
"""While a copy is stopped: more pieces may come, and an interrupt may have kept it from telling that it has."""


class StreamedSnapshot(Snapshot):
    """See the module.

    Args:
        draft: what is to be staged.
        lease: the window.
        segments: of the whole snapshot.
        half_bytes: where in the window its second half begins; no segment is larger.
    """

    __slots__ = (
        "_broken", "_changed", "_copied", "_draft", "_filling", "_firsts", "_half_bytes", "_pieces", "_written", "segments",
    )  # fmt: skip

    def __init__(self, draft: Draft, lease: Lease, segments: Sequence[Segment], half_bytes: int) -> None:
        super().__init__(draft, lease)
        self.segments = segments
        self._firsts = [segment.first for segment in segments]
        self._half_bytes = half_bytes
        self._draft: Draft | None = draft
        self._copied: list[Completion[None]] = [Completion() for _ in segments]
        self._written: list[Completion[None]] = [Completion() for _ in segments]
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._broken: BaseException | None = None
        self._filling = False

    @property
    def parts(self) -> int:  # type: ignore[override]  # of a whole one it is always 1
        """How many segments there are."""
        return len(self.segments)

    # The stager's side.

    def room(self, index: int) -> Completion[None]:
        """Settles when segment ``index`` may be copied, or the snapshot was broken off."""
        return self._written[index - 2] if index >= 2 else _SETTLED

    def fill(self, index: int, copier: Copier) -> bool:
        """Copy segment ``index``, for which there is room; ``False`` if it was broken off. Blocks; on any thread."""
        try:
            with self._changed:
                draft = self._draft
                if draft is None or self._broken is not None:
                    return False
                self._filling = True
            start = self._half_bytes * (index % 2)
            memory = self.lease.memory[start : start + self._half_bytes]
            copier.copy_part(draft, self.segments[index], memory, self._pieces)
        finally:
            self._filling = False  # first: nothing can interrupt that
            self._pieces.clear()
            with self._changed:
                self._changed.notify_all()
        return self._broken is None

    def hand_over(self, index: int) -> None:
        """Segment ``index`` was copied: it may be written."""
        if index == len(self.segments) - 1:
            self._draft = None
        self._copied[index].set_result(None)

    # The upload's side.

    async def available(self, start: int) -> int:
        """See ``Snapshot.available``.

        Raises:
            BaseException: what the snapshot was broken off with.
        """
        index = bisect_right(self.segments, start, key=lambda segment: segment.start) - 1
        await self._copied[index].wait_async()
        if self._broken is not None:
            raise self._broken
        return self.segments[index].end

    def written(self, end: int) -> None:
        """See ``Snapshot.written``."""
        for segment, written in zip(self.segments, self._written, strict=True):
            if segment.end <= end:
                written.set_result(None)

    def _offset_in_lease(self, offset: int) -> int:
        index = bisect_right(self._firsts, offset) - 1
        return offset - self.segments[index].base + self._half_bytes * (index % 2)

    # Both.

    def break_off(self, error: BaseException) -> None:
        """Nothing more is copied, and ``error`` ends the upload if it has not ended. Idempotent; never blocks."""

        def wake_both() -> None:
            with self._changed:
                self._broken = self._broken or error
            for waited_for in (*self._copied, *self._written):
                waited_for.set_result(None)

        to_its_end(wake_both)

    def keep(self, *, lent: bool = False) -> None:
        """See ``Snapshot.keep``: there is never a whole one."""

    def release(self, *, lent: bool = False) -> None:
        """Give memory and spooled files back, once the copy under way has stopped between two pieces. Idempotent."""
        self.break_off(LimpetError("the save has ended.", kind="interrupted"))
        with self._changed:
            self._draft = None
            while self._filling:
                self._pieces.clear()
                self._changed.wait(_LOOK_AGAIN_SECONDS)
        super().release(lent=lent)


def give_up(queue: SaveQueue, save: Save, draft: Draft, lease: Lease, error: BaseException) -> None:
    """The staging of an admitted save ended with ``error``, at whatever segment: nothing of it becomes visible."""
    error = interrupted(error)

    def end() -> None:
        if isinstance(save.snapshot, StreamedSnapshot):
            save.snapshot.break_off(error)
        if save.handle.phase == Phase.STAGING:
            abandon(queue, save, draft, lease, error)
        else:  # its upload ends it
            save.handle._staged.set_error(error)
            queue.leave(save)

    to_its_end(end)


_SETTLED: Completion[None] = Completion()
_SETTLED.set_result(None)
