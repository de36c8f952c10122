"""What reads each kind of input, as the engine does: only errors of limpet's may come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import blake3
import msgspec
import numpy as np
import zstandard

from limpet import LimpetError
from limpet.engine.live import info_of
from limpet.format import retention
from limpet.format.assemble import prepare
from limpet.format.codec import decode
from limpet.format.filetree import FileTree, decode_file_tree
from limpet.format.manifest import decode_manifest
from limpet.format.marker import decode_marker
from limpet.format.record import Record, decode_record, from_ranges
from limpet.format.registry import Registry
from limpet.format.rows import describe_leaves, files_payload

msgspec.json.Decoder(FileTree)  # its schema is compiled on first use: now, not while somebody watches what runs
MEMORY_BYTES = 16 << 20
"""What a tree may ask for in these tests."""
USAGE = {"unknown_class", "not_imported", "pickle", "memory", "usage", "mismatch", "corrupt", "format", "truncated"}


class TooMuchError(LimpetError):
    """A tree asks for more memory than there is."""

    default_kind = "memory"


def expect(error: LimpetError) -> None:
    """It is of a kind that reading may raise."""
    assert error.kind in USAGE, error


def read_record(inner: bytes, seq: int) -> Record | None:
    """Give an inner object the right digest, and use all of it as reading and opening do."""
    digest = blake3.blake3(inner).hexdigest()
    try:
        record, _ = decode_record(b'{"digest":"%s","record":%s}' % (digest.encode(), inner), seq)
        from_ranges(record.live)
        from_ranges(record.pinned)
        retention.from_json(record.retain)
        if record.commit is not None:
            info_of(record)
            record.commit.body_bytes()
    except LimpetError as error:
        expect(error)
        return None
    return record


def read_manifest(plain: bytes, bytes_of: Sequence[bytes] = ()) -> bool:
    """Compress a manifest, give it the right digest, and use all of it; whether it was taken."""
    stored = zstandard.compress(plain, 1)
    try:
        manifest = decode_manifest(stored, blake3.blake3(stored).hexdigest())
    except LimpetError as error:
        expect(error)
        return False
    return read_tree(manifest.tree, [at.nbytes for at in manifest.buffers], bytes_of)


def read_tree(tree: Any, sizes: Sequence[int], bytes_of: Sequence[bytes] = ()) -> bool:
    """Describe a tree, build its state over the given bytes (default: ones); whether it was taken."""
    for use in (lambda: describe_leaves(tree, sizes), lambda: files_payload(tree, list(sizes))):
        try:
            use()
        except LimpetError as error:
            expect(error)
    try:
        assembly = prepare(tree, sizes, registry=Registry(), reserve=_reserve, files=lambda _: None)  # type: ignore[arg-type,return-value]
        for index, memory in assembly.destinations.items():
            assert memory.nbytes == sizes[index]
            known = index < len(bytes_of) and len(bytes_of[index]) == memory.nbytes
            memory[:] = np.frombuffer(bytes_of[index], np.uint8) if known else 0xFF
        assembly.finish()
    except LimpetError as error:
        expect(error)
        return False
    return True


def _reserve(needed: int) -> None:
    if needed > MEMORY_BYTES:
        raise TooMuchError("too much")


def read_frame(codec: str, stored: bytes, raw_bytes: int) -> bool:
    """Decode a chunk; whether it was taken."""
    out = np.empty(raw_bytes, np.uint8)
    try:
        decode(codec, stored, out)
    except LimpetError as error:
        expect(error)
        return False
    return True


def read_marker(data: bytes) -> bool:
    """Read ``limpet.json``; whether it was taken."""
    try:
        decode_marker(data, "memory://")
    except LimpetError as error:
        expect(error)
        return False
    return True


def read_files(payload: Any, sizes: Sequence[int]) -> bool:
    """Read a tree of files; whether it was taken, in which case no name leads anywhere."""
    try:
        tree = decode_file_tree(payload, sizes)
    except LimpetError as error:
        expect(error)
        return False
    for entry in (*tree.dirs, *tree.files, *tree.links):
        name = entry.name if isinstance(entry.name, str) else entry.name.b.decode("latin-1")
        assert name not in ("", ".", "..")
        assert not set(name) & {"/", "\0"}
    return True


def as_json(value: Any) -> bytes | None:
    """JSON of a mutated value; ``None`` where JSON cannot carry it."""
    try:
        return msgspec.json.encode(value)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError, OverflowError):
        return None
