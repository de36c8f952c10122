from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stores.contract import parts_of

from limpet.errors import CorruptError, StoreError
from limpet.stores.base import Entry, KeyExistsError, KeyMissingError
from limpet.stores.memory import MemoryStore
from limpet.stores.retry import Retrying, RetryPolicy, backoff_delays

BUSY = StoreError("503", transient=True)
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "get": lambda store: store.get("a"),
    "get_range": lambda store: store.get_range("a", 0, 1),
    "read_into": lambda store: store.read_into("a", 0, [memoryview(bytearray(1))]),
    "list": lambda store: store.list(""),
    "settle": lambda store: store.settle("a"),
    "delete": lambda store: store.delete("a"),
    "free_bytes": lambda store: store.free_bytes(),
    "prepare": lambda store: store.prepare(),
}


class Flaky(MemoryStore):
    """Every call raises the next of ``errors`` until there are none left."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__()
        self.errors = errors
        self.calls = 0

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in {*OPERATIONS, "create", "put"}:
            return method

        async def call(*args: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return await method(*args, **keywords)

        return call


class Clock:
    """Time passes only in ``sleep``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def retrying(store: Flaky, clock: Clock, told: list[tuple[str, str, int]] | None = None) -> Retrying:
    def on_retry(operation: str, key: str, error: StoreError, attempt: int) -> None:
        if told is not None:
            told.append((operation, key, attempt))

    return Retrying(store, sleep=clock.sleep, clock=lambda: clock.now, jitter=lambda: 1.0, on_retry=on_retry)


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    return Clock()


def test_delays_double_up_to_the_longest() -> None:
    assert list(islice(backoff_delays(RetryPolicy(), jitter=lambda: 1.0), 8)) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=10, max_size=10))
def test_each_delay_lies_between_half_its_bound_and_all_of_it(draws: list[float]) -> None:
    bounds = islice(backoff_delays(RetryPolicy(), jitter=lambda: 1.0), 10)
    delays = islice(backoff_delays(RetryPolicy(), jitter=iter(draws).__next__), 10)
    assert all(bound / 2 <= delay <= bound for bound, delay in zip(bounds, delays, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_may_be_repeated_is_retried_and_reported(operation: str, clock: Clock) -> None:
    told: list[tuple[str, str, int]] = []
    store = Flaky([])
    await store.create("a", b"x")
    store.errors = [BUSY, BUSY]
    await OPERATIONS[operation](retrying(store, clock, told))
    assert store.errors == []
    assert clock.slept == [0.1, 0.2]
    assert [(each[0], each[2]) for each in told] == [(operation, 1), (operation, 2)]


async def test_a_result_passes_through(clock: Clock) -> None:
    store = Flaky([])
    await store.create("a", b"x")
    store.errors = [BUSY]
    assert await retrying(store, clock).list("") == [Entry("a", 1)]


async def test_a_create_is_tried_once(clock: Clock) -> None:
    store = Flaky([BUSY])
    with pytest.raises(StoreError, match="503"):
        await retrying(store, clock).create("a", b"x")
    assert store.calls == 1


async def test_a_put_is_tried_once(clock: Clock) -> None:
    store = Flaky([BUSY])
    with pytest.raises(StoreError, match="503"):
        await retrying(store, clock).put("a", parts_of([b"x"]))
    assert store.calls == 1


@pytest.mark.parametrize(
    "error", [StoreError("403"), KeyMissingError("a"), KeyExistsError("a"), CorruptError("a"), RuntimeError("bug")]
)
async def test_what_will_not_pass_is_raised_at_once(error: Exception, clock: Clock) -> None:
    store = Flaky([error])
    with pytest.raises(type(error)):
        await retrying(store, clock).get("a")
    assert (store.calls, clock.slept) == (1, [])


async def test_after_the_deadline_the_last_error_is_raised(clock: Clock) -> None:
    errors: list[Exception] = [StoreError(f"try {number}", transient=True) for number in range(1, 100)]
    store = Flaky(errors)
    with pytest.raises(StoreError) as caught:
        await retrying(store, clock).get("a")
    assert caught.value.message == f"try {store.calls}"
    assert 54 <= clock.now <= 60


async def test_a_child_retries_too(clock: Clock) -> None:
    store = Flaky([])
    child = retrying(store, clock).child("child/1")
    assert isinstance(child, Retrying)
    await child.create("a", b"x")
    assert await store.get("child/1/a") == b"x"
