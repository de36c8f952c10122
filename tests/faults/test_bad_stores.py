"""Stores that are not what they should be: what limpet can live with, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.faults.bucket import Bucket
from tests.faults.runs import heavy_but, newest, read_at, same, state, unpaced, write_at
from tests.faults.server import FaultyS3

from limpet import StoreError
from limpet.errors import LimpetError


def refused(s3: FaultyS3) -> StoreError:
    cp = write_at(s3)
    with pytest.raises(StoreError) as caught:
        cp.__enter__()
    return caught.value


def test_a_store_that_ignores_conditions_is_refused_at_opening(s3: FaultyS3) -> None:
    s3.bucket.manners.ignores_conditions = True
    error = refused(s3)
    assert (error.kind, error.transient) == ("no_atomic_create", False)
    assert "conditional writes" in error.hint
    assert s3.bucket.keys("/log/") == []


def test_a_run_whose_store_ignores_conditions_from_now_on_is_refused(s3: FaultyS3) -> None:
    with write_at(s3) as cp:
        cp.write(state(0), step=0, durable=True)
    s3.bucket.manners.ignores_conditions = True
    assert refused(s3).kind == "no_atomic_create"
    s3.bucket.manners.ignores_conditions = False
    assert same(newest(s3), 0)


def test_a_store_where_two_creates_at_once_both_win_is_refused(s3: FaultyS3) -> None:
    s3.bucket.manners.checks_first = True
    assert refused(s3).kind == "no_atomic_create"
    assert s3.bucket.objects == {}


def test_a_good_store_is_proved_once_and_keeps_nothing_of_it(s3: FaultyS3) -> None:
    async def prepare_twice() -> None:
        store = unpaced(s3)
        for root in (store, store, store.child("child/1")):
            await root.prepare()
        await store.close()

    asyncio.run(prepare_twice())
    assert 2 <= s3.count("create", "/probe/") <= 8
    assert s3.bucket.objects == {}


def test_a_run_that_is_there_is_opened_without_a_race(s3: FaultyS3) -> None:
    with write_at(s3) as cp:
        cp.write(state(0), step=0, durable=True)
    before = s3.count("create", "/probe/")
    with write_at(s3) as cp:
        assert same(cp.resume().state, 0)
    assert s3.count("create", "/probe/") == before


@pytest.mark.parametrize("act", heavy_but(["close"], ["error", "close", "reset"]))
@pytest.mark.parametrize("applies", [False, True])
def test_lost_answers_do_not_make_a_good_store_look_bad(s3: FaultyS3, act: Any, applies: bool) -> None:
    s3.script("create", act=act, applies=applies, share=0.5, times=12)
    with write_at(s3) as cp:
        cp.write(state(0), step=0, durable=True)
    assert same(newest(s3), 0)


def test_a_store_that_takes_nothing_could_not_tell(s3: FaultyS3) -> None:
    s3.script("create", act="error")
    cp = write_at(s3, reads_for=0.2)
    with pytest.raises(LimpetError) as caught:
        cp.__enter__()
    assert caught.value.kind != "no_atomic_create"


@contextmanager
def suppress_all_but(kind: str) -> Iterator[None]:
    """Errors of limpet are fine but for one kind."""
    try:
        yield
    except LimpetError as error:
        if error.kind == kind:
            raise


# What can be lived with.


def stale(bucket: Bucket) -> None:
    """Listings show nothing of the newest records and packs."""
    bucket.manners.hides = lambda key: bucket.keys().index(key) > len(bucket.keys()) // 2


def unsorted(bucket: Bucket) -> None:
    bucket.manners.shuffled = True


def in_small_pages(bucket: Bucket) -> None:
    bucket.manners.page = 2


def with_bare_etags(bucket: Bucket) -> None:
    bucket.manners.etag = lambda etag: etag


def with_empty_etags(bucket: Bucket) -> None:
    bucket.manners.etag = lambda _: '""'


def strict_about_deletes(bucket: Bucket) -> None:
    bucket.manners.strict_delete = True


ODDITIES: list[Callable[[Bucket], None]] = [
    stale, unsorted, in_small_pages, with_bare_etags, with_empty_etags, strict_about_deletes,
]  # fmt: skip


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_newest_checkpoint_is_found_at_an_odd_store(s3: FaultyS3, oddity: Callable[[Bucket], None]) -> None:
    oddity(s3.bucket)
    for step in range(5):
        with write_at(s3) as cp:
            assert same(cp.resume().state, step - 1) if step else cp.resume().state is None
            cp.write(state(step), step=step, durable=True)
    with read_at(s3) as run:
        assert same(run.read(strict=True), 4)
    assert len(s3.bucket.keys("/log/")) == 15  # open, commit and close of each
    assert set(s3.bucket.stored.values()) == {1}


@pytest.mark.parametrize("act", ["flip", "short"])
def test_an_answer_that_is_bent_while_a_run_is_opened_does_not_make_a_good_store_look_bad(
    s3: FaultyS3, act: Any
) -> None:
    with write_at(s3) as cp:
        cp.write(state(0), step=0, durable=True)
    for at in range(8):
        s3.script("get", "", act, times=1, skip=at)
        with suppress_all_but("no_atomic_create"), write_at(s3) as cp:
            assert same(cp.resume().state, 0)
        s3.heal()
    assert same(newest(s3), 0)
