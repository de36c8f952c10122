"""The part of the contract that is about names: what a listing shows, and what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence

from limpet.stores.base import Bytes, Store

RECORD = "log/0000000000000/0000000000000001.json"
PACK = "data/0000000000000001/00000001-9f3a-0000-000.pack"
FOREIGN = (
    "tensorboard/events.out.tfevents.1",
    "Some Folder/With Spaces & Signs+=~()'!@#$,;.TXT",
    "per%2Fcent/%41%00",
    "data/0000000000000001/notes.md",
    "log-old/0000000000000/0000000000000001.json",
    "müll/\u65e5\u672c/\U0001f41a",
    "<xml>&amp;",
    ".hidden/.x",
    "back\\slash",
)
"""Names that others may give to what lies under the same root."""


async def parts_of(*parts: Sequence[Bytes]) -> AsyncIterator[Sequence[Bytes]]:
    for part in parts:
        yield part


async def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in await store.list(prefix))


async def in_turns(calls: Iterable[Awaitable[object]], width: int) -> None:
    """Await all, so many at a time."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await call

    await asyncio.gather(*(worker() for _ in range(width)))


class ListingContract:
    many = 1500
    """Objects of a long listing: more than one page of it."""
    churns = 6
    """How often others come and go while a listing is watched."""
    foreign = FOREIGN

    async def test_a_listing_has_keys_and_sizes(self, store: Store) -> None:
        await store.create(RECORD, b"four")
        await store.put(PACK, parts_of([b"12345"]))
        assert {(each.key, each.size) for each in await store.list("")} == {(RECORD, 4), (PACK, 5)}
        assert await keys(store, "log/") == [RECORD]
        assert await keys(store, "log/0000000000000/") == [RECORD]

    async def test_a_prefix_is_whole_segments(self, store: Store) -> None:
        for key in ("ab/1", "abc/1", "ab/c/1", "ab-/1", "ab.x/1", "ab0", "a/1"):
            await store.create(key, b"")
        assert await keys(store, "ab/") == ["ab/1", "ab/c/1"]
        assert await keys(store, "ab/c/") == ["ab/c/1"]
        assert await store.folders("ab/") == {"c"}

    async def test_an_absent_prefix_lists_nothing(self, store: Store) -> None:
        assert await store.list("log/") == []
        assert await store.folders("log/") == set()

    async def test_folders_are_the_next_segment_of_what_lies_deeper(self, store: Store, twin: Store) -> None:
        for key in (RECORD, PACK, "log/0000000000012/0000000000012000.json", "log/file", "limpet.json", "logs/1/2"):
            await store.create(key, b"x")
        # SeaweedFS goes on listing a folder whose last object was deleted: that of the race of creates.
        assert await twin.folders("") - {"probe"} == {"data", "log", "logs"}
        assert await twin.folders("log/") == {"0000000000000", "0000000000012"}
        assert await twin.folders("log/0000000000000/") == set()

    async def test_a_long_listing_is_complete(self, store: Store, twin: Store) -> None:
        wanted = {f"log/{number // 1000:013d}/{number:016d}.json": number % 5 for number in range(1, self.many + 1)}
        wanted |= {f"data/{number:016d}/00000001-9f3a-0000-000.pack": 1 for number in range(1, 40)}
        await in_turns((store.create(key, b"x" * size) for key, size in wanted.items()), 24)
        assert {entry.key: entry.size for entry in await twin.list("")} == wanted
        assert len(await twin.list("log/")) == self.many
        assert len(await twin.list("log/0000000000000/")) == min(self.many, 999)
        assert await twin.folders("log/") == {f"{number:013d}" for number in range(self.many // 1000 + 1)}
        assert len(await twin.folders("data/")) == 39

    async def test_a_listing_while_others_come_and_go_misses_none_that_stays(self, store: Store, twin: Store) -> None:
        staying = [f"data/{number:016d}/staying.pack" for number in range(0, 60, 3)]
        await in_turns((store.create(key, b"x") for key in staying), 10)
        ended = asyncio.Event()

        async def churn(lane: int) -> None:
            for round_ in range(self.churns):
                names = [f"data/{number:016d}/{lane}-{round_}.pack" for number in range(lane, 60, 6)]
                await asyncio.gather(*(store.create(name, b"y") for name in names))
                await asyncio.gather(*(store.delete(name) for name in names))

        async def watch() -> int:
            count = 0
            while not ended.is_set() or count == 0:
                seen = {entry.key for entry in await twin.list("data/")}
                assert not set(staying) - seen
                assert {f"{number:016d}" for number in range(0, 60, 3)} <= await twin.folders("data/")
                count += 1
                await asyncio.sleep(0)  # memory never waits
            return count

        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(churn, range(4)))
        ended.set()
        assert await watching > 0
        assert await keys(twin) == staying

    async def test_names_that_are_not_ours_are_listed_and_left_alone(self, store: Store, twin: Store) -> None:
        foreign = sorted(self.foreign)
        for key in foreign:
            await store.create(key, key.encode())
        await store.create(RECORD, b"ours")
        assert await keys(twin) == sorted([*foreign, RECORD])
        assert await keys(twin, "log/") == [RECORD]
        assert await twin.folders("log/") == {"0000000000000"}
        for key in foreign:
            assert await twin.get(key) == key.encode()
            await store.delete(key)
        assert await keys(twin) == [RECORD]

    async def test_a_key_may_have_segments_of_200_bytes(self, store: Store, twin: Store) -> None:
        key = "/".join(["a" * 200, "b" * 200, "c" * 200])
        await store.create(key, b"long")
        await store.put(key + "-", parts_of([b"longer"]))
        assert await keys(twin) == [key, key + "-"]
        assert await twin.get(key + "-") == b"longer"
