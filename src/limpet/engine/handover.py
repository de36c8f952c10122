"""The moment at which a state becomes the engine's: staged, and in the queue; or given up before that."""

from __future__ import annotations

from collections.abc import Callable

from limpet.engine.checking import ChangedTooEarly
from limpet.engine.lazy import Copying
from limpet.engine.queue import SaveQueue
from limpet.engine.save import Save, interrupted
from limpet.engine.slots import Lease
from limpet.engine.staging import Draft, Snapshot
from limpet.events import Event, Staged
from limpet.failpoints import reach
from limpet.workers import to_its_end

__all__ = ["abandon", "hand_over_when_copied", "set_staged"]


def set_staged(save: Save, draft: Draft, lease: Lease) -> None:
    """Everything was copied: the state may change."""
    save.snapshot = Snapshot(draft, lease)
    save.copying = None
    save.staged_seconds = save.elapsed()
    reach("save.staged")
    save.handle._hurry = None
    save.handle._staged.set_result(None)


def abandon(queue: SaveQueue, save: Save, draft: Draft, lease: Lease, error: BaseException) -> None:
    """Take back a save that was admitted and not pushed; one that was pushed goes on."""
    error = interrupted(error)

    def end() -> None:
        save.handle._staged.set_error(error)
        if queue.abandon(save, error):
            lease.release()
            draft.discard()

    to_its_end(end)


def hand_over_when_copied(
    queue: SaveQueue,
    save: Save,
    draft: Draft,
    copying: Copying,
    *,
    push: Callable[[Save], None],
    tell: Callable[[Event], None],
    check: bool,
) -> None:
    """Begin a lazy copy. At its end the save is staged and pushed, or fails, on the thread that copied last.

    Args:
        queue: that the save was admitted to.
        save: the save.
        draft: its state.
        copying: what is left to copy of it.
        push: takes the staged save.
        tell: tells the hooks.
        check: fail it if the state is changed before it is staged.
    """

    def finish(error: BaseException | None) -> None:
        if not save.claim_copy():
            return
        try:
            if error is not None:
                raise error
            set_staged(save, draft, copying.lease)
            push(save)
        except BaseException as caught:  # the handle has it
            abandon(queue, save, draft, copying.lease, caught)
        else:
            tell(Staged(save.step, draft.plan.raw_bytes, save.stalled_seconds))

    copying.then(ChangedTooEarly(draft, copying.buffers).before(finish, copying) if check else finish)
    save.copying = copying
    save.handle._hurry = copying.hurry  # from here on others may make it go faster
    save.stalled_seconds = save.elapsed()
    copying.begin()
