"""What an adversary would plant first, each refused within a second, before memory is taken for it (row 18, A1, A9)."""

from __future__ import annotations

import struct
from typing import Any

import blake3
import msgspec
import numpy as np
import pytest
import zstandard
from tests.corruption import reading
from tests.corruption.limits import Timer, memory_bounded
from tests.corruption.worlds import NEWEST, World, make, store_of
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.crafted import craft, craft_record, read_commit

from limpet import CorruptError, DamagedCheckpointWarning, FormatError, LimpetError, UsageError
from limpet.errors import StoreError
from limpet.format.assemble import prepare
from limpet.format.layout import FORMAT_KEY, log_key
from limpet.format.manifest import MANIFEST_BYTES_MAX, decode_manifest
from limpet.format.record import RECORD_BYTES_MAX, decode_record
from limpet.format.registry import Registry
from limpet.format.rows import describe_leaves
from limpet.format.tree import flatten

PRIME = 2**61 - 1
"""What CPython reduces integers by to hash them."""


@pytest.fixture
def world() -> World:
    return make("raw")[0]


def refused(
    tree: Any, sizes: list[int] | None = None, error: type[LimpetError] = CorruptError, match: str = ""
) -> None:
    with Timer().time(match), memory_bounded(), pytest.raises(error, match=match):
        assembly = prepare(tree, sizes or [], registry=Registry())
        for memory in assembly.destinations.values():
            memory[:] = 0
        assembly.finish()


def test_keys_that_share_a_hash_are_refused_before_they_are_compared() -> None:
    keys = [["int", format(number * PRIME, "x")] for number in range(1, 30_000)]
    refused(["dict", keys, [None] * len(keys)], match="one hash")
    refused(["dict", [["tuple", [key]] for key in keys], [None] * len(keys)], match="one hash")
    refused(["set", keys], match="one hash")
    refused(["frozenset", [["fraction", key[1], "1"] for key in keys]], match="one hash")


def test_many_keys_as_people_have_them_are_taken() -> None:
    state = dict.fromkeys(range(-10000, 10000)) | {f"{number}": {float(number)} for number in range(999)}
    flat = flatten(state, registry=Registry())
    assert prepare(flat.node, [], registry=Registry()).finish() == state


def test_a_fraction_whose_common_divisor_would_take_hours() -> None:
    refused(["fraction", "a" * 20_000_000, "7" * 20_000_001], match="too many digits")
    many = ["fraction", "a" * 16_000, "7" * 16_001]
    with Timer().time("many"):
        prepare(["list", [many] * 20], [], registry=Registry()).finish()


def test_a_fraction_that_could_not_be_read_is_not_saved() -> None:
    from fractions import Fraction

    from limpet import UnsupportedLeafError

    with pytest.raises(UnsupportedLeafError, match="more than 65,000 bits"):
        flatten({"x": Fraction(1, 3**50_000)}, registry=Registry())


@pytest.mark.parametrize("digits", [1_000_000, 20_000_000])
def test_an_integer_of_many_digits_takes_time_by_its_length(digits: int) -> None:
    with Timer().time("int"):
        assert prepare(["int", "f" * digits], [], registry=Registry()).finish() == (1 << (4 * digits)) - 1


@pytest.mark.parametrize(
    "change",
    [
        {"entropy": ["int", "f" * 200_000]},
        {"entropy": ["list", [["int", "f" * 4_000]] * 100]},
        {"spawn_key": ["tuple", [["int", "f" * 200_000]]]},
        {"spawn_key": ["tuple", [1] * 100_000]},
        {"n_children_spawned": ["int", "f" * 200_000]},
        {"n_children_spawned": -1},
        {"entropy": "9" * 4_000},
        {"entropy": None},
        {"entropy": 1.5},
        {"pool_size": 10**9},
    ],
)
def test_a_seed_that_numpy_would_chew_on_for_hours(change: dict[str, Any]) -> None:
    flat = flatten(np.random.default_rng(1), registry=Registry())
    tree = msgspec.json.decode(msgspec.json.encode(flat.node))
    _, keys, values = tree[2]
    seeds = values[keys.index("seeds")]
    for key, value in change.items():
        seeds[2][seeds[1].index(key)] = value
    refused(tree, [each.nbytes for each in flat.buffers], match="random generator's state is damaged")


