"""Inputs as whoever can write to a bucket would make them: right digests, and anything behind them (rows 15 and 18).

The answer to each is a state or an error of limpet's, within a second and within the memory that the limits allow,
and nothing is imported, run, opened or sent because of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corruption import reading
from tests.corruption.limits import Timer, memory_bounded, nothing_runs
from tests.corruption.mutating import bent, mutated
from tests.corruption.worlds import NEWEST, make
from tests.format.test_tree_hostile import BYTES, FLAT

from limpet.format.codec import encode
from limpet.format.filetree import Directory, File, FileTree, Link, RawName, Root, encode_file_tree
from limpet.format.layout import log_key
from limpet.format.marker import encode_marker

SEED = 7
ZONES = ("open ('/usr/share/zoneinfo", "open ('/usr/lib/zoneinfo", "open ('/usr/share/lib", "open ('/etc/zoneinfo",
         "import ('tzdata", "open ('" + __import__("sys").prefix, "os.scandir", "os.listdir")  # fmt: skip
"""A time zone is looked up by a name that holds no dots, below the system's own folders."""
Feed = Callable[[random.Random], object]


@cache
def record_seeds() -> list[tuple[int, Any]]:
    """Records of every kind, as JSON values, each with its seq."""
    found = []
    for name in ("shared", "body"):
        world, _, _ = make(name)
        for seq in range(1, NEWEST + 2):
            data = world.objects[log_key(seq)]
            found.append((seq, msgspec.json.decode(data)["record"]))
    found[0][1]["quarantined"] = []
    found[3][1].update(quarantined=[1, 2], note={"start_from": "x"}, pinned=[[2, 2]])
    return found


@cache
def manifest_seed() -> Any:
    """The manifest of a state that holds every kind of leaf, in chunks of every codec."""
    sizes = [len(data) for data in BYTES]
    whole, chunks = sum(sizes), []
    for number, codec in enumerate(("raw", "zstd", "planes2", "planes4", "planes8")):
        size = whole // 5 if number < 4 else whole - 4 * (whole // 5)
        digest = "" if codec == "raw" else "1" * 64
        stored = size if codec == "raw" else size // 2
        chunks.append([f"{number}" * 64, size, codec, number % 2, number * whole, stored, digest])
    buffers, position = [], 0
    for size in sizes:
        at, offset = 0, position
        while offset >= chunks[at][1]:
            offset -= chunks[at][1]
            at += 1
        buffers.append([at, offset, size])
        position += size
    packs = ["data/0000000000000001/00000001-00000001-0000-000.pack", ""]
    return {
        "version": 1, "run": "0" * 32, "save": "1/1", "tree": FLAT.node, "buffers": buffers, "chunks": chunks, "packs": packs,
    }  # fmt: skip


@cache
def files_seed() -> tuple[Any, list[int]]:
    """A tree of files with every kind of entry."""
    tree = FileTree(
        Root(0o755, 1),
        [Directory(0, "a", 0o700, 2), Directory(1, "b", 0o700, 3), Directory(0, RawName(b"\xff"), 0o700, 4)],
        [File(0, "one", 0o644, 5, 10, 0), File(2, "two", 0o600, 6, 20, 1), File(1, "empty", 0o600, 7, 0, None)],
        [Link(2, "up", "../../one"), Link(0, "down", "a/b"), Link(1, RawName(b"\xfe"), "two")],
    )
    return encode_file_tree(tree), [10, 20, 30]


@cache
def frames() -> list[tuple[str, bytes, int]]:
    """A chunk of every codec."""
    raw = np.random.default_rng(1).normal(0, 0.02, 1001).astype("f4").view(np.uint8)[:4001]
    found = []
    for codec in ("raw", "zstd", "planes2", "planes4", "planes8"):
        chunk = np.arange(4001).astype(np.uint8) if codec == "zstd" else raw
        used, stored = encode(np.ascontiguousarray(chunk), codec=codec)
        assert codec in (used, "planes8", "planes2")
        found.append((used, bytes(stored), 4001))
    return found


def feed_record(rng: random.Random) -> object:
    seq, fields = rng.choice(record_seeds())
    if rng.randrange(4) == 0:
        data = bent(rng, msgspec.json.encode(fields))
        reading.read_record(data, seq)
        return data
    data = reading.as_json(mutated(rng, fields))
    if data is not None:
        reading.read_record(data, seq)
    return data


