"""How a chunk's bytes are coded. Everything that a chunk says about it is the name of its codec.

===========  ====================================================================================
``raw``      The bytes as they are.
``zstd``     One zstd frame (RFC 8878).
``planesW``  Byte planes of W-byte little-endian words, W = 2, 4 or 8: plane ``i`` is every W-th
             byte from byte ``i`` on. For floats this puts the exponents next to each other, in
             the last plane, which is the only one that shrinks in dense weights.
===========  ====================================================================================

A ``planesW`` chunk that decodes to ``n`` bytes, of ``m = n // W`` words::

    W x uint32, little-endian    stored size of each plane, in bytes
    plane 0 ... plane W - 1      m raw bytes if its stored size is m, else one zstd frame
    n % W bytes                  what is left after the last whole word, raw

so that with ``position`` behind the sizes it decodes as::

    for i, size in enumerate(sizes):
        plane = stored[position : position + size]
        out[i : m * W : W] = plane if size == m else zstd(plane)
        position += size
    out[m * W :] = stored[position:]

Every frame states its content's size, which must be what the chunk's own size implies; it uses no
dictionary, and nothing follows it. A reader must check that before it decodes.

The exponent is not rotated into a byte of its own: on N(0, 0.02) weights that was worth 0.4 % of
fp32 (1.202 for 1.198) and 1 % of bf16 (1.508 for 1.492), and it would cost every reader a bit
shuffle where a slice assignment does now.

Which codec to try on which chunk is decided in ``choosing``.
"""

from __future__ import annotations

import itertools
import struct
import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from limpet.errors import CorruptError, FormatError
from limpet.format.frames import inflate

