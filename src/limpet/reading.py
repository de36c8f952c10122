"""Everything that reads, written once: ``Run`` and ``Checkpointer`` have these calls in common.

Each call is an operation (a generator that says what to wait for); its two faces only run it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from limpet.engine.files import extract
from limpet.engine.live import Checkpoint
from limpet.engine.memory import available_bytes
from limpet.engine.opening import View
from limpet.engine.reader import Opened, Reader
from limpet.errors import CorruptError, LimpetError, NotFoundError, UsageError
from limpet.events import Event, Fallback
from limpet.format.assemble import MISSING, prepare
from limpet.format.registry import Registry, default_registry
from limpet.format.retention import Best, decide
from limpet.format.rows import describe_leaves, files_payload
from limpet.loop import EngineLoop, Operation, Wait, drive, drive_async
from limpet.types import CheckpointInfo, Files, LeafRow, Resumed, Verification
from limpet.workers import Workers

__all__ = ["DamagedCheckpointWarning", "Reading", "Wanted"]

T = TypeVar("T")
_RESTARTS = 5


class DamagedCheckpointWarning(RuntimeWarning):
    """A checkpoint did not verify and an older one was used, or will have to be."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call wants of a checkpoint.

    Attributes:
        at: a step, a checkpoint, or ``None`` for the newest that verifies.
        into: live objects to fill, or ``MISSING``.
        select: path of a subtree, or ``None`` for all.
        strict: never fall back.
        files: the content of a saved file or directory, below ``target``, instead of the state.
    """

    at: Any = None
    into: Any = MISSING
    select: str | None = None
    strict: bool = False
    files: bool = False
    target: Path | None = None


class Source(Protocol):
    """Another place to find a state in."""

    def find(self, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo] | None]:
        """The state and where it is from."""
        ...


class Reading:
    """The reading calls; each has a twin with ``_async`` for asyncio and trio."""

    _allow_pickle: bool
    _restored: CheckpointInfo | None = None
    _registry: Registry = default_registry

    # What a subclass provides.

    def _ready(self) -> Operation[None]:
        raise NotImplementedError

    def _view(self) -> Operation[View]:
        raise NotImplementedError

    @property
    def _engine(self) -> EngineLoop:
        raise NotImplementedError

    @property
    def _reader(self) -> Reader:
        raise NotImplementedError

    @property
    def _workers(self) -> Workers:
        raise NotImplementedError

    @property
    def _where(self) -> str:
        raise NotImplementedError

    def _found_damaged(self, error: CorruptError) -> None:
        """A checkpoint did not verify."""

    def _tell(self, event: Event) -> None:
        """An event for the hooks."""

    def _fallback_source(self) -> Source | None:
        """Where to read from while this run holds nothing."""
        return None

    # The faces.

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

    async def resume_async(self, initial: Any = None, *, into: Any = MISSING) -> Resumed[Any]:
        """``resume`` for coroutines."""
        return await drive_async(self._resume(initial, into))

    @overload
    def read(self, *, at: int | CheckpointInfo | None = None, into: T, select: str | None = None) -> T | None: ...
    @overload
    def read(self, *, at: int | CheckpointInfo | None = None, select: str | None = None) -> Any: ...
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

    # The operations.

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> Operation[T]:
        completion = self._engine.call(function, *args)
        yield Wait(completion)
        return completion.get()

    def _resume(self, initial: Any, into: Any) -> Operation[Resumed[Any]]:
        if into is not MISSING and initial is not None:
            raise UsageError("resume() takes initial= or into=, not both: into= is the initial state too.")
        found = yield from self._find(Wanted(into=into))
        if found is None:
            return Resumed(initial if into is MISSING else into, None)
        return Resumed(*found)

    def _read(self, wanted: Wanted) -> Operation[Any]:
        found = yield from self._find(wanted)
        return None if found is None else found[0]

    def _find(self, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo] | None]:
        """The state and where it is from; what vanished while it was read is looked for again in the newest log."""
        yield from self._ready()
        for attempt in range(_RESTARTS):
            view = yield from self._view()
            if not view.checkpoints and not view.damaged:
                source = self._fallback_source()
                if source is not None and wanted.at is None:
                    return (yield from source.find(wanted))
                self._check_nothing(wanted.at, view)
                return None
            try:
                return (yield from self._newest(view, wanted))
            except CorruptError as error:
                if attempt == _RESTARTS - 1 or not (yield from self._has_moved_on(view, error)):
                    raise
        raise AssertionError("unreachable")

    def _check_nothing(self, at: Any, view: View) -> None:
        """Raise unless "there is none" is a good answer."""
        if view.head_damaged:
            raise CorruptError(
                f"{self._where}: log records {list(view.head_damaged)} are damaged, and nothing before them is live."
            )
        if at is not None:
            raise NotFoundError(f"{self._where} holds no checkpoint, so none at {_shown(at)}.")

    def _has_moved_on(self, view: View, error: CorruptError) -> Operation[bool]:
        """Whether a missing object is missing because its checkpoint left the live set meanwhile."""
        if error.kind != "missing_object":
            return False
        fresh = yield from self._view()
        return {one.info.seq for one in fresh.checkpoints} != {one.info.seq for one in view.checkpoints}

    def _newest(self, view: View, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo]]:
        exact = wanted.strict or wanted.at is not None
        skipped = _damaged(view)
        if wanted.strict and skipped and wanted.at is None:
            raise CorruptError(f"{self._where}: {_report(skipped)}")
        for checkpoint in self._candidates(view, wanted.at):
            try:
                state = yield from self._load(checkpoint, wanted)
            except CorruptError as error:
                self._found_damaged(error)
                if exact or (yield from self._has_moved_on(view, error)):
                    raise
                skipped[checkpoint.info.seq] = error
                self._tell(Fallback(checkpoint.info.seq, error.message))
                continue
            if wanted.at is None:
                self._warn(skipped, checkpoint.info)
            self._restored = checkpoint.info
            return state, checkpoint.info
        raise CorruptError(
            f"{self._where}: no checkpoint verifies: {_report(skipped)}",
            hint="Restore the objects from a copy, or start afresh at another place.",
        )

    def _candidates(self, view: View, at: Any) -> list[Checkpoint]:
        if at is None:
            return view.checkpoints
        if isinstance(at, CheckpointInfo):
            found = [one for one in view.checkpoints if one.info.seq == at.seq]
        elif isinstance(at, int) and not isinstance(at, bool):
            found = [one for one in view.checkpoints if one.info.step == at][:1]
        else:
            raise UsageError(f"at={at!r} is neither a step nor one of checkpoints().")
        if not found:
            steps = ", ".join(str(one.info.step) for one in reversed(view.checkpoints[:10]))
            raise NotFoundError(
                f"{self._where} has no live checkpoint at {_shown(at)}.", hint=f"Newest live steps: {steps}."
            )
        return found

    def _warn(self, skipped: dict[int, LimpetError], used: CheckpointInfo) -> None:
        newer = {seq: error for seq, error in skipped.items() if seq > used.seq}
        if newer:
            warnings.warn(
                f"{self._where}: {_report(newer)} Using checkpoint {used.seq} (step {used.step}) instead.",
                DamagedCheckpointWarning,
                stacklevel=2,
            )

    def _load(self, checkpoint: Checkpoint, wanted: Wanted) -> Operation[Any]:
        opened = yield from self._call(self._reader.open, checkpoint)
        tree = opened.manifest.tree
        sizes = [buffer.nbytes for buffer in opened.manifest.buffers]
        if wanted.files:
            return (yield from self._extract(opened, self._files_payload(opened, sizes), wanted.target))
        if wanted.into is MISSING and files_payload(tree, sizes) is None:
            self._check_memory(sizes)
        assembly = prepare(
            tree,
            sizes,
            registry=self._registry,
            into=wanted.into,
            select=wanted.select,
            allow_pickle=self._allow_pickle,
            files=lambda payload: self._files_handle(opened, payload),
        )
        yield from self._call(self._reader.fill, opened, assembly.destinations)
        for request in assembly.files:
            if request.target is not None:
                yield from self._extract(opened, request.payload, request.target)
        return assembly.finish()

    def _check_memory(self, sizes: list[int]) -> None:
        needed, available = sum(sizes), available_bytes()
        if needed > available:
            raise UsageError(
                f"{self._where}: the state needs {needed} bytes of memory; {available} are available.",
                hint="Read a part with select=, or into live arrays with into=.",
                kind="memory",
            )

    def _files_payload(self, opened: Opened, sizes: list[int]) -> Any:
        payload = files_payload(opened.manifest.tree, sizes)
        if payload is None:
            raise UsageError(
                f"checkpoint {opened.checkpoint.info.seq} was written with write(), not save().",
                hint="Use read() to get its state.",
            )
        return payload

    def _files_handle(self, opened: Opened, payload: Any) -> Files:
        def fetch(target: Path | None) -> Operation[Path]:
            self._engine.check_caller()
            return (yield from self._extract(opened, payload, target))

        return Files._from_checkpoint(
            lambda target: drive(fetch(target)),
            lambda target: drive_async(fetch(target)),
        )

    def _extract(self, opened: Opened, payload: Any, target: Path | None) -> Operation[Path]:
        return (yield from self._call(extract, self._reader, self._workers, opened, payload, target))

    def _restore(self, path: str | os.PathLike[str] | None, at: Any) -> Operation[Path | None]:
        target = None if path is None else Path(path)
        if target is not None and target.exists() and not target.is_dir():
            raise UsageError(f"{target} is a file; restore() writes below a directory.", hint="Name a directory.")
        found = yield from self._find(Wanted(at, files=True, target=target))
        return None if found is None else found[0]

    def _checkpoints(self) -> Operation[list[CheckpointInfo]]:
        yield from self._ready()
        view = yield from self._view()
        if skipped := _damaged(view):
            warnings.warn(f"{self._where}: {_report(skipped)}", DamagedCheckpointWarning, stacklevel=2)
        return [one.info for one in reversed(view.checkpoints)]

    def _best(self, metric: str, largest: bool) -> Operation[CheckpointInfo | None]:
        infos = yield from self._checkpoints()
        policy = Best(metric, 1, largest=largest)
        reasons = decide(policy, infos).keep
        for info in infos:
            if any(reason not in ("newest", "pinned") for reason in reasons.get(info.seq, ())):
                return info
        return None

    def _verify(self, at: Any) -> Operation[Verification | None]:
        yield from self._ready()
        view = yield from self._view()
        if not view.checkpoints and not view.damaged:
            self._check_nothing(at, view)
            return None
        if at is None and (skipped := _damaged(view)):
            raise CorruptError(f"{self._where}: {_report(skipped)}")
        checkpoint = self._candidates(view, at)[0]
        try:
            opened = yield from self._call(self._reader.open, checkpoint)
            chunks, read_bytes = yield from self._call(self._reader.verify, opened)
        except CorruptError as error:
            self._found_damaged(error)
            raise CorruptError(
                f"{self._where}: checkpoint {checkpoint.info.seq} (step {checkpoint.info.step}): {error.message}",
                kind=error.kind,
            ) from error
        return Verification(checkpoint.info, chunks, read_bytes)

    def _describe(self, at: Any) -> Operation[list[LeafRow]]:
        yield from self._ready()
        view = yield from self._view()
        if not view.checkpoints:
            self._check_nothing(at, view)
            return []
        opened = yield from self._call(self._reader.open, self._candidates(view, at)[0])
        return describe_leaves(opened.manifest.tree, [buffer.nbytes for buffer in opened.manifest.buffers])


def _damaged(view: View) -> dict[int, LimpetError]:
    """Every live or newer record that cannot be used, and why."""
    return {seq: CorruptError("its log record is damaged.") for seq in view.head_damaged} | view.damaged


def _shown(at: Any) -> str:
    return f"seq {at.seq}" if isinstance(at, CheckpointInfo) else f"step {at}"


def _report(skipped: dict[int, LimpetError]) -> str:
    parts = [f"checkpoint {seq}: {error.message}" for seq, error in sorted(skipped.items(), reverse=True)]
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)