def feed_manifest(rng: random.Random) -> object:
    seed = manifest_seed()
    if rng.randrange(3) == 0:
        data: bytes | None = bent(rng, msgspec.json.encode(seed))
    elif rng.randrange(2):
        # Most of the manifest is its tree, which has a feed of its own.
        rest = mutated(rng, {key: value for key, value in seed.items() if key != "tree"})
        data = reading.as_json({"tree": seed["tree"], **rest} if isinstance(rest, dict) else rest)
    else:
        data = reading.as_json(mutated(rng, seed))
    if data is not None:
        reading.read_manifest(data, BYTES)
    return data


def feed_tree(rng: random.Random) -> object:
    group = rng.choice(FLAT.node[2])
    tree = mutated(rng, rng.choice(group[1]) if group[0] == "list" else group)
    text = reading.as_json(tree)
    if text is not None:  # what JSON carries is what can arrive
        reading.read_tree(msgspec.json.decode(text), [len(data) for data in BYTES], BYTES)
    return text


def feed_frame(rng: random.Random) -> object:
    codec, stored, raw_bytes = rng.choice(frames())
    data, size = bent(rng, stored), rng.choice((raw_bytes, raw_bytes, raw_bytes, 0, 1, 7, raw_bytes + 1, 1 << 16))
    used = rng.choice((codec, codec, codec, "zstd", "planes2", "planes4", "planes8", "raw", "other"))
    reading.read_frame(used, data, size)
    return (used, size, data)


def feed_marker(rng: random.Random) -> object:
    sound = encode_marker("0" * 32, "child")
    data = bent(rng, sound) if rng.randrange(2) else reading.as_json(mutated(rng, msgspec.json.decode(sound)))
    if data is not None:
        reading.read_marker(data)
    return data


def feed_files(rng: random.Random) -> object:
    payload, sizes = files_seed()
    payload = mutated(rng, payload)
    reading.read_files(payload, sizes)
    return payload


FEEDS: dict[str, tuple[Feed, int, int]] = {
    "records": (feed_record, 500, 12_000),
    "manifests": (feed_manifest, 200, 4_000),
    "trees": (feed_tree, 500, 20_000),
    "frames": (feed_frame, 500, 60_000),
    "markers": (feed_marker, 100, 10_000),
    "files": (feed_files, 300, 10_000),
}
"""What is fed, how often by default, how often at full count."""


def feed(name: str, count: int) -> Timer:
    """Feed so many mutated inputs, each from a seed of its own."""
    one = FEEDS[name][0]
    for number in range(20):
        one(random.Random(f"warm {number}"))  # what is imported lazily, and only once
    timer = Timer()
    with nothing_runs(but=ZONES), memory_bounded():
        for number in range(count):
            seed = f"{SEED} {name} {number}"
            rng = random.Random(seed)
            try:
                with timer.time(seed):
                    one(rng)
            except Exception as error:
                error.add_note(f"seed: {seed!r}")
                raise
    return timer


@pytest.mark.parametrize("name", FEEDS)
def test_whatever_is_fed_the_answer_is_ours(name: str) -> None:
    assert feed(name, FEEDS[name][1]).count == FEEDS[name][1]


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FEEDS)
def test_whatever_is_fed_the_answer_is_ours_116_000_times(name: str) -> None:
    timer = feed(name, FEEDS[name][2])
    print(f"{name}: {timer.count} inputs, slowest {timer.slowest[0] * 1000:.0f} ms ({timer.slowest[1]})")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(rng=st.randoms(use_true_random=False), name=st.sampled_from(sorted(FEEDS)))
def test_whatever_hypothesis_makes_of_an_input_the_answer_is_ours(rng: random.Random, name: str) -> None:
    FEEDS[name][0](rng)


def test_the_sound_inputs_are_taken() -> None:
    """So that what is fed differs from what is sound by its mutations alone."""
    for seq, fields in record_seeds():
        assert reading.read_record(msgspec.json.encode(fields), seq) is not None
    assert reading.read_manifest(msgspec.json.encode(manifest_seed()), BYTES)
    assert reading.read_tree(FLAT.node, [len(data) for data in BYTES], BYTES)
    assert reading.read_frame(*frames()[0])
    assert all(reading.read_frame(*frame) for frame in frames())
    assert reading.read_marker(encode_marker("0" * 32))
    assert reading.read_files(*files_seed())
