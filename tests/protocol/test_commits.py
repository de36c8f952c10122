"""Committing through the public calls: live sets, policies, pins, and what an unclear answer leaves behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest
from tests.faulty import EVER, QUICK, Faulty, Shelf, down, forbidden, read_over, write_over
from tests.protocol.logs import assert_legal, at

from limpet import (
    Best,
    Checkpointer,
    CommitUnknownError,
    Last,
    NotFoundError,
    Outcome,
    Periodic,
    StoreError,
    UsageError,
)
from limpet.events import Committed, Event, Failed, Retried
from limpet.format.record import Record, from_ranges
from limpet.stores.base import NOT_DURABLE, KeyExistsError


def big(step: int) -> dict[str, Any]:
    """A state that needs a pack of its own."""
    return {"step": step, "weights": np.random.default_rng(step).random(8192)}


def same(found: Any, step: int) -> bool:
    return bool(found["step"] == step and np.array_equal(found["weights"], big(step)["weights"]))


async def records(store: Faulty, shelf: Shelf) -> list[Record]:
    return [await at(store, seq) for seq in range(1, len(shelf.keys("log/")) + 1)]


def steps(cp: Checkpointer) -> list[int | None]:
    return [info.step for info in cp.checkpoints()]


async def test_each_record_carries_the_whole_live_set(store: Faulty, shelf: Shelf) -> None:
    with write_over(store, retain=Last(2)) as cp:
        for step in range(4):
            cp.write(big(step), step=step, durable=True)
    found = await records(store, shelf)
    assert [record.kind for record in found] == ["open", "commit", "commit", "commit", "commit", "close"]
    assert [from_ranges(record.live) for record in found] == [set(), {2}, {2, 3}, {3, 4}, {4, 5}, {4, 5}]
    await assert_legal(store, shelf)


async def test_a_pin_a_delete_and_an_unpin_are_edit_records(store: Faulty, shelf: Shelf) -> None:
    with write_over(store, retain=Last(2)) as cp:
        cp.write(big(0), step=0, durable=True)
        cp.pin(0)
        cp.write(big(1), step=1, durable=True)
        cp.write(big(2), step=2, durable=True)
        cp.delete(1)
        cp.pin(0, pinned=False)
    found = await records(store, shelf)
    assert [record.kind for record in found] == ["open", "commit", "edit", "commit", "commit", "edit", "edit", "close"]
    assert [from_ranges(record.pinned) for record in found] == [set(), set(), {2}, {2}, {2}, {2}, set(), set()]
    assert from_ranges(found[-1].live) == {2, 5}
    await assert_legal(store, shelf)


def test_a_pinned_write_stays_whatever_the_policy_says(store: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, pin=True, durable=True)
        for step in (1, 2, 3):
            cp.write(big(step), step=step, durable=True)
        assert steps(cp) == [0, 3]
        assert [info.pinned for info in cp.checkpoints()] == [True, False]
        cp.pin(0, pinned=False)
        cp.write(big(4), step=4, durable=True)
        assert steps(cp) == [4]


def test_pins_survive_a_takeover(store: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, pin=True, durable=True)
    with write_over(store) as cp:
        cp.write(big(1), step=1, durable=True)
        assert [(info.step, info.pinned) for info in cp.checkpoints()] == [(0, True), (1, False)]


def test_the_policy_is_recorded_and_inherited(store: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
    with write_over(store) as cp:
        cp.write(big(1), step=1, durable=True)
        assert steps(cp) == [1]


def test_a_new_run_keeps_three(store: Faulty) -> None:
    with write_over(store) as cp:
        for step in range(5):
            cp.write(big(step), step=step, durable=True)
        assert steps(cp) == [2, 3, 4]


def test_several_policies_are_recorded_together(store: Faulty) -> None:
    with write_over(store, retain=Last(1) | Periodic(steps=10) | Best("loss")) as cp:
        for step in (0, 5):
            cp.write(big(step), step=step, meta={"loss": 1 / (step + 1)}, durable=True)
    with write_over(store) as cp:
        for step in (10, 15, 16):
            cp.write(big(step), step=step, meta={"loss": step}, durable=True)
        assert steps(cp) == [0, 5, 10, 16]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_narrowing_takes_an_explicit_argument_and_says_what_goes(store: Faulty) -> None:
    with write_over(store, retain=Last(3)) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
    with write_over(store) as cp:  # inherited: nothing to say
        assert steps(cp) == [0, 1, 2]
    cp = write_over(store, retain=Last(1))
    with pytest.warns(RuntimeWarning, match=r"kept last 3.*last 1.*steps 0, 1"):
        cp.__enter__()
    with cp:
        assert steps(cp) == [0, 1, 2]  # until the next commit
        cp.write(big(3), step=3, durable=True)
        assert steps(cp) == [3]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_widening_says_nothing(store: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
    with write_over(store, retain=Last(5)) as cp:
        assert steps(cp) == [0]


def test_the_newest_commit_wins_whatever_its_step(store: Faulty) -> None:
    with write_over(store) as cp:
        for step in (10, 11, 5):
            cp.write(big(step), step=step, durable=True)
        assert same(cp.read(), 5)
    with read_over(store) as run:
        assert run.resume().next_step == 6


def test_a_step_that_exists_may_be_written_again_and_the_newest_is_read(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write({"v": 1}, step=7, durable=True)
        cp.write({"v": 2}, step=7, durable=True)
        assert cp.read(at=7) == {"v": 2}
        first = cp.checkpoints()[0]
        assert cp.read(at=first) == {"v": 1}


def test_an_only_checkpoint_cannot_be_deleted(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write(1, step=0, durable=True)
        with pytest.raises(UsageError, match="only usable one"):
            cp.delete(0)
        assert cp.read() == 1


def test_pins_and_deletes_of_what_is_not_live_are_not_found(store: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(1, step=0, durable=True)
        gone = cp.latest
        cp.write(2, step=1, durable=True)
        for call in (cp.pin, cp.delete):
            with pytest.raises(NotFoundError):
                call(0)
            with pytest.raises(NotFoundError):
                call(gone)


def test_commits_go_in_the_order_of_the_calls_whatever_finishes_first(store: Faulty) -> None:
    slow = store.script("put", "data/", waits=True)
    with write_over(store, buffers=4, on_busy="wait") as cp:
        first = cp.write(big(0), step=0)
        slow.wait_until_reached()
        second = cp.write(big(1), step=1)
        while store.count("put") < 2:
            threading.Event().wait(0.001)
        assert not second.done()
        slow.release()
        receipts = [first.result(10), second.result(10)]
    assert [receipt.seq for receipt in receipts] == [2, 3]


def test_a_save_commits_although_the_one_before_it_failed(store: Faulty) -> None:
    slow = store.script("put", "data/", waits=True, before=forbidden())
    with write_over(store, buffers=4, on_busy="wait") as cp:
        first = cp.write(big(0), step=0)
        slow.wait_until_reached()
        second = cp.write(big(1), step=1)
        slow.release()
        with pytest.raises(StoreError, match="403"):
            first.result(10)
        assert second.result(10).outcome is Outcome.COMMITTED
        assert same(cp.read(), 1)


def test_an_answer_that_was_lost_is_no_failure(store: Faulty) -> None:
    with write_over(store) as cp:
        store.script("create", "log/", after=down("timeout"))
        receipt = cp.write(big(0), step=0).result(10)
        assert receipt.outcome is Outcome.COMMITTED
        assert [info.seq for info in cp.checkpoints()] == [receipt.seq]


def test_a_conflict_with_nothing_stored_commits_in_the_end(store: Faulty) -> None:
    with write_over(store) as cp:
        store.script("create", "log/", before=KeyExistsError("409"), times=2)
        assert cp.write(big(0), step=0).result(10).seq == 2


def test_an_unknown_commit_is_an_error_and_keeps_its_packs(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
        fault = store.script("create", "log/", before=down(), times=EVER)
        with pytest.raises(CommitUnknownError) as caught:
            cp.write(big(1), step=1).result(10)
        assert "next write resolves it" in caught.value.hint
        packs = shelf.packs()
        assert len(packs) == 2
        cp.sweep()
        assert shelf.packs() == packs
        fault.times = 0


def test_an_unknown_commit_that_never_landed_gives_its_seq_away_and_its_packs_go(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        fault = store.script("create", "log/", before=down(), times=EVER)
        with pytest.raises(CommitUnknownError):
            cp.write(big(0), step=0).result(10)
        fault.times = 0
        assert cp.write(big(1), step=1).result(10).seq == 2
        cp.sweep()
        assert len(shelf.packs()) == 1
        assert same(cp.read(), 1)


async def test_an_unknown_commit_that_landed_is_adopted_by_the_next_write(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
        store.script("create", "log/", after=down("timeout"))
        blind = store.script("get", "log/", before=down(), times=EVER)
        with pytest.raises(CommitUnknownError):
            cp.write(big(1), step=1).result(10)
        assert steps(cp) == [0]
        blind.times = 0
        cp.sweep()
        assert cp.write(big(2), step=2).result(10).seq == 4
        assert steps(cp) == [0, 1, 2]
        cp.sweep()
        for step in range(3):
            assert same(cp.read(at=step), step)
    await assert_legal(store, shelf)


async def test_an_unknown_commit_that_landed_is_adopted_by_close(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        store.script("create", "log/", after=down("timeout"))
        blind = store.script("get", "log/", before=down(), times=EVER)
        with pytest.raises(CommitUnknownError):
            cp.write(big(1), step=1).result(10)
        blind.times = 0
    assert [record.kind for record in await records(store, shelf)] == ["open", "commit", "close"]
    with read_over(store) as run:
        assert same(run.read(), 1)


def test_a_commit_that_the_store_refused_keeps_its_packs_until_the_next_one(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        store.script("create", "log/", before=forbidden())
        with pytest.raises(StoreError, match="403"):
            cp.write(big(0), step=0).result(10)
        cp.sweep()
        assert len(shelf.packs()) == 1
        cp.write(big(1), step=1, durable=True)
        cp.sweep()
        assert len(shelf.packs()) == 1


def test_a_commit_whose_durability_is_lost_stops_the_writer(store: Faulty) -> None:
    cp = write_over(store)
    with cp:
        store.script("create", "log/", after=StoreError("fsync failed", kind=NOT_DURABLE))
        with pytest.raises(CommitUnknownError):
            cp.write(big(0), step=0).result(10)
        with pytest.raises(CommitUnknownError):
            cp.write(big(1), step=1)
    with pytest.warns(RuntimeWarning, match="did not close"), write_over(store) as again:
        assert same(again.read(), 0)


def test_every_retry_is_reported(store: Faulty) -> None:
    events: list[Event] = []
    with write_over(store, hooks=[events.append]) as cp:
        store.script("put", "data/", before=down("put"))
        store.script("create", "log/", before=down("create"))
        cp.write(big(0), step=0, durable=True)
        store.script("get_range", "data/", before=down("read"))
        assert same(cp.read(), 0)
    retried = [(event.operation, event.attempt) for event in events if isinstance(event, Retried)]
    assert retried == [("put", 1), ("create", 1), ("get_range", 1)]
    assert sum(isinstance(event, Committed) for event in events) == 1


def test_a_failed_pack_is_written_again_under_a_fresh_name(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        store.script("put", "data/", after=down("timeout"))
        cp.write(big(0), step=0, durable=True)
        names = [key for name, key in store.calls if name == "put"]
        assert len(set(names)) == len(names) == 2
        cp.sweep()
        assert shelf.packs() == [names[1]]
        assert same(cp.read(), 0)


def test_an_upload_that_fails_for_good_leaves_the_previous_commit_and_the_writer_usable(store: Faulty) -> None:
    events: list[Event] = []
    with write_over(store, hooks=[events.append]) as cp:
        cp.write(big(0), step=0, durable=True)
        store.script("put", "data/", before=down(), times=EVER)
        failures = [cp.write(big(step), step=step) for step in (1,)]
        with pytest.raises(StoreError, match="503"):
            failures[0].result(10)
        assert same(cp.read(), 0)
        store.heal()
        cp.write(big(2), step=2, durable=True)
        assert same(cp.read(), 2)
    assert [event.step for event in events if isinstance(event, Failed)] == [1]


def test_failures_that_are_kept_do_not_use_up_the_memory(store: Faulty) -> None:
    state = {"weights": np.zeros(6 << 20, dtype=np.uint8) + np.arange(6 << 20, dtype=np.uint8)}
    with write_over(store, memory_limit=48 << 20, compression="off") as cp:
        fault = store.script("put", "data/", before=forbidden(), times=EVER)
        kept = []
        for step in range(30):  # more than the bytes in flight and the slots together
            state["weights"][:] = np.random.default_rng(step).integers(0, 255, 6 << 20, dtype=np.uint8)
            kept.append(cp.write(state, step=step))
            with pytest.raises(StoreError):
                kept[-1].result(10)
        errors = [pending._completion.error for pending in kept]
        fault.times = 0
        cp.write(state, step=99).result(10)
        assert len(errors) == 30


def test_a_shared_chunk_is_written_again_after_many_commits(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpet.engine.index._SHARES_MAX", 5)
    frozen = np.random.default_rng(0).random(1 << 16)
    new = []
    with write_over(store, retain=Last(1)) as cp:
        for step in range(14):
            new.append(cp.write({"frozen": frozen, "step": step}, step=step).result(10).new_bytes > frozen.nbytes // 2)
    assert new[0]
    assert [step for step, anew in enumerate(new) if anew] == [0, 6, 12]


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
async def test_a_commit_that_lands_while_close_gives_up_is_kept_whole(store: Faulty, shelf: Shelf) -> None:
    create = store.store.create

    async def applied_but_slow(key: str, data: bytes) -> None:
        await create(key, data)
        store.store.create = create
        await anyio.sleep_forever()

    cp = write_over(store, timing=replace(QUICK, commit_deadline=30.0))
    with cp:
        cp.write(big(0), step=0, durable=True)
        store.store.create = applied_but_slow
        late = cp.write(big(1), step=1)
        with pytest.raises(StoreError, match="deadline of close"):
            cp.close(timeout=0.2)
        with pytest.raises(StoreError):
            late.result(10)
    assert [record.kind for record in await records(store, shelf)] == ["open", "commit", "commit", "close"]
    with read_over(store) as run:
        assert same(run.read(strict=True), 1)


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
async def test_a_commit_that_never_lands_before_close_gives_up_leaves_no_trace(store: Faulty, shelf: Shelf) -> None:
    cp = write_over(store, timing=replace(QUICK, commit_deadline=30.0))
    with cp:
        cp.write(big(0), step=0, durable=True)
        store.script("create", "log/", waits=True)
        cp.write(big(1), step=1)
        with pytest.raises(StoreError, match="deadline of close"):
            cp.close(timeout=0.2)
    assert [record.kind for record in await records(store, shelf)] == ["open", "commit", "close"]
    assert len(shelf.packs()) == 1
    with read_over(store) as run:
        assert same(run.read(), 0)


def test_errors_that_a_hook_keeps_do_not_hold_up_the_next_try(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error's traceback must not keep an upload that broke off, and with it the bytes in flight, alive."""
    monkeypatch.setattr("limpet.engine.writer._IN_FLIGHT_BYTES", 8 << 20)
    kept: list[Event] = []
    patient = replace(QUICK, upload_deadline=30.0)
    with write_over(store, hooks=[kept.append], compression="off", timing=patient) as cp:
        store.script("put", "data/", before=down(), times=3)
        cp.write(np.zeros(6 << 20, dtype=np.uint8) + np.arange(256, dtype=np.uint8).repeat(24576), step=0).result(10)
    assert sum(isinstance(event, Retried) for event in kept) == 3
