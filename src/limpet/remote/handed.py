"""A staged save as the writer's process sees it: memory and files that belong to the trainer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from weakref import ref

import msgspec

from limpet.engine.kept import Kept
from limpet.engine.memory import MemoryBudget
from limpet.engine.save import Save
from limpet.engine.slots import Bytes8, Lease, SlotPool
from limpet.engine.staging import Snapshot
from limpet.format.buffers import Buffer, FileSlice
from limpet.format.chunks import Plan
from limpet.format.nodes import LateNode
from limpet.pending import PendingWrite
from limpet.remote.memory import KeptSlot, ViewedMemory
from limpet.remote.messages import StageSave

__all__ = ["Handed", "Loan", "save_from"]

_NO_POOL = SlotPool(0, MemoryBudget(0))


class Loan(Lease):
    """The right to read from a slot that another process owns, until ``release``.

    Args:
        memory: of the slot.
        returned: told once, with whether somebody may read from it still.
    """

    __slots__ = ("_returned",)

    def __init__(self, memory: Bytes8, returned: Callable[[bool], None]) -> None:
        super().__init__(_NO_POOL, None, memory)
        self._returned = returned

    def release(self, *, lent: bool = False) -> None:
        """Say that it is not read from any more. Idempotent."""
        if self._released:
            return
        lent = lent or any(reference() is not None for reference in self._borrowed)
        self._end()
        self._returned(lent)


class Handed(Snapshot):
    """What is to be written, in memory and files of the trainer.

    Args:
        message: describes it.
        memory: the slot; ``None`` where the content came with the message.
        loan: the right to read it.
        fds: descriptors whose locks keep the folders of its files.
        bereft: whether the trainer is dead, so that the files are ours to remove.
    """

    __slots__ = ("_bereft", "_fds", "_folders", "_memory", "_number")

    def __init__(
        self,
        message: StageSave,
        memory: ViewedMemory | None,
        loan: Loan,
        fds: Sequence[int],
        bereft: Callable[[], bool],
    ) -> None:
        self._number = message.number
        self._memory = None if memory is None else ref(memory)
        self._late_node = LateNode(msgspec.Raw(message.node))
        self._late = {}
        self.plan = Plan(message.buffers, message.chunks, [], [], message.slot_bytes, message.raw_bytes)
        self.lease = loan
        self._spool = None
        self._sources = {
            index: Buffer(FileSlice(path, size), size, immutable=True) for index, (path, size) in message.files.items()
        }
        self._folders = message.folders
        self._fds = list(fds)
        self._bereft = bereft

    def keep(self, *, lent: bool = False) -> Kept | None:
        """Let go of it; its content may be read for as long as the trainer leaves it where it is."""
        if self._memory is None:
            return None
        self.release(lent=lent)
        return Kept(KeptSlot(self._memory, self._number), self.plan.chunks, {})

    def release(self, *, lent: bool = False) -> None:
        """Let go of memory and files. Idempotent."""
        super().release(lent=lent)
        fds, self._fds = self._fds, []
        if fds and self._bereft():
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)
        for fd in fds:
            os.close(fd)


def save_from(message: StageSave, snapshot: Handed) -> Save:
    """The save that ``message`` tells of."""
    save = Save(PendingWrite(message.step), message.meta, pinned=message.pinned, called=message.called)
    save.supersedable = save.paced = False
    save.urgent = message.urgent
    save.snapshot = snapshot
    save.stalled_seconds = message.stalled_seconds
    save.staged_seconds = message.staged_seconds
    save.place = message.place
    return save
