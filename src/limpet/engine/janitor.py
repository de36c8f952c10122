"""Deleting what no live checkpoint reaches.

List first, decide after, in one step: an object that is put between the two is of a save in flight, which
``keep`` holds already. Whatever is not ours by name, or is of a newer epoch, is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from limpet.engine.live import Checkpoint, LiveSet, most_telling
from limpet.engine.log import Log
from limpet.engine.timing import Timing
from limpet.errors import StoreError
from limpet.failpoints import reach
from limpet.format.layout import DATA_PREFIX, epoch_prefix, pack_epochs, parse_pack_key
from limpet.stores.base import Entry, Store
from limpet.types import Swept

__all__ = ["Janitor", "Verdict", "decide_deletes"]

_LISTINGS = 8
"""So many epochs are listed at once."""
_Retired: TypeAlias = tuple[float, set[str]]
"""When packs that left the live set may go, and which."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a listing allows: ``deletes``, or nothing because a newer writer was seen."""

    deletes: tuple[Entry, ...] = ()
    newer_epoch: int | None = None


def decide_deletes(
    entries: Iterable[Entry], *, epoch: int, keep: set[str], keep_saves: set[int], keep_epochs_below: int = 0
) -> Verdict:
    """Which of the listed objects may go.

    Args:
        entries: all objects below ``data/``.
        epoch: of this writer.
        keep: keys that something live, or the base of a save in flight, needs.
        keep_saves: numbers of this epoch's saves that are not settled.
        keep_epochs_below: objects of epochs below this one are in their grace.
    """
    deletes: list[Entry] = []
    for entry in entries:
        name = parse_pack_key(entry.key)
        if name is None:
            continue
        if name.epoch > epoch:
            return Verdict(newer_epoch=name.epoch)
        unsettled = name.epoch == epoch and name.save in keep_saves
        if entry.key not in keep and not unsettled and name.epoch >= keep_epochs_below:
            deletes.append(entry)
    return Verdict(tuple(deletes))


