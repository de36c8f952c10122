"""What hooks are told. Events carry ids, numbers and sizes; never credentials, never state."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Committed",
    "Deleted",
    "Event",
    "Failed",
    "Fallback",
    "Hook",
    "Opened",
    "Restarted",
    "Retried",
    "Staged",
    "Superseded",
]


@dataclass(frozen=True, slots=True)
class Opened:
    """A writer took the run over: its epoch, and the owner of the writer before, if that did not close."""

    url: str
    epoch: int
    replaced: str | None


@dataclass(frozen=True, slots=True)
class Staged:
    """A snapshot was copied; the caller was held up for ``stalled_seconds``."""

    step: int | None
    raw_bytes: int
    stalled_seconds: float


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint became durable, ``seconds`` after the call."""

    seq: int
    step: int | None
    raw_bytes: int
    new_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """A staged snapshot was replaced by a newer one before it was written."""

    step: int | None
    by_step: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A save failed for good."""

    step: int | None
    error: BaseException


@dataclass(frozen=True, slots=True)
class Retried:
    """A request to the store failed and is sent again."""

    operation: str
    key: str
    attempt: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class Restarted:
    """The process that writes a run (``engine="process"``) died, and a new one goes on with the unfinished saves."""

    url: str
    reason: str
    unfinished: int


@dataclass(frozen=True, slots=True)
class Fallback:
    """A checkpoint did not verify and an older one is tried."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """Data that no live checkpoint reaches was removed."""

    objects: int
    freed_bytes: int


def warn_gently(text: str) -> None:
    """Warn from the engine's thread, where a warning that was made an error would cost a save: then it is logged."""
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        logging.getLogger("limpet").warning(text)


Event: TypeAlias = Opened | Staged | Committed | Superseded | Failed | Restarted | Retried | Fallback | Deleted
Hook: TypeAlias = Callable[[Event], None]
"""Called on limpet's own thread, one event at a time; it must not block and must not call limpet."""
