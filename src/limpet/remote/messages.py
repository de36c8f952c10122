"""What the two processes tell each other: plain data, strictly decoded.

``number`` is a save's: unique for one ``Checkpointer``, its child runs included. ``run`` is 0 for the run itself, and
counts its child runs from 1. A message is one packet; packets keep their order, and none is ever seen in part.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from limpet.format.chunks import ChunkSource
from limpet.format.manifest import BufferAt
from limpet.format.record import Record
from limpet.remote.faults import Fault
from limpet.types import Receipt

__all__ = [
    "Answer",
    "Call",
    "Discard",
    "DropSlot",
    "Ended",
    "FromTrainer",
    "FromWriter",
    "Goodbye",
    "Happened",
    "Hurry",
    "Intent",
    "NewSlot",
    "OpenRun",
    "Opened",
    "Place",
    "Ready",
    "Recorded",
    "Released",
    "RunClosed",
    "StageSave",
    "StartSave",
    "Warned",
    "Withdraw",
    "decode_from_trainer",
    "decode_from_writer",
    "encode",
]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=True):
    pass


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a store is made from; it may hold secrets, so it travels through the socket and nowhere else.

    Attributes:
        url: absolute, if it is a path.
        storage: options; see ``limpet.remote.place``.
        key: that signs the records.
        prefixes: of the child run, and of each run that it lies in.
    """

    url: str
    storage: dict[str, Any]
    key: bytes | None = None
    prefixes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Place({self.url!r})"


# What the trainer says.


class OpenRun(_Message, frozen=True):
    """Take a run over; answered by ``Opened`` or a failed ``Answer``.

    Attributes:
        continues: epoch of the writer that this one stands in for: if the run has a newer one, it is not ours any more.
    """

    call: int
    run: int
    place: Place
    owner: str
    library: str
    retain: Any
    compression: str
    delta: bool
    takeover: bool
    name: str
    note: dict[str, Any]
    deadlines: tuple[float, float, float, float]
    continues: int | None = None


class NewSlot(_Message, frozen=True):
    """A slot; its memory comes with the message."""

    slot: int
    content_bytes: int


class DropSlot(_Message, frozen=True):
    """A slot that holds nothing any more."""

    slot: int


class StageSave(_Message, frozen=True):
    """A save that is staged, and is to be written once it is started, or once the trainer is dead.

    Attributes:
        place: in the order of the calls; 0 for one that comes after all others.
        called: by the monotonic clock, which all processes of a machine share.
        slot: that its copies are in; 0 if they are in ``data``.
        files: path and size of the buffers that are spooled files, by number of the buffer.
        folders: of those files; a descriptor that keeps each comes with the message.
        nonces: of the records that earlier writers may have created for it.
    """

    run: int
    number: int
    place: int
    step: int | None
    meta: dict[str, Any]
    pinned: bool
    urgent: bool
    called: float
    stalled_seconds: float
    staged_seconds: float
    node: bytes
    buffers: list[BufferAt]
    chunks: list[ChunkSource]
    slot_bytes: int
    raw_bytes: int
    slot: int = 0
    data: bytes = b""
    files: dict[int, tuple[str, int]] = {}
    folders: list[str] = []
    nonces: list[str] = []


class StartSave(_Message, frozen=True):
    """It is this save's turn."""

    run: int
    number: int


class Withdraw(_Message, frozen=True):
    """These saves are not to be written any more; a newer one takes their place."""

    run: int
    numbers: list[int]


class Hurry(_Message, frozen=True):
    """Somebody waits for everything, or does not any more."""

    run: int
    hurried: bool


class Discard(_Message, frozen=True):
    """A pack was found damaged."""

    run: int
    pack: str


class Call(_Message, frozen=True):
    """Do something to a run, and answer.

    Attributes:
        again: it was asked for before, of a process that died: it may be done already.
    """

    call: int
    run: int
    name: str
    args: list[Any]
    again: bool = False


class Goodbye(_Message, frozen=True):
    """The trainer ends in good order, and wants nothing more."""


# What the writer says.


class Ready(_Message, frozen=True):
    """Everything is imported."""


class Opened(_Message, frozen=True):
    """The run is ours.

    Attributes:
        head: our own open record.
        records: of the live checkpoints.
        damaged: live seqs that cannot be used.
    """

    call: int
    epoch: int
    head: Record
    records: list[Record]
    damaged: list[int]


class Answer(_Message, frozen=True):
    """What came of a call."""

    call: int
    value: Any = None
    fault: Fault | None = None


class Recorded(_Message, frozen=True):
    """A record of ours is in the log."""

    run: int
    record: Record


class Released(_Message, frozen=True):
    """Nobody reads from a save's memory any more; ``lent``: but somebody beyond our sight may."""

    run: int
    number: int
    lent: bool


class Intent(_Message, frozen=True):
    """The record with this nonce, which commits the save, is about to be created."""

    run: int
    number: int
    nonce: str


class Ended(_Message, frozen=True):
    """A save is durable, or failed; ``kept``: its content is to stay in its slot as long as nobody needs the room."""

    run: int
    number: int
    receipt: Receipt | None = None
    fault: Fault | None = None
    kept: bool = False


class Happened(_Message, frozen=True):
    """An event, for the hooks: the name of its class, and its fields."""

    run: int
    kind: str
    fields: dict[str, Any]
    fault: Fault | None = None


class RunClosed(_Message, frozen=True):
    """Nothing more can be written to a run."""

    run: int
    fault: Fault


class Warned(_Message, frozen=True):
    """A warning, for people."""

    text: str


FromTrainer: TypeAlias = (
    OpenRun | NewSlot | DropSlot | StageSave | StartSave | Withdraw | Hurry | Discard | Call | Goodbye
)
FromWriter: TypeAlias = Ready | Opened | Answer | Recorded | Released | Intent | Ended | Happened | RunClosed | Warned

encode = msgspec.msgpack.Encoder().encode
decode_from_trainer = msgspec.msgpack.Decoder(FromTrainer).decode
decode_from_writer = msgspec.msgpack.Decoder(FromWriter).decode
