"""Log records: small, immutable JSON with a strict schema, chained by digest.

A record file is ``{"digest":"<64 hex>","record":{...}}``: the digest is the BLAKE3 of the exact bytes
of the inner object, so a flipped bit in the newest record, which no other record names yet, is
caught too. ``prev`` carries the digest of the record before, which chains the log.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, Literal

import blake3
import msgspec

from limpet.errors import CorruptError, FormatError, UntrustedError
from limpet.format.layout import parse_pack_key
from limpet.format.seal import is_sealed

__all__ = [
    "FORMAT_VERSION",
    "INLINE_BYTES_MAX",
    "MANIFEST_BYTES_MAX",
    "META_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "Commit",
    "ManifestAt",
    "PackUse",
    "Prev",
    "Record",
    "Writer",
    "decode_record",
    "encode_record",
    "from_ranges",
    "intact_digest",
    "record_bytes",
    "to_ranges",
]

FORMAT_VERSION = 1
RECORD_BYTES_MAX = 1 << 20
MANIFEST_BYTES_MAX = 64 << 20
"""Of a manifest, before compression; nor may it take more in a pack."""
META_BYTES_MAX = 64 << 10
INLINE_BYTES_MAX = 4 << 10
PACKS_MAX = 256
_SEQS_MAX = 1_000_000
_HEAD = b'{"digest":"'
_MIDDLE = b'","record":'
_INNER_START = len(_HEAD) + 64 + len(_MIDDLE)
_BYTES_MAX = 2**63 - 1
"""Offsets and sums beyond this are no offsets: stores, and file systems, count in 64 bits."""
_HEX64 = re.compile(r"[0-9a-f]{64}")


class Prev(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record before: its seq and the digest that it carries."""

    seq: int
    digest: str


class Writer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who wrote a record, for people."""

    host: str = ""
    pid: int = 0
    library: str = ""


class PackUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A pack that a checkpoint needs, with its size in bytes."""

    key: str
    size: int


class ManifestAt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a manifest is: in a pack, or in this record's ``body`` if ``key`` is empty."""

    key: str
    offset: int
    size: int
    digest: str


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a commit record adds: one checkpoint."""

    manifest: ManifestAt
    packs: list[PackUse]
    raw_bytes: int
    stored_bytes: int
    new_bytes: int
    step: int | None = None
    meta: dict[str, Any] = {}
    body: str = ""

    def body_bytes(self) -> bytes:
        """The bytes of a tiny state that travels in the record."""
        try:
            return base64.b64decode(self.body, validate=True)
        except ValueError as error:
            raise CorruptError("a record's body is not base64.") from error


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of a run's log; see ``docs/spec.md`` for every field."""

    version: int
    run: str
    seq: int
    epoch: int
    kind: Literal["open", "commit", "edit", "close"]
    nonce: str
    owner: str
    time: float
    writer: Writer
    retain: Any
    prev: Prev | None = None
    live: list[tuple[int, int]] = []
    pinned: list[tuple[int, int]] = []
    quarantined: list[int] = []
    commit: Commit | None = None
    note: dict[str, Any] = {}


class _Version(msgspec.Struct):
    version: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
_version_decoder = msgspec.json.Decoder(_Version)


def encode_record(record: Record) -> tuple[bytes, str]:
    """The file's bytes and the record's digest (64 hex digits)."""
    inner = _encoder.encode(record)
    digest = blake3.blake3(inner).hexdigest()
    return b"".join((_HEAD, digest.encode(), _MIDDLE, inner, b"}")), digest


def intact_digest(data: bytes) -> str | None:
    """The digest that a record file carries, if it is that of its bytes."""
    framed = data.startswith(_HEAD) and data[:_INNER_START].endswith(_MIDDLE) and data.endswith(b"}")
    digest = data[len(_HEAD) : len(_HEAD) + 64].decode("ascii", "replace")
    return digest if framed and blake3.blake3(data[_INNER_START:-1]).hexdigest() == digest else None


def record_bytes(data: bytes) -> bytes:
    """The inner object of an intact record file."""
    return data[_INNER_START:-1]


