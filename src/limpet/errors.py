"""Errors, grouped by what the caller would do about them.

Every error has a stable ``kind`` (append-only: a kind is never renamed or reused) and a ``hint``,
one sentence that says what to do next.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CommitUnknownError",
    "CorruptError",
    "FencedError",
    "FormatError",
    "HeldError",
    "LimpetError",
    "MismatchError",
    "NotFoundError",
    "StoreError",
    "UnsupportedLeafError",
    "UntrustedError",
    "UsageError",
]


class LimpetError(Exception):
    """Base of every error that limpet raises.

    Args:
        message: what happened and where, in one line.
        hint: what to do about it; appended to the message when shown.
        kind: a finer kind than the class's own, where a program may want to tell them apart.
    """

    default_kind: ClassVar[str] = "limpet"

    def __init__(self, message: str, *, hint: str = "", kind: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind or self.default_kind
        self.pending: object | None = None
        """Where a later call raises an error nobody had looked at: what ``write`` accepted all the same, or what failed."""

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?")) else "."
        return f"{self.message}{stop} {self.hint}"


class NotFoundError(LimpetError):
    """The checkpoint, step or leaf that was asked for does not exist: choose another one."""

    default_kind = "not_found"


class FencedError(LimpetError):
    """A newer attempt owns this run: stop. Nothing more is committed or deleted by this writer."""

    default_kind = "fenced"


class CorruptError(LimpetError):
    """Bytes differ from what was committed: read an older checkpoint.

    Args:
        pack: key of the data object that is damaged or missing, if it is one.
    """

    default_kind = "corrupt"

    def __init__(self, message: str, *, hint: str = "", kind: str | None = None, pack: str | None = None) -> None:
        super().__init__(message, hint=hint, kind=kind)
        self.pack = pack


class UntrustedError(LimpetError):
    """A record is not signed with the run's key, or the run was rolled back: find out who changed it."""

    default_kind = "untrusted"


class MismatchError(LimpetError):
    """State and checkpoint disagree in structure, shape or dtype: fix the code."""

    default_kind = "mismatch"


class StoreError(LimpetError):
    """The store did not do what was asked, or could not tell: retry later.

    Args:
        transient: whether the same request may succeed when it is sent again.
    """

    default_kind = "store"

    def __init__(self, message: str, *, hint: str = "", kind: str | None = None, transient: bool = False) -> None:
        super().__init__(message, hint=hint, kind=kind)
        self.transient = transient


class UnsupportedLeafError(LimpetError):
    """A state holds something that cannot be saved; the message names the leaf's path."""

    default_kind = "unsupported_leaf"


class HeldError(LimpetError):
    """Another writer of this run is alive on this host: wait for it, or take over."""

    default_kind = "held"


class CommitUnknownError(StoreError):
    """The store did not say whether the commit happened; the next write resolves it."""

    default_kind = "commit_unknown"


class UsageError(LimpetError):
    """The call itself is wrong: closed, forked, wrong thread, contradicting settings."""

    default_kind = "usage"


class FormatError(LimpetError):
    """Written by a newer version of limpet, or not by limpet at all."""

    default_kind = "format"
