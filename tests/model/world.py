"""The world of the model: a store, writers, a reader, and the rules of the protocol, each of which can be removed.

What is modelled. A log of records that are created under the next free number. Packs. Requests (creates, puts,
deletes) that are in flight from when they are sent until they land, at any later moment, once or never, whatever
became of their sender. Writers that open the run, put packs, send records in the order of the calls with saves in
flight beside each other, learn the fate of each create by reading its key back, and sweep. A reader. Damage at rest
and a loss of power, where a configuration asks for them.

What is left out, and why nothing is lost by it:

- A crash or a stall is no step of its own. A process may always do nothing more, and every state is checked, so each
  state is one in which everybody has crashed. Power losses are steps: they take away what was not synced.
- An answer is no step of its own either: whatever it said, the key is read back, so only the state of the key counts.
  A lost request is one that never lands; a doubled create finds its key taken, a doubled put or delete of a name that
  is used once changes nothing.
- All deletes that a sweep decides on are in flight at once, which is more than a writer does that sends them one by one.
- A put that succeeds is one step: nobody can tell when in between it became visible. One that fails may land later.
- Every save shares a chunk with the newest checkpoint that is live when it begins, which is the most dangerous choice.
- Clocks: a grace ends at any moment, but not before a read has ended that began before it did (``Config.grace``).
- Writers open in the order of their numbers: they are alike until then.
"""

from __future__ import annotations

from typing import NamedTuple

RULES = {
    # Committing                                                                     -> where src/limpet/engine has it
    "data_before_create": "packs are durable before a record names them",  # writer.RunWriter._write_shielded
    "acknowledge_last": "a save is acknowledged once its record is known to be in the log",  # the same
    "read_back": "on 'already exists' the key is read back before anything is believed",  # log.Log._create
    "own_create_is_no_conflict": "our own record under the key is a success",  # log.Log._read_back
    "nonce": "the nonce, not the epoch, tells whose record it is",  # log.Log._read_back
    "same_bytes": "an absent record is sent again with the same bytes",  # log.Log._create
    "adopt": "an earlier try of ours that landed is the base of the next record",  # log.Log.append, writer._apply
    "one_process": "an unknown nonce of our epoch stops us: two processes share our identity",  # log.Log._read_back
    "fence_is_final": "a higher epoch under our next number stops us for good",  # log.Log.fence
    "same_seq": "after an unknown commit the next record takes the same number",  # log.Log._next
    "keep_unknown": "packs of an unknown commit stay",  # janitor.Janitor.end, .settled
    "call_order": "records go in the order of the calls",  # writer.RunWriter._start
    "atomic_create": "a create never replaces",  # stores, opening.claim_root proves it
    # Opening
    "open_record": "a writer takes over by a record of its own before it writes anything",  # log.Log.open
    "winners_record": "who loses the race for a number goes on from the winner's record",  # log.Log.open
    "read_after_open": "what a takeover resumes from is read after its open record",  # writer.RunWriter.open
    "live_in_record": "what is live is what the head says, not what lies around",  # log._open_record
    "index_listed": "packs are shared only after a listing has shown them whole",  # bases.Bases.load, .recheck
    "settle_head": "the head is made durable before it is extended",  # log.Log.open
    "settle_read_back": "so is a record of ours that was read back",  # log.Log._read_back
    "sync_record": "a create is durable before it is acknowledged",  # stores.local_objects.PendingFile.publish_new
    "sync_data": "a put is durable before it is acknowledged",  # stores.local_objects.PendingFile.publish
    "note_damage": "a damaged record is noted as quarantined",  # log._open_record
    "carry_quarantine": "what is quarantined is carried on in every record",  # log._open_record, log.Log._next
    # Retention
    "retain_in_commit": "what retention gives up goes with the commit's own record, not before",  # writer._commit
    "newest_by_seq": "retention orders by seq and keeps the newest",  # format.retention.decide
    "pins": "retention keeps what is pinned",  # writer.RunWriter._commit
    # Deleting
    "owner_deletes": "only a writer that holds the run deletes",  # cli, checkpointer: a sweep opens for writing
    "list_first": "a sweep lists first and decides after",  # janitor.Janitor.sweep
    "keep_base": "what was live when a save in flight began stays",  # janitor.Janitor.begin
    "keep_in_flight": "packs of saves in flight stay",  # janitor.decide_deletes
    "epoch_check": "packs of a higher epoch are never deleted",  # janitor.decide_deletes
    "quarantine_blocks": "nothing is deleted while a record is quarantined",  # janitor.Janitor.blocked
    "grace": "what left the live set stays for a while",  # janitor.Janitor.retire
    "share_live_only": "a commit shares chunks of live checkpoints only",  # index.ChunkIndex
    "fresh_names": "no name is used for two contents",  # upload.Upload._write_pack
    # Reading
    "prove_head": "the head is proved by a positive not-found",  # head.find_head
    "tell_apart": "an error is not taken for damage",  # finding.Finding._find_in
    "start_again": "what vanished because it left the live set is looked for in the new head",  # finding._check_live
}
"""Every rule by name; the comment beside it says which function keeps it."""

