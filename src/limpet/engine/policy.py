"""The retention policy in force: what a takeover inherits from the log, and what a narrower one gives up."""

from __future__ import annotations

from typing import Any

from limpet.engine.head import Head
from limpet.engine.live import LiveSet
from limpet.errors import CorruptError, FencedError, FormatError
from limpet.events import warn_gently
from limpet.format import retention

__all__ = ["DEFAULT_POLICY", "policy_to_record", "report_narrowing"]

DEFAULT_POLICY = retention.Last(3)


def policy_to_record(asked: retention.Policy | None, head: Head, continues: int | None = None) -> Any:
    """What an open record says: the policy that was asked for, else the recorded one, else the default.

    Args:
        asked: by the user.
        head: what the open record will extend.
        continues: epoch of the writer that the new one stands in for; see ``WriterSettings``.

    Raises:
        FencedError: ``head`` is of a newer epoch than the one that is to go on.
        FormatError: the recorded one is not known to this version; nobody has been fenced yet.
        CorruptError: the recorded one is malformed.
    """
    if continues is not None and head.record is not None and head.record.epoch != continues:
        raise FencedError(
            f"while the process that wrote it was dead, {head.record.owner or 'another writer'} took the run over with"
            f" epoch {head.record.epoch}.",
            hint="Stop: the newer attempt goes on from the last commit.",
        )
    if asked is not None:
        return retention.to_json(asked)
    if head.record is None:
        return retention.to_json(DEFAULT_POLICY)
    retention.from_json(head.record.retain)
    return head.record.retain


def report_narrowing(url: str, asked: retention.Policy | None, head: Head, live: LiveSet) -> None:
    """Warn of the checkpoints that go because ``asked`` keeps less than the recorded policy."""
    if asked is None or head.record is None:
        return
    try:
        recorded = retention.from_json(head.record.retain)
    except (CorruptError, FormatError):
        return  # nobody can tell what it kept
    gone = retention.narrows(recorded, asked, live.infos())
    if gone:
        steps = ", ".join(str(live.checkpoints[seq].info.step) for seq in gone)
        warn_gently(
            f"limpet: {url} kept {retention.describe(recorded)}; with retain={retention.describe(asked)} the next"
            f" commit gives up the checkpoints of steps {steps}."
        )
