"""What must hold, whatever happens: PROTOCOL's invariants, checked at the moment the disk changes.

The oracle sees what was staged, what the disk did, and what callers were told. It reads no memory of the engine but
one thing: which saves of the run's owner are in flight when something is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.simstore import Disk
from tests.simulation.world import Process, World

from limpet.engine.live import info_of
from limpet.engine.writer import RunWriter
from limpet.errors import CommitUnknownError, CorruptError, FencedError, FormatError, StoreError
from limpet.format import retention
from limpet.format.layout import parse_log_key, parse_pack_key
from limpet.format.record import Record, decode_record, from_ranges
from limpet.pending import PendingWrite
from limpet.types import CheckpointInfo, Outcome, Receipt

__all__ = ["Before", "Oracle", "same"]

State = dict[str, Any]


@dataclass(frozen=True)
class Before:
    """What was acknowledged, when a read began."""

    acked: tuple[int, ...]


def same(found: State, wanted: State) -> bool:
    """Bit for bit."""
    return found.keys() == wanted.keys() and all(
        found[name].tobytes() == value.tobytes() if hasattr(value, "tobytes") else found[name] == value
        for name, value in wanted.items()
    )


@dataclass
class Oracle:
    """Watches one world.

    Attributes:
        bent: whether answers to reads may be damaged on the way, or objects rot: else damage is never reported.
        acked: for each seq that was acknowledged, the number of its state.
        clear_sighted: processes whose reads never fail: they find out what became of a create in time.
        patience: by when they must have found out.
        pins: numbers of the states that were written with a pin.
        writers: the engine of each process that has opened, by the process's name.
    """

    world: World
    disk: Disk
    bent: bool
    records: list[Record] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    staged: dict[int, State] = field(default_factory=dict)
    acked: dict[int, int] = field(default_factory=dict)
    clear_sighted: set[str] = field(default_factory=set)
    writers: dict[str, Callable[[], RunWriter | None]] = field(default_factory=dict)
    patience: float = 6.0
    pins: set[int] = field(default_factory=set)
    _landed: dict[int, float] = field(default_factory=dict)
    _contents: dict[str, bytes] = field(default_factory=dict)
    _committed: dict[int, int] = field(default_factory=dict)
    _unknown: set[int] = field(default_factory=set)

    # What the disk does.

    def created(self, key: str, data: bytes, process: Process) -> None:
        """An object was created."""
        self._contents[key] = data
        seq = parse_log_key(key)
        if seq is None:
            return
        record, digest = decode_record(data, seq)
        self._check_chain(record)
        self._check_change(record)
        self.records.append(record)
        self.digests.append(digest)
        self._count(record)
        if record.commit is not None:
            self._check_commit(record)
        self.world.note("log", seq, record.kind, f"epoch {record.epoch}", f"live {record.live}")

    def put(self, key: str, data: bytes, process: Process) -> None:
        """An object was written."""
        if self._contents.setdefault(key, data) != data:
            self.world.fail("one content", f"{key} gets another content")

    def deleted(self, key: str, process: Process) -> None:
        """An object was removed."""
        self.world.stats["deletes"] += 1
        if parse_pack_key(key) is None:
            self.world.fail("deletes", f"{process.name} deletes {key}")
        if key in self.reach():
            self.world.fail("live deleted", f"{process.name} deletes {key}, which is live")
        owner = self._owner()
        if owner is not None:
            name = parse_pack_key(key)
            assert name is not None
            unsettled = owner.janitor.unsettled
            if (name.epoch == owner.log.epoch and name.save in unsettled) or any(
                key in base for base in unsettled.values()
            ):
                self.world.fail("in flight deleted", f"{process.name} deletes {key}, which a save in flight needs")

    def issues_delete(self, process: Process) -> None:
        """A process asks for a delete."""
        writer = self.writers[process.name]()
        if writer is not None and writer.log.quarantined:
            self.world.fail("quarantine", f"{process.name} deletes while records are quarantined")

    def _owner(self) -> RunWriter | None:
        """The engine that holds the newest open record, if its process lives."""
        if not self.records:
            return None
        for process in self.world.processes:
            if not process.dead and process.name in self.writers:
                writer = self.writers[process.name]()
                if writer is not None and writer.log.epoch == self.records[-1].epoch and hasattr(writer, "janitor"):
                    return writer
        return None

    def _check_chain(self, record: Record) -> None:
        if record.seq != len(self.records) + 1:
            self.world.fail("contiguous", f"record {record.seq} comes after {len(self.records)}")
            return
        if not self.records:
            return
        last = self.records[-1]
        assert record.prev is not None
        expected = {self.digests[-1]} | ({""} if record.quarantined else set())
        if record.prev.digest not in expected:
            self.world.fail("chained", f"record {record.seq} names another record before it")
        if record.kind == "open":
            if last.kind != "close":
                self.world.stats["takeovers"] += 1
        elif record.epoch != last.epoch:
            self.world.fail("fenced", f"record {record.seq} of epoch {record.epoch} after one of epoch {last.epoch}")

    def _check_change(self, record: Record) -> None:
        before = self._before(record)
        was, now = (from_ranges(before.live) if before else set()), from_ranges(record.live)
        was_pinned = from_ranges(before.pinned) if before else set()
        pinned = from_ranges(record.pinned)
        if not pinned <= now:
            self.world.fail("pinned", f"record {record.seq} pins what is not live")
        if len((was_pinned ^ pinned) - {record.seq}) > (record.kind == "edit"):
            self.world.fail("pinned", f"record {record.seq} ({record.kind}) forgets or makes up pins")
        added = {record.seq} if record.kind == "commit" else set()
        if now - was != added:
            self.world.fail("live", f"record {record.seq} ({record.kind}) revives {sorted(now - was - added)}")
        dropped = was - now
        if record.kind in ("open", "close") and dropped:
            self.world.fail("live", f"record {record.seq} ({record.kind}) drops {sorted(dropped)}")
        if record.kind == "edit" and len(dropped) > 1:
            self.world.fail("live", f"record {record.seq} (edit) drops {sorted(dropped)}")
        if before and record.kind != "open" and record.retain != before.retain:
            self.world.fail("live", f"record {record.seq} changes the policy")
        if record.kind == "commit":
            self._check_retention(record, was)

    def _check_retention(self, record: Record, was: set[int]) -> None:
        pinned = from_ranges(record.pinned)
        infos = [info_of(self.records[seq - 1], pinned=seq in pinned) for seq in sorted(was)]
        infos.append(info_of(record, pinned=record.seq in pinned))
        expected = set(retention.decide(retention.from_json(record.retain), infos).keep)
        now = from_ranges(record.live)
        # What does not verify is kept too, so that nothing is lost by a reader's trouble.
        if now != expected and not (self.bent and expected <= now):
            self.world.fail("retention", f"record {record.seq} keeps {sorted(now)} instead of {sorted(expected)}")

    def _before(self, record: Record) -> Record | None:
        if record.kind == "open" and record.quarantined:
            sound = [one for one in self.records if one.seq not in record.quarantined]
            return sound[-1] if sound else None
        return self.records[-1] if self.records else None

    def _check_commit(self, record: Record) -> None:
        commit = record.commit
        assert commit is not None
        number = commit.meta["number"]
        if number in self._committed:
            self.world.fail("once", f"state {number} is committed as {self._committed[number]} and {record.seq}")
        self._committed[number] = record.seq
        self._landed[record.seq] = self.world.now
        if (number in self.pins) != (record.seq in from_ranges(record.pinned)):
            self.world.fail("pinned", f"record {record.seq} does not pin what was asked for")
        for use in commit.packs:
            if use.key not in self.disk.objects:
                self.world.fail("durable", f"record {record.seq} needs {use.key}, which is not there")
            elif len(self.disk.objects[use.key]) != use.size:
                self.world.fail("durable", f"record {record.seq}: {use.key} has another size")

    def _count(self, record: Record) -> None:
        stats = self.world.stats
        stats[f"records.{record.kind}"] += 1
        if len(self.records) > 1 and self.records[-2].epoch == record.epoch and (before := self.records[-2].commit):
            stats["adopted"] += before.meta["number"] in self._unknown
        if record.kind == "open" and record.quarantined:
            stats["quarantines"] += 1
        commit = record.commit
        if commit is not None:
            epochs = {name.epoch for use in commit.packs if (name := parse_pack_key(use.key))}
            stats["commits.inline" if not commit.packs else "commits.packs"] += 1
            stats["commits.sharing"] += commit.new_bytes < commit.stored_bytes
            stats["commits.sharing_across_epochs"] += bool(epochs - {record.epoch})
            if commit.meta["number"] in self._unknown:
                stats["unknown.landed"] += 1

    def reach(self) -> set[str]:
        """Packs that the newest record's checkpoints need."""
        if not self.records:
            return set()
        return {use.key for seq in from_ranges(self.records[-1].live) for use in self.packs_of(seq)}

    def packs_of(self, seq: int) -> list[Any]:
        """The packs that a commit record names."""
        commit = self.records[seq - 1].commit
        return [] if commit is None else commit.packs

    # What callers are told.

    def watch(self, handle: PendingWrite, number: int, process: Process) -> None:
        """Judge what the caller of the save of state ``number`` is told, when it is told."""
        handle._completion.add_callback(lambda: self._told(handle, number, process))

    def _told(self, handle: PendingWrite, number: int, process: Process) -> None:
        if process.dead:
            return
        error = handle._completion.error
        if error is not None:
            self.world.note(process.name, "save", number, type(error).__name__)
            self._told_of(error, number, process)
            return
        receipt = handle._completion.get()
        self.world.note(process.name, "save", number, str(receipt.outcome), receipt.seq)
        self.world.stats[f"saves.{receipt.outcome}"] += 1
        if receipt.outcome is not Outcome.SKIPPED:
            self._acknowledged(receipt, number)

    def _acknowledged(self, receipt: Receipt, number: int) -> None:
        seq = receipt.seq
        record = self.records[seq - 1] if seq is not None and 1 <= seq <= len(self.records) else None
        if seq is None or record is None or record.commit is None or record.commit.step != receipt.durable_step:
            self.world.fail("acknowledged", f"state {number} was acknowledged as {seq}, which is not in the log")
            return
        durable = record.commit.meta["number"]
        superseded = receipt.outcome is Outcome.SUPERSEDED
        if durable < number or superseded == (durable == number):
            self.world.fail("acknowledged", f"state {number} was acknowledged as state {durable}")
        self.acked[seq] = durable

    def _told_of(self, error: BaseException, number: int, process: Process) -> None:
        self.world.stats[f"saves.{type(error).__name__}"] += 1
        if isinstance(error, CommitUnknownError):
            self._unknown.add(number)
            if number in self._committed:
                self.world.stats["unknown.landed"] += 1
                landed = self._landed[self._committed[number]]
                if process.name in self.clear_sighted and self.world.now - landed > self.patience:
                    self.world.fail("resolved", f"{process.name} can read that state {number} is committed: {error}")
        self.judge(error, process)

    def judge(self, error: BaseException, process: Process) -> None:
        """Whether a call may fail in this way."""
        if isinstance(error, FencedError):
            self.world.stats["fenced"] += 1
            writer = self.writers[process.name]()
            epoch = writer.log.epoch if writer is not None else 0
            if not self.records or self.records[-1].epoch <= epoch:
                self.world.fail("false fence", f"{process.name} (epoch {epoch}) is fenced by nobody: {error}")
        elif isinstance(error, (CorruptError, FormatError)) and not self.bent:
            self.world.fail("false damage", f"{process.name}: {error}")
        elif isinstance(error, (CorruptError, FormatError, StoreError)):
            self.world.stats[f"errors.{type(error).__name__}"] += 1
        elif not isinstance(error, TimeoutError):
            self.world.fail("unexpected", f"{process.name}: {type(error).__name__}: {error}")

    # Reads.

    def before_read(self) -> Before:
        """To be taken when a read begins."""
        return Before(tuple(sorted(self.acked)))

    def newest(self, before: Before, epoch: int | None = None) -> int:
        """What a read must at least give: the newest sound checkpoint that was acknowledged before and still is live; or 0.

        A writer reads what it knows (``epoch``): one that was replaced is not told of what came after it.
        """
        live = self.live()
        return max(
            (
                seq
                for seq in before.acked
                if seq in live and self.is_sound(seq) and (not epoch or self.records[seq - 1].epoch <= epoch)
            ),
            default=0,
        )

    def is_sound(self, seq: int) -> bool:
        """Whether neither record ``seq`` nor a pack of it rots, nor any record after it, which may hide it."""
        rotten = self.disk.rotten
        if not rotten:
            return True
        if any((parse_log_key(key) or 0) >= seq for key in rotten):
            return False
        return not any(use.key in rotten for use in self.packs_of(seq))

    def read(self, before: Before, found: tuple[State, CheckpointInfo] | None, who: str) -> None:
        """A read that began at ``before`` gave ``found``."""
        engine = self.writers[who]()
        least = self.newest(before, engine.log.epoch if engine is not None else None)
        if found is None:
            self.world.stats["reads.nothing"] += 1
            if least:
                self.world.fail("none", f"{who} read nothing, though {least} was acknowledged")
            return
        self.world.stats["reads.state"] += 1
        state, info = found
        self.check_state(state, info, who)
        if info.seq < least:
            self.world.fail("newest", f"{who} read {info.seq}, though {least} was acknowledged before")

    def check_state(self, state: State, info: CheckpointInfo, who: str) -> None:
        """A state that was read is one that a single write staged."""
        record = self.records[info.seq - 1] if info.seq <= len(self.records) else None
        if record is None or record.commit is None or record.commit.step != info.step:
            self.world.fail("read", f"{who} read {info.seq}, which the log does not hold")
            return
        number = record.commit.meta["number"]
        if not same(state, self.staged[number]):
            self.world.fail("torn", f"{who} read something else than what was staged as state {number}")

    def live(self) -> tuple[int, ...]:
        """Seqs that the newest record calls live."""
        return tuple(sorted(from_ranges(self.records[-1].live))) if self.records else ()
