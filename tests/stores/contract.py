"""What every store must do.

A test class for a store inherits ``StoreContract`` and has two fixtures: ``store``, prepared and empty, and ``twin``,
another store object of the same root.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from tests.stores.listings import PACK, RECORD, ListingContract, keys, parts_of

from limpet.errors import CorruptError, UsageError
from limpet.format.record import RECORD_BYTES_MAX
from limpet.stores.base import Bytes, KeyExistsError, KeyMissingError, Store

__all__ = ["MIB", "PACK", "RECORD", "StoreContract", "parts_of"]

MIB = 1 << 20
WHOLE = 1 << 30


def numbered(size: int) -> bytes:
    """Bytes of which no two stretches of the same length are equal, so that a part in the wrong place shows."""
    return np.arange(size // 4 + 1, dtype="<u4").tobytes()[:size]


class StoreContract(ListingContract):
    large_bytes = 5 * MIB
    part_bytes = MIB
    """Where a put is cut into parts, if it is."""
    races = 5

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
        for number in range(self.races):
            key = f"log/0000000000000/{number:016d}.json"
            creates = [(store, twin)[each % 2].create(key, f"{each}".encode()) for each in range(12)]
            results = await asyncio.gather(*creates, return_exceptions=True)
            winners = [each for each, result in enumerate(results) if result is None]
            losers = [result for result in results if result is not None]
            assert [type(each) for each in losers] == [KeyExistsError] * 11
            assert await store.get(key) == f"{winners[0]}".encode()

    async def test_a_create_of_the_same_bytes_never_succeeds_twice(self, store: Store, twin: Store) -> None:
        await store.create(RECORD, b"same")
        with pytest.raises(KeyExistsError):
            await twin.create(RECORD, b"same")

    async def test_a_record_of_the_largest_size_is_created_whole(self, store: Store, twin: Store) -> None:
        data = numbered(RECORD_BYTES_MAX)
        await store.create(RECORD, data)
        assert await twin.get(RECORD) == data

    async def test_an_object_larger_than_a_record_is_refused_before_it_is_read(self, store: Store) -> None:
        await store.put(PACK, parts_of([bytes(RECORD_BYTES_MAX + 1)]))
        with pytest.raises(CorruptError, match="at most 1048576") as refused:
            await store.get(PACK)
        assert refused.value.kind == "too_large"
        assert await store.get(PACK, limit=RECORD_BYTES_MAX + 1) == bytes(RECORD_BYTES_MAX + 1)

    async def test_what_was_deleted_can_be_created_once(self, store: Store, twin: Store) -> None:
        await store.create(RECORD, b"old")
        await store.delete(RECORD)
        await twin.create(RECORD, b"new")
        with pytest.raises(KeyExistsError):
            await store.create(RECORD, b"newer")
        assert await store.get(RECORD) == b"new"

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
        data = await store.get(PACK, limit=2 * self.large_bytes)
        assert (len(data), hashlib.sha256(data).digest()) == (size, digest.digest())

    @pytest.mark.parametrize(("parts", "more"), [(1, -1), (1, 0), (1, 1), (2, -1), (2, 0), (2, 1), (3, 0)])
    async def test_a_put_that_ends_near_the_end_of_a_part_arrives_whole(
        self, store: Store, parts: int, more: int
    ) -> None:
        data = numbered(parts * self.part_bytes + more)
        third = len(data) // 3
        assert await store.put(PACK, parts_of([data[:third], data[third:-7]], [data[-7:]]), size_hint=1) == len(data)
        assert [each.size for each in await store.list("data/")] == [len(data)]
        found = bytearray(len(data))
        await store.read_into(PACK, 0, [memoryview(found)])
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()
        edge = parts * self.part_bytes
        tail = min(5, len(data) - (edge - 9))
        assert bytes(await store.get_range(PACK, edge - 9, tail)) == data[edge - 9 : edge - 9 + tail]
        with pytest.raises(CorruptError):
            await store.get_range(PACK, edge - 9, len(data) - edge + 10)

    async def test_puts_at_the_same_time_do_not_mix(self, store: Store, twin: Store) -> None:
        async def one(number: int) -> None:
            data = bytes([number]) * (self.part_bytes // 4 + number)
            await (store, twin)[number % 2].put(f"{PACK}{number}", parts_of([data[:1000]], [data[1000:]]))

        await asyncio.gather(*map(one, range(12)))
        for number in range(12):
            data = await twin.get(f"{PACK}{number}", limit=self.part_bytes)
            assert (data.count(number), len(data)) == (len(data), self.part_bytes // 4 + number)

    async def test_buffers_may_be_reused_once_the_next_part_is_asked_for(self, store: Store) -> None:
        buffer = bytearray(MIB)
        count = self.large_bytes // MIB + 2

        async def parts() -> AsyncIterator[Sequence[Bytes]]:
            for number in range(count):
                buffer[:] = bytes([number]) * MIB
                yield [memoryview(buffer)]
            buffer[:] = b"\xff" * MIB

        await store.put(PACK, parts())
        data = await store.get(PACK, limit=2 * self.large_bytes)
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
            await store.read_into(PACK, offset, [memoryview(bytearray(size))])

    async def test_a_read_fills_exactly_its_target(self, store: Store) -> None:
        data = bytes(range(256)) * 4096
        await store.put(PACK, parts_of([data]))
        whole = bytearray(len(data) + 2)
        await store.read_into(PACK, 100, [memoryview(whole)[1 : len(data) - 99]])
        assert whole == b"\0" + data[100:] + bytes(101)

    async def test_a_read_fills_targets_one_after_the_other(self, store: Store) -> None:
        data = bytes(range(256)) * 4096
        await store.put(PACK, parts_of([data]))
        targets = [bytearray(size) for size in (1, 0, 4096, 500_000)]
        shown: dict[int, bytes] = {}
        await store.read_into(
            PACK, 3, [memoryview(each) for each in targets], lambda at, piece: shown.update({at: bytes(piece)})
        )
        expected = data[3 : 3 + sum(map(len, targets))]
        assert b"".join(targets) == expected
        assert b"".join(shown.values()) in (b"", expected)

    async def test_an_object_above_the_limit_is_not_read(self, store: Store) -> None:
        await store.put(PACK, parts_of([bytes(RECORD_BYTES_MAX + 1)]))
        with pytest.raises(CorruptError) as caught:
            await store.get(PACK)
        assert caught.value.kind == "too_large"
        await store.create(RECORD, b"abc")
        assert await store.get(RECORD, limit=3) == b"abc"
        with pytest.raises(CorruptError):
            await store.get(RECORD, limit=2)

    async def test_what_is_absent_is_positively_missing(self, store: Store) -> None:
        await store.create("log/0000000000000/0000000000000002.json", b"x")
        for call in (
            store.get(RECORD),
            store.get_range(RECORD, 0, 1),
            store.get_range(RECORD, 0, 0),
            store.read_into(RECORD, 0, [memoryview(bytearray(1))]),
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

    async def test_a_deleted_object_is_gone(self, store: Store, twin: Store) -> None:
        await store.put(PACK, parts_of([b"x"]))
        await store.delete(PACK)
        assert await keys(twin) == []
        with pytest.raises(KeyMissingError):
            await twin.get(PACK)

    async def test_deleting_what_is_absent_succeeds(self, store: Store) -> None:
        await store.delete(PACK)
        await store.delete("no/such/folder/x")

    async def test_deletes_of_one_object_at_the_same_time_all_succeed(self, store: Store, twin: Store) -> None:
        await store.put(PACK, parts_of([b"x"]))
        await asyncio.gather(*((store, twin)[each % 2].delete(PACK) for each in range(6)))
        assert await keys(twin) == []

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

    async def test_what_lies_beside_a_root_of_a_similar_name_is_not_in_it(self, store: Store) -> None:
        names = ("child/ab", "child/abc", "child/a", "child/ab-")
        children = [store.child(name) for name in names]
        for child, name in zip(children, names, strict=True):
            await child.prepare()
            await child.create(RECORD, name.encode())
        assert [await keys(child) for child in children] == [[RECORD]] * 4
        assert [await child.folders("") for child in children] == [{"log"}] * 4
        assert [await child.get(RECORD) for child in children] == [name.encode() for name in names]
        for child in children:
            await child.close()

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
