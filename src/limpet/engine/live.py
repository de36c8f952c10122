"""The live set of a run: which checkpoints its newest record names, and what they need.

Readers and the writer load it in the same way; only the writer changes it, record by record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

import anyio

from limpet.engine.head import read_record
from limpet.errors import CorruptError, FormatError, LimpetError, UntrustedError
from limpet.format.record import Record, from_ranges
from limpet.stores.base import KeyMissingError, Store
from limpet.types import CheckpointInfo

__all__ = ["Checkpoint", "LiveSet", "info_of", "load_checkpoints", "most_telling"]

_PARALLEL_GETS = 16
_LINKS_MAX = 8
"""Records that are read to prove the newest checkpoint by the links from the head; most often none or one."""
_LOST_MAX = 1000
"""More live records than this do not rot one by one: the log is lost, or says what it likes."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A commit record and what it says of its checkpoint."""

    record: Record
    info: CheckpointInfo
    digest: str = ""
    """Of the record, as it was read; empty for one that this process wrote."""

    @property
    def packs(self) -> frozenset[str]:
        """Keys of the packs that it needs."""
        return frozenset(use.key for use in self.record.commit.packs) if self.record.commit else frozenset()


def info_of(record: Record, *, pinned: bool = False) -> CheckpointInfo:
    """What a commit record says, for people and policies."""
    commit = record.commit
    if commit is None:
        raise AssertionError("only commit records describe a checkpoint")
    return CheckpointInfo(
        seq=record.seq,
        step=commit.step,
        time=record.time,
        raw_bytes=commit.raw_bytes,
        stored_bytes=commit.stored_bytes,
        new_bytes=commit.new_bytes,
        meta=dict(commit.meta),
        owner=record.owner,
        epoch=record.epoch,
        pinned=pinned,
    )


async def load_checkpoints(
    store: Store,
    head: Record,
    *,
    known: Callable[[int], Checkpoint | None] = lambda _: None,
    before: tuple[Record, str] | None = None,
) -> tuple[list[Checkpoint], dict[int, LimpetError]]:
    """The live checkpoints of ``head``, newest first, and why the others cannot be used.

    Args:
        store: where the log is.
        head: the newest record.
        known: gives a checkpoint that was loaded before, by seq.
        before: the record before the head, with its digest, if it was read already.

    Raises:
        CorruptError: a thousand of them cannot be used.
        StoreError: the store could not tell.
    """
    pinned = from_ranges(head.pinned)
    seqs = sorted(from_ranges(head.live), reverse=True)
    found: dict[int, Checkpoint] = {}
    damaged: dict[int, LimpetError] = {}

    async def load(seq: int) -> None:
        before = known(seq)
        if before is not None and before.record.run == head.run:
            found[seq] = replace(before, info=replace(before.info, pinned=seq in pinned))
            return
        try:
            record, digest = (head, "") if seq == head.seq else await read_record(store, seq)
            _check_kin(record, head)
            found[seq] = Checkpoint(record, info_of(record, pinned=seq in pinned), digest)
        except KeyMissingError:
            damaged[seq] = CorruptError(f"log record {seq} is live, but missing.")
        except (CorruptError, UntrustedError) as error:
            damaged[seq] = error
        if len(damaged) > _LOST_MAX:
            raise CorruptError(
                f"{store.url}: more than {_LOST_MAX} live log records are damaged or missing.",
                hint="Restore the log from a copy.",
            )

    if len(seqs) == 1:
        await load(seqs[0])
    else:
        await _each(load, iter(seqs))
    if found:
        _drop_replaced(await _extending(store, head, max(found), before), found, damaged)
    return [found[seq] for seq in seqs if seq in found], damaged


async def _each(load: Callable[[int], Awaitable[None]], seqs: Iterator[int]) -> None:
    """Load all of them, a few at a time: there may be a million."""

    async def work() -> None:
        for seq in seqs:
            await load(seq)

    try:
        async with anyio.create_task_group() as group:
            for _ in range(_PARALLEL_GETS):
                group.start_soon(work)
    except BaseExceptionGroup as errors:
        raise most_telling(errors) from None