NEW, OPENING, OPEN, DEAD = range(4)
"""Phases of a writer; one that is fenced does nothing any more."""
WAITING, BEGUN, UPLOADED, SENT, ENDED, UNKNOWN = range(6)
CREATE, PUT, DELETE = range(3)
Nonce = tuple[int, int, int, int]
"""Writer, operation, number of the record, try."""


class Record(NamedTuple):
    """A log record. ``prev`` is the number of the record before in the model's table, -1 if there is none."""

    kind: str
    epoch: int
    nonce: Nonce
    prev: int
    live: frozenset[int] = frozenset()
    pinned: frozenset[int] = frozenset()
    packs: frozenset[int] = frozenset()
    quarantined: frozenset[int] = frozenset()


class Operation(NamedTuple):
    """A save, or a pin of the newest checkpoint. ``base``: the record that told what was live when it began."""

    phase: int = WAITING
    base: int = 0
    shared: int = 0
    attempt: int = 0
    seq: int = 0
    again: int = 0


class Writer(NamedTuple):
    """A process that writes. ``head`` is the newest record it knows; ``view`` the one whose live set it believes."""

    phase: int = NEW
    epoch: int = 0
    head: int = 0
    view: int = 0
    operations: tuple[Operation, ...] = ()
    sweeps: int = 0
    listed: frozenset[int] | None = None
    retired: frozenset[int] = frozenset()
    older_too: bool = True
    waits_for_reader: bool = False
    unusable: frozenset[int] = frozenset()
    resumed: int = 0


class Reader(NamedTuple):
    """One read. ``wanted``: the seq that it is reading; ``acknowledged``: the newest one when it began."""

    phase: int = 0
    reads: int = 0
    head: int = 0
    wanted: int = 0
    pack: int = 0
    acknowledged: int = 0


class State(NamedTuple):
    """Everything. ``log`` holds indexes into the model's table of records; ``broken`` names a violated invariant."""

    log: tuple[int, ...] = ()
    objects: frozenset[int] = frozenset()
    flight: frozenset[tuple[int, int, int]] = frozenset()
    writers: tuple[Writer, ...] = ()
    reader: Reader = Reader()
    acknowledged: int = 0
    faults: int = 0
    unsynced: frozenset[int] = frozenset()
    unsynced_packs: frozenset[int] = frozenset()
    power: int = 0
    damaged: int = 0
    lost_packs: frozenset[int] = frozenset()
    rot: int = 0
    broken: str = ""


class Config(NamedTuple):
    """Bounds of one exploration.

    ``programs``: for each writer what it does, ``s``\\ ave or ``p``\\ in. ``faults``: how many answers are never
    clear or puts fail. ``grace``: nothing goes while a read that began earlier is under way, and such a read must
    not be disturbed. ``rot``: ``record`` or ``pack`` for damage at rest. ``clone``: the second writer is a copy of
    the first one's process. ``durable``: creates and puts need an fsync, and the power may fail.
    """

    programs: tuple[str, ...] = ("s", "s")
    sweeps: tuple[int, ...] = (1, 1)
    retain: int = 1
    faults: int = 0
    reads: int = 0
    grace: bool = False
    rot: str = ""
    clone: bool = False
    durable: bool = False
    stale_lists: bool = False

    def start(self) -> State:
        """The state in which nothing has happened."""
        writers = tuple(
            Writer(operations=tuple(Operation() for _ in program), sweeps=sweeps)
            for program, sweeps in zip(self.programs, self.sweeps, strict=True)
        )
        return State(
            writers=writers,
            reader=Reader(reads=self.reads),
            faults=self.faults,
            power=int(self.durable),
            rot=int(bool(self.rot)),
        )


def pack_of(epoch: int, writer: int, operation: int, name: int, content: int) -> int:
    """A pack: its key is all but the last digit, which stands for its bytes."""
    return (((epoch * 10 + writer) * 10 + operation + 1) * 10 + name) * 10 + content


def epoch_of(pack: int) -> int:
    """The epoch in a pack's name."""
    return pack // 10_000


def save_of(pack: int) -> int:
    """The index of its save within its epoch."""
    return pack // 100 % 10 - 1
