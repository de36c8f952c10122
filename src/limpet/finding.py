"""Finding what to read, and reading it: the operations behind the calls of ``Reading``.

A checkpoint is passed over only for proven damage. What the store could not tell is raised as such, and what
vanished because it left the live set meanwhile is looked for again in the newest log.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from limpet.engine.files import extract
from limpet.engine.live import Checkpoint
from limpet.engine.memory import available_bytes
from limpet.engine.opening import View, fresh_view
from limpet.engine.reader import Opened, Reader
from limpet.errors import CorruptError, LimpetError, NotFoundError, StoreError, UsageError
from limpet.events import Event, Fallback
from limpet.format.assemble import MISSING, Assembly, prepare
from limpet.format.registry import Registry, default_registry
from limpet.format.retention import Best, decide
from limpet.format.rows import describe_leaves, files_payload
from limpet.loop import EngineLoop, Operation, Wait, drive, drive_async
from limpet.stores.base import Store
from limpet.types import CheckpointInfo, Files, LeafRow, Resumed, Verification
from limpet.workers import Workers

__all__ = ["DamagedCheckpointWarning", "Finding", "Source", "Wanted"]

T = TypeVar("T")
_RESTARTS = 5
_IDENTITY = attrgetter("seq", "epoch", "time")


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


class _MovedOn(Exception):  # noqa: N818 - an answer, not an error
    """The checkpoint that was being read left the live set; ``view`` is what is live now."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view


