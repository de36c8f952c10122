"""Asynchronous checkpoints for long tasks on machines that may vanish: never in the way, never torn, never lost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limpet.checkpointer import Checkpointer
    from limpet.errors import (
        CommitUnknownError,
        CorruptError,
        FencedError,
        FormatError,
        HeldError,
        LimpetError,
        MismatchError,
        NotFoundError,
        StoreError,
        UnsupportedLeafError,
        UntrustedError,
        UsageError,
    )
    from limpet.events import (
        Committed,
        Deleted,
        Failed,
        Fallback,
        Opened,
        Restarted,
        Retried,
        Staged,
        Superseded,
    )
    from limpet.format.interval import Every
    from limpet.format.registry import register
    from limpet.format.retention import AnyOf, Best, Last, Periodic
    from limpet.pending import PendingWrite
    from limpet.reading import DamagedCheckpointWarning
    from limpet.run import Run
    from limpet.run import open_run as open  # noqa: A004 - limpet.open is meant to read like the builtin
    from limpet.types import CheckpointInfo, Files, LeafRow, Outcome, Receipt, Resumed, Swept, Verification

    __version__: str

_HOME = {
    "AnyOf": "limpet.format.retention",
    "Best": "limpet.format.retention",
    "CheckpointInfo": "limpet.types",
    "Checkpointer": "limpet.checkpointer",
    "CommitUnknownError": "limpet.errors",
    "Committed": "limpet.events",
    "CorruptError": "limpet.errors",
    "DamagedCheckpointWarning": "limpet.reading",
    "Deleted": "limpet.events",
    "Every": "limpet.format.interval",
    "Failed": "limpet.events",
    "Fallback": "limpet.events",
    "FencedError": "limpet.errors",
    "Files": "limpet.types",
    "FormatError": "limpet.errors",
    "HeldError": "limpet.errors",
    "Last": "limpet.format.retention",
    "LeafRow": "limpet.types",
    "LimpetError": "limpet.errors",
    "MismatchError": "limpet.errors",
    "NotFoundError": "limpet.errors",
    "Opened": "limpet.events",
    "Outcome": "limpet.types",
    "PendingWrite": "limpet.pending",
    "Periodic": "limpet.format.retention",
    "Receipt": "limpet.types",
    "Restarted": "limpet.events",
    "Resumed": "limpet.types",
    "Retried": "limpet.events",
    "Run": "limpet.run",
    "Staged": "limpet.events",
    "StoreError": "limpet.errors",
    "Superseded": "limpet.events",
    "Swept": "limpet.types",
    "UnsupportedLeafError": "limpet.errors",
    "UntrustedError": "limpet.errors",
    "UsageError": "limpet.errors",
    "Verification": "limpet.types",
    "open": "limpet.run",
    "register": "limpet.format.registry",
}
_CALLED_ELSEWHERE = {"open": "open_run"}

__all__ = [
    "AnyOf",
    "Best",
    "CheckpointInfo",
    "Checkpointer",
    "CommitUnknownError",
    "Committed",
    "CorruptError",
    "DamagedCheckpointWarning",
    "Deleted",
    "Every",
    "Failed",
    "Fallback",
    "FencedError",
    "Files",
    "FormatError",
    "HeldError",
    "Last",
    "LeafRow",
    "LimpetError",
    "MismatchError",
    "NotFoundError",
    "Opened",
    "Outcome",
    "PendingWrite",
    "Periodic",
    "Receipt",
    "Restarted",
    "Resumed",
    "Retried",
    "Run",
    "Staged",
    "StoreError",
    "Superseded",
    "Swept",
    "UnsupportedLeafError",
    "UntrustedError",
    "UsageError",
    "Verification",
    "open",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import limpet`` alone costs next to nothing."""
    if name == "__version__":
        from limpet.version import version

        return version()
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'limpet' has no attribute {name!r}")
    value = getattr(import_module(home), _CALLED_ELSEWHERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
