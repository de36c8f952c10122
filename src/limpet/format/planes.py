"""Byte planes of little-endian words: ``codec`` says how they lie, ``deltas`` codes differences in them too."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from limpet.errors import CorruptError
from limpet.format.frames import inflate

__all__ = [
    "DEFAULT_LEVEL",
    "Bytes",
    "Words",
    "bound",
    "compressor",
    "copy_exactly",
    "decode_planes",
    "encode_planes",
    "pays",
    "promising",
    "sample",
    "words_of",
]

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.unsignedinteger]

DEFAULT_LEVEL = 1
_SIZES = {width: struct.Struct(f"<{width}I") for width in (2, 4, 8)}
_SAMPLE_PIECES = 16
_SAMPLE_WORDS = 2048
"""A plane of which so many pieces, so long each, do not shrink is taken for noise: 32 KiB are tried instead of all of it."""
_SAMPLED_FROM = 8 * _SAMPLE_PIECES * _SAMPLE_WORDS


class _Coders(threading.local):
    """One set of zstd contexts a thread: they must not be used by two threads at once."""

    def __init__(self) -> None:
        # Matches in an exponent plane are chance and cost more than they save; with a table this small zstd does
        # little but entropy coding: 2.5 times as fast as level 1, and smaller.
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, window_log=17, chain_log=6, hash_log=6, min_match=7, search_log=1
        )
        self.entropy = zstandard.ZstdCompressor(compression_params=parameters)
        self.levels: dict[int, zstandard.ZstdCompressor] = {}


_coders = _Coders()


def compressor(level: int) -> zstandard.ZstdCompressor:
    """This thread's zstd context of a level."""
    if level not in _coders.levels:
        _coders.levels[level] = zstandard.ZstdCompressor(level=level)
    return _coders.levels[level]


def bound(nbytes: int) -> int:
    """How much memory ``encode_planes`` needs to write ``nbytes`` raw bytes to, whatever the width."""
    return nbytes + max(size.size for size in _SIZES.values())


def pays(raw_bytes: int, stored_bytes: int) -> bool:
    """Whether coding saved at least 2 %: less is not worth the time it takes to decode."""
    return stored_bytes * 100 <= raw_bytes * 98 and stored_bytes < raw_bytes


def words_of(raw: Bytes, width: int) -> Words:
    """The whole words that ``raw`` begins with, as a view of its memory."""
    return raw[: raw.size - raw.size % width].view(f"<u{width}")


def sample(words: Words, level: int) -> Words | None:
    """Pieces from all over ``words``; ``None`` where all of them are to be tried."""
    if level > DEFAULT_LEVEL or words.size < _SAMPLED_FROM:
        return None
    apart = (words.size - _SAMPLE_WORDS) // (_SAMPLE_PIECES - 1)
    return np.concatenate([words[at : at + _SAMPLE_WORDS] for at in range(0, apart * _SAMPLE_PIECES, apart)])


def promising(sampled: Words) -> list[bool]:
    """Which planes of the words may shrink, going by a sample of them."""
    width = sampled.dtype.itemsize
    planes = np.empty((width, sampled.size), np.uint8)
    for index, plane in enumerate(planes):
        _split(sampled, index, plane)
    # One native call for all: beside a busy interpreter each call more may wait 5 ms for the lock.
    frames = _coders.entropy.multi_compress_to_buffer([plane.data for plane in planes])
    return [len(frames[index]) * 100 <= sampled.size * 99 for index in range(width)]


