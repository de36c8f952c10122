"""What of a state is copied where: single buffers, runs of small ones, and big ones cut into pieces or by byte ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from limpet.engine.capture import read_slice
from limpet.engine.lazy import Piece
from limpet.engine.slots import Bytes8
from limpet.format.buffers import raw_view
from limpet.format.chunks import Run
from limpet.format.structure import Buffers
from limpet.format.tree import Buffer, FileSlice

__all__ = ["alike", "copy_alone", "copy_run", "cut", "cut_range", "pieces_of"]

_PIECE_BYTES = 8 << 20


def pieces_of(run: Run, buffers: Sequence[Buffer]) -> list[Any]:
    """What ``copy_run`` needs of the buffers, and nothing else of the state."""
    return _raw(buffers, run.buffers) if run.joins else [buffers[index] for index in run.buffers]


def copy_run(run: Run, pieces: Sequence[Any], target: Bytes8) -> None:
    """Copy the small buffers of ``run`` to ``target``, one behind the other."""
    if run.joins:
        _gather(pieces, target)
    else:
        copy_alone(pieces[0], target)


def copy_alone(buffer: Buffer, target: Bytes8) -> None:
    """Copy one buffer, which may be a small file."""
    if isinstance(buffer.data, FileSlice):
        target[:] = np.frombuffer(read_slice(buffer.data, 0, buffer.nbytes), dtype=np.uint8)
    else:
        buffer.copy_into(target)


def alike(buffer: Buffer, target: Bytes8) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A big buffer and its place, as arrays of one shape: in one dimension, unless it must be gathered."""
    flat = buffer.flat()
    if flat is not None:
        return flat, target
    raw = _raw_array(buffer)
    return raw, target.view(raw.dtype).reshape(raw.shape)


def cut(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> Iterator[Piece]:
    """Cut a copy along the first axis, and where one row of it is too much, along the next."""
    if target.nbytes <= _PIECE_BYTES or target.ndim == 0:
        yield target, source
        return
    row_bytes = target.nbytes // len(target)
    if row_bytes > _PIECE_BYTES and target.ndim > 1:
        for target_row, source_row in zip(target, source, strict=True):
            yield from cut(target_row, source_row)
        return
    rows = max(1, _PIECE_BYTES // row_bytes)
    for start in range(0, len(target), rows):
        yield target[start : start + rows], source[start : start + rows]


def cut_range(buffer: Buffer, start: int, target: Bytes8) -> Iterator[Piece]:
    """Cut the copy of some of a big buffer's bytes, in C order where it must be gathered.

    Args:
        buffer: what to copy from.
        start: the first byte to copy.
        target: where to; as long as what is copied.
    """
    flat = buffer.flat()
    if flat is not None:
        yield from cut(target, flat[start : start + target.nbytes])
    else:
        yield from _cut_rows(_raw_array(buffer), start, target)


def _cut_rows(raw: np.ndarray[Any, Any], start: int, target: Bytes8) -> Iterator[Piece]:
    """Whole rows at once, and what of the first and the last row is asked for along the next axis."""
    end = start + target.nbytes
    row_bytes = raw.nbytes // len(raw)
    whole, after = -(-start // row_bytes), end // row_bytes
    if whole > after:  # within one row
        yield from _cut_row(raw, after, start, target)
        return
    head, tail = whole * row_bytes - start, after * row_bytes - start
    if head:
        yield from _cut_row(raw, whole - 1, start, target[:head])
    if after > whole:
        rows = raw[whole:after]
        yield from cut(target[head:tail].view(raw.dtype).reshape(rows.shape), rows)
    if tail < target.nbytes:
        yield from _cut_row(raw, after, after * row_bytes, target[tail:])


def _cut_row(raw: np.ndarray[Any, Any], row: int, start: int, target: Bytes8) -> Iterator[Piece]:
    """The bytes from ``start`` of the whole array on, which all lie in ``row``."""
    inner = start - row * (raw.nbytes // len(raw))
    if raw.ndim > 1:
        yield from _cut_rows(raw[row], inner, target)
    else:
        item = np.ascontiguousarray(raw[row : row + 1]).view(np.uint8)
        yield target, item[inner : inner + target.nbytes]


def _raw_array(buffer: Buffer) -> np.ndarray[Any, Any]:
    if not isinstance(buffer.data, np.ndarray):
        raise TypeError("a FileSlice is streamed, not copied")
    return raw_view(buffer.data)


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
