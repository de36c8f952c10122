"""Records: small, strict, immutable, and each with the whole live set."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import blake3
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.logs import RETAIN, RUN, tiny_commit

from limpet import CorruptError, FormatError
from limpet.format.layout import log_key, pack_key, parse_log_key, parse_pack_key
from limpet.format.record import (
    RECORD_BYTES_MAX,
    ManifestAt,
    PackUse,
    Prev,
    Record,
    Writer,
    decode_record,
    encode_record,
    from_ranges,
    to_ranges,
)

PACK = "data/0000000000000001/00000001-0123abcd-0000-000.pack"


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "version": 1,
        "run": RUN,
        "seq": 3,
        "epoch": 1,
        "kind": "commit",
        "nonce": "0f" * 16,
        "owner": "somebody",
        "time": 1.5,
        "writer": Writer("host", 7, "limpet"),
        "retain": RETAIN,
        "prev": Prev(2, "0" * 64),
        "live": [(2, 3)],
        "commit": tiny_commit(5),
    }
    return Record(**{**fields, **changes})


def raw(inner: object) -> bytes:
    """A record file whose digest fits, whatever it says."""
    text = json.dumps(inner, separators=(",", ":")).encode()
    return b'{"digest":"' + blake3.blake3(text).hexdigest().encode() + b'","record":' + text + b"}"


def fields_of(one: Record) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(one))  # type: ignore[no-any-return]


def test_a_record_comes_back_as_it_was() -> None:
    data, digest = encode_record(record())
    assert decode_record(data, 3) == (record(), digest)


def test_a_record_is_json_that_anyone_can_read() -> None:
    data, digest = encode_record(record())
    read = json.loads(data)
    assert read["digest"] == digest
    assert read["record"]["live"] == [[2, 3]]
    assert read["record"]["commit"]["step"] == 5


def test_the_digest_is_of_the_exact_bytes_of_the_inner_object() -> None:
    data, digest = encode_record(record())
    inner = data[len(b'{"digest":""') + 64 + len(b',"record":') : -1]
    assert digest == blake3.blake3(inner).hexdigest()


def test_every_flipped_bit_is_found() -> None:
    data, _ = encode_record(record())
    for position in range(len(data)):
        bent = bytearray(data)
        bent[position] ^= 0x01
        with pytest.raises(CorruptError):
            decode_record(bytes(bent), 3)


def test_every_truncation_is_found() -> None:
    data, _ = encode_record(record())
    for size in range(len(data)):
        with pytest.raises(CorruptError):
            decode_record(data[:size], 3)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_record_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_record(data, 1)


def test_a_record_under_another_number_is_corrupt() -> None:
    data, _ = encode_record(record())
    with pytest.raises(CorruptError, match="calls itself 3"):
        decode_record(data, 4)


def test_a_newer_format_is_named_with_ours() -> None:
    data, _ = encode_record(record(version=7))
    with pytest.raises(FormatError, match=r"version 7; this limpet reads up to 1"):
        decode_record(data, 3)


def test_a_newer_format_may_have_fields_that_we_do_not_know() -> None:
    with pytest.raises(FormatError, match="version 2"):
        decode_record(raw({"version": 2, "anything": True}), 3)


def test_an_unknown_field_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="schema"):
        decode_record(raw({**fields_of(record()), "surprise": 1}), 3)


@pytest.mark.parametrize(
    "name", ["version", "run", "seq", "epoch", "kind", "nonce", "owner", "time", "writer", "retain"]
)
def test_a_missing_field_is_corrupt(name: str) -> None:
    fields = fields_of(record())
    del fields[name]
    with pytest.raises(CorruptError):
        decode_record(raw(fields), 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0},
        {"epoch": 4},
        {"epoch": 3},
        {"kind": "open", "commit": None},
        {"kind": "edit"},
        {"commit": None},
        {"prev": None},
        {"prev": Prev(1, "0" * 64)},
        {"live": [(3, 2)]},
        {"live": [(3, 3), (2, 2)]},
        {"live": [(1, 4)]},
        {"live": [(0, 1)]},
        {"pinned": [(2, 2), (2, 3)]},
        {"commit": tiny_commit(raw_bytes=-1)},
        {"commit": tiny_commit(manifest=ManifestAt("", 0, 0, "zz"))},
        {"commit": tiny_commit(manifest=ManifestAt("", 0, -1, "0" * 64))},
        {"commit": tiny_commit(packs=[PackUse("../../etc/passwd", 1)])},
        {"commit": tiny_commit(packs=[PackUse(PACK, 1), PackUse(PACK, 2)])},
        {"commit": tiny_commit(packs=[PackUse(PACK, 10)], manifest=ManifestAt(PACK, 5, 6, "0" * 64))},
        {"commit": tiny_commit(manifest=ManifestAt(PACK, 0, 1, "0" * 64))},
        {"commit": tiny_commit(packs=[PackUse(f"data/{1:016d}/{n:08d}-{n:08x}-0000-000.pack", 1) for n in range(257)])},
    ],
    ids=lambda changes: ",".join(f"{name}={value}"[:40] for name, value in changes.items()),
)
def test_a_record_that_contradicts_itself_is_corrupt(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptError):
        decode_record(encode_record(record(**changes))[0], 3)


def test_a_pack_of_negative_size_is_corrupt() -> None:
    bad = record(commit=tiny_commit(packs=[PackUse(PACK, -1)]))
    with pytest.raises(CorruptError):
        decode_record(encode_record(bad)[0], 3)


def test_a_record_of_more_than_a_mebibyte_is_refused() -> None:
    with pytest.raises(CorruptError, match="at most"):
        decode_record(b" " * (RECORD_BYTES_MAX + 1), 1)


def test_a_live_set_that_claims_a_billion_checkpoints_is_refused() -> None:
    last = 10**9
    huge = record(seq=last, prev=Prev(last - 1, "0" * 64), live=[(1, last)])
    with pytest.raises(CorruptError, match="at most"):
        decode_record(encode_record(huge)[0], last)


def test_a_body_that_is_no_base64_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="base64"):
        tiny_commit(body="!!!").body_bytes()


@given(st.sets(st.integers(1, 300)))
def test_ranges_hold_exactly_their_seqs(seqs: set[int]) -> None:
    ranges = to_ranges(seqs)
    assert from_ranges(ranges) == seqs
    assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges))


@given(st.integers(1, 10**16 - 1))
def test_a_log_key_is_parsed_as_it_was_built(seq: int) -> None:
    assert parse_log_key(log_key(seq)) == seq


def test_keys_are_those_of_the_page() -> None:
    assert log_key(7) == "log/0000000000000/0000000000000007.json"
    name = parse_pack_key(PACK)
    assert name is not None
    assert pack_key(name) == PACK


@pytest.mark.parametrize(
    "key",
    [
        "log/0000000000000/0000000000000000.json",
        "log/0000000000001/0000000000000007.json",
        "log/0000000000000/0000000000000007.json.tmp",
        "log/0000000000000/000000000000007.json",
        "log/../0000000000000007.json",
    ],
)
def test_what_is_no_log_key_is_nobodys(key: str) -> None:
    assert parse_log_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "data/0000000000000001/00000001-0123ABCD-0000-000.pack",
        "data/0000000000000001/00000001-0123abcd-0000-000.pack\n",
        "data/0000000000000001/../0000000000000001/00000001-0123abcd-0000-000.pack",
        "data/\uff11000000000000001/00000001-0123abcd-0000-000.pack",
        "/data/0000000000000001/00000001-0123abcd-0000-000.pack",
    ],
)
def test_what_is_no_pack_key_is_nobodys(key: str) -> None:
    assert parse_pack_key(key) is None
