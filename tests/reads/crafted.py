"""Checkpoints as an adversary would write them: every digest fits, and what they say is a lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blake3
import msgspec
import zstandard
from tests.faulty import Shelf

from limpet.format.layout import log_key
from limpet.format.manifest import Manifest, decode_manifest
from limpet.format.record import Commit, PackUse, Prev, Record, decode_record, encode_record

Change = Callable[[dict[str, Any]], None]


def read_commit(shelf: Shelf, seq: int) -> tuple[Record, Commit, Manifest]:
    """A commit record, its commit and its manifest."""
    record, _ = decode_record(shelf.objects[log_key(seq)], seq)
    commit = record.commit
    assert commit is not None
    assert commit.manifest.key
    at = commit.manifest
    stored = shelf.objects[at.key][at.offset : at.offset + at.size]
    return record, commit, decode_manifest(stored, at.digest)


def craft(shelf: Shelf, seq: int, change: Change, change_commit: Change = lambda _: None) -> None:
    """Rewrite the manifest of checkpoint ``seq``, and its record so that it fits.

    Args:
        shelf: where it lies.
        seq: of a checkpoint with a pack.
        change: changes the manifest's fields.
        change_commit: changes the commit's fields afterwards.
    """
    record, commit, manifest = read_commit(shelf, seq)
    fields = msgspec.to_builtins(manifest)
    change(fields)
    craft_bytes(shelf, record, commit, zstandard.compress(msgspec.json.encode(fields)), change_commit)


def craft_bytes(
    shelf: Shelf, record: Record, commit: Commit, stored: bytes, change_commit: Change = lambda _: None
) -> None:
    """Put ``stored`` in the place of a manifest, and rewrite the record so that it fits."""
    at = commit.manifest
    pack = shelf.objects[at.key][: at.offset] + stored
    shelf.replace(at.key, pack)
    packs = [PackUse(use.key, len(pack) if use.key == at.key else use.size) for use in commit.packs]
    digest = blake3.blake3(stored).hexdigest()
    commit = msgspec.structs.replace(
        commit, packs=packs, manifest=msgspec.structs.replace(at, size=len(stored), digest=digest)
    )
    fields = msgspec.to_builtins(commit)
    change_commit(fields)
    craft_record(shelf, record, commit=msgspec.convert(fields, Commit))


def craft_record(shelf: Shelf, record: Record, **changes: Any) -> None:
    """Put a changed record in its place, with a digest that fits, and make those after it extend it."""
    changed = msgspec.structs.replace(record, **changes)
    data, digest = encode_record(changed)
    shelf.replace(log_key(record.seq), data)
    if log_key(record.seq + 1) in shelf.objects and changed.version == record.version:
        after, _ = decode_record(shelf.objects[log_key(record.seq + 1)], record.seq + 1)
        craft_record(shelf, after, prev=Prev(record.seq, digest))
