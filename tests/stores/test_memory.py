from __future__ import annotations

import asyncio
import gc
import uuid

import pytest

from limpet.errors import HeldError
from limpet.stores.base import KeyMissingError
from limpet.stores.memory import MemoryStore


async def test_stores_of_one_name_share_their_objects() -> None:
    name = uuid.uuid4().hex
    await MemoryStore(name).create("a", b"x")
    assert await MemoryStore(name).get("a") == b"x"


async def test_stores_of_different_names_or_none_share_nothing() -> None:
    await MemoryStore(uuid.uuid4().hex).create("a", b"x")
    for store in (MemoryStore(uuid.uuid4().hex), MemoryStore()):
        with pytest.raises(KeyMissingError):
            await store.get("a")


def test_objects_are_reached_from_several_event_loops() -> None:
    store = MemoryStore()
    asyncio.run(store.create("a", b"x"))
    assert asyncio.run(store.get("a")) == b"x"


async def test_what_was_given_is_copied() -> None:
    store = MemoryStore()
    data = bytearray(b"before")
    await store.create("a", data)  # type: ignore[arg-type]
    data[:] = b"after!"
    assert await store.get("a") == b"before"


async def test_a_live_second_writer_is_refused_until_the_first_lets_go() -> None:
    name = uuid.uuid4().hex
    first, second = MemoryStore(name), MemoryStore(name)
    first.acquire_writer_lock("job 7")
    first.acquire_writer_lock("job 7")
    with pytest.raises(HeldError, match="job 7"):
        second.acquire_writer_lock("job 8")
    second.release_writer_lock()
    with pytest.raises(HeldError):
        second.acquire_writer_lock("job 8")
    await first.close()
    second.acquire_writer_lock("job 8")


def test_a_writer_that_was_dropped_holds_nothing() -> None:
    name = uuid.uuid4().hex
    MemoryStore(name).acquire_writer_lock("job 7")
    gc.collect()
    MemoryStore(name).acquire_writer_lock("job 8")


def test_a_child_run_has_a_lock_of_its_own() -> None:
    store = MemoryStore()
    store.acquire_writer_lock("job 7")
    child = store.child("child/1")
    child.acquire_writer_lock("job 7")
    with pytest.raises(HeldError):
        store.child("child/1").acquire_writer_lock("job 8")
