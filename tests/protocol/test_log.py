"""Committing: every answer to a create but success is resolved by reading the key back."""

from __future__ import annotations

import dataclasses

import anyio
import msgspec
import pytest
from tests.faulty import EVER, QUICK, Faulty, Shelf, down, forbidden
from tests.protocol.logs import RUN, at, committing, foreign, head_before, opened, tiny_commit

from limpet import CommitUnknownError, CorruptError, FencedError, StoreError
from limpet.engine.log import find_head
from limpet.format.layout import log_key
from limpet.format.record import encode_record
from limpet.stores.base import NOT_DURABLE, KeyExistsError


async def test_an_epoch_is_the_seq_of_its_open_record(store: Faulty) -> None:
    log = await opened(store)
    await log.append(committing())
    second = await opened(store)
    assert (log.epoch, second.epoch) == (1, 3)
    assert (await at(store, 3)).kind == "open"


async def test_every_record_names_the_seq_and_digest_of_the_one_before(store: Faulty) -> None:
    log = await opened(store)
    digests = [log.digest]
    for step in range(3):
        await log.append(committing(step))
        digests.append(log.digest)
    assert (await at(store, 1)).prev is None
    for seq in (2, 3, 4):
        prev = (await at(store, seq)).prev
        assert prev is not None
        assert (prev.seq, prev.digest) == (seq - 1, digests[seq - 2])


async def test_a_takeover_extends_the_chain(store: Faulty) -> None:
    first = await opened(store)
    await opened(store)
    prev = (await at(store, 2)).prev
    assert prev is not None
    assert prev.digest == first.digest


async def test_every_try_has_a_nonce_of_its_own(store: Faulty) -> None:
    log = await opened(store)
    for _ in range(5):
        await log.append(committing())
    nonces = {(await at(store, seq)).nonce for seq in range(1, 7)}
    assert len(nonces) == 6


