"""The live set of a run: which checkpoints its newest record names, and what they need.

Readers and the writer load it in the same way; only the writer changes it, record by record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import anyio

from limpet.engine.log import read_record
from limpet.errors import CorruptError, LimpetError
from limpet.format.record import Record, from_ranges
from limpet.stores.base import KeyMissingError, Store
from limpet.types import CheckpointInfo

__all__ = ["Checkpoint", "LiveSet", "info_of", "load_checkpoints", "most_telling"]

_PARALLEL_GETS = 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A commit record and what it says of its checkpoint."""

    record: Record
    info: CheckpointInfo

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
) -> tuple[list[Checkpoint], dict[int, LimpetError]]:
    """The live checkpoints of ``head``, newest first, and why the others cannot be used.

    Args:
        store: where the log is.
        head: the newest record.
        known: gives a checkpoint that was loaded before, by seq.

    Raises:
        StoreError: the store could not tell.
    """
    pinned = from_ranges(head.pinned)
    seqs = sorted(from_ranges(head.live), reverse=True)
    found: dict[int, Checkpoint] = {}
    damaged: dict[int, LimpetError] = {}
    limit = anyio.Semaphore(_PARALLEL_GETS)

    async def load(seq: int) -> None:
        async with limit:
            before = known(seq)
            if before is not None and before.record.run == head.run:
                found[seq] = Checkpoint(before.record, replace(before.info, pinned=seq in pinned))
                return
            try:
                record = head if seq == head.seq else (await read_record(store, seq))[0]
                if record.commit is None:
                    raise CorruptError(f"log record {seq} is live, but commits nothing.")
                found[seq] = Checkpoint(record, info_of(record, pinned=seq in pinned))
            except KeyMissingError:
                damaged[seq] = CorruptError(f"log record {seq} is live, but missing.")
            except CorruptError as error:
                damaged[seq] = error

    if len(seqs) == 1:
        await load(seqs[0])
    else:
        try:
            async with anyio.create_task_group() as group:
                for seq in seqs:
                    group.start_soon(load, seq)
        except BaseExceptionGroup as errors:
            raise most_telling(errors) from None
    return [found[seq] for seq in seqs if seq in found], damaged


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


@dataclass(slots=True)
class LiveSet:
    """The writer's view of what is live.

    Attributes:
        checkpoints: by seq.
        damaged: seqs that are live by the log, but cannot be used: while there are any, nothing is deleted.
    """

    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)

    def infos(self) -> list[CheckpointInfo]:
        """Every usable checkpoint, oldest first."""
        return [self.checkpoints[seq].info for seq in sorted(self.checkpoints)]

    @property
    def seqs(self) -> set[int]:
        """Everything that the log calls live."""
        return set(self.checkpoints) | self.damaged

    @property
    def newest(self) -> Checkpoint | None:
        """The newest usable checkpoint."""
        return self.checkpoints[max(self.checkpoints)] if self.checkpoints else None

    def packs(self) -> set[str]:
        """Keys that some live checkpoint needs."""
        return {key for checkpoint in self.checkpoints.values() for key in checkpoint.packs}

    def apply(self, record: Record) -> list[Checkpoint]:
        """Become what ``record``, which is in the log now, says; returns what left.

        A commit that was unknown and has turned out to be in the log comes in through here too.
        """
        live = from_ranges(record.live)
        pinned = from_ranges(record.pinned)
        if record.commit is not None:
            self.checkpoints[record.seq] = Checkpoint(record, info_of(record))
        left = [checkpoint for seq, checkpoint in self.checkpoints.items() if seq not in live]
        self.checkpoints = {
            seq: checkpoint
            if checkpoint.info.pinned == (seq in pinned)
            else Checkpoint(checkpoint.record, replace(checkpoint.info, pinned=seq in pinned))
            for seq, checkpoint in self.checkpoints.items()
            if seq in live
        }
        self.damaged &= live
        return left
