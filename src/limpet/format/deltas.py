"""Chunks that are stored as their difference from another chunk of the same size, their base.

A ``deltaW`` chunk, W = 2, 4 or 8, is coded as ``planesW`` codes one, but not from its own words. From these, modulo
``2**(8 * W)``::

    word - base_word + 0x80...80

What changed little is a small number either way. 128 in every byte keeps it from borrowing: -1 differs from 0 in the
lowest byte alone, as 1 does, and the planes above are constant. The bytes after the last whole word are the chunk's own.

Any bytes come back exactly, for these are integers. Against a zigzag (``d << 1 ^ d >> bits - 1``), which was as small
to within 1 %, it takes half the time to go either way.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from limpet.errors import FormatError
from limpet.format.planes import (
    DEFAULT_LEVEL,
    Bytes,
    Words,
    decode_planes,
    encode_planes,
    pays,
    promising,
    sample,
    words_of,
)

__all__ = ["DELTAS", "DEPTH_MAX", "Scratch", "decode_delta", "encode_delta"]

DELTAS = {"delta2": 2, "delta4": 4, "delta8": 8}
"""The codecs of differences, and the bytes of a word of theirs."""
DEPTH_MAX = 8
"""So many deltas may stand between a chunk and what is stored in full."""
_SCRATCH_BYTES_MAX = 8 << 20


class Scratch(threading.local):
    """Memory for one chunk at a time and thread, kept from one to the next: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """So many bytes, until the same thread takes some again."""
        if nbytes > _SCRATCH_BYTES_MAX:
            return np.empty(nbytes, np.uint8)
        if self._memory.size < nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        return self._memory[:nbytes]


_scratch = Scratch()


def encode_delta(
    raw: Bytes, base: Bytes, *, width: int, level: int = DEFAULT_LEVEL, out: Bytes | None = None
) -> memoryview | None:
    """Encode one chunk as its difference from another. May be called from any thread.

    Args:
        raw: the chunk's bytes, one-dimensional and contiguous; only read.
        base: those of its base, as many; only read.
        width: bytes of a word: 2, 4 or 8.
        level: of zstd, as in ``codec.encode``.
        out: ``codec.bound(raw.size)`` bytes that may be written to, and that the result lies in; new ones by default.

    Returns:
        The bytes to store with the codec ``f"delta{width}"``; ``None`` where they would save less than 2 %.
    """
    words, base_words = words_of(raw, width), words_of(base, width)
    sampled, base_sampled = sample(words, level), sample(base_words, level)
    if sampled is None or base_sampled is None:
        tried = [words.size > 0] * width
    else:
        tried = promising(_subtract(sampled, base_sampled, out=sampled))
    if not any(tried):
        return None
    # Two native calls, for all that it is one pass over memory more: beside a busy interpreter each call may wait 5 ms.
    differences = _subtract(words, base_words, out=_scratch.take(words.nbytes).view(words.dtype))
    stored = encode_planes(differences, raw[words.nbytes :], tried, level, out)
    return stored if pays(raw.size, len(stored)) else None


def decode_delta(codec: str, stored: bytes | bytearray | memoryview, base: Bytes, out: Bytes) -> None:
    """Fill ``out`` with the chunk that ``encode_delta`` was given. May be called from any thread.

    Args:
        codec: one of ``DELTAS``.
        stored: the bytes that ``encode_delta`` returned.
        base: the base's bytes; only read.
        out: one-dimensional, of the base's size, in other memory; undefined after an error.

    Raises:
        CorruptError: ``stored`` does not decode to exactly ``out.size`` bytes.
        FormatError: there is no such codec.
    """
    if codec not in DELTAS:
        raise FormatError(
            f"a chunk with a base names the codec {codec!r}, which this version of limpet does not know.",
            hint="Read it with a newer version.",
        )
    width = DELTAS[codec]
    decode_planes(memoryview(stored), width, out)
    words = words_of(out, width)
    np.add(words, words_of(base, width), out=words)
    np.subtract(words, _bias(words), out=words)


def _subtract(words: Words, base_words: Words, out: Words) -> Words:
    np.subtract(words, base_words, out=out)
    return np.add(out, _bias(out), out=out)


def _bias(words: Words) -> np.unsignedinteger:
    width = words.dtype.itemsize
    bias: np.unsignedinteger = words.dtype.type(int.from_bytes(b"\x80" * width, "little"))
    return bias