def decode_record(data: bytes, seq: int) -> tuple[Record, str]:
    """The record and its digest, checked in full.

    Args:
        data: the file's bytes.
        seq: the number under which it was found.

    Raises:
        CorruptError: a digest, the schema or the record's own number does not fit.
        FormatError: a newer version of the format.
        UntrustedError: it is sealed, and was read without a key.
    """
    where = f"log record {seq}"
    if len(data) > RECORD_BYTES_MAX:
        raise CorruptError(f"{where} has {len(data)} bytes; at most {RECORD_BYTES_MAX} are allowed.")
    if is_sealed(data):
        raise UntrustedError(f"{where} is signed.", hint="Give the key of this run: key=...", kind="key_needed")
    digest = intact_digest(data)
    if digest is None:
        raise CorruptError(f"{where} is damaged: its digest does not match its bytes.")
    inner = record_bytes(data)
    try:
        version = _version_decoder.decode(inner).version
        if version < 1:
            raise CorruptError(f"{where} has format version {version}, which never was.")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{where} has format version {version}; this limpet reads up to {FORMAT_VERSION}.",
                hint="Install a newer limpet to read this run.",
            )
        record = _decoder.decode(inner)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"{where} does not follow the schema: {error}.") from error
    _check(record, seq, where)
    return record, digest


def _check(record: Record, seq: int, where: str) -> None:
    problem = ""
    if record.seq != seq:
        problem = f"it calls itself {record.seq}"
    elif not 1 <= record.epoch <= seq or (record.kind == "open") != (record.epoch == seq):
        problem = f"epoch {record.epoch} does not fit"
    elif (record.prev is None) != (seq == 1) or (record.prev and record.prev.seq != seq - 1):
        problem = "its link to the record before does not fit"
    elif record.prev and record.prev.digest and _HEX64.fullmatch(record.prev.digest) is None:
        problem = "the digest of the record before is not one"
    elif not all(1 <= damaged < seq for damaged in record.quarantined):
        problem = "it quarantines what does not come before it"
    elif (record.commit is None) != (record.kind != "commit"):
        problem = f"a record of kind {record.kind!r} with{'out' if record.commit is None else ''} a commit"
    elif record.commit is not None:
        problem = _commit_problem(record.commit)
    if problem:
        raise CorruptError(f"{where} contradicts itself: {problem}.")
    for ranges in (record.live, record.pinned):
        _check_ranges(ranges, seq, where)


def _commit_problem(commit: Commit) -> str:
    at = commit.manifest
    sizes = {use.key: use.size for use in commit.packs}
    counted = (at.offset, at.size, commit.raw_bytes, commit.stored_bytes, commit.new_bytes, *sizes.values())
    if not all(0 <= size <= _BYTES_MAX for size in counted):
        return "an impossible size"
    if at.size > MANIFEST_BYTES_MAX:
        return f"a manifest of {at.size} bytes"
    if _HEX64.fullmatch(at.digest) is None:
        return "the manifest's digest is not one"
    if len(commit.packs) > PACKS_MAX:
        return f"{len(commit.packs)} packs"
    if len(sizes) != len(commit.packs) or any(parse_pack_key(key) is None for key in sizes):
        return "a pack's key is not one"
    if at.key and at.offset + at.size > sizes.get(at.key, -1):
        return "the manifest lies outside its pack"
    return ""


def _check_ranges(ranges: Sequence[tuple[int, int]], seq: int, where: str) -> None:
    last = 0
    count = 0
    for first, end in ranges:
        if not last < first <= end <= seq:
            raise CorruptError(f"{where} contradicts itself: its live or pinned ranges are not in order.")
        last = end
        count += end - first + 1
    if count > _SEQS_MAX:
        raise CorruptError(f"{where} names {count} checkpoints; at most {_SEQS_MAX} are allowed.")


def to_ranges(seqs: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending inclusive ranges that hold exactly ``seqs``."""
    ordered = sorted(set(seqs))
    if not ordered:
        return []
    starts = [0, *(at for at, (one, next_one) in enumerate(pairwise(ordered), 1) if next_one - one != 1)]
    ends = [*(start - 1 for start in starts[1:]), len(ordered) - 1]
    return [(ordered[start], ordered[end]) for start, end in zip(starts, ends, strict=True)]


def from_ranges(ranges: Iterable[tuple[int, int]]) -> set[int]:
    """The seqs that ``ranges`` hold."""
    return set(chain.from_iterable(range(first, last + 1) for first, last in ranges))


def meta_size(meta: Mapping[str, Any]) -> int:
    """Bytes that ``meta`` takes in a record.

    Raises:
        TypeError: it holds something that JSON cannot.
    """
    return len(_encoder.encode(meta))
