"""Uploads that go wrong: what is committed is what was written, bit for bit, under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.faults.runs import heavy_but, newest, read_at, same, small_parts, state, write_at
from tests.faults.server import Act, FaultyS3

from limpet import CorruptError, Last

LARGE = 1_000_000
"""Bytes of a state that goes in parts, where ``parts`` is asked for."""
FAILURES: list[tuple[Act, bool]] = [
    ("close", False),
    ("close", True),
    ("error", False),
    ("error", True),
    ("reset", False),
    ("reset", True),
    ("hang", True),
    ("late", False),
]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with small_parts(monkeypatch):
        yield


def save_large(s3: FaultyS3, steps: int = 1) -> None:
    with write_at(s3, storage={"timeout": 0.2}, compression="off") as cp:
        for step in range(steps):
            cp.write(state(step, LARGE), step=step, durable=True)


@pytest.mark.parametrize(("act", "applies"), heavy_but([("error", False), ("close", True)], FAILURES))
@pytest.mark.parametrize("kind", ["start", "part", "complete"])
def test_a_part_of_an_upload_that_goes_wrong_costs_nothing(
    s3: FaultyS3, parts: None, kind: str, act: Act, applies: bool
) -> None:
    fault = s3.script(kind, act=act, applies=applies, times=3, skip=1 if kind == "part" else 0)
    save_large(s3)
    assert fault.struck == 3
    assert same(newest(s3), 0, LARGE)


@pytest.mark.parametrize(("act", "applies"), heavy_but([("reset", False), ("hang", True)], FAILURES))
def test_a_pack_in_one_request_that_goes_wrong_costs_nothing(s3: FaultyS3, act: Act, applies: bool) -> None:
    fault = s3.script("put", act=act, applies=applies, times=3)
    with write_at(s3, storage={"timeout": 0.2}) as cp:
        cp.write(state(0), step=0, durable=True)
    assert fault.struck == 3
    assert same(newest(s3), 0)


def test_an_error_within_a_success_is_an_error(s3: FaultyS3, parts: None) -> None:
    """S3 answers 200 at once to a "complete" that takes long, and tells in the body how it ended."""
    s3.script("complete", act="error", status=200, code="InternalError", times=3)
    save_large(s3)
    assert same(newest(s3), 0, LARGE)


@pytest.mark.parametrize("kind", ["part", "complete"])
def test_an_upload_that_the_store_has_forgotten_is_made_again(s3: FaultyS3, parts: None, kind: str) -> None:
    s3.script(kind, act="error", status=404, code="NoSuchUpload", times=2)
    save_large(s3)
    assert same(newest(s3), 0, LARGE)


def test_an_upload_that_ended_twice_is_complete(s3: FaultyS3, parts: None) -> None:
    """The answer to "complete" is lost, and the second one is told that there is no such upload."""
    s3.script("complete", act="close", applies=True, times=1)
    save_large(s3)
    assert s3.count("complete") == 2
    assert len(s3.bucket.keys("/data/")) == 1
    assert same(newest(s3), 0, LARGE)


def test_no_name_gets_two_contents_whatever_goes_wrong(s3: FaultyS3, parts: None) -> None:
    contents: dict[str, set[bytes]] = {}

    def note(key: str, data: bytes) -> bytes:
        contents.setdefault(key, set()).add(data)
        return data

    s3.bucket.manners.bend_stored = note
    for act, applies in FAILURES:
        s3.script("put part complete create", act=act, applies=applies, share=0.01)
    save_large(s3, steps=5)
    assert same(newest(s3), 4, LARGE)
    assert {len(each) for each in contents.values()} == {1}


def test_nothing_of_a_failed_upload_stays_under_way(s3: FaultyS3, parts: None) -> None:
    s3.script("part", act="error", status=400, code="InvalidPart", skip=4, times=1)
    with pytest.raises(Exception, match="InvalidPart"):
        save_large(s3)
    assert s3.bucket.uploads == {}


# Bytes that change between the digest and the store.


@pytest.mark.parametrize("size", [60_000, LARGE])
def test_a_bit_that_flips_on_the_way_to_the_store_is_found_by_the_first_read(
    s3: FaultyS3, parts: None, size: int
) -> None:
    def flip(key: str, data: bytes) -> bytes:
        bent = bytearray(data)
        if "/data/" in key:
            bent[1000] ^= 0x10
        return bytes(bent)

    with write_at(s3, retain=Last(3)) as cp:
        cp.write(state(0, size), step=0, durable=True)
        s3.bucket.manners.bend_stored = flip
        cp.write(state(1, size), step=1, durable=True)
        s3.bucket.manners.bend_stored = lambda _, data: data
        with pytest.raises(CorruptError, match=r"data/.*offset \d+|data/.*byte \d+") as caught:
            cp.verify()
        assert caught.value.pack in {key.removeprefix("run/") for key in s3.bucket.keys("/data/")}
    with read_at(s3) as run:
        with pytest.raises(CorruptError):
            run.read(strict=True)
        with pytest.warns(RuntimeWarning, match="data/"):
            assert same(run.read(), 0, size)


def test_what_a_flipped_bit_damaged_is_written_anew(s3: FaultyS3) -> None:
    def flip(key: str, data: bytes) -> bytes:
        return data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:] if "/data/" in key else data

    with write_at(s3) as cp:
        s3.bucket.manners.bend_stored = flip
        cp.write(state(1), step=1, durable=True)
        s3.bucket.manners.bend_stored = lambda _, data: data
        with pytest.raises(CorruptError):
            cp.verify()
        again: Any = cp.write(state(1), step=2).result(10)
        assert again.new_bytes > 50_000
        assert same(cp.read(strict=True), 1)
