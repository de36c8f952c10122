"""A run's log, read as a whole from any store, and what must hold of it whatever its writers did to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from limpet.format.layout import log_key
from limpet.format.record import Record, decode_record, from_ranges
from limpet.stores.base import KeyMissingError, Store

__all__ = ["Ack", "check_history", "check_kept", "newest_commit", "read_history"]


@dataclass(frozen=True, order=True)
class Ack:
    """A save that its writer was told is durable."""

    seq: int
    owner: str
    step: int


async def read_history(open_one: Callable[[], Store]) -> list[tuple[Record, str]]:
    """Every record with its digest, from the first to the one that is followed by none."""
    store, found = open_one(), []
    try:
        while True:
            seq = len(found) + 1
            found.append(decode_record(await store.get(log_key(seq)), seq))
    except KeyMissingError:
        return found
    finally:
        await store.close()


def check_history(history: list[tuple[Record, str]]) -> None:
    """Invariants 2 and 4: chained, epochs never decrease, a live set changes by its own record only.

    And no record without the newest commit before it among the living.
    """
    newest = None
    for (before, digest), (record, _) in pairwise(history):
        assert record.prev is not None
        assert (record.prev.seq, record.prev.digest) == (before.seq, digest)
        assert record.epoch >= before.epoch
        was, now = from_ranges(before.live), from_ranges(record.live)
        assert now - was <= ({record.seq} if record.kind == "commit" else set())
        if record.kind in ("open", "close"):
            assert now == was
        newest = record.seq if record.kind == "commit" else newest
        assert newest is None or newest in now
    assert len({record.nonce for record, _ in history}) == len(history)


def check_kept(history: list[tuple[Record, str]], acknowledged: Iterable[Ack]) -> None:
    """Invariant 3, and that nobody was told of a save that is not in the log under its own name."""
    acks = sorted(acknowledged)
    assert len({ack.seq for ack in acks}) == len(acks)
    for ack in acks:
        record, _ = history[ack.seq - 1]
        assert record.commit is not None
        assert (record.owner, record.commit.step) == (ack.owner, ack.step)


def newest_commit(history: list[tuple[Record, str]], before: int) -> int | None:
    """The seq of the newest commit below ``before``."""
    return max((record.seq for record, _ in history[: before - 1] if record.kind == "commit"), default=None)
