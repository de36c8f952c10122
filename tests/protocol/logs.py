"""Logs for tests: opened, extended and tampered with by hand."""

from __future__ import annotations

import json
import secrets
from typing import Any

import msgspec
from tests.faulty import QUICK, Faulty, Shelf

from limpet.engine.log import Head, Log
from limpet.engine.timing import Timing
from limpet.format.layout import log_key
from limpet.format.record import Commit, ManifestAt, Record, decode_record, encode_record, from_ranges, to_ranges
from limpet.stores.base import Store

RETAIN = {"kind": "last", "n": 3}
RUN = "ab" * 16


async def opened(store: Store, timing: Timing = QUICK, owner: str = "test", run: str = RUN) -> Log:
    """Take the run over."""
    log, _ = await Log.open(
        store, timing, run=run, owner=owner, library="limpet test", retain=lambda _: RETAIN, note={}
    )
    return log


async def head_before(store: Store) -> Head:
    """Take the run over; what the writer before left."""
    _, head = await Log.open(
        store, QUICK, run=RUN, owner="test", library="limpet test", retain=lambda _: RETAIN, note={}
    )
    return head


def tiny_commit(step: int | None = None, **changes: Any) -> Commit:
    """What a commit of a state that travels in its record says."""
    commit = Commit(
        manifest=ManifestAt("", 0, 0, "0" * 64), packs=[], raw_bytes=0, stored_bytes=0, new_bytes=0, step=step
    )
    return msgspec.structs.replace(commit, **changes)


def committing(step: int | None = None) -> Any:
    """Makes a commit record of the record before."""

    def make(base: Record) -> Record:
        live = from_ranges(base.live) | {base.seq}
        return msgspec.structs.replace(base, kind="commit", commit=tiny_commit(step), live=to_ranges(live))

    return make


async def at(store: Store, seq: int) -> Record:
    """The record ``seq``."""
    return decode_record(await store.get(log_key(seq)), seq)[0]


async def foreign(store: Store, log: Log, **changes: Any) -> Record:
    """Put a record after the head of ``log`` that this log did not write."""
    record = msgspec.structs.replace(log._next(log.head), nonce=secrets.token_hex(16), **changes)
    await store.create(log_key(record.seq), encode_record(record)[0])
    return record


async def assert_legal(store: Faulty, shelf: Shelf) -> None:
    """Invariant 2 and 4: contiguous, chained, epochs never decrease, live sets change by their own record only."""
    seqs = [int(key[-21:-5]) for key in shelf.keys("log/")]
    assert seqs == list(range(1, len(seqs) + 1))
    assert log_key(len(seqs)) in shelf.objects
    before = None
    for seq in seqs:
        record = await at(store, seq)
        if before is not None:
            digest = json.loads(shelf.objects[log_key(seq - 1)])["digest"]
            assert record.prev is not None
            assert record.prev.digest == digest
            assert record.epoch >= before.epoch
            was, now = from_ranges(before.live), from_ranges(record.live)
            assert now - was <= ({seq} if record.kind == "commit" else set())
            if record.kind in ("open", "close"):
                assert now == was
        before = record
