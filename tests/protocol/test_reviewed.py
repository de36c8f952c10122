"""What a reader with fresh eyes found: stores that stand still once, and housekeeping that nobody woke."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from tests.faulty import PATIENCE_SECONDS, QUICK, Faulty, Shelf, down, write_over
from tests.support import noise

from limpet import Checkpointer, CommitUnknownError, FencedError, Last, StoreError
from limpet.format.layout import log_key
from limpet.format.seal import Seal


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": noise(step, 20_000)}


def test_one_connection_that_stands_still_does_not_cost_the_save() -> None:
    store = Faulty()
    with write_over(store) as cp:
        fault = store.script("put", "data/", waits=True)
        assert cp.write(state(1), step=1).result(PATIENCE_SECONDS).durable_step == 1
        assert store.count("put", "data/") == 2
        fault.release()


def test_an_opening_that_gets_no_answer_ends_at_its_deadline() -> None:
    store = Faulty()
    with write_over(store) as cp:
        cp.write(state(1), step=1)
    fault = store.script("settle", "log/", waits=True)
    began = time.monotonic()
    with pytest.raises(StoreError, match="no answer"), write_over(store, timing=replace(QUICK, open_deadline=0.3)):
        pass
    assert time.monotonic() - began < PATIENCE_SECONDS
    fault.release()


@pytest.mark.filterwarnings("ignore:limpet")
def test_records_given_up_by_a_commit_whose_answer_was_lost_let_data_go_at_once() -> None:
    """The next record adopts it; nothing else would have woken the sweep before `close`."""
    store = Faulty()
    shelf = Shelf(store.store)
    with write_over(store, retain=Last(9)) as cp:
        seqs = [cp.write(state(step), step=step, durable=True).result().seq for step in range(3)]
    shelf.flip(log_key(seqs[0] or 0))
    with write_over(store, retain=Last(9)) as cp:
        fault = store.script("create", "log/", after=down(), times=10**9)
        reads = store.script("get", "log/", before=down(), times=10**9)
        with pytest.raises(CommitUnknownError):
            cp.drop_damaged()
        fault.times = reads.times = 0
        cp.write({"step": 9}, step=9, durable=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(shelf.packs()) > 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(shelf.packs()) == 2


def test_a_writer_without_the_key_is_told_that_its_successor_has_one(tmp_path: Any) -> None:
    with pytest.raises(FencedError, match="with a key that we were not given"), Checkpointer(tmp_path / "run") as cp:
        cp.write({"step": 1}, step=1, durable=True)
        last = max((tmp_path / "run").glob("log/*/*.json"))
        sealed = Seal(b"0123456789abcdef").sign(last.read_bytes())
        (tmp_path / "run" / log_key(int(last.stem) + 1)).write_bytes(sealed)
        cp.write({"step": 2}, step=2, durable=True)


def test_a_sweep_lists_many_epochs_at_once() -> None:
    """A run of many short attempts: what each left is looked through in few round trips."""
    store = Faulty()
    for step in range(12):
        with write_over(store, retain=Last(99)) as cp:
            cp.write(state(step), step=step)
    with write_over(store, retain=Last(99)) as cp:
        before = store.count("list", "data/0")
        fault = store.script("list", "data/0", waits=True, times=10**9)
        sweeping = threading.Thread(target=cp.sweep)
        sweeping.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while store.count("list", "data/0") - before < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        asked = store.count("list", "data/0") - before
        fault.release()
        sweeping.join()
        assert asked >= 8  # the writer's own sweep may be among them
