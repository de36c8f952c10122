"""One accepted save on its way through the engine, and what is left of it once a newer one took its place."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, field
from typing import Any

from limpet.engine.lazy import Copying
from limpet.engine.slots import Lease
from limpet.engine.staging import Snapshot
from limpet.errors import LimpetError
from limpet.pending import PendingWrite, Phase
from limpet.types import Outcome, Receipt

__all__ = ["Save", "interrupted"]


@dataclass(slots=True, eq=False)
class Save:
    """A save: what the caller asked for, its snapshot, and what is known of it so far.

    Attributes:
        handle: what the caller holds.
        meta: JSON-encodable.
        pinned: whether retention must keep it.
        supersedable: whether a newer one may replace it while it waits.
        paced: whether it may be held back a little, so that a tight loop is no stream of requests.
        urgent: whether its caller waits for the commit, or another one for its memory.
        share_encoded: of its bytes, 0 to 1.
        kept: whether its content stays in memory once it is committed, so that the next one can be compared with it.
        snapshot: set once staged.
        copying: of a lazy save, until it is staged.
        called: monotonic time of the call.
        stalled_seconds: how long the caller was held up.
        replaced: saves that this one superseded, and whose handle somebody still holds.
        forgotten: steps of those whose handle nobody holds.
        place: in the order of the calls, once it was admitted.
        staged_seconds, encoded_seconds, uploaded_seconds: since the call.
    """

    handle: PendingWrite
    meta: dict[str, Any] = field(default_factory=dict)
    pinned: bool = False
    supersedable: bool = True
    paced: bool = True
    urgent: bool = False
    share_encoded: float = 0.0
    kept: bool = False
    snapshot: Snapshot | None = None
    copying: Copying | None = None
    called: float = field(default_factory=time.monotonic)
    stalled_seconds: float = 0.0
    staged_seconds: float = 0.0
    encoded_seconds: float = 0.0
    uploaded_seconds: float = 0.0
    replaced: list[Replaced] = field(default_factory=list)
    forgotten: list[int | None] = field(default_factory=list)
    place: int = 0
    _to_copy: list[None] = field(default_factory=lambda: [None])

    def claim_copy(self) -> bool:
        """Whether the caller is the one to stage it, or to give that up: true once, on whatever thread."""
        try:
            self._to_copy.pop()
        except IndexError:
            return False
        return True

    @property
    def step(self) -> int | None:
        """The label that the caller gave."""
        return self.handle.step

    def elapsed(self) -> float:
        """Seconds since the call."""
        return time.monotonic() - self.called

    def take_over(self, older: Save) -> None:
        """Replace ``older``, and what it replaced: when this one ends, they all do."""
        # The lists move instead of being copied: a tight loop supersedes thousands between two commits.
        replaced, older.replaced = older.replaced, []
        forgotten, older.forgotten = older.forgotten, []
        replaced.append(Replaced(older))
        self.replaced = [*self.replaced, *replaced] if self.replaced else replaced
        self.forgotten = [*self.forgotten, *forgotten] if self.forgotten else forgotten
        count = len(self.replaced)
        if count >= 16 and count & (count - 1) == 0:  # at powers of two: seldom enough to cost nothing
            self._forget()

    @property
    def replaced_steps(self) -> list[int | None]:
        """Steps of all saves that this one superseded."""
        return [*self.forgotten, *(older.step for older in self.replaced)]

    def _forget(self) -> None:
        """While the store does not answer, as many are superseded as the caller likes: few bytes each must do."""
        self.forgotten += [older.step for older in self.replaced if older.handle() is None]
        self.replaced = [older for older in self.replaced if older.handle() is not None]

    @property
    def lease(self) -> Lease | None:
        """The memory of its snapshot, or of the copy that is to become it."""
        if self.snapshot is not None:
            return self.snapshot.lease
        return None if self.copying is None else self.copying.lease

    def release(self) -> None:
        """Give the snapshot's memory back, or stop its copy: the state may change now. Idempotent."""
        if self.snapshot is not None:
            self.snapshot.release()
            self.snapshot = None
        copying, self.copying = self.copying, None
        if copying is not None:
            copying.end()
            self.handle._hurry = None
            self.handle._staged.set_result(None)

    def resolve(self, receipt: Receipt) -> None:
        """End well, and with it everything that this save superseded."""
        self.release()
        self.handle.phase = Phase.DONE
        for older in self.replaced:
            older.resolve(receipt)
        self.handle._completion.set_result(receipt)

    def fail(self, error: BaseException) -> None:
        """End badly, and with it everything that this save superseded."""
        self.release()
        self.handle.phase = Phase.DONE
        if not self.handle._staged.done():
            self.handle._staged.set_result(None)
        for older in self.replaced:
            older.fail(error)
        self.handle._completion.set_error(error)


class Replaced:
    """What is left of a save that was superseded. It does not keep the handle alive: that is the caller's to do."""

    __slots__ = ("called", "handle", "staged_seconds", "stalled_seconds", "step")

    def __init__(self, save: Save) -> None:
        self.handle = weakref.ref(save.handle)
        self.step = save.step
        self.called = save.called
        self.stalled_seconds = save.stalled_seconds
        self.staged_seconds = save.staged_seconds

    def resolve(self, by: Receipt) -> None:
        """The newer save is durable."""
        handle = self.handle()
        if handle is None:
            return
        handle.phase = Phase.DONE
        handle._completion.set_result(
            Receipt(
                outcome=Outcome.SUPERSEDED,
                step=self.step,
                durable_step=by.durable_step,
                seq=by.seq,
                stalled_seconds=self.stalled_seconds,
                staged_seconds=self.staged_seconds,
                committed_seconds=time.monotonic() - self.called,
            )
        )

    def fail(self, error: BaseException) -> None:
        """The newer save failed; it carries the same error, and is the one to look at."""
        handle = self.handle()
        if handle is None:
            return
        handle._seen = True
        handle.phase = Phase.DONE
        handle._completion.set_error(error)


def interrupted(error: BaseException) -> BaseException:
    """What becomes of a save whose staging ended with ``error``: an interruption is no error of the save's own."""
    if isinstance(error, Exception):
        return error
    return LimpetError("the state was not staged: its copy was interrupted.", kind="interrupted")