__all__ = ["DEFAULT_LEVEL", "PLANES", "RAW", "bound", "decode", "encode", "pays"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

RAW = "raw"
PLANES = {"planes2": 2, "planes4": 4, "planes8": 8}
"""The codecs of byte planes, and the bytes of a word of theirs."""
DEFAULT_LEVEL = 1
_SIZES = {width: struct.Struct(f"<{width}I") for width in PLANES.values()}
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
        self._levels: dict[int, zstandard.ZstdCompressor] = {}

    def at_level(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._levels:
            self._levels[level] = zstandard.ZstdCompressor(level=level)
        return self._levels[level]


_coders = _Coders()


def bound(nbytes: int) -> int:
    """How much memory ``encode`` needs to write ``nbytes`` raw bytes to, whatever the codec."""
    return nbytes + max(size.size for size in _SIZES.values())


def encode(
    raw: Bytes, *, codec: str, level: int = DEFAULT_LEVEL, out: Bytes | None = None
) -> tuple[str, bytes | memoryview]:
    """Encode one chunk; what comes back is never larger than ``raw``. May be called from any thread.

    Args:
        raw: the chunk's bytes, one-dimensional and contiguous; only read.
        codec: what to try.
        level: of zstd, 1 to 22. At 1, planes of which a sample does not shrink are not tried any further. Above,
            all are, and those that shrink are tried with that level too.
        out: ``bound(raw.size)`` bytes that may be written to, and that the result may lie in; new ones by default.

    Returns:
        The codec that was used and the bytes to store: ``"raw"`` and a view of ``raw``'s own memory
        when the codec saved less than 2 %.

    Raises:
        FormatError: there is no such codec.
    """
    if codec not in PLANES and codec not in (RAW, "zstd"):
        raise _unknown(codec)
    stored: bytes | memoryview = raw.data
    if codec in PLANES:
        stored = _encode_planes(raw, PLANES[codec], level, out)
    elif codec == "zstd" and raw.size:
        stored = _coders.at_level(level).compress(raw.data)
    if pays(raw.size, len(stored)):
        return codec, stored
    return RAW, raw.data


def decode(codec: str, stored: bytes | bytearray | memoryview, out: Bytes) -> None:
    """Fill ``out`` with the chunk that ``encode`` was given. May be called from any thread.

    Allocates at most the size of ``out``, whatever ``stored`` claims.

    Args:
        codec: the codec that ``encode`` returned.
        stored: the bytes that it returned.
        out: one-dimensional, exactly as long as the chunk was; undefined after an error.

    Raises:
        CorruptError: ``stored`` does not decode to exactly ``out.size`` bytes.
        FormatError: there is no such codec.
    """
    data = memoryview(stored)
    if codec == RAW:
        _copy_exactly(data, out, "a raw chunk")
    elif codec == "zstd":
        np.copyto(out, np.frombuffer(_decompress(data, out.size), np.uint8))
    elif codec in PLANES:
        _decode_planes(data, PLANES[codec], out)
    else:
        raise _unknown(codec)


def pays(raw_bytes: int, stored_bytes: int) -> bool:
    """Whether coding saved at least 2 %: less is not worth the time it takes to decode."""
    return stored_bytes * 100 <= raw_bytes * 98 and stored_bytes < raw_bytes


def _unknown(codec: str) -> FormatError:
    return FormatError(
        f"a chunk names the codec {codec!r}, which this version of limpet does not know.",
        hint="Read it with a newer version.",
    )


def _encode_planes(raw: Bytes, width: int, level: int, out: Bytes | None) -> memoryview:
    count = raw.size // width
    words = raw[: count * width].view(f"<u{width}")
    hopeful = _hopeful_planes(words, level)
    if not any(hopeful):
        return raw.data
    given, out = out, np.empty(bound(raw.size), np.uint8) if out is None else out
    position = _SIZES[width].size
    stored_sizes: list[int] = []
    for index, is_hopeful in enumerate(hopeful):
        # Each plane is split to where it will lie; if it shrinks, its frame takes its place.
        plane = out[position : position + count]
        _split(words, index, plane)
        frame = _compress(plane, level) if is_hopeful else None
        if frame is not None:
            plane[: len(frame)] = np.frombuffer(frame, np.uint8)
        stored_sizes.append(count if frame is None else len(frame))
        position += stored_sizes[-1]
    _SIZES[width].pack_into(out.data, 0, *stored_sizes)
    end = position + raw.size % width
    out[position:end] = raw[count * width :]
    # A view would keep the whole allocation alive while it waits for its upload.
    return out[:end].data if given is not None or end * 2 > out.size else out[:end].copy().data


def _split(words: npt.NDArray[np.unsignedinteger], index: int, plane: Bytes) -> None:
    # One native call a plane; numpy works through it in blocks that fit the cache (its ufunc buffers). To go by way of
    # 16-bit halves, in blocks of our own, is a sixth faster, 2 % of what a chunk takes, for many times the calls.
    if index:
        np.right_shift(words, words.dtype.type(8 * index), out=plane, casting="unsafe")
    else:
        np.copyto(plane, words, casting="unsafe")


def _hopeful_planes(words: npt.NDArray[np.unsignedinteger], level: int) -> list[bool]:
    """Which planes may shrink, going by a sample of pieces from all over the chunk."""
    width = words.dtype.itemsize
    if level > DEFAULT_LEVEL or words.size < _SAMPLED_FROM:
        return [words.size > 0] * width
    apart = (words.size - _SAMPLE_WORDS) // (_SAMPLE_PIECES - 1)
    sample = np.concatenate([words[at : at + _SAMPLE_WORDS] for at in range(0, apart * _SAMPLE_PIECES, apart)])
    planes = np.empty((width, sample.size), np.uint8)
    for index, plane in enumerate(planes):
        _split(sample, index, plane)
    # One native call for all: beside a busy interpreter each call more may wait 5 ms for the lock.
    frames = _coders.entropy.multi_compress_to_buffer([plane.data for plane in planes])
    return [len(frames[index]) * 100 <= sample.size * 99 for index in range(width)]


def _compress(plane: Bytes, level: int) -> bytes | None:
    """A zstd frame for a plane that is worth one, else ``None``."""
    frame = _coders.entropy.compress(plane.data)
    if not pays(plane.size, len(frame)):
        return None
    if level > DEFAULT_LEVEL:
        return min(frame, _coders.at_level(level).compress(plane.data), key=len)
    return frame


def _decode_planes(data: memoryview, width: int, out: Bytes) -> None:
    sizes = _SIZES[width]
    if len(data) < sizes.size:
        raise CorruptError(f"a chunk of byte planes is {len(data)} bytes long, shorter than its header.")
    stored_sizes = sizes.unpack_from(data)
    count = out.size // width
    stated = sizes.size + sum(stored_sizes) + out.size % width
    if len(data) != stated:
        raise CorruptError(f"a chunk of byte planes is {len(data)} bytes long; its header says {stated}.")
    ends = list(itertools.accumulate(stored_sizes, initial=sizes.size))
    words = out[: count * width].view(f"<u{width}")
    for index in reversed(range(width)):
        stored = data[ends[index] : ends[index + 1]]
        plain = stored if len(stored) == count else _decompress(stored, count)
        _merge(np.frombuffer(plain, np.uint8), index, words)
    _copy_exactly(data[ends[-1] :], out[count * width :], "the end of a chunk of byte planes")


def _merge(plane: Bytes, index: int, words: npt.NDArray[np.unsignedinteger]) -> None:
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


def _copy_exactly(data: memoryview, out: Bytes, what: str) -> None:
    if len(data) != out.size:
        raise CorruptError(f"{what} has {len(data)} bytes where {out.size} belong.")
    np.copyto(out, np.frombuffer(data, np.uint8))


def _decompress(frame: memoryview, size: int) -> bytes:
    """Decode one zstd frame of exactly ``size`` bytes."""
    return inflate(frame, "a compressed chunk", most=size, exactly=size)