async def test_our_own_create_whose_answer_was_lost_is_recognised(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", after=down("timeout"))
    record = await log.append(committing(7))
    assert (await at(store, 2)).nonce == record.nonce
    assert store.count("create", log_key(2)) == 1


async def test_a_client_that_repeated_our_create_below_us_is_recognised(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", duplicate=True)  # the second one comes back as "exists"
    record = await log.append(committing(7))
    assert (await at(store, 2)).nonce == record.nonce


async def test_an_open_whose_answer_was_lost_is_recognised(store: Faulty) -> None:
    store.script("create", "log/", after=down("timeout"))
    log = await opened(store)
    assert log.epoch == 1
    assert (await find_head(store)).last_seq == 1


async def test_a_conflict_with_nothing_stored_is_tried_again(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", before=KeyExistsError("409 conflict"), times=2)
    await log.append(committing(7))
    assert store.count("create", log_key(2)) == 3
    assert (await at(store, 2)).kind == "commit"


async def test_an_absent_record_is_tried_again_with_the_same_bytes(store: Faulty) -> None:
    log = await opened(store)
    seen: list[bytes] = []
    create = store.store.create

    async def spy(key: str, data: bytes) -> None:
        seen.append(data)
        if len(seen) < 3:
            raise down()
        await create(key, data)

    store.store.create = spy
    await log.append(committing(7))
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def test_retries_of_a_create_are_reported(store: Faulty) -> None:
    log = await opened(store)
    told: list[tuple[str, str, int]] = []
    log.on_retry = lambda operation, key, attempt, error: told.append((operation, key, attempt))
    store.script("create", "log/", before=down(), times=2)
    await log.append(committing())
    assert told == [("create", log_key(2), 1), ("create", log_key(2), 2)]


async def test_a_record_still_absent_at_the_deadline_is_unknown(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", before=down(), times=EVER)
    with pytest.raises(CommitUnknownError, match="log record 2"):
        await log.append(committing())
    assert not log.settled
    assert log.stopped is None
    assert log.head.seq == 1


async def test_a_key_that_cannot_be_read_back_until_the_deadline_is_unknown(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", after=down("timeout"))
    store.script("get", "log/", before=down(), times=EVER)
    with pytest.raises(CommitUnknownError):
        await log.append(committing())
    assert not log.settled


async def test_an_unknown_record_that_landed_is_adopted_and_the_next_one_follows_it(store: Faulty) -> None:
    log = await opened(store)
    adopted = []
    log.on_adopted = adopted.append
    landing = store.script("create", "log/", after=down("timeout"), times=1)
    store.script("get", "log/", before=down(), times=EVER)
    with pytest.raises(CommitUnknownError):
        await log.append(committing(1))
    assert landing.times == 0
    store.heal()
    record = await log.append(committing(2))
    assert [one.seq for one in adopted] == [2]
    assert record.seq == 3
    assert record.live == [(2, 3)]
    assert log.settled


async def test_an_unknown_record_that_never_landed_gives_its_seq_to_the_next(store: Faulty) -> None:
    log = await opened(store)
    fault = store.script("create", "log/", before=down(), times=EVER)
    with pytest.raises(CommitUnknownError):
        await log.append(committing(1))
    fault.times = 0
    record = await log.append(committing(2))
    assert record.seq == 2
    assert record.live == [(2, 2)]
    assert log.settled


async def test_a_refused_create_is_unsettled_until_the_next_record(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", before=forbidden())
    with pytest.raises(StoreError, match="403"):
        await log.append(committing())
    assert not log.settled
    await log.append(committing())
    assert log.settled


async def test_a_cancelled_create_that_lands_is_adopted(store: Faulty) -> None:
    log = await opened(store)
    adopted = []
    log.on_adopted = adopted.append
    create = store.store.create

    async def applied_but_slow(key: str, data: bytes) -> None:
        await create(key, data)
        await anyio.sleep_forever()

    store.store.create = applied_but_slow
    with anyio.move_on_after(0.01):
        await log.append(committing(1))
    assert not log.settled
    store.store.create = create
    record = await log.append(lambda base: msgspec.structs.replace(base, kind="close"))
    assert [one.seq for one in adopted] == [2]
    assert record.seq == 3


async def test_a_second_process_with_our_epoch_stops_this_one(store: Faulty) -> None:
    log = await opened(store)
    await foreign(store, log, kind="commit", commit=tiny_commit(), live=[(2, 2)])
    with pytest.raises(FencedError, match="two processes share epoch 1"):
        await log.append(committing())
    assert log.stopped is not None


async def test_a_higher_epoch_fences_this_writer_for_good(store: Faulty) -> None:
    old = await opened(store, owner="old")
    await opened(store, owner="new")
    for _ in range(2):
        with pytest.raises(FencedError, match="new took it over with epoch 2"):
            await old.append(committing())
    assert (await find_head(store)).last_seq == 2


async def test_nothing_is_sent_once_fenced(store: Faulty) -> None:
    old = await opened(store)
    await opened(store)
    with pytest.raises(FencedError):
        await old.append(committing())
    before = len(store.calls)
    with pytest.raises(FencedError):
        await old.append(committing())
    assert len(store.calls) == before


async def test_a_record_of_a_newer_format_fences_this_writer(store: Faulty) -> None:
    log = await opened(store)
    newer = msgspec.structs.replace(log._next(log.head), version=2)
    await store.create(log_key(2), encode_record(newer)[0])
    with pytest.raises(FencedError, match="newer version"):
        await log.append(committing())


async def test_a_record_whose_name_may_be_lost_with_the_power_stops_the_writer(store: Faulty) -> None:
    log = await opened(store)
    store.script("create", "log/", after=StoreError("fsync failed", kind=NOT_DURABLE))
    with pytest.raises(CommitUnknownError) as caught:
        await log.append(committing())
    assert "stops" in caught.value.hint
    with pytest.raises(CommitUnknownError):
        await log.append(committing())
    assert (await find_head(store)).last_seq == 2  # visible, and built on by nobody of us


async def test_a_takeover_makes_the_record_it_extends_durable_first(store: Faulty) -> None:
    await opened(store)
    store.calls.clear()
    await opened(store)
    names = [name for name, _ in store.calls]
    assert names.index("settle") < names.index("create")
    assert ("settle", log_key(1)) in store.calls


async def test_a_takeover_that_loses_the_race_goes_on_from_the_winners_record(store: Faulty) -> None:
    slow = store.script("create", "log/", waits=True)
    epochs = []

    async def late() -> None:
        epochs.append((await opened(store, owner="late")).epoch)

    async with anyio.create_task_group() as group:
        group.start_soon(late)
        while not slow._reached.is_set():
            await anyio.sleep(0)
        assert (await opened(store, owner="quick")).epoch == 1
        slow.release()
    assert epochs == [2]


async def test_a_takeover_gives_up_at_its_deadline(store: Faulty) -> None:
    await opened(store)
    create = store.store.create

    async def always_second(key: str, data: bytes) -> None:
        seq = int(key[-21:-5])
        winner = msgspec.structs.replace(
            await at(store, 1), seq=seq, epoch=seq, nonce=f"{seq:032x}", prev=msgspec.json.decode("null")
        )
        winner = msgspec.structs.replace(winner, prev=_prev(seq))
        await create(key, encode_record(winner)[0])
        await create(key, data)

    store.store.create = always_second
    with pytest.raises(StoreError, match="other writers kept winning"):
        await opened(store, dataclasses.replace(QUICK, open_deadline=0.3))


def _prev(seq: int) -> object:
    from limpet.format.record import Prev

    return Prev(seq - 1, "0" * 64)


async def test_a_store_that_cannot_tell_is_never_taken_over(store: Faulty) -> None:
    store.script("get", log_key(1), before=forbidden())
    with pytest.raises(StoreError, match="403"):
        await opened(store)
    assert store.count("create") == 0


async def test_the_head_is_proved_by_a_positive_not_found(store: Faulty) -> None:
    log = await opened(store)
    await log.append(committing())
    hidden = store.store.list

    async def stale(prefix: str) -> list[object]:
        return [entry for entry in await hidden(prefix) if not entry.key.endswith("2.json")]

    store.store.list = stale
    assert (await find_head(store)).last_seq == 2


async def test_an_empty_log_is_an_empty_head(store: Faulty) -> None:
    assert (await find_head(store)).record is None


async def test_packs_without_a_log_are_corrupt(store: Faulty, shelf: Shelf) -> None:
    shelf.replace("data/0000000000000001/00000001-0000aaaa-0000-000.pack", b"x")
    with pytest.raises(CorruptError, match="no log"):
        await find_head(store)


async def test_later_records_without_the_first_are_corrupt(store: Faulty, shelf: Shelf) -> None:
    log = await opened(store)
    await log.append(committing())
    shelf.remove(log_key(1))
    with pytest.raises(CorruptError, match="not the first"):
        await find_head(store)


async def test_a_missing_record_below_a_damaged_head_is_corrupt(store: Faulty, shelf: Shelf) -> None:
    log = await opened(store)
    for _ in range(3):
        await log.append(committing())
    shelf.flip(log_key(4))
    shelf.remove(log_key(3))
    with pytest.raises(CorruptError, match="not record 3"):
        await find_head(store)


async def test_files_that_limpet_did_not_write_are_left_alone(store: Faulty, shelf: Shelf) -> None:
    for key in ("log/events.out.tfevents", "log/0000000000000/7.json", "log/0000000000001/0000000000000007.json"):
        shelf.replace(key, b"tensorboard")
    assert (await find_head(store)).record is None


async def test_a_damaged_head_is_read_three_times(store: Faulty, shelf: Shelf) -> None:
    log = await opened(store)
    await log.append(committing())
    shelf.flip(log_key(2))
    store.calls.clear()
    head = await find_head(store)
    assert store.count("get", log_key(2)) == 3
    assert (head.last_seq, head.damaged) == (2, (2,))
    assert head.record is not None
    assert head.record.seq == 1


async def test_a_flip_on_the_way_is_not_a_damaged_head(store: Faulty) -> None:
    log = await opened(store)
    await log.append(committing())
    store.script("get", log_key(2), flip=True, times=2)
    head = await find_head(store)
    assert head.damaged == ()


async def test_a_takeover_of_a_damaged_head_quarantines_it_in_every_record(store: Faulty, shelf: Shelf) -> None:
    log = await opened(store)
    await log.append(committing())
    await log.append(committing())
    shelf.flip(log_key(3))
    second = await opened(store)
    await second.append(committing())
    third = await opened(store)
    await third.append(committing())
    assert [(await at(store, seq)).quarantined for seq in (4, 5, 6, 7)] == [[3]] * 4
    assert (await at(store, 4)).live == [(2, 2)]


async def test_a_log_of_another_run_is_not_extended(store: Faulty) -> None:
    await opened(store)
    with pytest.raises(StoreError, match="mixes two runs"):
        await opened(store, run="cd" * 16)


async def test_the_head_that_was_taken_over_is_told(store: Faulty) -> None:
    log = await opened(store)
    record = await log.append(committing(5))
    head = await head_before(store)
    assert head.record == record
    assert head.record.run == RUN


async def test_a_record_above_the_limit_is_not_sent(store: Faulty) -> None:
    log = await opened(store)
    with pytest.raises(StoreError, match="above the limit"):
        await log.append(lambda base: msgspec.structs.replace(base, note={"much": "x" * (1 << 20)}))
    assert store.count("create") == 1


async def test_a_record_of_ours_that_was_read_back_is_made_durable_before_it_counts(store: Faulty) -> None:
    log = await opened(store)
    store.calls.clear()
    store.script("create", "log/", after=down("timeout"))
    await log.append(committing())
    assert ("settle", log_key(2)) in store.calls
