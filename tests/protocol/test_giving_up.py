"""Damaged records keep everything from being deleted until somebody gives them up by hand."""

from __future__ import annotations

from typing import Any

import pytest
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.support import noise

from limpet import Last
from limpet.format.layout import log_key
from limpet.format.record import decode_record


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": noise(step, 20_000)}


@pytest.fixture
def store() -> Faulty:
    return Faulty()


@pytest.fixture
def shelf(store: Faulty) -> Shelf:
    return Shelf(store.store)


def run_with(store: Faulty, steps: range, **settings: Any) -> list[int]:
    """Write some checkpoints; their seqs."""
    with write_over(store, **settings) as cp:
        return [cp.write(state(step), step=step, durable=True).result().seq or 0 for step in steps]


def test_opening_names_the_damaged_records_and_the_way_out(store: Faulty, shelf: Shelf) -> None:
    seqs = run_with(store, range(3))
    shelf.flip(log_key(seqs[0]))
    with pytest.warns(RuntimeWarning, match=rf"records {seqs[0]} are damaged.*drop_damaged"), write_over(store):
        pass


@pytest.mark.filterwarnings("ignore:limpet")
@pytest.mark.parametrize("which", ["live", "newest"])
def test_what_was_given_up_is_no_longer_live_and_data_is_deleted_again(store: Faulty, shelf: Shelf, which: str) -> None:
    seqs = run_with(store, range(3), retain=Last(9))
    last = max(int(key[-21:-5]) for key in shelf.keys("log/"))
    harmed = seqs[0] if which == "live" else last
    shelf.flip(log_key(harmed))
    with write_over(store, retain=Last(1)) as cp:
        cp.write(state(7), step=7, durable=True)
        cp.sweep()
        assert len(shelf.packs()) == 4
        assert cp.drop_damaged() == (harmed,)
        cp.sweep()
        assert len(shelf.packs()) == 1
        assert cp.read()["step"] == 7
        cp.write(state(8), step=8, durable=True)
    with read_over(store) as run:
        assert run.verify()
    newest = max(shelf.keys("log/"))
    record, _ = decode_record(shelf.objects[newest], int(newest[-21:-5]))
    assert (record.quarantined, len(record.live)) == ([], 1)


def test_with_nothing_damaged_nothing_is_written(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write(state(1), step=1, durable=True)
        before = store.count("create")
        assert cp.drop_damaged() == ()
        assert store.count("create") == before


@pytest.mark.filterwarnings("ignore:limpet")
async def test_coroutines_give_up_in_the_same_way(store: Faulty, shelf: Shelf) -> None:
    seqs = run_with(store, range(2))
    shelf.flip(log_key(seqs[0]))
    async with write_over(store) as cp:
        assert await cp.drop_damaged_async() == (seqs[0],)
