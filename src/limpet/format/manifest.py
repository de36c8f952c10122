"""Manifests: what a checkpoint is made of.

A manifest is zstd-compressed JSON at the end of a save's last pack. It holds the state's tree, the place
of every buffer in the sequence of chunks, and the place of every chunk in the packs. All sizes are
checked against each other here, before anyone allocates a byte because of them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

import blake3
import msgspec
import zstandard

from limpet.errors import CorruptError, FormatError, UsageError
from limpet.format.codec import PLANES, RAW
from limpet.format.deltas import DELTAS, DEPTH_MAX
from limpet.format.frames import inflate
from limpet.format.record import FORMAT_VERSION, MANIFEST_BYTES_MAX

__all__ = [
    "CHUNK_BYTES_MAX",
    "MANIFEST_BYTES_MAX",
    "BufferAt",
    "ChunkAt",
    "Manifest",
    "bases_max",
    "decode_manifest",
    "depth",
    "encode_manifest",
    "version_for",
]

CHUNK_BYTES_MAX = 64 << 20
_VERSION_MAX = 2
"""Of what this reads. Version 2 has deltas, and what has none is written as version 1."""
_FULL_CODECS = {RAW, "zstd", *PLANES}
_BUFFERS_MAX = 10_000_000
_LEVEL = 3
_BASE_BYTES = 200
"""Of one entry of ``bases``, and its pair in ``deltas``, as JSON."""
_BASES_SHARE = 4
_HEX64 = re.compile(r"[0-9a-f]{64}")


class ChunkAt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One chunk.

    Attributes:
        id: BLAKE3 of its raw bytes, 64 hex digits.
        raw_bytes: its size in memory.
        codec: what encoded it.
        pack: index into the manifest's packs.
        offset: in that pack.
        stored_bytes: its size there.
        stored_digest: BLAKE3 of the stored bytes; empty where they are the raw bytes.
    """

    id: str
    raw_bytes: int
    codec: str
    pack: int
    offset: int
    stored_bytes: int
    stored_digest: str = ""


class BufferAt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One buffer: ``nbytes`` bytes from ``offset`` in chunk ``chunk``, on through the chunks after it."""

    chunk: int
    offset: int
    nbytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that is needed to read one checkpoint.

    Attributes:
        version: of the format: what ``version_for`` says.
        run: id of the run.
        save: ``epoch/number`` of the save that wrote it, for people.
        tree: the state's structure.
        buffers: where each of the tree's buffers is.
        chunks: where each chunk is.
        packs: keys of the packs; the empty string is the body of the commit record.
        bases: where chunks are that are not the state's, and needed for those that are.
        deltas: what is stored as a difference, and from what: pairs of ``(chunk, base)``, ascending. Both are counted over
            ``chunks`` and, on from there, ``bases``; each base is one of ``bases``, and comes after its chunk.
    """

    version: int
    run: str
    save: str
    tree: Any
    buffers: list[BufferAt]
    chunks: list[ChunkAt]
    packs: list[str]
    bases: list[ChunkAt] = []
    deltas: list[tuple[int, int]] = []


class _Coders(threading.local):
    """zstd's contexts are costly to make and not thread-safe: one a thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)


_coders = _Coders()


class _Version(msgspec.Struct):
    version: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Manifest)
_version_decoder = msgspec.json.Decoder(_Version)


def encode_manifest(manifest: Manifest) -> tuple[bytes, str]:
    """The stored bytes and their BLAKE3 (64 hex digits).

    Raises:
        UsageError: it is larger than a reader would accept.
    """
    plain = _encoder.encode(manifest)
    if len(plain) > MANIFEST_BYTES_MAX:
        raise UsageError(
            f"the state's structure takes {len(plain)} bytes; at most {MANIFEST_BYTES_MAX} are allowed.",
            hint="Keep many small values in few arrays, strings or bytes.",
            kind="too_many_leaves",
        )
    stored = _coders.compressor.compress(plain)
    return stored, blake3.blake3(stored).hexdigest()


def decode_manifest(stored: bytes | memoryview, digest: str) -> Manifest:
    """The manifest, with every index and size checked.

    Raises:
        CorruptError: the bytes are not those that were committed, or contradict themselves.
        FormatError: a newer version of the format.
    """
    if blake3.blake3(stored).hexdigest() != digest:
        raise CorruptError("the manifest is damaged: its digest does not match its bytes.")
    plain = inflate(stored, "the manifest", most=MANIFEST_BYTES_MAX)
    try:
        version = _version_decoder.decode(plain).version
        if version < 1:
            raise CorruptError(f"the manifest has format version {version}, which never was.")
        if version > _VERSION_MAX:
            raise FormatError(
                f"the manifest has format version {version}; this limpet reads up to {_VERSION_MAX}.",
                hint="Install a newer limpet to read this run.",
            )
        manifest = _decoder.decode(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"the manifest does not follow the schema: {error}.") from error
    _check_chunks(manifest.chunks, len(manifest.packs), "chunk")
    _check_chunks(manifest.bases, len(manifest.packs), "base")
    _check_deltas(manifest)
    _check_buffers(manifest)
    return manifest


def bases_max() -> int:
    """So many bases take a quarter of the largest manifest: beside them the state's own chunks and its tree have room."""
    return MANIFEST_BYTES_MAX // _BASES_SHARE // _BASE_BYTES


