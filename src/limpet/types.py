"""The words that every layer shares: plain, frozen data."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from limpet.errors import UsageError

__all__ = ["CheckpointInfo", "Files", "LeafRow", "Outcome", "Receipt", "Resumed", "Swept", "Verification"]

T = TypeVar("T")


class Outcome(StrEnum):
    """How an accepted save ended."""

    COMMITTED = "committed"
    SUPERSEDED = "superseded"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One committed checkpoint.

    Attributes:
        seq: its place in the run's log; later commits have higher ones.
        step: the label that ``write`` was given, or ``None``.
        time: when it was committed, in seconds since 1970 by the writer's clock (for people only).
        raw_bytes: size of the state's buffers in memory.
        stored_bytes: size of everything it reaches in the store, older packs' chunks included.
        new_bytes: what this save itself added to the store.
        meta: what ``write`` was given.
        owner: who wrote it.
        epoch: the open record under which it was written.
        pinned: whether retention must keep it.
    """

    seq: int
    step: int | None
    time: float
    raw_bytes: int
    stored_bytes: int
    new_bytes: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""
    epoch: int = 0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a save.

    Attributes:
        outcome: ``committed``; ``superseded`` (a newer state that replaced it is durable);
            ``skipped`` (``every=`` or ``on_busy="skip"`` said so).
        step: the label that ``write`` was given.
        durable_step: step of the newest durable checkpoint when the save ended.
        seq: of the checkpoint that holds this state or the newer one; ``None`` if skipped.
        raw_bytes, stored_bytes, new_bytes: as in ``CheckpointInfo``; zero if not committed.
        stalled_seconds: how long the call to ``write`` held up its caller.
        staged_seconds, encoded_seconds, uploaded_seconds, committed_seconds: when each phase was
            done, counted from the call.
    """

    outcome: Outcome
    step: int | None = None
    durable_step: int | None = None
    seq: int | None = None
    raw_bytes: int = 0
    stored_bytes: int = 0
    new_bytes: int = 0
    stalled_seconds: float = 0.0
    staged_seconds: float = 0.0
    encoded_seconds: float = 0.0
    uploaded_seconds: float = 0.0
    committed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Resumed(Generic[T]):
    """Where a run goes on.

    Attributes:
        state: the restored state, or the initial one.
        info: the checkpoint that was restored; ``None`` if there was none.
    """

    state: T
    info: CheckpointInfo | None = None

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the restored checkpoint's ``write`` was given as ``meta``; empty if there was none."""
        return self.info.meta if self.info is not None else {}

    @property
    def next_step(self) -> int:
        """The step after the restored one; 0 for a run that starts.

        Raises:
            UsageError: the restored checkpoint was written without a step.
        """
        if self.info is None:
            return 0
        if self.info.step is None:
            raise UsageError(
                f"checkpoint {self.info.seq} was written without a step, so there is no next one.",
                hint="Give write(..., step=...) or keep a counter in the state.",
            )
        return self.info.step + 1


@dataclass(frozen=True, slots=True)
class Verification:
    """What ``verify`` found: every byte of this checkpoint was read and matched."""

    info: CheckpointInfo
    chunks: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Swept:
    """What ``sweep`` removed: data that no live checkpoint reaches."""

    objects: int = 0
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LeafRow:
    """One leaf of a checkpoint, to show.

    Attributes:
        path: as it is written for ``select=``.
        kind: such as ``ndarray``, ``tensor``, ``int``, ``files``.
        dtype, shape: of arrays.
        nbytes: of its buffers; 0 for what stands in the manifest itself.
        value: of a short scalar.
    """

    path: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    nbytes: int = 0
    value: Any = None


class Files:
    """A file or a directory as a leaf of a state.

    In a state that is written it stands for the content at ``path``, as it is at the call.
    In a state that was read it is a handle: nothing is fetched until ``restore`` is called.
    With ``into=``, the content goes to ``path`` of the live leaf.

    Args:
        path: the file or directory.
    """

    __slots__ = ("_fetch", "_fetch_async", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path | None = Path(path)
        self._fetch: Callable[[Path | None], Path] = self._not_read
        self._fetch_async: Callable[[Path | None], Awaitable[Path]] = self._not_read

    @classmethod
    def _from_checkpoint(
        cls, fetch: Callable[[Path | None], Path], fetch_async: Callable[[Path | None], Awaitable[Path]]
    ) -> Files:
        handle = cls.__new__(cls)
        handle.path = None
        handle._fetch = fetch
        handle._fetch_async = fetch_async
        return handle

    def restore(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the checkpoint's content below the directory ``path`` (default: a new temporary one).

        Returns:
            ``path`` itself for a saved directory; ``path / name`` for a saved file.

        Raises:
            UsageError: this leaf does not come from a checkpoint, its run is closed, or ``path`` is a file.
        """
        return self._fetch(None if path is None else Path(path))

    async def restore_async(self, path: str | os.PathLike[str] | None = None) -> Path:
        """``restore`` for coroutines."""
        return await self._fetch_async(None if path is None else Path(path))

    def _not_read(self, _target: Path | None) -> NoReturn:
        raise UsageError(
            f"Files({str(self.path)!r}) was not read from a checkpoint, so there is nothing to restore.",
            hint="Call restore() on the leaf that read() or resume() returned.",
        )

    def __repr__(self) -> str:
        return f"Files({str(self.path)!r})" if self.path is not None else "Files(<in checkpoint>)"
