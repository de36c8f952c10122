"""Reading one checkpoint: ranged reads straight into the destination, every byte verified.

Verified before use, hop by hop: the manifest's digest, each stored chunk's digest before it is
decompressed, each chunk's id after. A mismatch is read once more before it counts as damage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
import blake3
import numpy as np

from limpet.engine.encode import RAW
from limpet.engine.live import Checkpoint
from limpet.engine.slots import Bytes8
from limpet.errors import CorruptError
from limpet.failpoints import reach
from limpet.format import codec
from limpet.format.manifest import ChunkAt, Manifest, decode_manifest
from limpet.format.record import Commit
from limpet.stores.base import Bytes, KeyMissingError, Store
from limpet.workers import Workers

__all__ = ["Opened", "Reader"]

_RUN_BYTES = 16 << 20
"""Stored bytes per request."""
_PARALLEL_RUNS = 4


class Opened(NamedTuple):
    """A checkpoint whose manifest was verified; ``body`` holds the data of a tiny one."""

    checkpoint: Checkpoint
    manifest: Manifest
    body: bytes


class _Piece(NamedTuple):
    """``whole[start : start + nbytes]`` gets the chunk's raw bytes from ``offset`` on."""

    whole: Bytes8
    start: int
    nbytes: int
    offset: int

    @property
    def target(self) -> Bytes8:
        """The memory to fill."""
        return self.whole[self.start : self.start + self.nbytes]


@dataclass(slots=True)
class _Run:
    """Chunks that lie one after the other in one pack, and where their bytes go."""

    pack: str
    offset: int
    stored_bytes: int = 0
    chunks: list[tuple[ChunkAt, list[_Piece]]] = field(default_factory=list)

    def takes(self, pack: str, chunk: ChunkAt) -> bool:
        end = self.offset + self.stored_bytes
        return pack == self.pack and chunk.offset == end and self.stored_bytes + chunk.stored_bytes <= _RUN_BYTES

    def targets(self) -> list[Bytes8] | None:
        """Where each chunk is to be read into: to its place, if that is one and takes the chunk as it is stored.

        ``None`` if that is so of no chunk. The others get memory of their own.
        """
        places = [_place_of(chunk, pieces) for chunk, pieces in self.chunks]
        if all(place is None for place in places):
            return None
        return [
            np.empty(chunk.stored_bytes, np.uint8) if place is None else place
            for place, (chunk, _) in zip(places, self.chunks, strict=True)
        ]


def _place_of(chunk: ChunkAt, pieces: Sequence[_Piece]) -> Bytes8 | None:
    if chunk.codec == RAW and len(pieces) == 1 and pieces[0].nbytes == chunk.raw_bytes:
        return pieces[0].target
    return None


class _Watch:
    """Checks the stored bytes of a run's chunks as they are read.

    Attributes:
        done: whether all of them were seen, and are right.
    """

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._begin()

    def __call__(self, position: int, piece: memoryview) -> None:
        """See ``Seen``.

        Raises:
            CorruptError: the chunk that ends in ``piece`` is damaged.
        """
        if position == 0:
            self._begin()
        while piece:
            chunk, _ = self._run.chunks[self._index]
            part = piece[: chunk.stored_bytes - self._hashed]
            self._hash.update(part)
            self._hashed += len(part)
            piece = piece[len(part) :]
            if self._hashed == chunk.stored_bytes:
                if self._hash.hexdigest() != _stored_digest(chunk):
                    raise _damaged(self._run, chunk)
                self._next(self._index + 1)

    def _begin(self) -> None:
        self.done = False
        self._next(0)

    def _next(self, index: int) -> None:
        self._index = index
        self._hash = blake3.blake3()
        self._hashed = 0
        self.done = index == len(self._run.chunks)


