"""What passes between the demo's parent and child: settings in, one message a line out.

A child that is killed may leave half a line; a line is a message only if it is whole and makes sense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, TypeAlias

__all__ = [
    "Failed",
    "Finished",
    "Message",
    "Pickled",
    "Resumed",
    "Saved",
    "Settings",
    "Settled",
    "Stepped",
    "encode",
    "parse",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a child is to do.

    Attributes:
        url: of the run that it resumes and writes.
        steps: training steps of the whole run.
        save_every: steps from one ``write`` to the next.
        pickle_every: steps from one synchronous pickle + fsync to the next; 0 for none.
        scratch: folder for those pickles.
        hidden, seed: of the network.
        storage: options of the store; they may hold credentials, so settings travel on stdin, never in argv.
    """

    url: str
    steps: int
    save_every: int
    pickle_every: int
    scratch: str
    hidden: int
    seed: int
    storage: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def encode(self) -> str:
        """Give the settings as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Settings:
        """Take settings from what ``encode`` gave."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Resumed:
    """The child has its state and goes on with ``next_step``; ``seq`` and sizes are 0 for a fresh start."""

    next_step: int
    seq: int
    raw_bytes: int
    stored_bytes: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """One training step is done."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Saved:
    """``write`` returned, after ``stalled_seconds`` by the child's own clock."""

    step: int
    stalled_seconds: float


@dataclass(frozen=True, slots=True)
class Settled:
    """A save ended: its receipt."""

    step: int
    outcome: str
    seq: int
    raw_bytes: int
    stored_bytes: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class Pickled:
    """The same state was pickled to a file and fsynced, while training waited."""

    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is complete and closed.

    Attributes:
        weights: SHA-256 of the trained weights.
        state: SHA-256 of the whole state in memory.
        stored: SHA-256 of the whole state, read back from the store after closing.
        accuracy: share of the held-out digits recognised.
    """

    weights: str
    state: str
    stored: str
    accuracy: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The child gave up with an error that limpet explains."""

    message: str


Message: TypeAlias = Resumed | Stepped | Saved | Settled | Pickled | Finished | Failed
_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__.lower(): kind for kind in (Resumed, Stepped, Saved, Settled, Pickled, Finished, Failed)
}


def encode(message: Message) -> str:
    """Give ``message`` as one line of JSON, without its newline."""
    return json.dumps({"kind": type(message).__name__.lower()} | asdict(message))


def parse(line: str | bytes) -> Message | None:
    """Give the message that ``line`` holds, or ``None`` where it is torn or is not one."""
    try:
        found = json.loads(line)
        kind = _KINDS[found.pop("kind")]
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    if set(found) != {entry.name for entry in fields(kind)}:
        return None
    message: Message = kind(**found)
    return message
