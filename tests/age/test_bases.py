"""What a save refers to is there: a base that rots, or that somebody removes, is written anew."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from tests.faulty import QUICK, Faulty, Shelf, down, read_over, write_over
from tests.support import noise

from limpet import CorruptError, Last
from limpet.engine import bases

FROZEN = noise(99, 300_000)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "frozen": FROZEN, "head": noise(step, 20_000)}


class SkippingClock:
    """A monotonic clock that a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock() -> SkippingClock:
    return SkippingClock()


def equal(found: Any, step: int) -> bool:
    return bool(found["step"] == step and found["frozen"].tobytes() == FROZEN.tobytes())


def base_pack(shelf: Shelf) -> str:
    """The pack that holds the frozen part."""
    return max(shelf.packs(), key=lambda key: len(shelf.objects[key]))


@pytest.mark.parametrize("harm", ["removed", "cut"])
@pytest.mark.filterwarnings("ignore:limpet")
def test_a_base_that_was_harmed_from_outside_is_written_anew(clock: SkippingClock, harm: str) -> None:
    store = Faulty()
    shelf = Shelf(store.store)
    with write_over(store, retain=Last(9), timing=replace(QUICK, clock=clock)) as cp:
        first = cp.write(state(1), step=1, durable=True).result()
        second = cp.write(state(2), step=2, durable=True).result()
        assert second.new_bytes < 0.2 * first.new_bytes
        getattr(shelf, {"removed": "remove", "cut": "cut"}[harm])(base_pack(shelf))
        clock.ahead += bases.SEEN_SECONDS
        third = cp.write(state(3), step=3, durable=True).result()
        assert third.new_bytes > 0.9 * first.new_bytes
    with read_over(store) as run:
        assert equal(run.read(), 3)


def test_a_base_that_was_removed_is_told(clock: SkippingClock) -> None:
    store = Faulty()
    shelf = Shelf(store.store)
    with write_over(store, timing=replace(QUICK, clock=clock)) as cp:
        cp.write(state(1), step=1, durable=True)
        gone = base_pack(shelf)
        shelf.remove(gone)
        clock.ahead += bases.SEEN_SECONDS
        with pytest.warns(RuntimeWarning, match=gone):
            cp.write(state(2), step=2, durable=True)


@pytest.mark.filterwarnings("ignore:limpet")
def test_a_base_that_rotted_is_written_anew_once_somebody_has_read_it() -> None:
    """A flipped bit does not show in a listing; `verify` finds it, and tells the writer."""
    store = Faulty()
    shelf = Shelf(store.store)
    with write_over(store, retain=Last(9)) as cp:
        first = cp.write(state(1), step=1, durable=True).result()
        shelf.flip(base_pack(shelf), 1000)
        with pytest.raises(CorruptError):
            cp.verify()
        second = cp.write(state(2), step=2, durable=True).result()
        assert second.new_bytes > 0.9 * first.new_bytes
    with read_over(store) as run:
        assert equal(run.read(), 2)


def test_what_was_seen_a_moment_ago_is_not_looked_for_again(clock: SkippingClock) -> None:
    store = Faulty()
    with write_over(store, timing=replace(QUICK, clock=clock, grace=1e6)) as cp:
        cp.write(state(1), step=1, durable=True)
        before = store.count("list")
        for step in range(2, 6):
            cp.write(state(step), step=step, durable=True)
        assert store.count("list") == before
        clock.ahead += bases.SEEN_SECONDS
        cp.write(state(6), step=6, durable=True)
        assert store.count("list") == before + 1


@pytest.mark.parametrize(("ahead", "is_written_anew"), [(bases.SEEN_SECONDS, False), (bases.TRUSTED_SECONDS, True)])
def test_a_store_that_cannot_list_costs_no_save_and_bytes_only_if_that_goes_on(
    clock: SkippingClock, ahead: float, is_written_anew: bool
) -> None:
    store = Faulty()
    with write_over(store, timing=replace(QUICK, clock=clock)) as cp:
        first = cp.write(state(1), step=1, durable=True).result()
        clock.ahead += ahead
        fault = store.script("list", "data/", before=down(), times=10**9)
        second = cp.write(state(2), step=2, durable=True).result()
        fault.times = 0
        assert (second.new_bytes > 0.5 * first.new_bytes) is is_written_anew
        assert equal(cp.read(), 2)


def test_a_store_that_never_answers_a_listing_does_not_hold_the_save_up(clock: SkippingClock) -> None:
    store = Faulty()
    with write_over(store, timing=replace(QUICK, clock=clock)) as cp:
        cp.write(state(1), step=1, durable=True)
        clock.ahead += bases.SEEN_SECONDS
        fault = store.script("list", "data/", waits=True)
        cp.write(state(2), step=2).result(10)
        fault.release()
