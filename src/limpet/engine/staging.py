"""Making a snapshot: the consistent copy of a state, in leased memory.

Copies of big buffers are cut into pieces that the caller and a few helper threads share; numpy releases
the interpreter lock while it copies, so the pieces really run side by side.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limpet.engine.capture import Spool, read_slice
from limpet.engine.slots import Bytes8, Lease
from limpet.format.chunks import SHARED_BYTES, BufferSpec, ChunkSource, Plan, Run, plan_chunks
from limpet.format.structure import Buffers
from limpet.format.tree import Buffer, FileSlice, FlatTree
from limpet.workers import Workers

__all__ = ["Copier", "Draft", "Snapshot", "detach_small"]

_JOINED_BYTES_MAX = 8 << 10
"""Joined pieces are copied twice: above this size, a copy of each by itself is cheaper."""
_PIECE_BYTES = 8 << 20
_PARALLEL_FROM_BYTES = 4 << 20
"""Below this, waking another thread costs more than it saves."""


@dataclass(slots=True)
class Draft:
    """A flattened state and its layout, before anything is copied."""

    tree: FlatTree
    plan: Plan
    spool: Spool | None

    @classmethod
    def of(cls, tree: FlatTree, spool: Spool | None = None) -> Draft:
        """Lay out ``tree``; ``spool`` owns the copies of its files."""
        structure = tree.structure
        if structure is not None and structure.plan is not None:
            return cls(tree, structure.plan, spool)
        plan = plan_chunks([_spec(buffer) for buffer in tree.buffers])
        # Of detached buffers even those count as immutable that are not, the next time.
        if structure is not None and isinstance(tree.buffers, Buffers):
            structure.plan = plan
        return cls(tree, plan, spool)

    def detach_small(self) -> None:
        """Copy every small buffer that its owner may change, so that only big ones still belong to the caller."""
        detach_small(self.tree)

    def discard(self) -> None:
        """Free what the draft holds on disk."""
        if self.spool is not None:
            self.spool.close()


def detach_small(tree: FlatTree) -> None:
    """Copy every small buffer of ``tree`` that its owner may change. Idempotent."""
    buffers = tree.buffers
    if not isinstance(buffers, list):
        buffers = tree.buffers = list(buffers)
    for buffer in buffers:
        if not buffer.immutable and buffer.nbytes < SHARED_BYTES and not isinstance(buffer.data, FileSlice):
            copy = np.empty(buffer.nbytes, dtype=np.uint8)
            buffer.copy_into(copy)
            buffer.data = copy
            buffer.immutable = True


def _spec(buffer: Buffer) -> BufferSpec:
    nbytes = buffer.nbytes
    if nbytes >= SHARED_BYTES:
        return BufferSpec(nbytes, buffer.dtype, _stays(buffer))
    late = _stays(buffer) and not isinstance(buffer.data, FileSlice)
    return BufferSpec(nbytes, buffer.dtype, late, (late or nbytes <= _JOINED_BYTES_MAX) and buffer.joins, late)


def _stays(buffer: Buffer) -> bool:
    """Whether nobody changes it, so that the writer may read it where it is, and later."""
    return buffer.immutable or isinstance(buffer.data, FileSlice)


def _gather(pieces: Sequence[Any], target: Bytes8) -> None:
    """Copy small pieces of memory, one behind the other, in one native call."""
    joined = b"".join(pieces)
    if len(joined) != target.nbytes:
        raise ValueError(f"{len(joined)} bytes were to fill {target.nbytes}: the state changed while it was copied")
    target[:] = np.frombuffer(joined, np.uint8)


def _raw(buffers: Sequence[Buffer], indices: Sequence[int]) -> list[Any]:
    """What holds the bytes of some buffers."""
    if isinstance(buffers, Buffers):
        data = buffers.data
        return [data[index] for index in indices]
    return [buffers[index].data for index in indices]


class Snapshot:
    """A staged state: everything that is needed to write it, none of it the caller's to change.

    Args:
        draft: what was staged.
        lease: the memory that the copies are in.
    """

    __slots__ = ("_late", "_late_node", "_sources", "_spool", "lease", "plan")

    def __init__(self, draft: Draft, lease: Lease) -> None:
        self._late_node = draft.tree.late_node
        self.plan = draft.plan
        self.lease = lease
        self._spool = draft.spool
        self._sources = {
            chunk.buffer: draft.tree.buffers[chunk.buffer] for chunk in draft.plan.chunks if chunk.buffer >= 0
        }
        self._late: dict[int, list[tuple[Run, list[Any]]]] = {}
        for run in draft.plan.runs:
            if run.late:
                self._late.setdefault(run.chunk, []).append((run, _pieces_of(run, draft.tree.buffers)))

    @property
    def node(self) -> Any:
        """The state's structure, as JSON."""
        return self._late_node.get()

    def read(self, chunk: ChunkSource) -> Bytes8:
        """The raw bytes of ``chunk``: a view where they are in memory, else read from the spooled file."""
        if chunk.buffer < 0:
            view = self.lease.borrow(chunk.offset, chunk.raw_bytes)
            if self._late:
                self._gather_late(chunk.offset, view)
            return view
        buffer = self._sources[chunk.buffer]
        if isinstance(buffer.data, FileSlice):
            return np.frombuffer(read_slice(buffer.data, chunk.offset, chunk.raw_bytes), dtype=np.uint8)
        flat = buffer.flat()
        if flat is None:
            raise AssertionError("only contiguous buffers stay where they are")
        return flat[chunk.offset : chunk.offset + chunk.raw_bytes]

    def _gather_late(self, chunk: int, view: Bytes8) -> None:
        """Copy what had time until its chunk is read. Should two threads do it at once, both write the same bytes.

        Into a view that the lease knows of: as long as it lives, nobody else is given the memory.
        """
        for run, pieces in self._late.get(chunk, ()):
            _copy_run(run, pieces, view[run.offset - chunk :][: run.nbytes])
        self._late.pop(chunk, None)

    def release(self) -> None:
        """Give memory and spooled files back. Idempotent."""
        self.lease.release()
        self._sources = {}
        self._late = {}
        if self._spool is not None:
            self._spool.close()
            self._spool = None