class Finding:
    """The reading operations, each a generator that says what to wait for."""

    _allow_pickle: bool
    _store: Store
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

    # The operations.

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> Operation[T]:
        completion = self._engine.call(function, *args)
        yield Wait(completion)
        return completion.get()

    def _resume(self, initial: Any, into: Any) -> Operation[Resumed[Any]]:
        if into is not MISSING and initial is not None:
            raise UsageError("resume() takes initial= or into=, not both: into= is the initial state too.")
        found = yield from self._find(Wanted(into=into))
        return Resumed(*(found or (initial if into is MISSING else into, None)))

    def _read(self, wanted: Wanted) -> Operation[Any]:
        found = yield from self._find(wanted)
        return None if found is None else found[0]

    def _restore(self, path: str | os.PathLike[str] | None, at: Any) -> Operation[Path | None]:
        target = None if path is None else Path(path)
        if target is not None and target.exists() and not target.is_dir():
            raise UsageError(f"{target} is a file; restore() writes below a directory.", hint="Name a directory.")
        found = yield from self._find(Wanted(at, files=True, target=target))
        return None if found is None else found[0]

    def _find(self, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo] | None]:
        found = yield from self._following(lambda view: self._find_in(view, wanted))
        if found is None and (source := self._fallback_source()) is not None:
            found = yield from source.find(wanted)
            self._restored = self._restored if found is None else found[1]
        return found

    def _following(self, operation: Callable[[View], Operation[T]]) -> Operation[T]:
        """What ``operation`` makes of what is live; made anew when what it was reading left the live set."""
        yield from self._ready()
        try:
            view = yield from self._view()
            for _ in range(_RESTARTS):
                try:
                    return (yield from operation(view))
                except _MovedOn as moved:
                    view = moved.view
        except StoreError as error:
            raise StoreError(
                f"{self._where}: could not tell what it holds: {error.message}",
                hint=error.hint or "Try again later.",
                kind=error.kind,
                transient=error.transient,
            ) from error
        raise StoreError(
            f"{self._where}: {_RESTARTS} checkpoints in a row were removed while they were being read.",
            hint="Read again, or have the writer keep more of them (retain=).",
            kind="outrun",
            transient=True,
        )

    def _check_live(self, checkpoint: Checkpoint, error: CorruptError) -> Operation[None]:
        """Look again elsewhere if an object is missing because its checkpoint left the live set.

        Raises:
            _MovedOn: it did.
        """
        if error.kind != "missing_object":
            return
        # From the store, by a writer too: another one may have taken its run over.
        view = yield from self._call(fresh_view, self._store)
        if checkpoint.info.seq not in {one.info.seq for one in view.checkpoints}:
            raise _MovedOn(view) from error

    def _find_in(self, view: View, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo] | None]:
        if not view.checkpoints and not view.damaged:
            self._check_nothing(wanted.at, view)
            return None
        skipped = _damaged(view)
        if wanted.strict and wanted.at is None and (newer := _newer(skipped, view)):
            raise CorruptError(f"{self._where}: {_report(newer)}")
        for checkpoint in self._candidates(view, wanted.at):
            try:
                state = yield from self._load(checkpoint, wanted)
            except CorruptError as error:
                yield from self._check_live(checkpoint, error)
                self._found_damaged(error)
                if wanted.strict or wanted.at is not None:
                    self._raise_damaged(checkpoint, error)
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

    def _check_nothing(self, at: Any, view: View) -> None:
        """Raise unless "there is none" is a good answer."""
        if view.head_damaged:
            raise CorruptError(
                f"{self._where}: log records {list(view.head_damaged)} are damaged, and nothing before them is live."
            )
        if at is not None:
            raise NotFoundError(f"{self._where} holds no checkpoint, so none at {_shown(at)}.")

    def _raise_damaged(self, checkpoint: Checkpoint, error: CorruptError) -> NoReturn:
        raise CorruptError(
            f"{self._where}: checkpoint {checkpoint.info.seq} (step {checkpoint.info.step}): {error.message}",
            hint=error.hint or "Read an older one.",
            kind=error.kind,
            pack=error.pack,
        ) from error

    def _candidates(self, view: View, at: Any) -> list[Checkpoint]:
        if at is None:
            return view.checkpoints
        if isinstance(at, CheckpointInfo):
            found = [one for one in view.checkpoints if _IDENTITY(one.info) == _IDENTITY(at)]
            if not found:
                gone = NotFoundError(f"{self._where}: seq {at.seq} is a checkpoint of another run, or no longer live.")
                raise view.damaged.get(at.seq, gone)
        elif isinstance(at, int) and not isinstance(at, bool):
            found = [one for one in view.checkpoints if one.info.step == at][:1]
        else:
            raise UsageError(f"at={at!r} is neither a step nor one of checkpoints().")
        if not found:
            raise NotFoundError(f"{self._where} has no live checkpoint at {_shown(at)}.", hint=_newest(view))
        return found

    def _warn(self, skipped: dict[int, LimpetError], used: CheckpointInfo) -> None:
        if newer := {seq: error for seq, error in skipped.items() if seq > used.seq}:
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
        assembly = prepare(
            tree,
            sizes,
            registry=self._registry,
            into=wanted.into,
            select=wanted.select,
            allow_pickle=self._allow_pickle,
            files=lambda payload: self._files_handle(opened, payload),
            reserve=self._check_memory,
        )
        try:
            return (yield from self._fill(opened, assembly))
        except LimpetError as error:
            if wanted.into is not MISSING:
                error.hint = f"{error.hint} What into= named is undefined now.".lstrip()
            raise

    def _fill(self, opened: Opened, assembly: Assembly) -> Operation[Any]:
        # Shielded: until no thread writes into live arrays any more, their owner does not get control back.
        filling = self._engine.call(self._reader.fill, opened, assembly.destinations)
        yield Wait(filling, shielded=True)
        filling.get()
        for request in assembly.files:
            if request.target is not None:
                yield from self._extract(opened, request.payload, request.target)
        return assembly.finish()

    def _check_memory(self, needed: int) -> None:
        available = available_bytes()
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

    def _checkpoints(self) -> Operation[list[CheckpointInfo]]:
        return (yield from self._following(self._checkpoints_in))

    def _checkpoints_in(self, view: View) -> Operation[list[CheckpointInfo]]:
        yield from ()
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
        return (yield from self._following(lambda view: self._verify_in(view, at)))

    def _verify_in(self, view: View, at: Any) -> Operation[Verification | None]:
        if not view.checkpoints and not view.damaged:
            self._check_nothing(at, view)
            return None
        if at is None and (newer := _newer(_damaged(view), view)):
            raise CorruptError(f"{self._where}: {_report(newer)}")
        checkpoint = self._candidates(view, at)[0]
        try:
            opened = yield from self._call(self._reader.open, checkpoint)
            chunks, read_bytes = yield from self._call(self._reader.verify, opened)
        except CorruptError as error:
            yield from self._check_live(checkpoint, error)
            self._found_damaged(error)
            self._raise_damaged(checkpoint, error)
        return Verification(checkpoint.info, chunks, read_bytes)

    def _describe(self, at: Any) -> Operation[list[LeafRow]]:
        return (yield from self._following(lambda view: self._describe_in(view, at)))

    def _describe_in(self, view: View, at: Any) -> Operation[list[LeafRow]]:
        if not view.checkpoints:
            self._check_nothing(at, view)
            return []
        checkpoint = self._candidates(view, at)[0]
        try:
            opened = yield from self._call(self._reader.open, checkpoint)
        except CorruptError as error:
            yield from self._check_live(checkpoint, error)
            self._raise_damaged(checkpoint, error)
        return describe_leaves(opened.manifest.tree, [buffer.nbytes for buffer in opened.manifest.buffers])


def _damaged(view: View) -> dict[int, LimpetError]:
    """Every record that cannot be used and may have been a checkpoint worth more than those that can; and why."""
    lost: dict[int, LimpetError] = {seq: CorruptError("its log record is damaged.") for seq in view.head_damaged}
    return _newer(lost, view) | view.damaged


def _newer(damaged: dict[int, LimpetError], view: View) -> dict[int, LimpetError]:
    """Those that are newer than every checkpoint that may be usable."""
    newest = view.checkpoints[0].info.seq if view.checkpoints else 0
    return {seq: error for seq, error in damaged.items() if seq > newest}


def _newest(view: View) -> str:
    newest = [(one.info.seq, one.info.step) for one in reversed(view.checkpoints[:10])]
    steps = ", ".join(str(step) for _, step in newest if step is not None)
    return f"Newest live steps: {steps}." if steps else f"None has a step; live seqs: {[seq for seq, _ in newest]}."


def _shown(at: Any) -> str:
    return f"seq {at.seq}" if isinstance(at, CheckpointInfo) else f"step {at}"


def _report(skipped: dict[int, LimpetError]) -> str:
    parts = [f"checkpoint {seq}: {error.message}" for seq, error in sorted(skipped.items(), reverse=True)]
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)
