"""Everything that reads: ``Run`` and ``Checkpointer`` have these calls in common.

Each call only runs an operation (a generator that says what to wait for), here or in the caller's event loop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar, overload

from limpet.finding import DamagedCheckpointWarning, Finding, Source, Wanted
from limpet.format.assemble import MISSING
from limpet.loop import drive, drive_async
from limpet.types import CheckpointInfo, LeafRow, Resumed, Verification

__all__ = ["DamagedCheckpointWarning", "Reading", "Source", "Wanted"]

T = TypeVar("T")


class Reading(Finding):
    """The reading calls; each has a twin with ``_async`` for asyncio and trio."""

    @overload
    def resume(self, initial: T) -> Resumed[T]: ...
    @overload
    def resume(self, initial: None = None, *, into: T) -> Resumed[T]: ...
    @overload
    def resume(self, initial: None = None) -> Resumed[Any]: ...
    def resume(self, initial: Any = None, *, into: Any = MISSING) -> Resumed[Any]:
        """Where the run goes on: the newest state that verifies, or the initial one.

        Args:
            initial: the state of a run that starts.
            into: live arrays, containers and stateful objects to fill in place; they are the initial state too.

        Returns:
            ``.state``, ``.next_step``, ``.meta`` and ``.info``; ``.info`` is ``None`` if there was nothing.

        Raises:
            CorruptError: there are checkpoints, and none of them verifies.
            MismatchError: ``into`` does not fit the checkpoint.
            StoreError: the store could not tell whether there is one.
        """
        return drive(self._resume(initial, into))

    @overload
    async def resume_async(self, initial: T) -> Resumed[T]: ...
    @overload
    async def resume_async(self, initial: None = None, *, into: T) -> Resumed[T]: ...
    @overload
    async def resume_async(self, initial: None = None) -> Resumed[Any]: ...
    async def resume_async(self, initial: Any = None, *, into: Any = MISSING) -> Resumed[Any]:
        """``resume`` for coroutines."""
        return await drive_async(self._resume(initial, into))

    @overload
    def read(
        self, *, at: int | CheckpointInfo | None = None, into: T, select: str | None = None, strict: bool = False
    ) -> T | None: ...
    @overload
    def read(
        self, *, at: int | CheckpointInfo | None = None, select: str | None = None, strict: bool = False
    ) -> Any: ...
    def read(
        self,
        *,
        at: int | CheckpointInfo | None = None,
        into: Any = MISSING,
        select: str | None = None,
        strict: bool = False,
    ) -> Any:
        """The newest state that verifies, or the one at a step.

        Args:
            at: a step (the newest checkpoint that has it), or one of ``checkpoints()``.
            into: live arrays, containers and stateful objects to fill in place.
            select: the written path of a leaf or subtree, to read only that.
            strict: raise for a damaged checkpoint instead of falling back to an older one.

        Returns:
            The state, or ``None`` if nothing was ever committed.

        Raises:
            NotFoundError: no live checkpoint has that step, or no leaf that path.
            CorruptError: none of those that could be used verifies.
            MismatchError: ``into`` does not fit the checkpoint.
            StoreError: the store could not tell.
        """
        return drive(self._read(Wanted(at, into, select, strict)))

    @overload
    async def read_async(
        self, *, at: int | CheckpointInfo | None = None, into: T, select: str | None = None, strict: bool = False
    ) -> T | None: ...
    @overload
    async def read_async(
        self, *, at: int | CheckpointInfo | None = None, select: str | None = None, strict: bool = False
    ) -> Any: ...
    async def read_async(
        self,
        *,
        at: int | CheckpointInfo | None = None,
        into: Any = MISSING,
        select: str | None = None,
        strict: bool = False,
    ) -> Any:
        """``read`` for coroutines."""
        return await drive_async(self._read(Wanted(at, into, select, strict)))

    def restore(
        self, path: str | os.PathLike[str] | None = None, *, at: int | CheckpointInfo | None = None
    ) -> Path | None:
        """Write what ``save`` stored below the directory ``path``.

        Args:
            path: a directory, made if it is missing; what else it holds stays. Default: a new temporary one.
            at: as for ``read``.

        Returns:
            ``path`` for a saved directory, ``path / name`` for a saved file, ``None`` if nothing was ever committed.

        Raises:
            UsageError: ``path`` is a file, or the checkpoint is not of files.
        """
        return drive(self._restore(path, at))

    async def restore_async(
        self, path: str | os.PathLike[str] | None = None, *, at: int | CheckpointInfo | None = None
    ) -> Path | None:
        """``restore`` for coroutines."""
        return await drive_async(self._restore(path, at))

    def checkpoints(self) -> list[CheckpointInfo]:
        """The live checkpoints, oldest first."""
        return drive(self._checkpoints())

    async def checkpoints_async(self) -> list[CheckpointInfo]:
        """``checkpoints`` for coroutines."""
        return await drive_async(self._checkpoints())

    def best(self, metric: str, *, largest: bool = False) -> CheckpointInfo | None:
        """The live checkpoint whose ``meta[metric]`` is smallest, or largest; ``None`` if none has that metric."""
        return drive(self._best(metric, largest))

    async def best_async(self, metric: str, *, largest: bool = False) -> CheckpointInfo | None:
        """``best`` for coroutines."""
        return await drive_async(self._best(metric, largest))

    def verify(self, at: int | CheckpointInfo | None = None) -> Verification | None:
        """Read every byte of a checkpoint (default: the newest) and check it.

        Returns:
            What was read; ``None`` if nothing was ever committed.

        Raises:
            CorruptError: something is damaged or missing; the message says what.
        """
        return drive(self._verify(at))

    async def verify_async(self, at: int | CheckpointInfo | None = None) -> Verification | None:
        """``verify`` for coroutines."""
        return await drive_async(self._verify(at))

    def describe(self, at: int | CheckpointInfo | None = None) -> list[LeafRow]:
        """The leaves of a checkpoint (default: the newest): path, kind, dtype, shape, bytes. No data is read."""
        return drive(self._describe(at))

    async def describe_async(self, at: int | CheckpointInfo | None = None) -> list[LeafRow]:
        """``describe`` for coroutines."""
        return await drive_async(self._describe(at))

    @property
    def restored(self) -> CheckpointInfo | None:
        """The checkpoint that the last ``resume``, ``read`` or ``restore`` gave; no I/O."""
        return self._restored
