"""``check=True``: was a state that is copied lazily left alone until it was staged?

Each leaf that is still to be copied is hashed in the call, and the copy and the live leaf once somebody waits for it, or
a second later: until then the state must be as it was, however fast the copy was this time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import blake3
import numpy as np

from limpet.engine.lazy import Copying
from limpet.engine.slots import Lease
from limpet.engine.staging import Draft
from limpet.errors import UsageError
from limpet.events import warn_gently
from limpet.format.paths import place
from limpet.format.summary import walk

__all__ = ["ChangedTooEarly"]

_WAIT_SECONDS = 1.0


class ChangedTooEarly:
    """The check of one lazy save, begun in its call.

    Args:
        draft: the state.
        later: indices of the buffers that are not copied yet.
    """

    def __init__(self, draft: Draft, later: Sequence[int]) -> None:
        self._draft = draft
        self._offsets = dict(draft.plan.copies)
        self._digests = {index: self._live(index) for index in later}

    def before(
        self, finish: Callable[[BaseException | None], None], copying: Copying
    ) -> Callable[[BaseException | None], None]:
        """``finish``, to be called with an error if the state was changed too early."""

        def checked(error: BaseException | None) -> None:
            if error is None and self._digests:  # else nothing is left to change, and this may be the call itself
                try:
                    copying.wanted.wait(_WAIT_SECONDS)
                    error = self._error(copying.lease)
                except BaseException as caught:  # no memory, say: the save ends all the same
                    error = caught
            finish(error)

        return checked

    def error_of_live(self, wanted: threading.Event) -> UsageError | None:
        """What to fail a streamed save with: what was copied of it first is not in memory any more. Blocks as long."""
        wanted.wait(_WAIT_SECONDS)
        return self._naming({index for index, digest in self._digests.items() if self._live(index) != digest})

    def _error(self, lease: Lease) -> UsageError | None:
        return self._naming(
            {
                index
                for index, digest in self._digests.items()
                if {self._live(index), self._copied(index, lease)} != {digest}
            }
        )

    def _naming(self, changed: set[int]) -> UsageError | None:
        if not changed:
            return None
        paths = [place(path) for path, leaf in walk(self._draft.tree.node) if changed.intersection(leaf.buffers)]
        error = UsageError(
            f"changed before it was staged: {', '.join(paths)}. The save is given up.",
            hint="Wait for pending.staged, or change it inside mutating() only.",
            kind="changed_early",
        )
        warn_gently(f"limpet: {error}")
        return error

    def _live(self, index: int) -> bytes:
        buffer = self._draft.tree.buffers[index]
        flat = buffer.flat()
        if flat is None:
            flat = np.empty(buffer.nbytes, np.uint8)
            buffer.copy_into(flat)
        return blake3.blake3(flat.data).digest()

    def _copied(self, index: int, lease: Lease) -> bytes:
        offset = self._offsets[index]
        return blake3.blake3(lease.memory[offset : offset + self._draft.tree.buffers[index].nbytes].data).digest()