@dataclass(slots=True)
class Janitor:
    """Removes garbage for the one writer of a run.

    Attributes:
        unsettled: for each save in flight, by number, the packs that were live when it began.
        unknown: numbers of saves whose commit may yet land.
    """

    store: Store
    log: Log
    live: LiveSet
    timing: Timing
    unsettled: dict[int, set[str]] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    _retired: list[_Retired] = field(default_factory=list)
    _opened: float = 0.0
    _swept_older: bool = False
    _litter_due: float | None = None
    _was_blocked: bool = False

    def __post_init__(self) -> None:
        self._opened = self.timing.clock()
        self._was_blocked = self.blocked

    def begin(self, number: int) -> None:
        """Save ``number`` begins: what is live now stays until it is settled."""
        self.unsettled[number] = self.live.packs()

    def end(self, number: int, *, unknown: bool, failed: bool) -> None:
        """Save ``number`` has ended; if ``unknown``, its packs stay until the log tells."""
        base = self.unsettled.pop(number, set())
        if unknown:
            self.unknown.add(number)
            self.unsettled[number] = base
        if failed:
            self._note_litter()

    def settled(self) -> bool:
        """The log has told about every unknown commit; whether there were any."""
        if not self.unknown:
            return False
        self._note_litter()
        for number in self.unknown:
            self.unsettled.pop(number, None)
        self.unknown.clear()
        return True

    def retire(self, left: list[Checkpoint]) -> bool:
        """A record was applied, by which these checkpoints have left the live set: their packs may go after the grace.

        Returns:
            Whether there is something to do now, or later.
        """
        was_blocked, self._was_blocked = self._was_blocked, self.blocked
        if was_blocked and not self.blocked:  # what left the live set meanwhile was not noted
            self._note_litter()
        packs = {key for checkpoint in left for key in checkpoint.packs}
        if packs and not self.blocked:
            self._retired.append((self.timing.clock() + self.timing.grace, packs))
        return bool(packs) or was_blocked

    def _note_litter(self) -> None:
        """Something was left over that no list of ours names."""
        if self._litter_due is None:
            self._litter_due = self.timing.clock() + self.timing.grace

    @property
    def blocked(self) -> bool:
        """Whether nothing may be deleted, for good as far as this writer can tell."""
        return bool(self.live.damaged or self.log.quarantined or self.log.stopped)

    def due_in(self) -> float | None:
        """Seconds until there is something to do; ``None`` if there is nothing."""
        if self.blocked:
            return None
        now = self.timing.clock()
        times = [due for due, _ in self._retired[:1]]
        if not self._swept_older:
            times.append(self._opened + self.timing.grace)
        if self._litter_due is not None:
            times.append(self._litter_due)
        return max(0.0, min(times) - now) if times else None

    async def sweep(self, *, graceful: bool = True, closing: bool = False) -> Swept:
        """Delete what may go.

        Args:
            graceful: leave what left the live set within the grace.
            closing: of what earlier attempts left, leave nothing: nobody comes after us to do it.

        Raises:
            FencedError: objects of a newer epoch are there.
            StoreError: the store could not list; objects that could not be deleted stay for a later sweep.
        """
        if self.blocked:
            return Swept()
        epochs = pack_epochs(await self.store.folders(DATA_PREFIX))
        now = self.timing.clock()
        older_too = not graceful or closing or now >= self._opened + self.timing.grace
        going = [entry for entry in self._retired if entry[0] <= now or not graceful]
        self._litter_due = None
        swept = Swept()
        try:
            # The newest first: a newer writer's data is met before anything is deleted.
            for some in (epochs[at : at + _LISTINGS] for at in range(0, len(epochs), _LISTINGS)):
                for listed in await self._list(some):
                    deletes = self._decide(listed, going, 0 if older_too else self.log.epoch)
                    done = await self._delete(deletes)
                    swept = Swept(swept.objects + done.objects, swept.freed_bytes + done.freed_bytes)
        except StoreError:
            self._note_litter()
            raise
        self._retired = [entry for entry in self._retired if entry not in going]
        self._swept_older = self._swept_older or older_too
        return swept

    async def _list(self, epochs: list[int]) -> list[list[Entry]]:
        """The packs of each epoch, listed at once: what an earlier attempt left may be spread over very many."""
        listed: dict[int, list[Entry]] = {}

        async def one(epoch: int) -> None:
            listed[epoch] = await self.store.list(epoch_prefix(epoch))

        try:
            async with anyio.create_task_group() as group:
                for epoch in epochs:
                    group.start_soon(one, epoch)
        except BaseExceptionGroup as errors:
            raise most_telling(errors) from None
        reach("sweep.listed")
        return [listed[epoch] for epoch in epochs]

    def _decide(self, listed: Iterable[Entry], going: list[_Retired], keep_epochs_below: int) -> tuple[Entry, ...]:
        """What of the objects listed may go, by all that is known in this moment."""
        graced = (packs for due, packs in self._retired if (due, packs) not in going)
        verdict = decide_deletes(
            listed,
            epoch=self.log.epoch,
            keep=self.live.packs().union(*self.unsettled.values(), *graced),
            keep_saves=set(self.unsettled),
            keep_epochs_below=keep_epochs_below,
        )
        if verdict.newer_epoch is not None:
            raise self.log.fence(f"it holds data of epoch {verdict.newer_epoch}")
        return verdict.deletes

    async def _delete(self, entries: Iterable[Entry]) -> Swept:
        objects = freed = 0
        for entry in entries:
            if self.log.stopped is not None:
                break
            try:
                reach("delete.before")
                await self.store.delete(entry.key)
                reach("delete.after")
            except StoreError:
                self._note_litter()  # a store that refuses deletes is not asked again at once
                continue
            objects += 1
            freed += entry.size
        return Swept(objects, freed)