def version_for(deltas: Iterable[tuple[int, int]]) -> int:
    """The version that a manifest with these deltas has."""
    return _VERSION_MAX if any(True for _ in deltas) else FORMAT_VERSION


def depth(manifest: Manifest) -> list[int]:
    """For each of the chunks how many deltas lead to it from what is stored in full: 0 is a chunk that is so itself."""
    return _depths(manifest)[: len(manifest.chunks)]


def _depths(manifest: Manifest) -> list[int]:
    """The same for chunks and bases; a base comes after what is stored as a difference from it."""
    depths = [0] * (len(manifest.chunks) + len(manifest.bases))
    for chunk, base in reversed(manifest.deltas):
        depths[chunk] = depths[base] + 1
    return depths


def _check_deltas(manifest: Manifest) -> None:
    """Each difference must be from a base of its size that comes after it, so that no chain of them has a circle."""
    if manifest.version != version_for(manifest.deltas):
        raise _contradiction(f"it has version {manifest.version} and {len(manifest.deltas)} deltas")
    chunks, full = [*manifest.chunks, *manifest.bases], len(manifest.chunks)
    last = -1
    for chunk, base in manifest.deltas:
        fits = last < chunk < base < len(chunks) and base >= full
        if not fits or chunks[chunk].raw_bytes != chunks[base].raw_bytes or chunks[chunk].codec in _FULL_CODECS:
            raise _contradiction(f"chunk {chunk} cannot be a delta of {base}")
        last = chunk
    based = {chunk for chunk, _ in manifest.deltas}
    for index, chunk_at in enumerate(chunks):
        if chunk_at.codec in DELTAS and index not in based:
            raise _contradiction(f"chunk {index} is a delta of nothing")
    if {base for _, base in manifest.deltas} != set(range(full, len(chunks))):
        raise _contradiction("it has bases that nothing needs")
    if len({(base.pack, base.offset) for base in manifest.bases}) < len(manifest.bases):
        raise _contradiction("two of its bases are at one place")
    deepest = max(_depths(manifest), default=0)
    if deepest > DEPTH_MAX:
        raise _contradiction(f"a chunk is {deepest} deltas deep; at most {DEPTH_MAX} are allowed")


def _contradiction(what: str) -> CorruptError:
    return CorruptError(f"the manifest contradicts itself: {what}.")


def _check_chunks(chunks: Iterable[ChunkAt], packs: int, what: str) -> None:
    for index, chunk in enumerate(chunks):
        fits = (
            0 < chunk.raw_bytes <= CHUNK_BYTES_MAX
            and 0 < chunk.stored_bytes <= chunk.raw_bytes
            and chunk.offset >= 0
            and 0 <= chunk.pack < packs
            and _HEX64.fullmatch(chunk.id) is not None
        )
        if chunk.codec == RAW:
            fits = fits and chunk.stored_bytes == chunk.raw_bytes and not chunk.stored_digest
        else:
            fits = fits and _HEX64.fullmatch(chunk.stored_digest) is not None
        if not fits:
            raise _contradiction(f"{what} {index} is impossible")


def _check_buffers(manifest: Manifest) -> None:
    """Each buffer must lie within the chunks, which it may only cross at their ends."""
    if len(manifest.buffers) > _BUFFERS_MAX:
        raise CorruptError(f"the manifest names {len(manifest.buffers)} buffers; at most {_BUFFERS_MAX} are allowed.")
    ends = [0]
    for chunk in manifest.chunks:
        ends.append(ends[-1] + chunk.raw_bytes)
    for index, buffer in enumerate(manifest.buffers):
        inside = (
            min(buffer.chunk, buffer.offset, buffer.nbytes) >= 0
            and (buffer.chunk < len(manifest.chunks) or buffer.nbytes == 0)
            and (buffer.nbytes == 0 or buffer.offset < manifest.chunks[buffer.chunk].raw_bytes)
            and (buffer.nbytes == 0 or ends[buffer.chunk] + buffer.offset + buffer.nbytes <= ends[-1])
        )
        if not inside:
            raise _contradiction(f"buffer {index} lies outside the chunks")
    last = 0
    for start, nbytes in sorted((ends[at.chunk] + at.offset, at.nbytes) for at in manifest.buffers if at.nbytes):
        if start < last:
            raise _contradiction("its buffers overlap")
        last = start + nbytes