class Copier:
    """Copies buffers into slots with the caller's thread and a few helpers."""

    def __init__(self) -> None:
        helpers = min(4, os.cpu_count() or 1) - 1
        self._helpers = Workers(helpers, "limpet-copy") if helpers else None

    def copy(self, draft: Draft, lease: Lease) -> None:
        """Copy everything that ``draft`` must own into ``lease``'s memory; blocks until it is done."""
        buffers = draft.tree.buffers
        memory = lease.memory
        for run in draft.plan.runs:
            if not run.late:
                _copy_run(run, _pieces_of(run, buffers), memory[run.offset : run.offset + run.nbytes])
        if not draft.plan.copies:
            return
        big: deque[tuple[Bytes8, Bytes8]] = deque()
        for index, offset in draft.plan.copies:
            buffer = buffers[index]
            target = memory[offset : offset + buffer.nbytes]
            flat = buffer.flat() if buffer.nbytes >= SHARED_BYTES else None
            if flat is None:
                _copy_alone(buffer, target)
            else:
                big.extend(_pieces(target, flat))
        self._copy_pieces(big)

    def close(self) -> None:
        """End the helper threads."""
        if self._helpers is not None:
            self._helpers.close()

    def _copy_pieces(self, pieces: deque[tuple[Bytes8, Bytes8]]) -> None:
        total = sum(target.nbytes for target, _ in pieces)
        if self._helpers is None or total < _PARALLEL_FROM_BYTES:
            _drain(pieces)
            return
        crew = _Crew(pieces)
        with contextlib.suppress(RuntimeError):  # the main thread has ended, and no thread can be started any more
            for _ in range(self._helpers.count):
                self._helpers.submit(crew.help_out)
        try:
            _drain(pieces)
        finally:
            crew.dismiss()


def _pieces_of(run: Run, buffers: Sequence[Buffer]) -> list[Any]:
    """What ``_copy_run`` needs of the buffers, and nothing else of the state."""
    return _raw(buffers, run.buffers) if run.joins else [buffers[index] for index in run.buffers]


def _copy_run(run: Run, pieces: Sequence[Any], target: Bytes8) -> None:
    if run.joins:
        _gather(pieces, target)
    else:
        _copy_alone(pieces[0], target)


def _copy_alone(buffer: Buffer, target: Bytes8) -> None:
    if isinstance(buffer.data, FileSlice):
        target[:] = np.frombuffer(read_slice(buffer.data, 0, buffer.nbytes), dtype=np.uint8)
    else:
        buffer.copy_into(target)


def _pieces(target: Bytes8, source: Bytes8) -> Sequence[tuple[Bytes8, Bytes8]]:
    return [
        (target[start : start + _PIECE_BYTES], source[start : start + _PIECE_BYTES])
        for start in range(0, target.nbytes, _PIECE_BYTES)
    ]


def _drain(pieces: deque[tuple[Bytes8, Bytes8]]) -> None:
    while True:
        try:
            target, source = pieces.popleft()
        except IndexError:
            return
        np.copyto(target, source)


class _Crew:
    """The helpers of one copy. Those that have begun are waited for; those that come later find it over."""

    def __init__(self, pieces: deque[tuple[Bytes8, Bytes8]]) -> None:
        self._pieces = pieces
        self._busy = 0
        self._over = False
        self._changed = threading.Condition()

    def help_out(self) -> None:
        with self._changed:
            if self._over:
                return
            self._busy += 1
        try:
            _drain(self._pieces)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def dismiss(self) -> None:
        # Whatever comes meanwhile: the memory belongs to somebody else once this has returned.
        interrupted: BaseException | None = None
        while True:
            try:
                with self._changed:
                    self._over = True
                    while self._busy:
                        self._changed.wait()
                break
            except BaseException as error:  # from the keyboard
                interrupted = error
        if interrupted is not None:
            raise interrupted