class Reader:
    """Reads checkpoints of one run.

    Args:
        store: where they are.
        workers: verify and decode.
    """

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    async def open(self, checkpoint: Checkpoint) -> Opened:
        """Fetch and verify the manifest of ``checkpoint``.

        Raises:
            CorruptError: it is damaged or missing.
            StoreError: the store could not tell.
        """
        commit = checkpoint.record.commit
        if commit is None:
            raise CorruptError(f"log record {checkpoint.record.seq} is live, but commits nothing.")
        body = commit.body_bytes()
        try:
            manifest = await self._manifest(checkpoint, commit, body)
        except CorruptError:
            # A flip on the way is not damage at rest: ask once more.
            manifest = await self._manifest(checkpoint, commit, body)
        reach("read.manifest")
        return Opened(checkpoint, manifest, body)

    async def _manifest(self, checkpoint: Checkpoint, commit: Commit, body: bytes) -> Manifest:
        at = commit.manifest
        if at.key:
            stored: Bytes = await self._fetch(at.key, at.offset, at.size)
        else:
            stored = body[at.offset : at.offset + at.size]
        try:
            manifest = decode_manifest(bytes(stored), at.digest)
            self._check(checkpoint, manifest, len(body) - at.size)
        except CorruptError as error:
            error.pack = at.key or None
            error.message = f"{at.key or 'the commit record'}, at byte {at.offset}: {error.message}"
            raise
        return manifest

    async def fill(self, opened: Opened, destinations: dict[int, Bytes8]) -> None:
        """Read the given buffers of a checkpoint into memory.

        Args:
            opened: the checkpoint.
            destinations: for each buffer's index, writable memory of exactly its size.

        Raises:
            CorruptError: a chunk is damaged or missing.
            StoreError: the store could not tell.
        """
        runs = _plan_runs(opened.manifest, destinations)
        limit = anyio.Semaphore(_PARALLEL_RUNS)
        errors: list[Exception] = []

        async def read(run: _Run) -> None:
            # A read that has begun is never cancelled: its thread would go on writing into memory that the caller,
            # or the fallback to an older checkpoint, fills anew.
            async with limit:
                if errors:
                    return
                try:
                    await self._read_run(opened, run)
                except Exception as error:  # raised below, once no read is under way any more
                    errors.append(error)

        async with anyio.create_task_group() as group:
            for run in runs:
                group.start_soon(read, run)
        if errors:
            # What the store could not tell comes before damage: it must not look like a reason to fall back.
            raise min(errors, key=lambda error: isinstance(error, CorruptError))

    async def stream(self, opened: Opened, index: int) -> AsyncIterator[Bytes8]:
        """One buffer's bytes, in order, piece by piece, in bounded memory."""
        manifest = opened.manifest
        at = manifest.buffers[index]
        chunk, offset, left = at.chunk, at.offset, at.nbytes
        while left:
            size = min(left, manifest.chunks[chunk].raw_bytes - offset)
            piece = np.empty(size, dtype=np.uint8)
            run = _Run(manifest.packs[manifest.chunks[chunk].pack], manifest.chunks[chunk].offset)
            run.stored_bytes = manifest.chunks[chunk].stored_bytes
            run.chunks.append((manifest.chunks[chunk], [_Piece(piece, 0, size, offset)]))
            await self._read_run(opened, run)
            yield piece
            chunk, offset, left = chunk + 1, 0, left - size

    async def verify(self, opened: Opened) -> tuple[int, int]:
        """Read every chunk of a checkpoint; returns their number and their stored bytes."""
        manifest = opened.manifest
        runs = _group(manifest, ((chunk, []) for chunk in dict.fromkeys(manifest.chunks)))
        for run in runs:
            await self._read_run(opened, run)
        return sum(len(run.chunks) for run in runs), sum(run.stored_bytes for run in runs)

    async def _read_run(self, opened: Opened, run: _Run) -> None:
        try:
            await self._read_run_once(opened, run)
            reach("read.run")
        except CorruptError:
            # A flip on the way is not damage at rest: ask once more.
            await self._read_run_once(opened, run)

    async def _read_run_once(self, opened: Opened, run: _Run) -> None:
        if not run.pack:
            stored: Bytes = opened.body[run.offset : run.offset + run.stored_bytes]
            _decode_run(run, stored)
            return
        targets = run.targets()
        if targets is None:
            stored = await self._fetch(run.pack, run.offset, run.stored_bytes)
            await self._workers.run(_decode_run, run, stored)
            return
        watch = _Watch(run)
        with _blaming(run.pack):
            await self._store.read_into(run.pack, run.offset, [target.data for target in targets], watch)
        if not watch.done or any(_place_of(*chunk) is None for chunk in run.chunks):
            await self._workers.run(_settle_run, run, targets, watch.done)

    async def _fetch(self, pack: str, offset: int, size: int) -> Bytes:
        with _blaming(pack):
            return await self._store.get_range(pack, offset, size)

    def _check(self, checkpoint: Checkpoint, manifest: Manifest, inline_bytes: int) -> None:
        """The manifest must fit the record that names it."""
        record = checkpoint.record
        commit = record.commit
        if commit is None:
            raise AssertionError("opened checkpoints have a commit")
        sizes = {use.key: use.size for use in commit.packs}
        sizes[""] = inline_bytes
        problem = ""
        if manifest.run != record.run:
            problem = "it belongs to another run"
        elif any(pack not in sizes for pack in manifest.packs):
            problem = "it uses a pack that the record does not name"
        elif sum(buffer.nbytes for buffer in manifest.buffers) != commit.raw_bytes:
            problem = "its sizes are not those of the record"
        elif any(chunk.offset + chunk.stored_bytes > sizes[manifest.packs[chunk.pack]] for chunk in manifest.chunks):
            problem = "a chunk lies outside its pack"
        if problem:
            raise CorruptError(f"the manifest of checkpoint {record.seq} does not fit its record: {problem}.")


