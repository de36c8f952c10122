"""Reading one checkpoint: ranged reads straight into the destination, every byte verified.

Verified before use, hop by hop: the manifest's digest, each stored chunk's digest before it is
decompressed, each chunk's id after; of a chunk that is a delta, each link of its chain. A mismatch is read once more
before it counts as damage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import anyio
import numpy as np

from limpet.engine.chains import Batch, Reads
from limpet.engine.live import Checkpoint
from limpet.engine.pieces import Piece, Run, Watch, decode_run, settle_run, wanted_pieces
from limpet.engine.slots import Bytes8
from limpet.errors import CorruptError
from limpet.failpoints import reach
from limpet.format.manifest import Manifest, decode_manifest
from limpet.format.record import Commit
from limpet.stores.base import Bytes, KeyMissingError, Store
from limpet.workers import Workers

__all__ = ["Opened", "Reader"]

_PARALLEL_READS = 4


class Opened(NamedTuple):
    """A checkpoint whose manifest was verified; ``body`` holds the data of a tiny one."""

    checkpoint: Checkpoint
    manifest: Manifest
    body: bytes


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
        reads = Reads(opened.manifest).of(wanted_pieces(opened.manifest, destinations))
        limit = anyio.Semaphore(_PARALLEL_READS)
        errors: list[Exception] = []

        async def perform(read: Run | Batch) -> None:
            # A read that has begun is never cancelled: its thread would go on writing into memory that the caller,
            # or the fallback to an older checkpoint, fills anew.
            async with limit:
                if errors:
                    return
                try:
                    await self._read(opened, read)
                except Exception as error:  # raised below, once no read is under way any more
                    errors.append(error)

        async with anyio.create_task_group() as tasks:
            for read in reads:
                tasks.start_soon(perform, read)
        if errors:
            # What the store could not tell comes before damage: it must not look like a reason to fall back.
            raise min(errors, key=lambda error: isinstance(error, CorruptError))

    async def stream(self, opened: Opened, index: int) -> AsyncIterator[Bytes8]:
        """One buffer's bytes, in order, piece by piece, in bounded memory."""
        manifest = opened.manifest
        reads, at = Reads(manifest), manifest.buffers[index]
        chunk, offset, left = at.chunk, at.offset, at.nbytes
        while left:
            size = min(left, manifest.chunks[chunk].raw_bytes - offset)
            piece = np.empty(size, dtype=np.uint8)
            for read in reads.of({chunk: [Piece(piece, 0, size, offset)]}):
                await self._read(opened, read)
            yield piece
            chunk, offset, left = chunk + 1, 0, left - size

    async def verify(self, opened: Opened) -> tuple[int, int]:
        """Read every chunk of a checkpoint, and every base; returns their number and their stored bytes."""
        manifest = opened.manifest
        for read in Reads(manifest).of_all():
            await self._read(opened, read)
        distinct = dict.fromkeys([*manifest.chunks, *manifest.bases])
        return len(distinct), sum(chunk.stored_bytes for chunk in distinct)

    async def _read(self, opened: Opened, read: Run | Batch) -> None:
        if isinstance(read, Run):
            await self._read_run(opened, read)
            return
        for runs in read.rounds():
            for run in runs:
                await self._read_run(opened, run)
        await self._workers.run(read.finish)

    async def _read_run(self, opened: Opened, run: Run) -> None:
        try:
            await self._read_run_once(opened, run)
            reach("read.run")
        except CorruptError:
            # A flip on the way is not damage at rest: ask once more.
            await self._read_run_once(opened, run)

    async def _read_run_once(self, opened: Opened, run: Run) -> None:
        if not run.pack:
            stored: Bytes = opened.body[run.offset : run.offset + run.stored_bytes]
            decode_run(run, stored)
            return
        targets = run.targets()
        if targets is None:
            stored = await self._fetch(run.pack, run.offset, run.stored_bytes)
            await self._workers.run(decode_run, run, stored)
            return
        watch = Watch(run)
        with _blaming(run.pack):
            await self._store.read_into(run.pack, run.offset, [target.data for target in targets], watch)
        if not watch.done or any(part.place is None for part in run.parts):
            await self._workers.run(settle_run, run, targets, watch.done)

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
        elif any(
            chunk.offset + chunk.stored_bytes > sizes[manifest.packs[chunk.pack]]
            for chunk in (*manifest.chunks, *manifest.bases)
        ):
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
