"""Rules of the protocol, each broken on purpose: the simulation must notice every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import msgspec

from limpet.engine import head, janitor, live, log, opening, pieces, reader, upload, writer
from limpet.engine.index import ChunkIndex
from limpet.errors import CorruptError, StoreError
from limpet.format.layout import PackName, pack_key, parse_pack_key
from limpet.format.record import decode_record, from_ranges, to_ranges
from limpet.stores.base import KeyExistsError

__all__ = ["MUTATIONS", "NEEDS_AN_OLDER_PYTHON"]

Mutation = Callable[[], contextlib.AbstractContextManager[Any]]
MUTATIONS: dict[str, Mutation] = {}
NEEDS_AN_OLDER_PYTHON = {"an_error_takes_the_frames_of_others_along"}
"""From 3.13 on, the frame of a coroutine that waits cannot be cleared."""


def mutation(make: Callable[[], Iterator[Any]]) -> Mutation:
    """Register a way to break a rule, under its name."""
    made = contextlib.contextmanager(make)
    MUTATIONS[make.__name__] = made
    return made


def _nothing(*_: Any) -> None:
    """What is left of a rule."""


@mutation
def acknowledged_before_the_create() -> Iterator[Any]:
    create = log.Log._create

    async def at_once(self: Any, record: Any, data: bytes, deadline: float) -> bool:
        if record.kind == "open":
            return await create(self, record, data, deadline)
        task = asyncio.ensure_future(create(self, record, data, deadline))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return True

    with mock.patch.object(log.Log, "_create", at_once):
        yield


@mutation
def key_exists_is_success() -> Iterator[Any]:
    async def ours(self: Any, record: Any, key: str, cause: Exception, *_: Any) -> bool | None:
        return True if isinstance(cause, KeyExistsError) else None

    with mock.patch.object(log.Log, "_read_back", ours):
        yield


@mutation
def key_exists_is_a_conflict() -> Iterator[Any]:
    read_back = log.Log._read_back

    async def theirs(self: Any, record: Any, key: str, cause: Exception, *rest: Any) -> bool | None:
        if isinstance(cause, KeyExistsError) and record.kind != "open":
            raise self.fence("the key was taken")
        return await read_back(self, record, key, cause, *rest)

    with mock.patch.object(log.Log, "_read_back", theirs):
        yield


@mutation
def no_read_back() -> Iterator[Any]:
    async def nobody(self: Any, *_: Any) -> None:
        return None

    with mock.patch.object(log.Log, "_read_back", nobody):
        yield


@mutation
def a_fenced_writer_goes_on_after_its_successor() -> Iterator[Any]:
    read_back = log.Log._read_back

    async def behind(self: Any, record: Any, key: str, cause: Exception, *rest: Any) -> bool | None:
        if record.kind != "open":
            with contextlib.suppress(StoreError, CorruptError):
                found, digest = decode_record(await self.store.get(key), record.seq)
                if found.epoch > self.epoch:
                    self.head, self.digest = found, digest
                    return False
        return await read_back(self, record, key, cause, *rest)

    with mock.patch.object(log.Log, "_read_back", behind):
        yield


@mutation
def an_adopted_try_changes_nothing() -> Iterator[Any]:
    opened = writer.RunWriter.open

    async def deaf(self: Any) -> Any:
        found = await opened(self)
        self.log.on_adopted = lambda _: None
        return found

    with mock.patch.object(writer.RunWriter, "open", deaf):
        yield


@mutation
def the_newest_is_that_of_the_highest_step() -> Iterator[Any]:
    load = live.load_checkpoints

    async def by_step(*args: Any, **named: Any) -> Any:
        found, damaged = await load(*args, **named)
        return sorted(found, key=lambda one: -(one.info.step or 0)), damaged

    with (
        mock.patch.object(opening, "load_checkpoints", by_step),
        mock.patch.object(writer, "load_checkpoints", by_step),
    ):
        yield


@mutation
def the_head_is_what_the_listing_shows() -> Iterator[Any]:
    async def listed(store: Any) -> Any:
        last = await head._listed_head(store)
        return await head._newest_verified(store, last) if last else head.Head(None)

    with mock.patch.object(opening, "find_head", listed), mock.patch.object(log, "find_head", listed):
        yield


@mutation
def a_503_is_a_reason_to_fall_back() -> Iterator[Any]:
    fetch = reader.Reader._fetch

    async def damaged(self: Any, pack: str, offset: int, size: int) -> Any:
        try:
            return await fetch(self, pack, offset, size)
        except StoreError as error:
            raise CorruptError("could not be read", kind="damaged", pack=pack) from error

    with mock.patch.object(reader.Reader, "_fetch", damaged):
        yield


@mutation
def a_sweep_forgets_saves_in_flight() -> Iterator[Any]:
    with mock.patch.object(janitor.Janitor, "begin", _nothing):
        yield


@mutation
def a_sweep_forgets_the_bases_of_saves_in_flight() -> Iterator[Any]:
    def begin(self: Any, number: int) -> None:
        self.unsettled[number] = set()

    with mock.patch.object(janitor.Janitor, "begin", begin):
        yield


@mutation
def an_unknown_commit_counts_as_failed() -> Iterator[Any]:
    end = janitor.Janitor.end

    def ended(self: Any, number: int, *, unknown: bool, failed: bool) -> None:
        end(self, number, unknown=False, failed=failed)

    with mock.patch.object(janitor.Janitor, "end", ended):
        yield


@mutation
def a_sweep_looks_at_the_newest_checkpoint_only() -> Iterator[Any]:
    def packs(self: Any) -> set[str]:
        return set(self.newest.packs) if self.newest else set()

    with mock.patch.object(live.LiveSet, "packs", packs):
        yield


@mutation
def a_sweep_takes_objects_of_newer_epochs() -> Iterator[Any]:
    decide = janitor.decide_deletes

    def older(entries: Any, *, epoch: int, **named: Any) -> Any:
        return decide(entries, epoch=1 << 40, **named)

    with mock.patch.object(janitor, "decide_deletes", older):
        yield


@mutation
def a_sweep_goes_on_beside_damaged_records() -> Iterator[Any]:
    with mock.patch.object(janitor.Janitor, "blocked", property(lambda self: bool(self.log.stopped))):
        yield


@mutation
def packs_are_removed_before_the_record_that_drops_them() -> Iterator[Any]:
    append = log.Log.append

    async def removing(self: Any, make: Any) -> Any:
        def made(base: Any) -> Any:
            record = make(base)
            nonlocal gone
            gone = from_ranges(base.live) - from_ranges(record.live)
            return record

        gone: set[int] = set()
        first = made(self._next(self.head))
        for seq in gone:
            dropped, _ = await head.read_record(self.store, seq)
            for use in dropped.commit.packs if dropped.commit else ():
                await self.store.delete(use.key)
        del first
        return await append(self, made)

    with mock.patch.object(log.Log, "append", removing):
        yield


@mutation
def chunks_of_what_left_the_live_set_are_offered() -> Iterator[Any]:
    with mock.patch.object(ChunkIndex, "keep_only", _nothing):
        yield


@mutation
def names_of_packs_repeat() -> Iterator[Any]:
    def same(name: PackName) -> str:
        return pack_key(PackName(name.epoch, name.save, "0000aaaa", name.rank, name.part))

    with mock.patch.object(upload, "pack_key", same):
        yield


@mutation
def pins_are_forgotten_by_the_next_commit() -> Iterator[Any]:
    append = log.Log.append

    async def unpinned(self: Any, make: Any) -> Any:
        def made(base: Any) -> Any:
            record = make(base)
            if record.kind != "commit":
                return record
            kept = sorted(from_ranges(record.live) - from_ranges(base.pinned) | {record.seq})
            return msgspec.structs.replace(record, live=to_ranges(kept), pinned=[])

        return await append(self, made)

    with mock.patch.object(log.Log, "append", unpinned):
        yield


@mutation
def a_digest_is_not_looked_at() -> Iterator[Any]:
    decode = pieces._decode_part

    def unchecked(run: Any, part: Any, stored: Any, **_: bool) -> None:
        with contextlib.suppress(CorruptError):
            decode(run, part, stored, checked=True)

    with mock.patch.object(pieces, "_decode_part", unchecked), mock.patch.object(pieces, "_check_id", _nothing):
        yield


@mutation
def an_error_takes_the_frames_of_others_along() -> Iterator[Any]:
    """As it was once: a caller that waits in a coroutine is ended by the failure of somebody else's save."""

    def forget(error: BaseException | None) -> None:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__

    with mock.patch.object(upload, "forget_locals", forget), mock.patch.object(writer, "forget_locals", forget):
        yield


@mutation
def a_run_that_has_just_begun_looks_damaged() -> Iterator[Any]:
    """As it was once: record 1 was not there yet, and a pack is there already."""

    async def proved(store: Any) -> bool:
        if [entry for entry in await store.list("data/") if parse_pack_key(entry.key)]:
            raise CorruptError("data but no log")
        return True

    with mock.patch.object(head, "_is_empty", proved):
        yield
