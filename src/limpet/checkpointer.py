"""The writer of a run, with both faces: the same calls for threads and for coroutines."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from limpet.engine.queue import OnBusy
from limpet.events import Hook
from limpet.format.interval import Interval
from limpet.format.layout import child_prefix
from limpet.format.retention import Policy
from limpet.lazy import Mutating
from limpet.loop import drive, drive_async
from limpet.owner import check_rank, default_owner
from limpet.pending import PendingWrite
from limpet.remote.place import child_place
from limpet.settings import Engine, OnError, Settings, place_for
from limpet.stores.retry import Retrying
from limpet.stores.sealed import sealed
from limpet.stores.urls import open_store
from limpet.types import CheckpointInfo, Swept
from limpet.warm import open_start, start_text
from limpet.writing import Request, Writing

__all__ = ["Checkpointer"]

_CLOSE_SECONDS = 300.0


class Checkpointer(Writing):
    """The writer of a run: saves state in the background, and reads it back.

    The run is taken over from any earlier writer when this is first used, or entered as a context manager. Every
    call that waits has a twin with ``_async`` for asyncio and trio. It may be used from several threads.

    Args:
        url: a path, or ``file://``, ``s3://``, ``gs://``, ``az://``, ``memory://``.
        retain: which checkpoints stay: ``Last(3) | Periodic(steps=1000) | Best("loss")``. It is recorded in the run;
            without one, the recorded one goes on, and a new run starts with ``Last(3)``.
        every: which writes are due: ``Every(steps=100)``, ``Every(seconds=30)``; default: all.
        buffers: snapshots in memory at most: one to stage into, the others being written.
        on_busy: what a write does while no buffer is free: ``"supersede"`` the newest that still waits, ``"wait"``, or
            ``"skip"``.
        on_error: ``"raise"`` an unseen failure from the next write, or ``"warn"`` (up to five in a row).
        compression: ``"auto"``, ``"off"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        memory_limit: bytes that all buffers may take; a larger state is written part by part, and ``write`` blocks
            meanwhile. Default: most of what the container has, and a larger state is refused.
        storage: options for the store: endpoint, region, credentials, timeouts.
        owner: who this is, for people, in at most 1 KiB; default: from the platform.
        takeover: also from a writer that is alive on this host.
        start_from: another run, ``url`` or ``url@step``, to read from while this one holds nothing. It gets
            ``storage`` if it is of the same scheme as ``url``; else its options come from the environment.
        allow_pickle: pickle what nothing else can encode, and read such leaves; unpickling runs code.
        hooks: functions that are told of events, on limpet's own thread.
        key: signs every record, and refuses those that are not signed with it: 16 bytes or more, the same for every
            writer and reader of the run, from its first record on. ``start_from`` must be signed with it too.
        engine: where encoding and writing happen: in ``"thread"``s of this process, or in a ``"process"`` of its own,
            which shares no interpreter lock with the loop, and commits what was staged even if this process is killed.
        check: for debugging: a lazy save whose state is changed before it was staged fails, and names the leaves. Each
            of them is hashed in the call, and the save waits up to a second for somebody to ask whether it is staged.
        delta: store what changed as the difference from the last committed checkpoint where that is smaller by a fifth
            at least, as with bf16 weights at small learning rates. It keeps that checkpoint's content in memory, in one
            slot more, for as long as no save needs the room; see ``docs/deltas.md``.

    Raises:
        UsageError: a setting is wrong, or two contradict each other.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        retain: Policy | None = None,
        every: Interval | None = None,
        buffers: int = 2,
        on_busy: OnBusy = "supersede",
        on_error: OnError = "raise",
        compression: str = "auto",
        memory_limit: int | None = None,
        storage: Mapping[str, Any] | None = None,
        owner: str | None = None,
        takeover: bool = False,
        start_from: str | os.PathLike[str] | None = None,
        allow_pickle: bool = False,
        hooks: Sequence[Hook] = (),
        key: bytes | None = None,
        engine: Engine = "thread",
        check: bool = False,
        delta: bool = False,
    ) -> None:
        check_rank()
        settings = Settings(
            retain=retain,
            every=every,
            buffers=buffers,
            on_busy=on_busy,
            on_error=on_error,
            compression=compression,
            memory_limit=memory_limit,
            owner=default_owner() if owner is None else owner,
            takeover=takeover,
            start_from=None if start_from is None else start_text(start_from),
            allow_pickle=allow_pickle,
            hooks=hooks,
            check=check,
            storage={} if storage is None else storage,
            key=key,
            engine=engine,
            delta=delta,
        )

        def store() -> Retrying:
            return Retrying(sealed(open_store(url, settings.storage), settings.key))

        own = store()
        _check_start(settings, own.url)
        super().__init__(own, settings, reopen=store, place=place_for(url, settings))

    @property
    def url(self) -> str:
        """Where the run is."""
        return self._store.url

    @property
    def latest(self) -> CheckpointInfo | None:
        """The newest commit that this writer knows; no I/O."""
        committed = self._session.committed if self._session is not None else self._last_committed
        return committed[-1] if committed else None

    def write(
        self,
        state: Any,
        *,
        step: int | None = None,
        meta: Mapping[str, Any] | None = None,
        pin: bool = False,
        durable: bool = False,
        lazy: bool = False,
    ) -> PendingWrite:
        """Save a state: returns once it is staged; encoding, upload and commit go on in the background.

        Args:
            state: a tree of containers and leaves; see ``docs/states.md`` for what they may be.
            step: a label, 0 or more. It may repeat or go back; the newest commit wins.
            meta: JSON values of up to 64 KiB together, for ``best``, retention and people.
            pin: retention must keep this one.
            durable: return after the commit.
            lazy: return at once; leaves of 256 KiB and more are copied in the background, and must not change
                before ``pending.staged.wait()`` has returned, or outside of ``mutating()``.

        Returns:
            A handle; its ``result()`` waits until this state, or a newer one, is durable.

        Raises:
            UnsupportedLeafError: something in the state cannot be saved; nothing was staged.
            UsageError: an argument is wrong, ``memory_limit`` is too small for the state, or this is closed.
            FencedError: a newer attempt owns the run.
            LimpetError: an earlier save failed and nobody had looked; this state was staged all the same.
        """
        request = Request(step, meta, pin=pin, durable=durable, lazy=lazy)
        return drive(self._write_lazily(state, request) if lazy else self._write(state, request))

    async def write_async(
        self,
        state: Any,
        *,
        step: int | None = None,
        meta: Mapping[str, Any] | None = None,
        pin: bool = False,
        durable: bool = False,
        lazy: bool = False,
    ) -> PendingWrite:
        """``write`` for coroutines: the event loop is not stalled.

        Structure and small leaves are taken before the first await; big leaves must not change until it returns.
        """
        request = Request(step, meta, pin=pin, durable=durable, lazy=lazy, off_thread=True)
        return await drive_async(self._write_lazily(state, request) if lazy else self._write(state, request))

    def mutating(self) -> Mutating:
        """A block that changes the state: it begins once no lazy save of this run, or of its children, needs it as it is.

        ``with cp.mutating(): optimizer.step()`` waits only for what is not copied yet, microseconds if that is nothing,
        and raises no error of a save. A lazy write in the block is refused. ``async with`` waits without stalling the
        event loop. It makes no lock: two blocks may run side by side.
        """
        return Mutating(self._lazies)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        meta: Mapping[str, Any] | None = None,
        pin: bool = False,
        durable: bool = False,
    ) -> PendingWrite:
        """Save a file or directory as it is now; afterwards it may be changed or removed.

        Args:
            path: the file or directory.
            step: as for ``write``, like ``meta``, ``pin`` and ``durable``.
            meta: JSON values.
            pin: retention must keep this one.
            durable: return after the commit.

        Raises:
            FileNotFoundError: there is nothing at ``path``.
            UnsupportedLeafError: it holds a device, socket or pipe, or a link that leads outside.
        """
        return drive(self._save_path(path, Request(step, meta, pin=pin, durable=durable)))

    async def save_async(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        meta: Mapping[str, Any] | None = None,
        pin: bool = False,
        durable: bool = False,
    ) -> PendingWrite:
        """``save`` for coroutines: the event loop is not stalled."""
        return await drive_async(self._save_path(path, Request(step, meta, pin=pin, durable=durable, off_thread=True)))

    def prewarm(self, state: Any) -> None:
        """Map and touch the buffers for states like ``state``, so that even the first save runs at full speed."""
        drive(self._prewarm(state, off_thread=False))

    async def prewarm_async(self, state: Any) -> None:
        """``prewarm`` for coroutines."""
        await drive_async(self._prewarm(state, off_thread=True))

    def pin(self, at: int | CheckpointInfo, pinned: bool = True) -> CheckpointInfo:
        """Keep a checkpoint whatever retention says; ``pinned=False`` leaves it to retention again.

        Raises:
            NotFoundError: it is not live.
        """
        return drive(self._pin(at, pinned))

    async def pin_async(self, at: int | CheckpointInfo, pinned: bool = True) -> CheckpointInfo:
        """``pin`` for coroutines."""
        return await drive_async(self._pin(at, pinned))

    def delete(self, at: int | CheckpointInfo) -> None:
        """Remove a checkpoint; its data goes once slow readers have had their time.

        Raises:
            NotFoundError: it is not live.
            UsageError: it is the only one.
        """
        drive(self._delete(at))

    async def delete_async(self, at: int | CheckpointInfo) -> None:
        """``delete`` for coroutines."""
        await drive_async(self._delete(at))

    def drop_damaged(self) -> tuple[int, ...]:
        """Give up log records that are damaged, so that data can be deleted again; returns their seqs.

        While a damaged record is in the way nothing is deleted, since it may name data that a repaired log needs:
        a copy of it can still be put back. Opening warns of such records.
        """
        return drive(self._drop_damaged())

    async def drop_damaged_async(self) -> tuple[int, ...]:
        """``drop_damaged`` for coroutines."""
        return await drive_async(self._drop_damaged())

    def sweep(self) -> Swept:
        """Remove, now, every object that no live checkpoint and no save in flight needs."""
        return drive(self._sweep())

    async def sweep_async(self) -> Swept:
        """``sweep`` for coroutines."""
        return await drive_async(self._sweep())

    def child(self, name: str) -> Checkpointer:
        """A run of its own below this one, with the same settings: another component, task or coroutine.

        It shares this one's thread and memory, and is closed with it. The same name gives the same object.

        Raises:
            UsageError: the name is no text, or empty, or this is closed.
        """
        prefix = child_prefix(name)
        self._check_usable()
        with self._opening:
            for existing in self._children:
                if existing._name == name and not existing._closed and isinstance(existing, Checkpointer):
                    return existing
            child = Checkpointer.__new__(Checkpointer)
            settings = replace(self._settings, start_from=None)
            place = self._place and child_place(self._place, prefix)
            Writing.__init__(child, self._store.child(prefix), settings, name=name, parent=self, place=place)
            self._children.append(child)
        return child

    def wait(self, timeout: float | None = None) -> None:
        """Block until everything accepted so far is durable.

        Args:
            timeout: in seconds; ``None`` waits for ever.

        Raises:
            TimeoutError: it took longer; the saves go on.
            LimpetError: a save failed and nobody had looked.
        """
        drive(self._wait(timeout))

    async def wait_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - equal parameters
        """``wait`` for coroutines."""
        await drive_async(self._wait(timeout))

    def close(self, timeout: float | None = _CLOSE_SECONDS) -> None:
        """Commit what was accepted, leave the run in good order, and end all threads. Idempotent.

        Args:
            timeout: in seconds, for what is still to be committed.

        Raises:
            StoreError: not everything was committed in time; the message says what.
            LimpetError: a save failed and nobody had looked.
        """
        drive(self._close(timeout))

    async def close_async(self, timeout: float | None = _CLOSE_SECONDS) -> None:  # noqa: ASYNC109 - equal parameters
        """``close`` for coroutines."""
        await drive_async(self._close(timeout))

    def __enter__(self) -> Self:
        drive(self._ready())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as closing:  # an interruption goes on, with the body's error as its context
            if error is None:
                raise
            error.add_note(f"limpet: closing failed too: {closing}")

    async def __aenter__(self) -> Self:
        await drive_async(self._ready())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close_async()
        except Exception as closing:  # an interruption goes on, with the body's error as its context
            if error is None:
                raise
            error.add_note(f"limpet: closing failed too: {closing}")

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and not self._closed and os.getpid() == self._pid and self._parent is None:
            session.forget()
            warnings.warn(
                f"unclosed {self!r}: its last save is being committed, and a failure ends the program with status 70",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._session is not None else "not opened yet"
        return f"<Checkpointer {self._store.url}, {state}>"


def _check_start(settings: Settings, url: str) -> None:
    """Refuse a wrong ``start_from`` here, not at a read."""
    if settings.start_from is not None:
        open_start(settings.start_from, url, settings.storage)
