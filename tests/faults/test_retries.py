"""What the store refuses for a while is tried again, gently, until a deadline that holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.faults.runs import heavy_but, newest, read_at, same, small_parts, state, write_at
from tests.faults.server import FaultyS3
from tests.faulty import QUICK
from tests.stores.test_retry import Clock

from limpet import CommitUnknownError, Last, StoreError
from limpet.engine.timing import Timing
from limpet.stores.memory import MemoryStore
from limpet.stores.retry import Retrying
from limpet.stores.urls import _REQUESTS

BUSY = (503, "SlowDown")
KINDS = ["put", "create", "get", "list", "head", "delete"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "code"), heavy_but([BUSY], [BUSY, (500, "InternalError"), (429, "TooManyRequests")])
)
@pytest.mark.parametrize("times", heavy_but([5], [1, 5]))
def test_what_fails_a_few_times_is_tried_again(s3: FaultyS3, kind: str, status: int, code: str, times: int) -> None:
    fault = s3.script(kind, act="error", status=status, code=code, times=times)
    with write_at(s3, retain=Last(1)) as cp:
        for step in range(3):
            cp.write(state(step), step=step, durable=True)
    with write_at(s3) as cp:
        assert same(cp.resume().state, 2)
    assert fault.struck == times or kind == "head"  # asked for after a lost answer only


@pytest.mark.parametrize("times", [1, 4])
def test_a_conflict_that_stored_nothing_is_tried_again(s3: FaultyS3, times: int) -> None:
    with write_at(s3) as cp:
        s3.script("create", "/log/", act="error", status=409, code="ConditionalRequestConflict", times=times)
        cp.write(state(0), step=0, durable=True)
    assert same(newest(s3), 0)
    assert set(s3.bucket.stored.values()) == {1}


def seconds_until_failure(s3: FaultyS3, deadline: float, kind: str, act: Any, error: type[Exception]) -> float:
    """How long a save takes to fail while requests of ``kind`` do."""
    threads = threading.active_count()
    timing = Timing(commit_deadline=deadline, open_deadline=5.0, upload_deadline=deadline, grace=0.0)
    with write_at(s3, timing=timing, reads_for=60.0, storage={"timeout": 60}) as cp:
        cp.write(state(0), step=0, durable=True)
        s3.script(kind, act=act)
        began = time.monotonic()
        with pytest.raises(error):
            cp.write(state(1), step=1).result(30)
        took = time.monotonic() - began
        s3.heal()
    assert threading.active_count() == threads
    assert same(newest(s3), 0)
    return took


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "act", "error"),
    [("put", "error", StoreError), ("", "hang", StoreError), ("create get", "hang", CommitUnknownError)],
)
def test_what_fails_for_ever_fails_the_save_at_its_deadline(
    s3: FaultyS3, kind: str, act: Any, error: type[Exception]
) -> None:
    took = seconds_until_failure(s3, 1.0, kind, act, error)
    assert 0.9 <= took <= 1.1 + 0.5  # half a second for a busy machine


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
@pytest.mark.parametrize("act", ["error", "close", "reset", "hang"])
@pytest.mark.parametrize(("kind", "error"), [("put", StoreError), ("create", CommitUnknownError), ("", StoreError)])
def test_whatever_fails_for_ever_fails_the_save_within_a_tenth_of_its_deadline(
    s3: FaultyS3, kind: str, act: Any, error: type[Exception]
) -> None:
    assert 0.9 * 8 <= seconds_until_failure(s3, 8.0, kind, act, error) <= 1.1 * 8


def test_a_save_that_failed_at_its_deadline_says_what_the_store_said_last(s3: FaultyS3) -> None:
    with write_at(s3, timing=QUICK) as cp:
        cp.write(state(0), step=0, durable=True)
        s3.script("put", act="error")
        with pytest.raises(StoreError, match="SlowDown"):
            cp.write(state(1), step=1).result(30)
        s3.heal()


def test_the_next_save_goes_through_after_one_that_failed(s3: FaultyS3) -> None:
    with write_at(s3, timing=QUICK) as cp:
        cp.write(state(0), step=0, durable=True)
        s3.script(act="error")
        with pytest.raises(StoreError):
            cp.write(state(1), step=1).result(30)
        s3.heal()
        cp.write(state(2), step=2, durable=True)
    assert same(newest(s3), 2)


def save_all(s3: FaultyS3, saves: int) -> int:
    """Save that often while one request in ten fails; how many requests were made."""
    with write_at(s3, retain=Last(2), reads_for=30.0) as cp:
        for act, applies in (("error", False), ("close", False), ("error", True), ("close", True), ("reset", True)):
            s3.script(act=act, applies=applies, share=0.021)
        for step in range(saves):
            assert cp.write(state(step), step=step).result(30).durable_step == step
        failed = sum(fault.struck for fault in s3._faults)
        s3.heal()
    assert failed >= 0.05 * len(s3.requests)
    with read_at(s3) as run:
        assert same(run.read(strict=True), saves - 1)
    return len(s3.requests)


def test_every_save_succeeds_while_one_request_in_ten_fails(s3: FaultyS3) -> None:
    assert save_all(s3, 50) >= 150


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_every_one_of_many_saves_succeeds_while_one_request_in_ten_fails(s3: FaultyS3) -> None:
    assert save_all(s3, 4000) >= 12_000


# A store that is too busy must not be made busier.


class TooBusy(MemoryStore):
    calls = 0

    async def get(self, key: str, **limit: Any) -> bytes:
        self.calls += 1
        raise StoreError("429", transient=True)


async def test_a_storm_of_a_minute_costs_less_than_a_request_a_second() -> None:
    """Of our tries and those below us, multiplied. A run that commits every second makes more in quiet times."""
    clock, busy = Clock(), TooBusy()
    with pytest.raises(StoreError, match="429"):
        await Retrying(busy, sleep=clock.sleep, clock=lambda: clock.now).get("a")
    assert clock.now >= 54
    tries = 1 + _REQUESTS["retry_config"]["max_retries"]
    assert busy.calls * tries <= 60


def requests_of(s3: FaultyS3, drive: Callable[[Any], None], storm_seconds: float = 0.0) -> int:
    """How many requests ``drive`` makes; with a storm that begins just before it, and the tries below us as shipped."""
    with write_at(s3, name=f"run{storm_seconds}", timing=Timing(), storage={"retry_config": {}}) as cp:
        cp.write(state(0), step=0, durable=True)
        before = len(s3.requests)
        if storm_seconds:
            s3.script(act="error", status=429, code="TooManyRequests", headers={"retry-after": "1"})
            threading.Timer(storm_seconds, s3.heal).start()
        drive(cp)
    return len(s3.requests) - before


def one_save(cp: Any) -> None:
    cp.write(state(1), step=1).result(100)


def test_a_short_storm_at_most_triples_the_requests_of_a_save(s3: FaultyS3) -> None:
    quiet = requests_of(s3, one_save)
    stormy = requests_of(s3, one_save, storm_seconds=1.0)
    assert 2 <= quiet < stormy <= 3 * quiet + 1


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_a_storm_of_a_minute_at_most_triples_the_requests_of_a_run(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run saves twice a second, in parts."""

    def saves_for_a_while(cp: Any) -> None:
        for step in range(1, 125):
            cp.write(state(step, 200_000), step=step)
            time.sleep(0.5)
        cp.wait(60)

    with small_parts(monkeypatch):
        quiet = requests_of(s3, saves_for_a_while)
        stormy = requests_of(s3, saves_for_a_while, storm_seconds=60.0)
    print(f"quiet: {quiet} requests, stormy: {stormy}")
    assert stormy <= 3 * quiet