def _check_kin(record: Record, head: Record) -> None:
    """A live record must be a checkpoint of the head's own run: a foreign one verifies just as well."""
    if record.run != head.run:
        raise CorruptError(f"log record {record.seq} belongs to another run.")
    if record.commit is None:
        raise CorruptError(f"log record {record.seq} is live, but commits nothing.")
    if record.epoch > head.epoch:
        raise CorruptError(f"log record {record.seq} is of epoch {record.epoch}, newer than that of record {head.seq}.")


async def _extending(store: Store, head: Record, seq: int, before: tuple[Record, str] | None) -> Record | None:
    """The record after ``seq``, if the links from the head lead to it; there are few records in between, as a rule."""
    after = head
    for number in range(head.seq - 1, seq, -1):
        if head.seq - number > _LINKS_MAX:
            return None
        try:
            at_hand = before if before is not None and before[0].seq == number else None
            record, digest = at_hand or await read_record(store, number)
        except (KeyMissingError, CorruptError, FormatError):
            return None
        if after.prev is None or after.prev.digest not in ("", digest):
            return None
        after = record
    return after


def _drop_replaced(after: Record | None, found: dict[int, Checkpoint], damaged: dict[int, LimpetError]) -> None:
    """Take out what is not the record that its successor extended, wherever the successor is at hand.

    One from a copy of the run that went its own way would have the right run and number.
    """
    for seq in sorted(found, reverse=True):
        checkpoint = found[seq]
        link = after.prev.digest if after is not None and after.prev is not None and after.prev.seq == seq else ""
        if after is not None and link and checkpoint.digest and link != checkpoint.digest:
            damaged[seq] = CorruptError(f"log record {seq} is not the one that record {after.seq} extends.")
            del found[seq]
        else:
            after = checkpoint.record


def most_telling(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error to raise for several: what the store could not tell comes before damage."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [errors]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            flat.append(error)
    return min(flat, key=lambda error: isinstance(error, CorruptError))


class LiveSet:
    """The writer's view of what is live. What it does for a record takes as long as what the record changes.

    Attributes:
        checkpoints: by seq, oldest first.
        damaged: seqs that are live by the log, but cannot be used: while there are any, nothing is deleted.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint] = (), damaged: Iterable[int] = ()) -> None:
        ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.info.seq)
        self.checkpoints = {checkpoint.info.seq: checkpoint for checkpoint in ordered}
        self.damaged = set(damaged)
        self._pinned = {checkpoint.info.seq for checkpoint in ordered if checkpoint.info.pinned}
        self._uses = Counter(key for checkpoint in ordered for key in checkpoint.packs)

    def infos(self) -> list[CheckpointInfo]:
        """Every usable checkpoint, oldest first."""
        return list(map(_INFO, self.checkpoints.values()))

    def info(self, seq: int) -> CheckpointInfo | None:
        """What there is to say of a usable checkpoint; ``None`` if it is not one."""
        found = self.checkpoints.get(seq)
        return None if found is None else found.info

    @property
    def seqs(self) -> set[int]:
        """Everything that the log calls live."""
        return set(self.checkpoints) | self.damaged

    @property
    def newest(self) -> Checkpoint | None:
        """The newest usable checkpoint."""
        return self.checkpoints[next(reversed(self.checkpoints))] if self.checkpoints else None

    def packs(self) -> set[str]:
        """Keys that some live checkpoint needs."""
        return set(self._uses)

    def apply(self, record: Record) -> list[Checkpoint]:
        """Become what ``record``, which is in the log now, says; returns what left.

        A commit that was unknown and has turned out to be in the log comes in through here too.
        """
        live = from_ranges(record.live)
        pinned = from_ranges(record.pinned)
        if record.commit is not None:
            self.checkpoints[record.seq] = made = Checkpoint(record, info_of(record))
            self._uses.update(made.packs)
        left = [self.checkpoints.pop(seq) for seq in sorted(self.checkpoints.keys() - live)]
        for seq in (self._pinned ^ pinned) & self.checkpoints.keys():
            old = self.checkpoints[seq]
            self.checkpoints[seq] = replace(old, info=replace(old.info, pinned=seq in pinned))
        self._pinned = pinned
        for key in (key for checkpoint in left for key in checkpoint.packs):
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
        self.damaged &= live
        return left


_INFO = attrgetter("info")
