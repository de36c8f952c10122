"""Deleting: list first, keep what anything may need, and only by the one who owns the run."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faulty import EVER, QUICK, Faulty, Shelf, down, forbidden, read_over, write_over
from tests.protocol.logs import committing, opened, tiny_commit

from limpet import CommitUnknownError, FencedError, Last, StoreError
from limpet.engine.janitor import Janitor, decide_deletes
from limpet.engine.live import Checkpoint, LiveSet, info_of
from limpet.engine.timing import Timing
from limpet.format.layout import PackName, log_key, pack_key, parse_pack_key
from limpet.format.record import PackUse, Record
from limpet.stores.base import Entry


def pack(epoch: int, save: int, part: int = 0, nonce: str = "0000aaaa") -> str:
    return pack_key(PackName(epoch, save, nonce, 0, part))


def big(step: int) -> dict[str, Any]:
    return {"step": step, "weights": np.random.default_rng(step).random(8192)}


packs = st.builds(pack, st.integers(1, 6), st.integers(1, 4), st.integers(0, 1))
strangers = st.sampled_from(
    ["data/notes.txt", "data/1/x.pack", "log/0000000000000/0000000000000001.json", "limpet.json"]
)


class TestTheDecision:
    @given(
        st.sets(packs | strangers, max_size=20),
        st.integers(1, 6),
        st.sets(packs, max_size=8),
        st.sets(st.integers(1, 4)),
        st.integers(0, 6),
    )
    def test_only_what_is_ours_old_and_unneeded_goes(
        self, listed: set[str], epoch: int, keep: set[str], saves: set[int], below: int
    ) -> None:
        verdict = decide_deletes(
            [Entry(key, 1) for key in listed], epoch=epoch, keep=keep, keep_saves=saves, keep_epochs_below=below
        )
        names = {key: name for key in listed if (name := parse_pack_key(key)) is not None}
        if any(name.epoch > epoch for name in names.values()):
            assert verdict.deletes == ()
            assert verdict.newer_epoch is not None
            return
        expected = {
            key
            for key, name in names.items()
            if key not in keep and name.epoch >= below and not (name.epoch == epoch and name.save in saves)
        }
        assert {entry.key for entry in verdict.deletes} == expected
        assert verdict.newer_epoch is None

    def test_an_object_of_a_higher_epoch_stops_every_delete(self) -> None:
        verdict = decide_deletes([Entry(pack(1, 1), 1), Entry(pack(3, 1), 1)], epoch=2, keep=set(), keep_saves=set())
        assert verdict.deletes == ()
        assert verdict.newer_epoch == 3

    def test_a_save_of_an_earlier_epoch_with_the_number_of_one_in_flight_goes(self) -> None:
        verdict = decide_deletes([Entry(pack(1, 7), 1), Entry(pack(2, 7), 1)], epoch=2, keep=set(), keep_saves={7})
        assert [entry.key for entry in verdict.deletes] == [pack(1, 7)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def checkpoint(seq: int, *keys: str) -> Checkpoint:
    commit = tiny_commit(packs=[PackUse(key, 1) for key in keys])
    record = Record(
        1, "r", seq, 1, "commit", "n", "", 0.0, None, None, commit=commit,  # type: ignore[arg-type]
    )  # fmt: skip
    return Checkpoint(record, info_of(record))


async def janitor(store: Faulty, clock: Clock, *live: Checkpoint) -> Janitor:
    timing = replace(QUICK, clock=clock, grace=60.0)
    log = await opened(store, timing)
    return Janitor(store, log, LiveSet(live), timing)


class TestTheGrace:
    async def test_what_left_the_live_set_goes_after_the_grace_only(self, store: Faulty, shelf: Shelf) -> None:
        clock = Clock()
        old, new = checkpoint(2, pack(1, 1)), checkpoint(3, pack(1, 2))
        keeper = await janitor(store, clock, new)
        shelf.replace(pack(1, 1), b"x")
        shelf.replace(pack(1, 2), b"x")
        await keeper.sweep(closing=True)
        shelf.replace(pack(1, 1), b"x")
        keeper.retire([old])
        assert keeper.due_in() == 60.0
        clock.now += 59.9
        await keeper.sweep()
        assert shelf.packs() == [pack(1, 1), pack(1, 2)]
        clock.now += 0.2
        assert keeper.due_in() == 0.0
        assert (await keeper.sweep()).objects == 1
        assert shelf.packs() == [pack(1, 2)]
        assert keeper.due_in() is None

    async def test_when_space_runs_out_there_is_no_grace(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        shelf.replace(pack(1, 1), b"xyz")
        keeper.retire([checkpoint(2, pack(1, 1))])
        swept = await keeper.sweep(graceful=False)
        assert (swept.objects, swept.freed_bytes) == (1, 3)

    async def test_a_pack_that_something_live_still_needs_stays(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock(), checkpoint(3, pack(1, 1), pack(1, 2)))
        shelf.replace(pack(1, 1), b"x")
        keeper.retire([checkpoint(2, pack(1, 1))])
        assert (await keeper.sweep(graceful=False)).objects == 0

    async def test_what_earlier_attempts_left_goes_after_the_grace(self, store: Faulty, shelf: Shelf) -> None:
        clock = Clock()
        await opened(store)
        shelf.replace(pack(1, 1), b"x")
        keeper = await janitor(store, clock)
        assert keeper.due_in() == 60.0
        await keeper.sweep()
        assert shelf.packs() == [pack(1, 1)]
        clock.now += 60.0
        await keeper.sweep()
        assert shelf.packs() == []

    async def test_a_writer_that_leaves_takes_the_garbage_of_earlier_attempts_along(
        self, store: Faulty, shelf: Shelf
    ) -> None:
        await opened(store)
        shelf.replace(pack(1, 1), b"x")
        keeper = await janitor(store, Clock())
        await keeper.sweep(closing=True)
        assert shelf.packs() == []

    async def test_a_failed_save_s_packs_go_once_it_has_ended(self, store: Faulty, shelf: Shelf) -> None:
        clock = Clock()
        keeper = await janitor(store, clock)
        await keeper.sweep(graceful=False)
        keeper.begin(4)
        shelf.replace(pack(1, 4), b"x")
        await keeper.sweep(graceful=False)
        assert shelf.packs() == [pack(1, 4)]
        keeper.end(4, unknown=False, failed=True)
        due = keeper.due_in()
        assert due is not None
        clock.now += due
        await keeper.sweep()
        assert shelf.packs() == []

    async def test_an_unknown_save_s_packs_stay_until_the_log_tells(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock(), checkpoint(2, pack(1, 1)))
        keeper.begin(2)
        for key in (pack(1, 1), pack(1, 2)):
            shelf.replace(key, b"x")
        keeper.end(2, unknown=True, failed=True)
        keeper.live = LiveSet()  # its base left the live set meanwhile
        await keeper.sweep(graceful=False)
        assert shelf.packs() == [pack(1, 1), pack(1, 2)]
        keeper.settled()
        await keeper.sweep(graceful=False)
        assert shelf.packs() == []

    async def test_what_a_save_in_flight_may_refer_to_stays(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock(), checkpoint(2, pack(1, 1)))
        shelf.replace(pack(1, 1), b"x")
        keeper.begin(2)
        keeper.live = LiveSet()
        await keeper.sweep(graceful=False)
        assert shelf.packs() == [pack(1, 1)]
        keeper.end(2, unknown=False, failed=False)
        await keeper.sweep(graceful=False)
        assert shelf.packs() == []


class TestWhatStopsIt:
    async def test_a_live_record_that_does_not_verify(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        shelf.replace(pack(1, 1), b"x")
        keeper.live.damaged.add(2)
        store.calls.clear()
        assert (await keeper.sweep(graceful=False)).objects == 0
        assert keeper.due_in() is None
        assert store.count("list", "data/") == 0

    async def test_a_quarantined_record(self, store: Faulty, shelf: Shelf) -> None:
        log = await opened(store)
        await log.append(committing())
        shelf.flip(log_key(2))
        keeper = await janitor(store, Clock())
        assert keeper.log.quarantined == (2,)
        shelf.replace(pack(3, 1), b"x")
        assert (await keeper.sweep(graceful=False)).objects == 0
        assert keeper.due_in() is None

    async def test_an_object_of_a_higher_epoch_fences(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        shelf.replace(pack(1, 1), b"x")
        shelf.replace(pack(2, 1), b"x")
        with pytest.raises(FencedError, match="data of epoch 2"):
            await keeper.sweep(graceful=False)
        assert len(shelf.packs()) == 2
        assert (await keeper.sweep(graceful=False)).objects == 0
        with pytest.raises(FencedError):
            await keeper.log.append(committing())

    async def test_a_fence_in_the_middle_of_the_deletes(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        for save in range(1, 6):
            shelf.replace(pack(1, save), b"x")
        delete = store.store.delete

        async def fenced_meanwhile(key: str) -> None:
            await delete(key)
            keeper.log.fence("somebody came")

        store.store.delete = fenced_meanwhile
        assert (await keeper.sweep(graceful=False)).objects == 1

    async def test_a_store_that_cannot_list(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        shelf.replace(pack(1, 1), b"x")
        store.script("list", "data/", before=forbidden())
        with pytest.raises(StoreError):
            await keeper.sweep(graceful=False)
        assert shelf.packs() == [pack(1, 1)]

    async def test_a_store_that_refuses_deletes_is_not_asked_again_at_once(self, store: Faulty, shelf: Shelf) -> None:
        clock = Clock()
        keeper = await janitor(store, clock)
        shelf.replace(pack(1, 1), b"x")
        store.script("delete", before=forbidden())
        assert (await keeper.sweep(graceful=False)).objects == 0
        assert keeper.due_in() == 60.0
        clock.now += 60.0
        assert (await keeper.sweep()).objects == 1

    async def test_an_object_that_is_gone_already(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        shelf.replace(pack(1, 1), b"x")
        store.script("delete", duplicate=True)
        assert (await keeper.sweep(graceful=False)).objects == 1

    async def test_what_is_put_after_the_listing_is_not_deleted(self, store: Faulty, shelf: Shelf) -> None:
        keeper = await janitor(store, Clock())
        listing = store.script("list", "data/", waits=True)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: keeper.sweep(graceful=False))
            while not listing._reached.is_set():
                await anyio.sleep(0)
            keeper.begin(9)
            shelf.replace(pack(1, 9), b"x")
            listing.release()
        assert shelf.packs() == [pack(1, 9)]


def test_nothing_is_removed_before_the_new_commit(store: Faulty, shelf: Shelf) -> None:
    """A6: an old checkpoint goes only once the one that replaces it is in the log."""
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
        [first] = shelf.packs()
        held = store.script("create", "log/", waits=True)
        pending = cp.write(big(1), step=1)
        held.wait_until_reached()
        cp.sweep()
        assert first in shelf.packs()
        held.release()
        pending.result(10)
        cp.sweep()
        assert first not in shelf.packs()
        creates = [index for index, call in enumerate(store.calls) if call == ("create", log_key(3))]
        deletes = [index for index, call in enumerate(store.calls) if call[0] == "delete"]
        assert max(creates) < min(deletes)


def test_retention_removes_by_itself(store: Faulty, shelf: Shelf) -> None:
    with write_over(store, retain=Last(1)) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
        deadline = time.monotonic() + 10
        while len(shelf.packs()) > 1 and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert len(shelf.packs()) == 1


def test_within_the_grace_nothing_is_removed(store: Faulty, shelf: Shelf) -> None:
    with write_over(store, retain=Last(1), timing=replace(QUICK, grace=60.0)) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
    assert len(shelf.packs()) == 3
    with write_over(store) as cp:
        pass  # leaves, and with it goes what the earlier one left
    assert len(shelf.packs()) == 1
    with read_over(store) as run:
        assert run.read()["step"] == 2


def test_the_garbage_of_an_attempt_that_died_is_swept_by_the_next(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
    shelf.replace(pack(1, 2), b"half a save")
    shelf.replace(pack(1, 2, 1), b"half a save")
    with write_over(store, timing=replace(QUICK, grace=60.0)) as cp:
        assert cp.sweep().objects == 2
        assert cp.read()["step"] == 0


def test_unfinished_packs_are_invisible(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
    shelf.replace(pack(1, 9), b"a pack whose commit never came")
    with read_over(store) as run:
        assert run.read()["step"] == 0
        assert [info.step for info in run.checkpoints()] == [0]


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_damaged_live_record_means_that_nothing_is_deleted(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
    shelf.flip(log_key(3))
    shelf.replace(pack(1, 9), b"garbage")
    before = shelf.packs()
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(3), step=3, durable=True)
        assert cp.sweep().objects == 0
    assert set(before) <= set(shelf.packs())


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_fenced_writer_deletes_nothing(store: Faulty, shelf: Shelf) -> None:
    old = write_over(store, retain=Last(1), takeover=True)
    with old:
        old.write(big(0), step=0, durable=True)
        with write_over(store, takeover=True) as new:
            new.write(big(1), step=1, durable=True)
            deletes = store.count("delete")
            with pytest.raises(FencedError):
                old.write(big(2), step=2, durable=True)
            old.sweep()
            assert store.count("delete") == deletes
            assert new.read()["step"] == 1


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_zombie_s_sweep_cannot_hurt_its_successor(store: Faulty, shelf: Shelf) -> None:
    zombie = write_over(store, takeover=True)
    with zombie:
        zombie.write(big(0), step=0, durable=True)
        listing = store.script("list", "data/", waits=True)
        sweeping = threading.Thread(target=lambda: _ignore(zombie.sweep))
        sweeping.start()
        listing.wait_until_reached()
        with write_over(store, takeover=True) as new:
            new.write({**big(0), "more": 1}, step=1, durable=True)  # refers to the zombie's pack
            listing.release()
            sweeping.join()
            assert np.array_equal(new.read()["weights"], big(0)["weights"])
            assert new.verify() is not None


def _ignore(call: Any) -> None:
    try:
        call()
    except FencedError:
        return


def test_a_sweep_during_a_save_keeps_what_the_save_refers_to(store: Faulty) -> None:
    shared = np.random.default_rng(5).random(65536)
    with write_over(store, retain=Last(2)) as cp:
        cp.write({"shared": shared, "step": 0}, step=0, durable=True)
        cp.write({"other": 1}, step=1, durable=True)
        held = store.script("create", "log/", waits=True)
        pending = cp.write({"shared": shared, "step": 2}, step=2)
        held.wait_until_reached()
        cp.sweep()
        held.release()
        pending.result(10)
        cp.sweep()
        assert np.array_equal(cp.read()["shared"], shared)


def test_a_checkpoint_deleted_while_a_save_refers_to_it_leaves_its_packs(store: Faulty) -> None:
    shared = np.random.default_rng(5).random(65536)
    with write_over(store) as cp:
        cp.write({"shared": shared, "step": 0}, step=0, durable=True)
        cp.write({"other": 1}, step=1, durable=True)
        held = store.script("put", "data/", waits=True)
        pending = cp.write({"shared": shared, "more": big(2)}, step=2)
        held.wait_until_reached()
        cp.delete(0)
        cp.sweep()
        held.release()
        pending.result(10)
        cp.sweep()
        assert np.array_equal(cp.read()["shared"], shared)


def test_a_pack_found_damaged_is_written_anew_by_the_next_save(store: Faulty, shelf: Shelf) -> None:
    shared = np.random.default_rng(5).random(65536)
    with write_over(store) as cp:
        cp.write({"shared": shared, "step": 0}, step=0, durable=True)
        [first] = shelf.packs()
        shelf.flip(first)
        with pytest.raises(Exception, match="damaged"):
            cp.verify()
        cp.write({"shared": shared, "step": 1}, step=1, durable=True)
        assert np.array_equal(cp.read()["shared"], shared)


@pytest.mark.parametrize("harm", ["remove", "cut"])
def test_a_pack_that_a_listing_does_not_show_whole_is_not_referred_to(store: Faulty, shelf: Shelf, harm: str) -> None:
    shared = np.random.default_rng(5).random(65536)
    with write_over(store) as cp:
        cp.write({"shared": shared, "step": 0}, step=0, durable=True)
    getattr(shelf, harm)(shelf.packs()[0])
    with write_over(store) as cp:
        cp.write({"shared": shared, "step": 1}, step=1, durable=True)
        assert np.array_equal(cp.read()["shared"], shared)


def test_a_full_store_makes_room_by_deleting_at_once(store: Faulty, shelf: Shelf) -> None:
    with write_over(store, retain=Last(1), timing=replace(QUICK, grace=60.0)) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
        assert len(shelf.packs()) == 3
        store.script("put", "data/", before=StoreError("disk full", kind="no_space", transient=True))
        cp.write(big(3), step=3, durable=True)
        assert len(shelf.packs()) == 2  # the one that was live then, and the new one
        assert cp.read()["step"] == 3


def test_a_store_that_stays_full_is_an_error(store: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
        fault = store.script(
            "put", "data/", before=StoreError("disk full", kind="no_space", transient=True), times=EVER
        )
        with pytest.raises(StoreError, match="disk full"):
            cp.write(big(1), step=1).result(10)
        fault.times = 0
        assert cp.read()["step"] == 0


def test_the_writer_does_not_list_again_and_again(store: Faulty, shelf: Shelf) -> None:
    """A store that cannot delete, a damaged record: nothing may make the writer spin."""
    store.script("delete", before=forbidden(), times=EVER)
    with write_over(store, retain=Last(1), timing=replace(QUICK, grace=0.05)) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
        threading.Event().wait(1.5)
        assert store.count("list", "data/0") <= 4
        assert store.count("delete") <= 8


def test_a_commit_unknown_to_its_writer_survives_the_sweep_of_its_writer(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
        store.script("create", "log/", after=down("timeout"))
        blind = store.script("get", "log/", before=down(), times=EVER)
        with pytest.raises(CommitUnknownError):
            cp.write(big(1), step=1).result(10)
        cp.sweep()
        blind.times = 0
        with read_over(store) as run:
            assert run.read()["step"] == 1


def test_timing_has_the_grace_of_the_page() -> None:
    assert Timing().grace == 60.0


@pytest.mark.parametrize("how", ["retention", "delete"])
def test_a_save_never_refers_to_what_left_the_live_set(store: Faulty, how: str) -> None:
    shared = np.random.default_rng(5).random(65536)
    with write_over(store, retain=Last(1 if how == "retention" else 5)) as cp:
        cp.write({"shared": shared, "step": 0}, step=0, durable=True)
        cp.write(big(1), step=1, durable=True)
        if how == "delete":
            cp.delete(0)
        cp.sweep()
        cp.write({"shared": shared, "step": 2}, step=2, durable=True)
        assert np.array_equal(cp.read(strict=True)["shared"], shared)
