"""Damage is found before it is used, an older checkpoint is used instead, and it is said so."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.states import big, fill, same

from limpet import CorruptError, DamagedCheckpointWarning
from limpet.events import Event, Fallback
from limpet.format.layout import log_key


def newest_pack(shelf: Shelf) -> str:
    return shelf.packs()[-1]


def test_a_flipped_bit_in_a_pack_falls_back_and_says_so(store: Faulty, shelf: Shelf) -> None:
    """R1"""
    fill(store)
    shelf.flip(newest_pack(shelf), 1000)
    with (
        read_over(store) as run,
        pytest.warns(DamagedCheckpointWarning, match=r"checkpoint 4:.*Using checkpoint 3") as told,
    ):
        assert same(run.read(), 1)
    assert len(told) == 1
    assert "(step 1)" in str(told[0].message)


@pytest.mark.parametrize("at", [0, 5000, 100_000, 250_000, -1, -100, -400])
def test_a_flipped_bit_anywhere_in_a_pack_is_found(store: Faulty, shelf: Shelf, at: int) -> None:
    fill(store, 2)
    shelf.flip(newest_pack(shelf), at)
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning):
        assert same(run.read(), 0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1), st.integers(0, 10**6))
def test_no_flipped_bit_of_a_small_checkpoint_is_ever_read(which: int, at: int) -> None:
    store = Faulty()
    shelf = Shelf(store.store)
    state = {"a": np.arange(3000, dtype=np.int16), "text": "some text", "n": 5}
    with write_over(store) as cp:
        cp.write(0, step=0, durable=True)
        cp.write(state, step=1, durable=True)
    keys = [*shelf.packs(), log_key(3)]
    key = keys[which % len(keys)]
    shelf.flip(key, at % len(shelf.objects[key]))
    with read_over(store) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedCheckpointWarning)
        found = run.read()
    assert found == 0


@pytest.mark.parametrize("to", [0, 1, 5000])
def test_a_truncated_pack_falls_back(store: Faulty, shelf: Shelf, to: int) -> None:
    """R2"""
    fill(store)
    shelf.cut(newest_pack(shelf), to)
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning, match="Using checkpoint 3"):
        assert same(run.read(), 1)


def test_a_missing_pack_falls_back(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    shelf.remove(newest_pack(shelf))
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning, match="is missing"):
        assert same(run.read(), 1)


def test_packs_that_were_swapped_are_found(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    _, second, third = shelf.packs()
    objects = shelf.objects
    shelf.replace(third, objects[second])
    shelf.replace(second, objects[third])
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning):
        assert same(run.read(), 0)


def test_damage_on_the_way_is_read_once_more_and_is_no_damage(store: Faulty) -> None:
    fill(store)
    store.script("get_range", flip=True, times=1, skip=1)
    store.script("read_into", flip=True, times=1)
    with read_over(store) as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(run.read(), 2)


def test_a_manifest_damaged_on_the_way_is_no_damage(store: Faulty) -> None:
    fill(store)
    store.script("get_range", flip=True, times=1)
    with read_over(store) as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(run.read(), 2)


def test_a_store_that_answers_short_is_found_out(store: Faulty) -> None:
    fill(store, 1)
    store.script("get_range", short=True, times=10**6)
    with read_over(store) as run, pytest.raises(CorruptError):
        run.read()


def test_a_damaged_checkpoint_is_not_tried_for_ever(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    shelf.flip(newest_pack(shelf), 1000)
    store.calls.clear()
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning):
        run.read()
    bad = newest_pack(shelf)
    assert store.count("get_range", bad) + store.count("read_into", bad) <= 8


def test_every_skipped_checkpoint_is_named(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    for pack in shelf.packs()[1:]:
        shelf.flip(pack, 1000)
    with (
        read_over(store) as run,
        pytest.warns(DamagedCheckpointWarning, match=r"checkpoint 4:.*checkpoint 3:.*Using checkpoint 2"),
    ):
        assert same(run.read(), 0)


def test_when_none_verifies_it_is_an_error_and_not_none(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    for pack in shelf.packs():
        shelf.flip(pack, 1000)
    with read_over(store) as run, pytest.raises(CorruptError, match=r"no checkpoint verifies.*4.*3.*2"):
        run.read()
    with write_over(store) as cp, pytest.raises(CorruptError, match="no checkpoint verifies"):
        cp.resume(initial=0)


@pytest.mark.parametrize("how", [{"strict": True}, {"at": 2}, {"at": "info"}])
def test_whoever_asks_for_one_checkpoint_gets_that_or_an_error(
    store: Faulty, shelf: Shelf, how: dict[str, Any]
) -> None:
    fill(store)
    with read_over(store) as run:
        if how.get("at") == "info":
            how = {"at": run.checkpoints()[-1]}
        shelf.flip(newest_pack(shelf), 1000)
        with pytest.raises(CorruptError, match=r"checkpoint 4 \(step 2\).*damaged"):
            run.read(**how)


@pytest.mark.filterwarnings("error::limpet.DamagedCheckpointWarning")
def test_an_older_damaged_checkpoint_disturbs_nobody(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    shelf.flip(log_key(2))
    shelf.flip(shelf.packs()[0])
    with read_over(store) as run:
        assert same(run.read(), 2)
        assert same(run.read(strict=True), 2)
        assert run.verify() is not None


def test_a_damaged_live_record_is_skipped_and_said(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    shelf.flip(log_key(4))
    with read_over(store) as run:
        with pytest.warns(DamagedCheckpointWarning, match="Using checkpoint 3"):
            assert same(run.read(), 1)
        with pytest.raises(CorruptError, match="checkpoint 4"):
            run.read(strict=True)
        with pytest.raises(CorruptError, match="checkpoint 4"):
            run.verify()
        with pytest.warns(DamagedCheckpointWarning, match="checkpoint 4"):
            assert [info.step for info in run.checkpoints()] == [0, 1]


def test_a_damaged_head_gives_the_newest_record_that_verifies(store: Faulty, shelf: Shelf) -> None:
    cp = write_over(store)
    with cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
    shelf.flip(log_key(5))  # the close record
    shelf.flip(log_key(4))
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning):
        assert same(run.read(), 1)


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_writer_goes_on_after_a_damaged_head_and_deletes_nothing(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    for seq in (4, 5):
        shelf.flip(log_key(seq))
    packs = shelf.packs()
    with write_over(store) as cp:
        with pytest.warns(DamagedCheckpointWarning):
            assert same(cp.resume().state, 1)
        for step in range(5, 9):
            cp.write(big(step), step=step, durable=True)
        assert cp.sweep().objects == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(cp.read(), 8)
            assert same(cp.read(strict=True), 8)
            assert cp.verify() is not None
    assert set(packs) <= set(shelf.packs())


def test_damage_with_nothing_before_it_is_an_error_and_not_none(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
    shelf.flip(log_key(2))
    shelf.flip(log_key(3))
    with read_over(store) as run, pytest.raises(CorruptError, match="damaged"):
        run.read()


def test_a_log_without_a_record_that_verifies_is_an_error(store: Faulty, shelf: Shelf) -> None:
    fill(store, 1)
    for key in shelf.keys("log/"):
        shelf.flip(key)
    with read_over(store) as run, pytest.raises(CorruptError, match="none of the 3 log records verifies"):
        run.read()


def test_hooks_are_told_of_a_fallback(store: Faulty, shelf: Shelf) -> None:
    events: list[Event] = []
    fill(store)
    shelf.flip(newest_pack(shelf), 1000)
    with write_over(store, hooks=[events.append]) as cp, pytest.warns(DamagedCheckpointWarning):
        cp.resume()
    assert [event.seq for event in events if isinstance(event, Fallback)] == [4]


def test_what_is_damaged_is_not_shared_with_the_next_save(store: Faulty, shelf: Shelf) -> None:
    fill(store, 2)
    shelf.flip(newest_pack(shelf), -20)  # in its manifest
    with write_over(store) as cp:
        with pytest.warns(DamagedCheckpointWarning):
            cp.resume()
        cp.write(big(1), step=1, durable=True)
        assert same(cp.read(), 1)


def test_verify_reads_every_byte(store: Faulty, shelf: Shelf) -> None:
    fill(store, 1)
    with read_over(store) as run:
        found = run.verify()
        assert found is not None
        assert found.info.step == 0
        assert found.read_bytes > 300_000
        for at in (0, 100_000, 300_000):
            shelf.flip(newest_pack(shelf), at)
            with pytest.raises(CorruptError, match="damaged"):
                run.verify()
            shelf.flip(newest_pack(shelf), at)
        assert run.verify(at=0) == found


def test_a_tiny_checkpoint_lies_in_its_record_and_is_verified_with_it(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(b"tiny", durable=True)
        cp.write(b"newer", durable=True)
    assert shelf.packs() == []
    shelf.flip(log_key(3))
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning):
        assert run.read() == b"tiny"
