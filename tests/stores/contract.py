"""What every store must do. A test class for a store inherits ``StoreContract`` and has two fixtures:
``store``, prepared and empty, and ``twin``, another store object of the same root.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import pytest

from limpet.errors import CorruptError, UsageError
from limpet.stores.base import Bytes, KeyExistsError, KeyMissingError, Store

RECORD = "log/0000000000000/0000000000000001.json"
PACK = "data/0000000000000001/00000001-9f3a-0000-000.pack"
MIB = 1 << 20


async def parts_of(*parts: Sequence[Bytes]) -> AsyncIterator[Sequence[Bytes]]:
    for part in parts:
        yield part


async def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in await store.list(prefix))


class StoreContract:
    large_bytes = 5 * MIB

    async def test_a_created_object_is_read_back(self, store: Store, twin: Store) -> None:
        await store.create(RECORD, b"one")
        assert await twin.get(RECORD) == b"one"

    async def test_a_created_empty_object_is_not_a_missing_one(self, store: Store) -> None:
        await store.create(RECORD, b"")
        assert await store.get(RECORD) == b""

    async def test_a_create_never_replaces(self, store: Store, twin: Store) -> None:
        await store.create(RECORD, b"first")
        with pytest.raises(KeyExistsError):
            await twin.create(RECORD, b"second")
        assert await store.get(RECORD) == b"first"

    async def test_of_racing_creates_exactly_one_wins(self, store: Store, twin: Store) -> None:
        for number in range(5):
            key = f"log/0000000000000/{number:016d}.json"
            creates = [(store, twin)[each % 2].create(key, f"{each}".encode()) for each in range(12)]
            results = await asyncio.gather(*creates, return_exceptions=True)
            winners = [each for each, result in enumerate(results) if result is None]
            losers = [result for result in results if result is not None]
            assert [type(each) for each in losers] == [KeyExistsError] * 11
            assert await store.get(key) == f"{winners[0]}".encode()

    async def test_a_put_is_the_concatenation_of_all_buffers(self, store: Store) -> None:
        parts = parts_of([b"ab", bytearray(b"cd")], [], [b"", memoryview(b"xefx")[1:3]], [b"g"])
        assert await store.put(PACK, parts) == 7
        assert await store.get(PACK) == b"abcdefg"

    async def test_an_empty_put_makes_an_empty_object(self, store: Store) -> None:
        assert await store.put(PACK, parts_of()) == 0
        assert await store.get(PACK) == b""

    async def test_a_large_put_arrives_whole(self, store: Store) -> None:
        block = bytes(range(256)) * (MIB // 256)
        digest = hashlib.sha256()

        async def parts() -> AsyncIterator[Sequence[Bytes]]:
            sent = 0
            while sent < self.large_bytes:
                part = [block[sent % 251 :], f"{sent}".encode()]
                sent += sum(map(len, part))
                for each in part:
                    digest.update(each)
                yield part

        size = await store.put(PACK, parts(), size_hint=self.large_bytes)
        data = await store.get(PACK)
        assert (len(data), hashlib.sha256(data).digest()) == (size, digest.digest())

    async def test_buffers_may_be_reused_once_the_next_part_is_asked_for(self, store: Store) -> None:
        buffer = bytearray(MIB)
        count = self.large_bytes // MIB + 2

        async def parts() -> AsyncIterator[Sequence[Bytes]]:
            for number in range(count):
                buffer[:] = bytes([number]) * MIB
                yield [memoryview(buffer)]
            buffer[:] = b"\xff" * MIB

        await store.put(PACK, parts())
        data = await store.get(PACK)
        assert [data[at * MIB : (at + 1) * MIB] == bytes([at]) * MIB for at in range(count)] == [True] * count

    @pytest.mark.parametrize("after", ["little", "much"])
    async def test_a_put_whose_source_raises_leaves_nothing(self, store: Store, after: str) -> None:
        async def parts() -> AsyncIterator[Sequence[Bytes]]:
            for _ in range(self.large_bytes // MIB if after == "much" else 1):
                yield [bytes(MIB)]
            raise RuntimeError("source")

        with pytest.raises(RuntimeError, match="source"):
            await store.put(PACK, parts())
        assert await keys(store) == []
        with pytest.raises(KeyMissingError):
            await store.get(PACK)

    async def test_a_cancelled_put_leaves_nothing(self, store: Store) -> None:
        asked = asyncio.Event()

        async def parts() -> AsyncIterator[Sequence[Bytes]]:
            for _ in range(self.large_bytes // MIB):
                yield [bytes(MIB)]
            asked.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put(PACK, parts()))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await keys(store) == []
        with pytest.raises(KeyMissingError):
            await store.get(PACK)

    async def test_nothing_is_visible_before_a_put_has_ended(self, store: Store, twin: Store) -> None:
        seen: list[list[str]] = []

        async def parts() -> AsyncIterator[Sequence[Bytes]]:
            for _ in range(self.large_bytes // MIB):
                yield [bytes(MIB)]
            seen.append(await keys(twin))

        await store.put(PACK, parts())
        assert seen == [[]]
        assert await keys(twin) == [PACK]

    async def test_a_range_is_exact(self, store: Store) -> None:
        await store.put(PACK, parts_of([b"0123456789"]))
        assert bytes(await store.get_range(PACK, 2, 5)) == b"23456"
        assert bytes(await store.get_range(PACK, 0, 10)) == b"0123456789"
        assert bytes(await store.get_range(PACK, 10, 0)) == b""

    @pytest.mark.parametrize(("offset", "size"), [(5, 6), (9, 2), (10, 1), (50, 7), (0, 11)])
    async def test_a_range_past_the_end_is_corrupt_and_never_short(self, store: Store, offset: int, size: int) -> None:
        await store.put(PACK, parts_of([b"0123456789"]))
        with pytest.raises(CorruptError):
            await store.get_range(PACK, offset, size)
        with pytest.raises(CorruptError):
            await store.read_into(PACK, offset, memoryview(bytearray(size)))

    async def test_a_read_fills_exactly_its_target(self, store: Store) -> None:
        data = bytes(range(256)) * 4096
        await store.put(PACK, parts_of([data]))
        whole = bytearray(len(data) + 2)
        await store.read_into(PACK, 100, memoryview(whole)[1 : len(data) - 99])
        assert whole == b"\0" + data[100:] + bytes(101)

    async def test_what_is_absent_is_positively_missing(self, store: Store) -> None:
        await store.create("log/0000000000000/0000000000000002.json", b"x")
        for call in (
            store.get(RECORD),
            store.get_range(RECORD, 0, 1),
            store.get_range(RECORD, 0, 0),
            store.read_into(RECORD, 0, memoryview(bytearray(1))),
            store.settle(RECORD),
            store.get("no/such/folder"),
        ):
            with pytest.raises(KeyMissingError) as caught:
                await call
            assert not caught.value.transient

    async def test_an_object_that_was_read_can_be_settled(self, store: Store, twin: Store) -> None:
        await store.create(RECORD, b"x")
        await twin.settle(RECORD)
        assert await twin.get(RECORD) == b"x"

    async def test_a_listing_has_keys_and_sizes(self, store: Store) -> None:
        await store.create(RECORD, b"four")
        await store.put(PACK, parts_of([b"12345"]))
        assert {(each.key, each.size) for each in await store.list("")} == {(RECORD, 4), (PACK, 5)}
        assert await keys(store, "log/") == [RECORD]
        assert await keys(store, "log/0000000000000/") == [RECORD]

    async def test_a_prefix_is_whole_segments(self, store: Store) -> None:
        for key in ("ab/1", "abc/1", "ab/c/1"):
            await store.create(key, b"")
        assert await keys(store, "ab/") == ["ab/1", "ab/c/1"]

    async def test_an_absent_prefix_lists_nothing(self, store: Store) -> None:
        assert await store.list("log/") == []

    async def test_names_that_are_not_ours_are_listed_and_left_alone(self, store: Store, twin: Store) -> None:
        await store.create("tensorboard/events.out.tfevents.1", b"x")
        assert await keys(twin) == ["tensorboard/events.out.tfevents.1"]

    async def test_a_deleted_object_is_gone(self, store: Store, twin: Store) -> None:
        await store.put(PACK, parts_of([b"x"]))
        await store.delete(PACK)
        assert await keys(twin) == []
        with pytest.raises(KeyMissingError):
            await twin.get(PACK)

    async def test_deleting_what_is_absent_succeeds(self, store: Store) -> None:
        await store.delete(PACK)
        await store.delete("no/such/folder/x")

    async def test_a_put_after_the_last_object_of_a_folder_was_deleted_succeeds(self, store: Store) -> None:
        await store.put(PACK, parts_of([b"x"]))
        await store.delete(PACK)
        await store.put(PACK + "2", parts_of([b"y"]))
        assert await store.get(PACK + "2") == b"y"

    async def test_a_child_is_a_store_of_its_own_below(self, store: Store) -> None:
        child = store.child("child/0a1b")
        await child.prepare()
        await child.create(RECORD, b"child")
        assert await keys(child) == [RECORD]
        assert await keys(store) == [f"child/0a1b/{RECORD}"]
        with pytest.raises(KeyMissingError):
            await store.get(RECORD)
        await child.close()
        assert await store.get(f"child/0a1b/{RECORD}") == b"child"

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "a/./b", "..", "../a", "a/../../b", "a\0b"])
    async def test_a_key_cannot_lead_elsewhere(self, store: Store, key: str) -> None:
        with pytest.raises(UsageError):
            await store.get(key)
        with pytest.raises(UsageError):
            await store.create(key, b"")
        with pytest.raises(UsageError):
            await store.put(key, parts_of([b"x"]))

    async def test_free_space_is_a_number_or_unlimited(self, store: Store) -> None:
        free = await store.free_bytes()
        assert free is None or free > 0

    async def test_releasing_a_lock_that_is_not_held_does_nothing(self, store: Store) -> None:
        store.release_writer_lock()

    async def test_closing_twice_is_once(self, store: Store) -> None:
        await store.close()
        await store.close()
