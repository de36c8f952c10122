"""Making a snapshot: the consistent copy of a state, in leased memory.

Copies of big buffers are cut into pieces that the caller and a few helper threads share; numpy releases
the interpreter lock while it copies, so the pieces really run side by side.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.array_utils import byte_bounds

from limpet.engine.capture import Spool, read_slice
from limpet.engine.cutting import alike, copy_alone, copy_run, cut, cut_range, pieces_of
from limpet.engine.kept import Kept, base_buffers
from limpet.engine.lazy import Copying, Crew, Piece, copy_piece
from limpet.engine.slots import Bytes8, Lease
from limpet.format.chunks import SHARED_BYTES, BufferSpec, ChunkSource, Plan, Run, plan_chunks
from limpet.format.segments import Segment
from limpet.format.structure import Buffers
from limpet.format.tree import Buffer, FileSlice, FlatTree
from limpet.workers import Workers

__all__ = ["Copier", "Draft", "Snapshot", "Volatile", "detach_small"]

Volatile: TypeAlias = Callable[[int, int], bool]

_JOINED_BYTES_MAX = 8 << 10
"""Joined pieces are copied twice: above this size, a copy of each by itself is cheaper."""
_PARALLEL_FROM_BYTES = 4 << 20
"""Below this, waking another thread costs more than it saves."""


@dataclass(slots=True)
class Draft:
    """A flattened state and its layout, before anything is copied."""

    tree: FlatTree
    plan: Plan
    spool: Spool | None

    @classmethod
    def of(cls, tree: FlatTree, spool: Spool | None = None, *, copy_all: bool = False) -> Draft:
        """Lay out ``tree``; ``spool`` owns the copies of its files. ``copy_all``: also what nobody can change."""
        structure = tree.structure
        if structure is not None and structure.plan is not None:
            return cls(tree, structure.plan, spool)
        plan = plan_chunks([_spec(buffer, copy_all) for buffer in tree.buffers])
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


def _spec(buffer: Buffer, copy_all: bool) -> BufferSpec:
    """What the plan needs to know; the writer may read where it is, and later, what is a file, or nobody changes."""
    nbytes, is_file = buffer.nbytes, isinstance(buffer.data, FileSlice)
    late = buffer.immutable and not copy_all and not is_file
    if nbytes >= SHARED_BYTES:
        return BufferSpec(nbytes, buffer.dtype, late or is_file)
    return BufferSpec(nbytes, buffer.dtype, late, (late or nbytes <= _JOINED_BYTES_MAX) and buffer.joins, late)


class Snapshot:
    """A staged state: everything that is needed to write it, none of it the caller's to change.

    Args:
        draft: what was staged.
        lease: the memory that the copies are in.
    """

    __slots__ = ("_late", "_late_node", "_sources", "_spool", "lease", "plan")
    parts = 1
    """How many are copied and written one after another, because they are never in memory all together."""

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
                self._late.setdefault(run.chunk, []).append((run, pieces_of(run, draft.tree.buffers)))

    @property
    def node(self) -> Any:
        """The state's structure, as JSON."""
        return self._late_node.get()

    def read(self, chunk: ChunkSource) -> Bytes8:
        """The raw bytes of ``chunk``: a view where they are in memory, else read from the spooled file."""
        if chunk.buffer < 0:
            view = self.lease.borrow(self._offset_in_lease(chunk.offset), chunk.raw_bytes)
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

    async def available(self, _start: int) -> int:
        """Wait until the chunks from ``_start`` on can be read; returns the index after the last of them that can."""
        return len(self.plan.chunks)

    def written(self, end: int) -> None:
        """Every chunk before ``end`` is durable, and will not be read again."""

    def _offset_in_lease(self, offset: int) -> int:
        return offset

    @property
    def files(self) -> dict[int, FileSlice]:
        """The buffers that are spooled files, by their number."""
        sources = {index: buffer.data for index, buffer in self._sources.items()}
        return {index: data for index, data in sources.items() if isinstance(data, FileSlice)}

    @property
    def spool(self) -> Spool | None:
        """What owns those files."""
        return self._spool

    def keep(self, *, lent: bool = False) -> Kept | None:
        """End this one, and keep what can be bases of it for as long as nobody needs the room: not files, nor bytes.

        Args:
            lent: as of ``release``.

        Returns:
            ``None`` if there is no room for it: this one goes on.
        """
        bases = base_buffers(self.plan)
        sources = {
            index: buffer
            for index, buffer in self._sources.items()
            if index in bases and not isinstance(buffer.data, FileSlice)
        }
        memory = self.lease.keep(sum(buffer.nbytes for buffer in sources.values()), lent=lent)
        if memory is None:
            return None
        kept = Kept(memory, self.plan.chunks, sources)
        if sources:
            memory.while_held(lambda: setattr(memory, "on_end", sources.clear))
        self.release()
        return kept

    def release(self, *, lent: bool = False) -> None:
        """Give memory and spooled files back. Idempotent.

        Args:
            lent: somebody beyond our sight may still read from the memory.
        """
        self.lease.release(lent=lent)
        self._sources = {}
        self._late = {}
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _gather_late(self, chunk: int, view: Bytes8) -> None:
        """Copy what had time until its chunk is read. Should two threads do it at once, both write the same bytes.

        Into a view that the lease knows of: as long as it lives, nobody else is given the memory.
        """
        for run, pieces in self._late.get(chunk, ()):
            copy_run(run, pieces, view[run.offset - chunk :][: run.nbytes])
        self._late.pop(chunk, None)