def test_seeds_as_people_give_them_come_back() -> None:
    for entropy in (0, 2**128 - 1, [1, 2, 3], np.arange(600, dtype=np.uint32)):
        generator = np.random.default_rng(np.random.SeedSequence(entropy).spawn(2)[1])  # type: ignore[arg-type]
        flat = flatten(generator, registry=Registry())
        assembly = prepare(flat.node, [each.nbytes for each in flat.buffers], registry=Registry())
        for index, memory in assembly.destinations.items():
            flat.buffers[index].copy_into(memory)
        assert assembly.finish().spawn(1)[0].random() == generator.spawn(1)[0].random()


def test_a_numpy_string_that_holds_no_characters() -> None:
    """numpy answers these bytes with a SystemError."""
    refused(["npscalar", "<U1", "ffffffff"], match="stored as something else")
    refused(["set", [["npscalar", "<U1", "ffffffff"]]], match="stored as something else")


def test_a_dtype_that_is_an_expression_is_shown_and_never_parsed() -> None:
    with Timer().time("dtype"):
        [row] = describe_leaves(["nd", "f4," * 300_000, [0], 0], [0])
    assert row.dtype.startswith("f4,f4,")


@pytest.mark.parametrize("levels", [900, 5_000, 100_000])
def test_json_of_any_depth(levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    plain = b'{"version":1,"run":"","save":"","tree":%s,"buffers":[],"chunks":[],"packs":[]}' % deep
    stored = zstandard.compress(plain)
    with Timer().time("deep"), pytest.raises(CorruptError):
        prepare(decode_manifest(stored, blake3.blake3(stored).hexdigest()).tree, [], registry=Registry())
    fields = msgspec.json.decode(make("body")[0].objects[log_key(1)])["record"]
    for field in ("retain", "note"):
        text = msgspec.json.encode({**fields, field: "DEEP"}).replace(b'"DEEP"', b'{"kind":%s}' % deep)
        record = reading.read_record(text, 1)
        assert record is None or field == "note"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"live": [[1, 10**16]]}, "not in order"),
        ({"live": [[2, 2], [2, 5]]}, "not in order"),
        ({"live": [[5, 2]]}, "not in order"),
        ({"live": [[-5, 2]]}, "not in order"),
        ({"pinned": [[1, 2**63]]}, "not in order"),
        ({"quarantined": [99]}, "quarantines"),
        ({"quarantined": [0]}, "quarantines"),
        ({"prev": {"seq": 4, "digest": "x"}}, "digest of the record before"),
        ({"prev": {"seq": 5, "digest": "0" * 64}}, "link to the record before"),
        ({"prev": None}, "link to the record before"),
        ({"epoch": 6}, "epoch"),
        ({"seq": 4}, "calls itself"),
        ({"version": 0}, "never was"),
        ({"version": -1}, "never was"),
        ({"version": True}, "schema"),
        ({"version": 1.0}, "schema"),
        ({"time": "now"}, "schema"),
        ({"surprise": 1}, "schema"),
    ],
)
def test_a_record_that_contradicts_itself(world: World, change: dict[str, Any], match: str) -> None:
    fields = msgspec.json.decode(world.objects[log_key(NEWEST)])["record"] | change
    inner = msgspec.json.encode({key: value for key, value in fields.items() if value is not None})
    data = b'{"digest":"%s","record":%s}' % (blake3.blake3(inner).hexdigest().encode(), inner)
    with pytest.raises(CorruptError, match=match):
        decode_record(data, NEWEST)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"manifest": {"offset": 2**63}}, "impossible size"),
        ({"manifest": {"size": MANIFEST_BYTES_MAX + 1}}, "a manifest of"),
        ({"manifest": {"offset": -1}}, "impossible size"),
        ({"manifest": {"digest": "0" * 63}}, "digest is not one"),
        ({"manifest": {"key": "data/../../x.pack"}}, "outside its pack"),
        ({"raw_bytes": 10**300}, "impossible size"),
        ({"stored_bytes": -1}, "impossible size"),
        ({"packs": [["data/0000000000000004/00000001-00000000-0000-000.pack", 2**64]]}, "impossible size"),
        ({"packs": [["https://elsewhere.example/x.pack", 5]]}, "key is not one"),
        ({"packs": [["/etc/passwd", 5]]}, "key is not one"),
        (
            {"packs": [["child/" + "0" * 32 + "/data/0000000000000004/00000001-00000000-0000-000.pack", 5]]},
            "key is not one",
        ),
        ({"packs": [["data/0000000000000004/00000001-00000000-0000-000.pack\n", 5]]}, "key is not one"),
        ({"packs": [[f"data/{n:016}/00000001-00000000-0000-000.pack", 5] for n in range(257)]}, "257 packs"),
        ({"packs": [["data/0000000000000004/00000001-00000000-0000-000.pack", 5]] * 2}, "key is not one"),
    ],
)
def test_a_commit_that_contradicts_itself(world: World, change: dict[str, Any], match: str) -> None:
    fields = msgspec.json.decode(world.objects[log_key(NEWEST)])["record"]
    for key, value in change.items():
        fields["commit"][key] = {**fields["commit"][key], **value} if isinstance(value, dict) else value
    inner = msgspec.json.encode(fields)
    data = b'{"digest":"%s","record":%s}' % (blake3.blake3(inner).hexdigest().encode(), inner)
    with pytest.raises(CorruptError, match=match):
        decode_record(data, NEWEST)


