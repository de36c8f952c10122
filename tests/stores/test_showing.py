"""Whoever checks what is read sees all of it, in order, and the same bytes get to their places."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stores.contract import PACK, parts_of

from limpet.errors import CorruptError
from limpet.stores import showing
from limpet.stores.local import LocalStore
from limpet.stores.showing import clear_place, show_and_fill

CACHED_BYTES = showing._CACHED_BYTES
STRETCH_BYTES = showing._STRETCH_BYTES


def read_all(data: bytes, sizes: list[int]) -> tuple[list[bytearray], list[tuple[int, bytes]]]:
    targets = [bytearray(size) for size in sizes]
    shown: list[tuple[int, bytes]] = []

    def read(target: memoryview, at: int) -> None:
        target[:] = data[at : at + len(target)]

    show_and_fill(read, [memoryview(target) for target in targets], lambda at, piece: shown.append((at, bytes(piece))))
    return targets, shown


def numbered(size: int) -> bytes:
    return np.arange(-(-size // 4), dtype=np.uint32).tobytes()[:size]


@given(st.lists(st.sampled_from([0, 1, 1000, CACHED_BYTES, CACHED_BYTES + 1, STRETCH_BYTES + 5]), max_size=5))
def test_all_of_it_is_shown_in_order_and_gets_to_its_place(sizes: list[int]) -> None:
    data = numbered(sum(sizes))
    targets, shown = read_all(data, sizes)
    assert b"".join(targets) == data
    assert b"".join(piece for _, piece in shown) == data
    positions = [0, *itertools.accumulate(len(piece) for _, piece in shown)]
    assert [at for at, _ in shown] == positions[:-1]


@pytest.mark.parametrize("behind", [0, 1, 16, 63, 64, 4095])
def test_memory_that_is_not_copied_to_slowly_is_read_to_straight(behind: int) -> None:
    data = numbered(2 * CACHED_BYTES)
    memory = np.empty(len(data) + 2 * 4096, np.uint8)
    start = (behind - memory.ctypes.data) % 4096
    target = memory[start : start + len(data)]
    where: list[int] = []

    def read(piece: memoryview, at: int) -> None:
        piece[:] = data[at : at + len(piece)]

    show_and_fill(read, [target.data], lambda _, piece: where.append(np.frombuffer(piece, np.uint8).ctypes.data))
    assert target.tobytes() == data
    straight = [target.ctypes.data, target.ctypes.data + CACHED_BYTES]
    assert (where == straight) is (behind not in range(1, 64))


def test_pieces_fit_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpet.stores.showing.time.thread_time", itertools.count(0, 1000).__next__)
    _, shown = read_all(numbered(3 * STRETCH_BYTES), [3 * STRETCH_BYTES])
    assert {len(piece) for _, piece in shown} == {CACHED_BYTES}


def test_who_waits_for_every_call_makes_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpet.stores.showing.time.thread_time", lambda: 0.0)
    monkeypatch.setattr("limpet.stores.showing.time.monotonic", itertools.count(0, 1000).__next__)
    _, shown = read_all(numbered(3 * STRETCH_BYTES), [3 * STRETCH_BYTES])
    assert [len(piece) for _, piece in shown if len(piece) > CACHED_BYTES] == [2 * STRETCH_BYTES]


async def test_a_folder_shows_what_it_reads_and_stops_where_it_is_told_to(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    data = numbered(2 * CACHED_BYTES)
    await store.put(PACK, parts_of([data]))
    target = bytearray(CACHED_BYTES)
    shown = bytearray()
    parts = [memoryview(target)[:100], memoryview(target)[100:]]
    await store.read_into(PACK, 100, parts, lambda at, piece: shown.extend(piece))
    assert shown == target == data[100 : 100 + CACHED_BYTES]

    def refuse(at: int, piece: memoryview) -> None:
        raise CorruptError("no")

    with pytest.raises(CorruptError):
        await store.read_into(PACK, 0, [memoryview(bytearray(10))], refuse)
    await store.close()


@given(st.integers(0, 1 << 47), st.integers(0, 1 << 47))
def test_neither_copy_goes_to_where_it_would_alias_its_source(source, target):
    place = clear_place(source, target)
    assert place % 64 == 0
    assert 0 <= place < 4096
    for here, there in ((source, place), (place, target)):
        assert not 0 < (there - here) % 4096 <= 64
