"""Restoring a ``Files`` leaf: its content streams from the store into the target, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limpet.engine.extract import Extraction
from limpet.engine.reader import Opened, Reader
from limpet.engine.slots import Bytes8
from limpet.format.filetree import File
from limpet.workers import Workers

__all__ = ["extract"]

_SMALL_BYTES = 1 << 20
_BATCH_BYTES = 32 << 20


async def extract(reader: Reader, workers: Workers, opened: Opened, payload: Any, target: Path | None) -> Path:
    """Restore the files of one leaf below ``target``; returns what ``Files.restore`` returns.

    Raises:
        CorruptError: the payload is hostile, or content is damaged.
        UsageError: something in the target is in the way.
        StoreError: the store or the target's file system failed.
    """
    sizes = [buffer.nbytes for buffer in opened.manifest.buffers]
    extraction = await workers.run(Extraction, payload, sizes, target)
    try:
        for batch in _batches([file for file in extraction.files if file.size <= _SMALL_BYTES]):
            await _write_small(reader, workers, opened, extraction, batch)
        for file in extraction.files:
            if file.size > _SMALL_BYTES:
                await _write_big(reader, opened, extraction, file)
        return await workers.run(extraction.finish)
    finally:
        await workers.run(extraction.close)


def _batches(files: Sequence[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    size = 0
    for file in files:
        if batch and size + file.size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


async def _write_small(
    reader: Reader, workers: Workers, opened: Opened, extraction: Extraction, batch: Sequence[File]
) -> None:
    content: dict[int, Bytes8] = {_buffer(file): np.empty(file.size, dtype=np.uint8) for file in batch}
    await reader.fill(opened, content)

    def write() -> None:
        for buffer, data in content.items():
            extraction.write_whole(buffer, data.data)

    await workers.run(write)


async def _write_big(reader: Reader, opened: Opened, extraction: Extraction, file: File) -> None:
    async with extraction.sink(_buffer(file)) as sink:
        async for piece in reader.stream(opened, _buffer(file)):
            await sink.write(piece.data)


def _buffer(file: File) -> int:
    if file.buffer is None:
        raise AssertionError("only files with content are listed")
    return file.buffer
