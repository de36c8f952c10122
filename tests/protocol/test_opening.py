"""Opening for writing: the marker, the proof of an atomic create, and who may come in."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from tests.faulty import EVER, QUICK, Faulty, Shelf, down, forbidden, read_over, write_over
from tests.protocol.logs import assert_legal

from limpet import Checkpointer, CorruptError, FormatError, StoreError
from limpet.engine.opening import claim_root
from limpet.format.layout import FORMAT_KEY
from limpet.stores.base import KeyExistsError


async def test_the_marker_is_created_once_and_never_changed(store: Faulty, shelf: Shelf) -> None:
    first = await claim_root(store, "", QUICK)
    data = shelf.objects[FORMAT_KEY]
    again = await claim_root(store, "", QUICK)
    assert first == again
    assert shelf.objects[FORMAT_KEY] == data
    assert json.loads(data) == {"format": "limpet", "version": 1, "run": first.run, "name": ""}


async def test_two_that_open_an_empty_root_agree_on_the_run(store: Faulty) -> None:
    other = Faulty(store.store)
    create = store.store.create

    async def beaten(key: str, data: bytes) -> None:
        store.store.create = create
        await claim_root(other, "", QUICK)
        await create(key, data)

    store.store.create = beaten
    assert await claim_root(store, "", QUICK) == await claim_root(other, "", QUICK)


async def test_a_store_that_overwrites_on_create_is_refused(store: Faulty, shelf: Shelf) -> None:
    async def overwrite(key: str, data: bytes) -> None:
        shelf.replace(key, data)

    store.store.create = overwrite
    with pytest.raises(StoreError, match="does not refuse a second create") as caught:
        await claim_root(store, "", QUICK)
    assert caught.value.kind == "no_atomic_create"


async def test_probing_a_store_that_overwrites_does_not_take_a_run_apart(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(1, durable=True)

    async def overwrite(key: str, data: bytes) -> None:
        shelf.replace(key, data)

    store.store.create = overwrite
    with pytest.raises(StoreError, match="does not refuse"):
        await claim_root(store, "", QUICK)
    with read_over(store) as run:
        assert run.read() == 1


async def test_a_store_that_ignores_a_create_is_refused(store: Faulty) -> None:
    async def ignore(key: str, data: bytes) -> None:
        return

    store.store.create = ignore
    with pytest.raises(StoreError, match="does not refuse"):
        await claim_root(store, "", QUICK)


async def test_a_store_that_accepts_a_second_create_without_effect_is_refused(store: Faulty) -> None:
    create = store.store.create

    async def lie(key: str, data: bytes) -> None:
        try:
            await create(key, data)
        except KeyExistsError:
            return

    store.store.create = lie
    with pytest.raises(StoreError, match="does not refuse"):
        await claim_root(store, "", QUICK)


@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("what", ["before", "after"])
async def test_opening_survives_a_create_whose_answer_did_not_come(store: Faulty, nth: int, what: str) -> None:
    store.script("create", FORMAT_KEY, skip=nth, **{what: down()})
    marker = await claim_root(store, "", QUICK)
    assert json.loads(await store.get(FORMAT_KEY))["run"] == marker.run


async def test_opening_survives_a_conflict_with_nothing_stored(store: Faulty) -> None:
    store.script("create", FORMAT_KEY, before=KeyExistsError("409 conflict"))
    await claim_root(store, "", QUICK)


async def test_a_store_that_refuses_to_create_is_an_error(store: Faulty) -> None:
    store.script("create", FORMAT_KEY, before=forbidden())
    with pytest.raises(StoreError, match="403"):
        await claim_root(store, "", QUICK)


async def test_a_marker_that_cannot_be_read_is_not_taken_for_none(store: Faulty) -> None:
    store.script("get", FORMAT_KEY, before=forbidden(), times=EVER)
    with pytest.raises(StoreError, match="403"):
        await claim_root(store, "", QUICK)
    assert store.count("create") == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"not json",
        b'{"format":"npm","version":1,"run":"x"}',
        b'{"format":"limpet","version":"1"}',
        b"[1]",
        b"\xff",
    ],
)
def test_a_root_that_holds_something_else_is_refused_and_left_as_it_is(
    store: Faulty, shelf: Shelf, content: bytes
) -> None:
    shelf.replace(FORMAT_KEY, content)
    with pytest.raises(FormatError, match=r"limpet\.json"), write_over(store):
        pass
    with pytest.raises(FormatError, match=r"limpet\.json"), read_over(store) as run:
        run.read()
    assert shelf.objects == {FORMAT_KEY: content}


def test_a_newer_marker_is_named_with_our_version(store: Faulty, shelf: Shelf) -> None:
    shelf.replace(FORMAT_KEY, b'{"format":"limpet","version":9,"run":"x","new":[1]}')
    with pytest.raises(FormatError, match=r"version 9; this limpet reads up to 1") as caught, write_over(store):
        pass
    assert "newer limpet" in caught.value.hint
    with pytest.raises(FormatError, match="version 9"), read_over(store) as run:
        run.read()


def test_other_files_in_the_root_are_left_alone(tmp_path: Path) -> None:
    others = {
        "events.out.tfevents.1": b"tb",
        "log/train.log": b"text",
        "data/images/1.png": b"png",
        "child/notes": b"n",
    }
    for name, content in others.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with Checkpointer(tmp_path) as cp:
        assert cp.read() is None
        for step in range(6):
            cp.write({"step": step}, step=step, durable=True)
        cp.sweep()
        assert cp.read() == {"step": 5}
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_a_marker_of_another_run_is_not_mixed_with_this_log(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(1, durable=True)
    shelf.replace(FORMAT_KEY, b'{"format":"limpet","version":1,"run":"00000000000000000000000000000000","name":""}')
    with pytest.raises(StoreError, match="mixes two runs"), write_over(store) as cp:
        pass
    with pytest.raises(StoreError, match="mixes two runs"), read_over(store) as run:
        run.read()


def test_a_lost_marker_is_made_anew_for_the_same_run(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write(1, durable=True)
    run = json.loads(shelf.objects[FORMAT_KEY])["run"]
    shelf.remove(FORMAT_KEY)
    with write_over(store) as cp:
        assert cp.read() == 1
    assert json.loads(shelf.objects[FORMAT_KEY])["run"] == run


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_eight_threads_that_race_to_open_each_get_an_epoch_of_their_own(store: Faulty) -> None:
    barrier = threading.Barrier(8)
    epochs: list[int] = []
    errors: list[BaseException] = []

    def open_and_leave() -> None:
        barrier.wait()
        try:
            cp = write_over(store, takeover=True)
            with cp:
                epochs.append(cp._open_session.writer.log.epoch)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_leave) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(epochs)) == 8


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
async def test_the_log_stays_contiguous_and_chained_when_many_race(store: Faulty, shelf: Shelf) -> None:
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        with write_over(store, takeover=True) as cp:
            for step in range(3):
                try:
                    cp.write({"step": step}, step=step, durable=True)
                except Exception:
                    return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await assert_legal(store, shelf)


def test_corrupt_error_for_packs_without_a_log_comes_from_reading_and_from_writing(store: Faulty, shelf: Shelf) -> None:
    shelf.replace("data/0000000000000001/00000001-0000aaaa-0000-000.pack", b"x")
    with pytest.raises(CorruptError, match="no log"), read_over(store) as run:
        run.read()
    with pytest.raises(CorruptError, match="no log"), write_over(store):
        pass
