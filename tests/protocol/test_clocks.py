"""A7: no decision depends on the clock of the wall, of this machine or of another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from tests.faulty import Faulty, Shelf, read_over, write_over

from limpet import Best, Every, FencedError, Last, Periodic

YEARS = 365.25 * 24 * 3600
REAL = time.time()


def backwards() -> Callable[[], float]:
    ticks = count()
    return lambda: REAL - 3600.0 * next(ticks)


def jumping() -> Callable[[], float]:
    ticks = count()
    return lambda: REAL + (10 * YEARS if next(ticks) % 2 else -10 * YEARS)


CLOCKS: dict[str, Callable[[], Callable[[], float]]] = {
    "right": lambda: time.time,
    "ten years ahead": lambda: lambda: REAL + 10 * YEARS,
    "ten years behind": lambda: lambda: REAL - 10 * YEARS,
    "before 1970": lambda: lambda: -5.0,
    "frozen": lambda: lambda: REAL,
    "backwards": backwards,
    "jumping": jumping,
}


@pytest.fixture(params=CLOCKS)
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock of the wall that is wrong."""
    monkeypatch.setattr(time, "time", CLOCKS[request.param]())
    yield
    monkeypatch.undo()


def big(step: int) -> dict[str, Any]:
    return {"step": step, "weights": np.random.default_rng(step).random(8192)}


def test_whatever_the_clock_says_the_same_stays_and_the_same_goes(clock: None, store: Faulty, shelf: Shelf) -> None:
    with write_over(store, retain=Last(2) | Best("loss") | Periodic(steps=4)) as cp:
        for step in range(6):
            cp.write(big(step), step=step, meta={"loss": abs(step - 3)}, pin=step == 1, durable=True)
    with write_over(store) as cp:  # from "another machine"
        assert cp.resume().next_step == 6
        cp.write(big(6), step=6, meta={"loss": 9}, durable=True)
        cp.sweep()
        assert [info.step for info in cp.checkpoints()] == [0, 1, 3, 4, 5, 6]
    assert len(shelf.packs()) == 6
    with read_over(store) as run:
        assert run.read()["step"] == 6
        for info in run.checkpoints():
            assert run.verify(info) is not None


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_whatever_the_clock_says_the_newer_attempt_wins(clock: None, store: Faulty) -> None:
    old = write_over(store, takeover=True)
    with old:
        old.write(0, step=0, durable=True)
        with write_over(store, takeover=True) as new:
            new.write(1, step=1, durable=True)
            with pytest.raises(FencedError):
                old.write(2, step=2, durable=True)
            assert new.read() == 1


def test_an_interval_in_seconds_goes_by_the_monotonic_clock(clock: None, store: Faulty) -> None:
    with write_over(store, every=Every(seconds=3600)) as cp:
        outcomes = [str(cp.write(np.zeros(1 << 18), step=step).result(10).outcome) for step in range(4)]
        assert outcomes == ["committed", "skipped", "skipped", "skipped"]
        cp.write(0, step=9, durable=True)