@contextmanager
def _blaming(pack: str) -> Iterator[None]:
    """Damage that shows while ``pack`` is fetched names it."""
    try:
        yield
    except KeyMissingError as error:
        raise CorruptError(f"{pack} is missing.", kind="missing_object", pack=pack) from error
    except CorruptError as error:
        error.pack = pack
        raise


def _plan_runs(manifest: Manifest, destinations: dict[int, Bytes8]) -> list[_Run]:
    wanted: dict[int, list[_Piece]] = {}
    for index, target in destinations.items():
        at = manifest.buffers[index]
        if target.nbytes != at.nbytes:
            raise AssertionError(f"buffer {index} has {at.nbytes} bytes, its destination {target.nbytes}")
        chunk, offset, done = at.chunk, at.offset, 0
        while done < at.nbytes:
            size = min(at.nbytes - done, manifest.chunks[chunk].raw_bytes - offset)
            wanted.setdefault(chunk, []).append(_Piece(target, done, size, offset))
            chunk, offset, done = chunk + 1, 0, done + size
    return _group(manifest, ((manifest.chunks[index], wanted[index]) for index in sorted(wanted)))


def _group(manifest: Manifest, chunks: Iterable[tuple[ChunkAt, list[_Piece]]]) -> list[_Run]:
    runs: list[_Run] = []
    for chunk, pieces in chunks:
        pack = manifest.packs[chunk.pack]
        if not runs or not runs[-1].takes(pack, chunk):
            runs.append(_Run(pack, chunk.offset))
        runs[-1].chunks.append((chunk, pieces))
        runs[-1].stored_bytes += chunk.stored_bytes
    return runs


def _settle_run(run: _Run, targets: Sequence[Bytes8], checked: bool) -> None:
    """Finish chunks whose stored bytes were read into ``targets``; ``checked`` says that those are right."""
    for (chunk, pieces), target in zip(run.chunks, targets, strict=True):
        if _place_of(chunk, pieces) is None:
            _decode_chunk(run, chunk, pieces, target.data, checked=checked)
        elif not checked:
            _check_id(run, chunk, target)


def _decode_run(run: _Run, stored: Bytes) -> None:
    view = memoryview(stored).cast("B") if not isinstance(stored, bytes) else memoryview(stored)
    if view.nbytes != run.stored_bytes:
        raise CorruptError(f"{run.pack or 'the record'} ends before byte {run.offset + run.stored_bytes}.")
    start = 0
    for chunk, pieces in run.chunks:
        _decode_chunk(run, chunk, pieces, view[start : start + chunk.stored_bytes])
        start += chunk.stored_bytes


def _decode_chunk(
    run: _Run, chunk: ChunkAt, pieces: Sequence[_Piece], stored: memoryview, *, checked: bool = False
) -> None:
    if not checked and blake3.blake3(stored).hexdigest() != _stored_digest(chunk):
        raise _damaged(run, chunk)
    if chunk.codec == RAW:
        raw = np.frombuffer(stored, dtype=np.uint8)
    elif len(pieces) == 1 and pieces[0].nbytes == chunk.raw_bytes:
        codec.decode(chunk.codec, stored, pieces[0].target)
        _check_id(run, chunk, pieces[0].target)
        return
    else:
        raw = np.empty(chunk.raw_bytes, dtype=np.uint8)
        codec.decode(chunk.codec, stored, raw)
        _check_id(run, chunk, raw)
    for piece in pieces:
        np.copyto(piece.target, raw[piece.offset : piece.offset + piece.nbytes])


def _stored_digest(chunk: ChunkAt) -> str:
    """Of the bytes as they are stored: of a raw chunk, that is its id."""
    return chunk.id if chunk.codec == RAW else chunk.stored_digest


def _check_id(run: _Run, chunk: ChunkAt, raw: Bytes8) -> None:
    if blake3.blake3(raw.data).hexdigest() != chunk.id:
        raise _damaged(run, chunk)


def _damaged(run: _Run, chunk: ChunkAt) -> CorruptError:
    where = run.pack or "the commit record"
    return CorruptError(
        f"{where} is damaged at byte {chunk.offset} ({chunk.stored_bytes} bytes do not match).", pack=run.pack or None
    )