class Copier:
    """Copies buffers into slots with the caller's thread and a few helpers, or behind the caller's back."""

    def __init__(self) -> None:
        cores = os.cpu_count() or 1
        self._alone = cores == 1
        self._helpers = Workers(max(1, min(4, cores) - 1), "limpet-copy")
        self._crew = Crew(self._helpers)

    def copy(self, draft: Draft, lease: Lease) -> None:
        """Copy everything that ``draft`` must own into ``lease``'s memory; blocks until it is done."""
        self._copy_pieces(self._small_ones_first(draft, lease, lambda _first, _end: True, [])[0])

    def copy_part(self, draft: Draft, segment: Segment, memory: Bytes8, pieces: deque[Piece]) -> None:
        """Copy what ``draft`` must own of ``segment`` to the beginning of ``memory``; blocks until it is done.

        What is large is put into ``pieces`` first: whoever clears that, on any thread, ends the copy soon.
        """
        buffers, plan, base = draft.tree.buffers, draft.plan, segment.base
        for run in plan.runs[bisect_left(plan.runs, segment.first, key=attrgetter("offset")) :]:
            if run.offset >= segment.last:
                break
            if not run.late:
                copy_run(run, pieces_of(run, buffers), memory[run.offset - base :][: run.nbytes])
        # One of them may begin before the segment.
        for index, offset in plan.copies[max(0, bisect_left(plan.copies, segment.first, key=itemgetter(1)) - 1) :]:
            if offset >= segment.last:
                break
            buffer = buffers[index]
            start, end = max(segment.first, offset), min(segment.last, offset + buffer.nbytes)
            if start < end and buffer.nbytes >= SHARED_BYTES:
                pieces.extend(cut_range(buffer, start - offset, memory[start - base : end - base]))
            elif start < end:
                copy_alone(buffer, memory[start - base : end - base])
        self._copy_pieces(pieces)

    def lazily(self, draft: Draft, lease: Lease, volatile: Volatile) -> Copying:
        """Copy what is small, and what may change at any time; the rest is still to begin.

        Args:
            draft: what to copy.
            lease: where to.
            volatile: whether the memory from one address up to another may change before it was copied.

        Returns:
            What is left to copy; it owns ``draft`` and ``lease`` until it is complete.
        """
        buffers: list[int] = []
        now, later = self._small_ones_first(draft, lease, volatile, buffers)
        self._copy_pieces(now)

        def release() -> None:
            lease.release()
            draft.discard()

        return Copying(later, self._crew, lease, release, buffers)

    def close(self) -> None:
        """End the helper threads."""
        self._crew.close()
        self._helpers.close()

    def _small_ones_first(
        self, draft: Draft, lease: Lease, volatile: Volatile, kept: list[int]
    ) -> tuple[deque[Piece], deque[Piece]]:
        """Copy the small buffers; returns the pieces of the volatile ones, and of those ``kept`` for later."""
        buffers = draft.tree.buffers
        memory = lease.memory
        for run in draft.plan.runs:
            if not run.late:
                copy_run(run, pieces_of(run, buffers), memory[run.offset : run.offset + run.nbytes])
        now: deque[Piece] = deque()
        later: deque[Piece] = deque()
        for index, offset in draft.plan.copies:
            buffer = buffers[index]
            target = memory[offset : offset + buffer.nbytes]
            if buffer.nbytes < SHARED_BYTES:
                copy_alone(buffer, target)
                continue
            source, target = alike(buffer, target)
            if volatile(*byte_bounds(source)):
                now.extend(cut(target, source))
            else:
                later.extend(cut(target, source))
                kept.append(index)
        return now, later

    def _copy_pieces(self, pieces: deque[Piece]) -> None:
        if not pieces:
            return
        total = sum(target.nbytes for target, _ in pieces)
        if self._alone or total < _PARALLEL_FROM_BYTES:
            _drain(pieces)
            return
        crew = _Hands(pieces)
        with contextlib.suppress(RuntimeError):  # the main thread has ended, and no thread can be started any more
            for _ in range(self._helpers.count):
                self._helpers.submit(crew.help_out)
        try:
            _drain(pieces)
        finally:
            crew.dismiss()


def _drain(pieces: deque[Piece]) -> None:
    while True:
        try:
            target, source = pieces.popleft()
        except IndexError:
            return
        copy_piece(target, source)


class _Hands:
    """The helpers of one copy. Those that have begun are waited for; those that come later find it over."""

    def __init__(self, pieces: deque[Piece]) -> None:
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
