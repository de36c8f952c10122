"""Records that change what is live without a new checkpoint: pure functions from the record before."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import msgspec

from limpet.errors import UsageError
from limpet.format.record import Record, from_ranges, to_ranges

__all__ = ["with_pin", "without", "without_damaged"]


def with_pin(base: Record, seq: int, pinned: bool) -> Record:
    """Keep checkpoint ``seq`` whatever the policy says, or leave it to the policy again."""
    before = from_ranges(base.pinned)
    return msgspec.structs.replace(base, pinned=to_ranges(before | {seq} if pinned else before - {seq}))


def without(base: Record, seq: int, damaged: AbstractSet[int]) -> Record:
    """Checkpoint ``seq`` is not live any more.

    Args:
        base: the record before.
        seq: what goes.
        damaged: live seqs that nobody can use.

    Raises:
        UsageError: nothing usable would be left.
    """
    live = from_ranges(base.live) - {seq}
    if not live - damaged:
        raise UsageError(
            f"checkpoint {seq} is the only usable one; retention always keeps the newest.",
            hint="Remove the whole folder or prefix to start afresh.",
        )
    return _with_live(base, live)


def without_damaged(base: Record, damaged: AbstractSet[int]) -> Record:
    """What nobody can use is given up: it is neither live nor waited for any more."""
    return msgspec.structs.replace(_with_live(base, from_ranges(base.live) - damaged), quarantined=[])


def _with_live(base: Record, live: set[int]) -> Record:
    pinned = from_ranges(base.pinned) & live
    return msgspec.structs.replace(base, live=to_ranges(live), pinned=to_ranges(pinned))
