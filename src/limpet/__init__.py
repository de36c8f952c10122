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
        UsageError,
    )
    from limpet.format.interval import Every
    from limpet.format.registry import register
    from limpet.format.retention import Best, Last, Periodic
    from limpet.pending import PendingWrite
    from limpet.reading import DamagedCheckpointWarning
    from limpet.run import Run
    from limpet.run import open_run as open  # noqa: A004 - limpet.open is meant to read like the builtin
    from limpet.types import CheckpointInfo, Files, Outcome, Receipt, Resumed, Swept, Verification

    __version__: str

_HOME = {
    "Best": "limpet.format.retention",
    "CheckpointInfo": "limpet.types",
    "Checkpointer": "limpet.checkpointer",
    "CommitUnknownError": "limpet.errors",
    "CorruptError": "limpet.errors",
    "DamagedCheckpointWarning": "limpet.reading",
    "Every": "limpet.format.interval",
    "FencedError": "limpet.errors",
    "Files": "limpet.types",
    "FormatError": "limpet.errors",
    "HeldError": "limpet.errors",
    "Last": "limpet.format.retention",
    "LimpetError": "limpet.errors",
    "MismatchError": "limpet.errors",
    "NotFoundError": "limpet.errors",
    "Outcome": "limpet.types",
    "PendingWrite": "limpet.pending",
    "Periodic": "limpet.format.retention",
    "Receipt": "limpet.types",
    "Resumed": "limpet.types",
    "Run": "limpet.run",
    "StoreError": "limpet.errors",
    "Swept": "limpet.types",
    "UnsupportedLeafError": "limpet.errors",
    "UsageError": "limpet.errors",
    "Verification": "limpet.types",
    "open": "limpet.run",
    "register": "limpet.format.registry",
}
_CALLED_ELSEWHERE = {"open": "open_run"}

__all__ = [
    "Best",
    "CheckpointInfo",
    "Checkpointer",
    "CommitUnknownError",
    "CorruptError",
    "DamagedCheckpointWarning",
    "Every",
    "FencedError",
    "Files",
    "FormatError",
    "HeldError",
    "Last",
    "LimpetError",
    "MismatchError",
    "NotFoundError",
    "Outcome",
    "PendingWrite",
    "Periodic",
    "Receipt",
    "Resumed",
    "Run",
    "StoreError",
    "Swept",
    "UnsupportedLeafError",
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