@pytest.mark.parametrize("body", ["A" * 900_000, "=", "\u0430", "AAAA=AAA", "!!!!"])
def test_a_body_that_is_no_manifest(world: World, body: str) -> None:
    store = store_of(world.objects)
    record, commit, _ = read_commit(Shelf(store.store), NEWEST)
    at = msgspec.structs.replace(commit.manifest, key="", offset=0, size=10)
    craft_record(Shelf(store.store), record, commit=msgspec.structs.replace(commit, body=body, manifest=at))
    with Timer().time("body"), memory_bounded(), read_over(store) as run, pytest.raises(CorruptError):
        run.read(strict=True)


@pytest.mark.parametrize(
    "buffers",
    [[[0, 0, 4000], [0, 3999, 2001]], [[0, 0, 4000], [0, 0, 1]], [[0, 5, 10], [0, 0, 6]], [[0, 0, 3000], [0, 0, 3000]]],
)
def test_buffers_that_overlap_are_refused_where_there_would_be_room_for_both(world: World, buffers: Any) -> None:
    store = store_of(world.objects)
    total = sum(nbytes for _, _, nbytes in buffers)
    craft(Shelf(store.store), NEWEST, lambda f: f.update(buffers=buffers), lambda f: f.update(raw_bytes=total))
    with read_over(store) as run, pytest.raises(CorruptError, match="overlap"):
        run.read(strict=True)


def test_a_million_live_records_that_are_not_there(world: World) -> None:
    """Each would be asked for, and each would be an error to report."""
    store = store_of({FORMAT_KEY: world.objects[FORMAT_KEY], log_key(1): world.objects[log_key(1)]})
    shelf = Shelf(store.store)
    head, _ = decode_record(world.objects[log_key(6)], 6)
    seq = 1_000_001
    prev = msgspec.structs.replace(head.prev, seq=seq - 1)  # type: ignore[type-var]
    craft_record(shelf, head, seq=seq, prev=prev, live=[(1, 1_000_000)])
    shelf.replace(log_key(seq), shelf.objects[log_key(6)])
    shelf.remove(log_key(6))
    with Timer().time("live"), memory_bounded(), read_over(store) as run:
        with pytest.raises(CorruptError, match="more than 1000 live log records"):
            run.read()
    assert store.count("get") < 3000


def test_a_record_with_the_highest_number_there_is(world: World) -> None:
    store = store_of({**world.objects, log_key(10**16 - 1): b"{}"})
    for opened in (read_over(store), write_over(store)):
        with pytest.raises(CorruptError, match="after which none can come"), opened:
            opened.resume()


@pytest.mark.parametrize("seq", [1, NEWEST, 7])
def test_a_planted_record_of_a_gigabyte_is_not_read(world: World, seq: int) -> None:
    store = store_of({**world.objects, log_key(seq): bytes(RECORD_BYTES_MAX + 1)})
    with read_over(store) as run:
        if seq == 1:  # there, and not needed
            assert world.holds(run.read(strict=True), 1)
            return
        with pytest.warns(DamagedCheckpointWarning):
            assert world.holds(run.read(), 0 if seq == NEWEST else 1)


