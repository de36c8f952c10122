"""Every damage that a test does to a run, with what must come of it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.corruption.judging import OLDER, RAISED, SOUND, TOLD, Case
from tests.corruption.worlds import HEAD, NEWEST, Objects, World
from tests.corruption.worlds import OLDER as OLD

from limpet.format.layout import FORMAT_KEY, log_key
from limpet.format.manifest import decode_manifest
from limpet.format.record import decode_record

NONE: frozenset[str] = frozenset({SOUND})


def flipped(data: bytes, at: int, bit: int) -> bytes:
    """The bytes with one bit changed."""
    bent = bytearray(data)
    bent[at] ^= 1 << bit
    return bytes(bent)


def _of_record(name: str, seq: int, data: bytes | None) -> Case:
    """Damage to one record: of a checkpoint, of the head, or of one that nothing needs any more."""
    key = log_key(seq)
    if seq == NEWEST:
        return Case(name, {key: data}, frozenset({OLDER}), (f"checkpoint {seq}",))
    if seq == HEAD:
        # Without it the log ends one earlier; damaged, it may have been a checkpoint.
        return Case(name, {key: data}, frozenset({SOUND if data is None else TOLD}), (f"checkpoint {seq}",))
    if seq == 1 and data is None:
        return Case(name, {key: data}, frozenset({RAISED}), ("not the first",), older=True)
    return Case(name, {key: data}, NONE, older=seq == OLD)


def record_flips(world: World, rng: random.Random) -> Iterator[Case]:
    """Every byte of every record, one of its bits at random."""
    for seq in range(1, HEAD + 1):
        data = world.objects[log_key(seq)]
        for at in range(len(data)):
            bit = rng.randrange(8)
            yield _of_record(f"record {seq}, byte {at}, bit {bit}", seq, flipped(data, at, bit))


def marker_flips(world: World, rng: random.Random) -> Iterator[Case]:
    """Every byte of the marker: what is no marker any more, or of another run, is refused and never read as none."""
    data = world.objects[FORMAT_KEY]
    for at in range(len(data)):
        bit = rng.randrange(8)
        allowed = frozenset({RAISED, SOUND})
        yield Case(f"marker, byte {at}, bit {bit}", {FORMAT_KEY: flipped(data, at, bit)}, allowed, ("limpet.json",))


def _of_pack(world: World, name: str, key: str, data: bytes | None) -> Case:
    """Damage to a pack: whichever checkpoint has other bytes now, in a chunk or in its manifest, is damaged."""
    newest, older = (_differs(world, seq, key, data or b"") for seq in (NEWEST, OLD))
    if newest:
        return Case(name, {key: data}, frozenset({RAISED if older else OLDER}), (key,), older=older)
    return Case(name, {key: data}, NONE, older=older)


def _differs(world: World, seq: int, key: str, data: bytes) -> bool:
    was = world.objects[key]
    return any(at == key and data[start:end] != was[start:end] for at, start, end in places(world, seq))


def places(world: World, seq: int) -> list[tuple[str, int, int]]:
    """Key, start and end of all that a checkpoint has in packs: its chunks, and at the end its manifest."""
    commit = decode_record(world.objects[log_key(seq)], seq)[0].commit
    assert commit is not None
    at = commit.manifest
    if not at.key:
        return []
    manifest = decode_manifest(world.objects[at.key][at.offset : at.offset + at.size], at.digest)
    found = [(manifest.packs[c.pack], c.offset, c.offset + c.stored_bytes) for c in manifest.chunks]
    return [*found, (at.key, at.offset, at.offset + at.size)]


def manifest_flips(world: World, rng: random.Random) -> Iterator[Case]:
    """Every byte of both manifests."""
    for seq in (OLD, NEWEST):
        for key, start, end in places(world, seq)[-1:]:
            for at in range(start, end):
                bent = flipped(world.objects[key], at, rng.randrange(8))
                yield _of_pack(world, f"manifest of {seq}, byte {at}", key, bent)


def pack_flips(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Random bits in packs."""
    packs = sorted({key for seq in (OLD, NEWEST) for key, _, _ in places(world, seq)})
    for _ in range(count if packs else 0):
        key = rng.choice(packs)
        at = rng.randrange(len(world.objects[key]))
        bent = flipped(world.objects[key], at, rng.randrange(8))
        yield _of_pack(world, f"{key}, byte {at}", key, bent)


def lengths(world: World, rng: random.Random) -> Iterator[Case]:
    """Records and packs cut short, empty, missing, or with something behind them."""
    for seq in range(1, HEAD + 1):
        data = world.objects[log_key(seq)]
        yield _of_record(f"record {seq} missing", seq, None)
        for size in (0, 1, 75, 86, len(data) // 2, len(data) - 1, rng.randrange(len(data))):
            yield _of_record(f"record {seq} of {size} bytes", seq, data[:size])
        for more in (b"}", b"\0" * 100, data, b" " * (1 << 20)):
            yield _of_record(f"record {seq} with {len(more)} bytes more", seq, data + more)
        yield _of_record(f"record {seq} of zeros", seq, bytes(len(data)))
    for key in sorted({key for seq in (OLD, NEWEST) for key, _, _ in places(world, seq)}):
        data = world.objects[key]
        yield _of_pack(world, f"{key} missing", key, None)
        for size in (0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(8))):
            yield _of_pack(world, f"{key} of {size} bytes", key, data[:size])
        yield _of_pack(world, f"{key} of zeros", key, bytes(len(data)))
        yield _of_pack(world, f"{key} with more behind it", key, data + data)


def strangers(world: World, fork: Objects, other: Objects) -> Iterator[Case]:
    """Objects that verify, and belong elsewhere: in the same run, in a copy that went its own way, in another run."""
    for seq in range(1, HEAD + 1):
        for another in range(1, HEAD + 1):
            if seq != another:
                yield _of_record(f"record {seq} is {another}", seq, world.objects[log_key(another)])
        yield from _foreign_records(seq, fork[log_key(seq)], other[log_key(seq)])
    packs = {seq: world.pack(seq) for seq in (OLD, NEWEST)}
    for seq, key in packs.items():
        if key:
            foreign = [objects[k] for objects in (fork, other) for k in sorted(objects) if k.startswith("data/")]
            for number, data in enumerate([*foreign, world.objects[packs[OLD + NEWEST - seq]]]):
                yield _of_pack(world, f"{key} is stranger {number}", key, data)
    if packs[OLD]:
        swapped: dict[str, bytes | None] = {
            packs[OLD]: world.objects[packs[NEWEST]],
            packs[NEWEST]: world.objects[packs[OLD]],
        }
        yield Case("packs swapped", swapped, frozenset({RAISED}), tuple(packs.values()), older=True)


def _foreign_records(seq: int, forked: bytes, foreign: bytes) -> Iterator[Case]:
    key = log_key(seq)
    if seq == HEAD:
        # A head that verifies is the head. The fork's goes on from another record 5, which shows; a foreign one
        # contradicts the marker.
        yield Case("record 6 is the fork's", {key: forked}, frozenset({OLDER}), ("log record 5",))
        yield Case("record 6 is another run's", {key: foreign}, frozenset({RAISED}), ("two runs",), older=True)
    elif seq > 3:
        yield _of_record(f"record {seq} is the fork's", seq, forked)
    if seq != HEAD:
        yield _of_record(f"record {seq} is another run's", seq, foreign)