def encode_planes(words: Words, tail: Bytes, tried: Sequence[bool], level: int, out: Bytes | None) -> memoryview:
    """The stored bytes of ``words`` and of the ``tail`` after them. May be called from any thread.

    Args:
        words: one-dimensional; only read.
        tail: fewer bytes than a word has.
        tried: the planes to compress if they shrink; the others are stored as they are.
        level: of zstd; above 1, it is tried beside entropy coding.
        out: ``bound`` bytes that may be written to, and that the result lies in; new ones by default.
    """
    width, count = words.dtype.itemsize, words.size
    given, out = out, np.empty(bound(words.nbytes + tail.size), np.uint8) if out is None else out
    position = _SIZES[width].size
    stored_sizes: list[int] = []
    for index, is_tried in enumerate(tried):
        # Each plane is split to where it will lie; if it shrinks, its frame takes its place.
        plane = out[position : position + count]
        _split(words, index, plane)
        frame = _compress(plane, level) if is_tried else None
        if frame is not None:
            plane[: len(frame)] = np.frombuffer(frame, np.uint8)
        stored_sizes.append(count if frame is None else len(frame))
        position += stored_sizes[-1]
    _SIZES[width].pack_into(out.data, 0, *stored_sizes)
    end = position + tail.size
    out[position:end] = tail
    # A view would keep the whole allocation alive while it waits for its upload.
    return out[:end].data if given is not None or end * 2 > out.size else out[:end].copy().data


def decode_planes(data: memoryview, width: int, out: Bytes) -> None:
    """Fill ``out`` with the words and the tail that ``encode_planes`` was given.

    Raises:
        CorruptError: ``data`` does not decode to exactly ``out.size`` bytes.
    """
    sizes = _SIZES[width]
    if len(data) < sizes.size:
        raise CorruptError(f"a chunk of byte planes is {len(data)} bytes long, shorter than its header.")
    stored_sizes = sizes.unpack_from(data)
    count = out.size // width
    stated = sizes.size + sum(stored_sizes) + out.size % width
    if len(data) != stated:
        raise CorruptError(f"a chunk of byte planes is {len(data)} bytes long; its header says {stated}.")
    ends = list(itertools.accumulate(stored_sizes, initial=sizes.size))
    words = words_of(out, width)
    for index in reversed(range(width)):
        stored = data[ends[index] : ends[index + 1]]
        plain = stored if len(stored) == count else inflate(stored, "a plane", most=count, exactly=count)
        _merge(np.frombuffer(plain, np.uint8), index, words)
    copy_exactly(data[ends[-1] :], out[count * width :], "the end of a chunk of byte planes")


def copy_exactly(data: memoryview, out: Bytes, what: str) -> None:
    """Copy ``data`` to ``out``, of the same size.

    Raises:
        CorruptError: it is not; ``what`` it is, for the message.
    """
    if len(data) != out.size:
        raise CorruptError(f"{what} has {len(data)} bytes where {out.size} belong.")
    np.copyto(out, np.frombuffer(data, np.uint8))


def _compress(plane: Bytes, level: int) -> bytes | None:
    """A zstd frame for a plane that is worth one, else ``None``."""
    frame = _coders.entropy.compress(plane.data)
    if not pays(plane.size, len(frame)):
        return None
    if level > DEFAULT_LEVEL:
        return min(frame, compressor(level).compress(plane.data), key=len)
    return frame


def _split(words: Words, index: int, plane: Bytes) -> None:
    # One native call a plane; numpy works through it in blocks that fit the cache (its ufunc buffers). To go by way of
    # 16-bit halves, in blocks of our own, is a sixth faster, 2 % of what a chunk takes, for many times the calls.
    if index:
        np.right_shift(words, words.dtype.type(8 * index), out=plane, casting="unsafe")
    else:
        np.copyto(plane, words, casting="unsafe")


def _merge(plane: Bytes, index: int, words: Words) -> None:
    """Put plane ``index`` into ``words``; the last plane must come first."""
    width = words.dtype.itemsize
    if width == 8:
        np.copyto(words.view(np.uint8)[index::width], plane)
    elif index == width - 1:
        # Shifting whole words beats strided bytes for every width.
        np.copyto(words, plane)
    else:
        np.left_shift(words, words.dtype.type(8), out=words)
        np.bitwise_or(words, plane, out=words)