def test_a_planted_marker_of_a_gigabyte_is_not_read(world: World) -> None:
    store = store_of({**world.objects, FORMAT_KEY: b" " * (RECORD_BYTES_MAX + 1)})
    for opened in (read_over(store), write_over(store)):
        with pytest.raises(FormatError, match="limpet did not write"), opened:
            opened.resume()


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"format":"limpet","version":0,"run":"%s"}' % (b"0" * 32),
     b'{"format":"limpet","version":1,"run":"../x"}', b'{"format":"limpet","version":1,"run":"\\ud800"}',
     b'{"format":"limpet","version":1e0,"run":""}', b'{"format":"other","version":1,"run":"x"}',
     b'{"format":"limpet","version":99,"run":"%s"}' % (b"0" * 32)],
)  # fmt: skip
def test_a_marker_that_is_none_is_refused_by_readers_and_writers(world: World, text: bytes) -> None:
    store = store_of({**world.objects, FORMAT_KEY: text})
    before = Shelf(store.store).objects
    for opened in (read_over(store), write_over(store)):
        with pytest.raises(FormatError), opened:
            opened.resume()
    assert Shelf(store.store).objects == before


def test_a_record_of_another_run_is_refused_although_it_verifies() -> None:
    world, _, other = make("body")
    store = store_of({**world.objects, log_key(NEWEST): other[log_key(NEWEST)]})
    with read_over(store) as run, pytest.raises(CorruptError, match="belongs to another run"):
        run.read(strict=True)


def test_a_record_of_a_copy_that_went_its_own_way_is_refused_although_it_verifies() -> None:
    world, fork, _ = make("body")
    store = store_of({**world.objects, log_key(NEWEST): fork[log_key(NEWEST)]})
    with read_over(store) as run, pytest.raises(CorruptError, match="not the one that record 6 extends"):
        run.read(strict=True)


def test_two_runs_under_one_root_are_told_apart_by_the_marker() -> None:
    world, _, other = make("body")
    store = store_of({**other, FORMAT_KEY: world.objects[FORMAT_KEY]})
    with read_over(store) as run, pytest.raises(StoreError, match="two runs"):
        run.read()


def test_what_a_template_has_no_room_for_is_refused_before_it_is_taken(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arrays of ``into=`` have their memory; a string that the checkpoint brings along has not."""
    with write_over(store, compression="zstd") as cp:
        cp.write({"weights": np.zeros(1 << 20), "name": b"x" * (4 << 20)}, durable=True)
    monkeypatch.setattr("limpet.finding.available_bytes", lambda: 1 << 20)
    into = {"weights": np.ones(1 << 20), "name": b""}
    with read_over(store) as run:
        with pytest.raises(UsageError, match="needs 4194304 bytes of memory"):
            run.read(into=into)
        assert into["weights"].all()  # type: ignore[attr-defined]
        assert not run.read(into=into["weights"], select="weights").any()


@pytest.mark.torch
def test_a_torch_generator_never_reads_past_the_end_of_its_state() -> None:
    """torch checks both counters alone; 624 words left from word 624 on are 623 beyond its memory."""
    torch = pytest.importorskip("torch")
    for left, following in ((624, 624), (2, 624), (0, 0), (625, 0), (1, 625), (-1, 3), (300, 2**40)):
        flat = flatten(torch.Generator(), registry=Registry())
        assembly = prepare(flat.node, [each.nbytes for each in flat.buffers], registry=Registry())
        for index, memory in assembly.destinations.items():
            flat.buffers[index].copy_into(memory)
            struct.pack_into("<iiQ", memory.data, 8, left, 1, following)
        with pytest.raises(CorruptError):
            assembly.finish()


@pytest.mark.torch
def test_a_torch_generator_at_any_place_of_its_state_comes_back() -> None:
    torch = pytest.importorskip("torch")
    for draws in (0, 1, 623, 624, 625, 2000):
        generator = torch.Generator().manual_seed(5)
        torch.randint(0, 9, (draws,), generator=generator)
        flat = flatten(generator, registry=Registry())
        assembly = prepare(flat.node, [each.nbytes for each in flat.buffers], registry=Registry())
        for index, memory in assembly.destinations.items():
            flat.buffers[index].copy_into(memory)
        back = assembly.finish()
        assert torch.equal(torch.rand(700, generator=back), torch.rand(700, generator=generator))
