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

import numpy as np

from limpet.errors import FormatError
from limpet.format.frames import inflate
from limpet.format.planes import (
    DEFAULT_LEVEL,
    Bytes,
    bound,
    compressor,
    copy_exactly,
    decode_planes,
    encode_planes,
    pays,
    promising,
    sample,
    words_of,
)

__all__ = ["DEFAULT_LEVEL", "PLANES", "RAW", "bound", "decode", "encode", "pays"]

RAW = "raw"
PLANES = {"planes2": 2, "planes4": 4, "planes8": 8}
"""The codecs of byte planes, and the bytes of a word of theirs."""


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
        stored = compressor(level).compress(raw.data)
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
        copy_exactly(data, out, "a raw chunk")
    elif codec == "zstd":
        np.copyto(out, np.frombuffer(inflate(data, "a compressed chunk", most=out.size, exactly=out.size), np.uint8))
    elif codec in PLANES:
        decode_planes(data, PLANES[codec], out)
    else:
        raise _unknown(codec)


def _unknown(codec: str) -> FormatError:
    return FormatError(
        f"a chunk names the codec {codec!r}, which this version of limpet does not know.",
        hint="Read it with a newer version.",
    )


def _encode_planes(raw: Bytes, width: int, level: int, out: Bytes | None) -> memoryview:
    words = words_of(raw, width)
    sampled = sample(words, level)
    tried = [words.size > 0] * width if sampled is None else promising(sampled)
    return encode_planes(words, raw[words.nbytes :], tried, level, out) if any(tried) else raw.data
