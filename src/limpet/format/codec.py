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
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from limpet.errors import CorruptError, FormatError, UsageError
from limpet.format.frames import inflate

__all__ = ["RAW", "CodecChooser", "decode", "encode", "parse_compression"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

RAW = "raw"
_WIDTHS = {"planes2": 2, "planes4": 4, "planes8": 8}
_SIZES = {width: struct.Struct(f"<{width}I") for width in _WIDTHS.values()}
_LEVELS = range(1, 23)
_DEFAULT_LEVEL = 1

_CODEC_BY_DTYPE = {
    "bf16": "planes2",
    "f2": "planes2",
    "f4": "planes4",
    "f8": "planes8",
    "c8": "planes4",
    "c16": "planes8",
}
_WORTH_CODING_BYTES = 64
_REST_FIRST = 8
_REST_MAX = 512
_PROBE_EVERY = 64
_FADE = 0.95
"""What an observation still counts after the next one: about the last 20 chunks, 80 MiB, decide."""


class _Coders(threading.local):
    """One set of zstd contexts a thread: they must not be used by two threads at once."""

    def __init__(self) -> None:
        # Matches in an exponent plane are chance and cost more than they save; with tables this small
        # zstd does little but entropy coding: twice as fast as level 1, and smaller.
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_DFAST, window_log=17, chain_log=6, hash_log=6, min_match=7, search_log=1
        )
        self.entropy = zstandard.ZstdCompressor(compression_params=parameters)
        self._levels: dict[int, zstandard.ZstdCompressor] = {}

    def at_level(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._levels:
            self._levels[level] = zstandard.ZstdCompressor(level=level)
        return self._levels[level]


_coders = _Coders()


def encode(raw: Bytes, *, codec: str, level: int = _DEFAULT_LEVEL) -> tuple[str, bytes | memoryview]:
    """Encode one chunk; what comes back is never larger than ``raw``. May be called from any thread.

    Args:
        raw: the chunk's bytes, one-dimensional and contiguous; only read.
        codec: what to try.
        level: of zstd, 1 to 22. Above 1, planes that shrink at all are tried with it too.

    Returns:
        The codec that was used and the bytes to store: ``"raw"`` and a view of ``raw``'s own memory
        when the codec saved less than 2 %.

    Raises:
        FormatError: there is no such codec.
    """
    if codec not in _WIDTHS and codec not in (RAW, "zstd"):
        raise _unknown(codec)
    stored: bytes | memoryview = raw.data
    if codec in _WIDTHS:
        stored = _encode_planes(raw, _WIDTHS[codec], level)
    elif codec == "zstd" and raw.size:
        stored = _coders.at_level(level).compress(raw.data)
    if _pays(raw.size, len(stored)):
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
    elif codec in _WIDTHS:
        _decode_planes(data, _WIDTHS[codec], out)
    else:
        raise _unknown(codec)


def _pays(raw_bytes: int, stored_bytes: int) -> bool:
    """Whether coding saved at least 2 %: less is not worth the time it takes to decode."""
    return stored_bytes * 100 <= raw_bytes * 98 and stored_bytes < raw_bytes


def _unknown(codec: str) -> FormatError:
    return FormatError(
        f"a chunk names the codec {codec!r}, which this version of limpet does not know.",
        hint="Read it with a newer version.",
    )


def _encode_planes(raw: Bytes, width: int, level: int) -> memoryview:
    count = raw.size // width
    if count == 0:
        return raw.data
    sizes = _SIZES[width]
    out = np.empty(sizes.size + raw.size, np.uint8)
    planes = out[sizes.size : sizes.size + count * width].reshape(width, count)
    words = raw[: count * width].view(f"<u{width}")
    for index, plane in enumerate(planes):
        # One native call a plane; numpy works through it in blocks that fit the cache (its ufunc buffers).
        np.right_shift(words, words.dtype.type(8 * index), out=plane, casting="unsafe")
    frames = _compress_planes(planes, level)
    position = place = sizes.size
    for plane, frame in zip(planes, frames, strict=True):
        # A raw plane already lies in its place until one before it shrank; then it moves down.
        kept = plane if frame is None else frame
        if frame is not None or position != place:
            out[position : position + kept.size] = kept
        position += kept.size
        place += count
    sizes.pack_into(out.data, 0, *(count if frame is None else frame.size for frame in frames))
    end = position + raw.size % width
    out[position:end] = raw[count * width :]
    # A view would keep the whole allocation alive while it waits for its upload.
    return out[:end].data if end * 2 > out.size else out[:end].copy().data


def _compress_planes(planes: npt.NDArray[np.uint8], level: int) -> list[Bytes | None]:
    """A zstd frame for each plane that is worth one, else ``None``."""
    # One native call for all planes: beside a busy interpreter each call more may wait 5 ms for the lock.
    segments = _coders.entropy.multi_compress_to_buffer([plane.data for plane in planes])
    frames: list[Bytes | None] = []
    for index, plane in enumerate(planes):
        frame = np.frombuffer(segments[index], np.uint8)  # type: ignore[call-overload]  # a buffer, says zstandard's C
        if not _pays(plane.size, frame.size):
            frames.append(None)
            continue
        if level > _DEFAULT_LEVEL:
            better = np.frombuffer(_coders.at_level(level).compress(plane.data), np.uint8)
            frame = min(frame, better, key=len)
        frames.append(frame)
    return frames


def _decode_planes(data: memoryview, width: int, out: Bytes) -> None:
    sizes = _SIZES[width]
    if len(data) < sizes.size:
        raise CorruptError(f"a chunk of byte planes is {len(data)} bytes long, shorter than its header.")
    stored_sizes = sizes.unpack_from(data)
    count = out.size // width
    stated = sizes.size + sum(stored_sizes) + out.size % width
    if len(data) != stated:
        raise CorruptError(f"a chunk of byte planes is {len(data)} bytes long; its header says {stated}.")
    position = sizes.size
    for index, size in enumerate(stored_sizes):
        plane = data[position : position + size]
        plain = plane if size == count else _decompress(plane, count)
        np.copyto(out[index : count * width : width], np.frombuffer(plain, np.uint8))
        position += size
    _copy_exactly(data[position:], out[count * width :], "the end of a chunk of byte planes")


def _copy_exactly(data: memoryview, out: Bytes, what: str) -> None:
    if len(data) != out.size:
        raise CorruptError(f"{what} has {len(data)} bytes where {out.size} belong.")
    np.copyto(out, np.frombuffer(data, np.uint8))


def _decompress(frame: memoryview, size: int) -> bytes:
    """Decode one zstd frame of exactly ``size`` bytes."""
    return inflate(frame, "a compressed chunk", most=size, exactly=size)


def parse_compression(compression: object) -> tuple[str, int]:
    """The mode (``"auto"``, ``"off"`` or ``"zstd"``) and the zstd level that a ``compression=`` setting means.

    Raises:
        UsageError: the setting is none of ``"auto"``, ``"off"``, ``"zstd"`` and ``"zstd:LEVEL"``.
    """
    mode, colon, level = compression.partition(":") if isinstance(compression, str) else ("", "", "")
    if mode in ("auto", "off", "zstd") and not colon:
        return mode, _DEFAULT_LEVEL
    if mode == "zstd" and level in map(str, _LEVELS):
        return mode, int(level)
    raise UsageError(
        f"compression={compression!r} is not a setting.",
        hint='Use "auto", "off", "zstd" or "zstd:LEVEL" with a level of 1 to 22.',
    )


@dataclass(slots=True)
class _Rate:
    """Seconds and stored bytes for each raw byte, over the recent past: old observations fade."""

    raw_bytes: float = 0.0
    stored_bytes: float = 0.0
    seconds: float = 0.0

    def add(self, raw_bytes: int, stored_bytes: int, seconds: float) -> None:
        self.raw_bytes = self.raw_bytes * _FADE + raw_bytes
        self.stored_bytes = self.stored_bytes * _FADE + stored_bytes
        self.seconds = self.seconds * _FADE + seconds


@dataclass(slots=True)
class _Rest:
    """How often a chunk that did not shrink is stored raw before its codec is tried again."""

    length: int = 0
    left: int = 0

    def begin(self) -> None:
        self.length = min(self.length * 2, _REST_MAX) if self.length else _REST_FIRST
        self.left = self.length


class CodecChooser:
    """Decides which codec to try on a chunk, from what earlier chunks taught.

    - Floats are split into byte planes; everything else is plain zstd.
    - A chunk that saved less than 2 % is stored raw the next 8 times, then 16, 32 ... up to 512.
    - With ``"auto"``, coding stops while the store is faster than the codec, that is while::

          raw_bytes / store_rate  <  encode_seconds + stored_bytes / store_rate

      with the store's rate and the codec's speed and ratio as measured, recent bytes counting most.
      One chunk in 64 is encoded all the same, so that the measure of the codec follows the machine.

    Not thread-safe: one thread asks it and tells it; ``encode`` itself may run anywhere.

    Args:
        compression: ``"auto"``; ``"off"``; ``"zstd"`` or ``"zstd:LEVEL"``: compress whatever shrinks,
            however fast the store is.

    Attributes:
        level: the zstd level to hand to ``encode``.

    Raises:
        UsageError: ``compression`` is something else.
    """

    def __init__(self, compression: str = "auto") -> None:
        self._mode, self.level = parse_compression(compression)
        self._rests: dict[int | str, _Rest] = {}
        self._codecs: dict[str, _Rate] = {}
        self._store = _Rate()
        self._declined = 0

    def choose(self, dtype_hint: str, nbytes: int, key: int | str) -> str:
        """The codec to try on a chunk.

        Args:
            dtype_hint: what its values are, as ``"f4"``, ``"bf16"``, ``">i8"``, or ``""``.
            nbytes: its raw size.
            key: names the chunk's place in the state, the same from one save to the next.
        """
        if self._mode == "off" or nbytes < _WORTH_CODING_BYTES:
            return RAW
        rest = self._rests.get(key)
        if rest is not None and rest.left:
            rest.left -= 1
            return RAW
        codec = _CODEC_BY_DTYPE.get(dtype_hint.lstrip("<>=|"), "zstd")
        if self._mode == "auto" and self._store_outruns(codec):
            self._declined += 1
            if self._declined % _PROBE_EVERY:
                return RAW
        return codec

    def learn(self, key: int | str, tried: str, raw_bytes: int, stored_bytes: int, seconds: float) -> None:
        """Take in what ``encode`` made of a chunk.

        Args:
            key: as given to ``choose``.
            tried: what ``choose`` returned.
            raw_bytes: the chunk's raw size.
            stored_bytes: the size of what ``encode`` returned.
            seconds: how long ``encode`` took.
        """
        if tried == RAW:
            return
        self._codecs.setdefault(tried, _Rate()).add(raw_bytes, stored_bytes, seconds)
        if _pays(raw_bytes, stored_bytes):
            self._rests.pop(key, None)
        else:
            self._rests.setdefault(key, _Rest()).begin()

    def observe_store(self, nbytes: int, seconds: float) -> None:
        """Take in that the store took ``nbytes`` in ``seconds``."""
        self._store.add(nbytes, nbytes, seconds)

    def _store_outruns(self, codec: str) -> bool:
        """Whether storing a chunk raw is faster than encoding it and storing the rest; see the class."""
        rate = self._codecs.get(codec)
        if rate is None or not self._store.raw_bytes:
            return False
        seconds_per_byte = self._store.seconds / self._store.raw_bytes
        return rate.raw_bytes * seconds_per_byte < rate.seconds + rate.stored_bytes * seconds_per_byte
