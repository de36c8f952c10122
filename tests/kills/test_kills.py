"""Row 1: kill -9 at every store call, at every system call of a folder, and at every failpoint.

Each run is one death and one resume. A sweep goes on until a point is asked for that no run has: then all were
struck. The default run takes a few points of each kind; ``-m heavy`` takes every one.
"""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kills.checking import check_survival
from tests.kills.forks import Ended, Zygote
from tests.kills.life import Place

from limpet.failpoints import POINTS

pytestmark = [pytest.mark.crash, pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")]

SHARDS = 4


class Deaths:
    """Lives in fresh places, and what is found after each."""

    def __init__(self, zygote: Zygote, place: Place) -> None:
        self._zygote = zygote
        self._place = place
        self._numbers = itertools.count()

    def live(self, kind: str, at: int) -> tuple[Ended, Place]:
        """One life."""
        place = self._fresh()
        report = Path(self._place.scratch) / f"report-{next(self._numbers)}"
        return self._zygote.live(place, report, kind=kind, at=at), place

    def count(self, kind: str) -> int:
        """How many points a life passes."""
        ended, place = self.live(kind, 0)
        assert not ended.was_struck
        self._forget(place)
        return ended.points

    def die(self, kind: str, at: int) -> bool:
        """Die at a point and look at what is left; whether there was such a point."""
        ended, place = self.live(kind, at)
        try:
            check_survival(place, ended.allowed())
        except BaseException as error:
            error.add_note(f"struck at {kind} {at}: {ended.lines[-3:]}")
            raise
        self._forget(place)
        return ended.was_struck

    def _fresh(self) -> Place:
        if "://" in self._place.url:
            return replace(self._place, url=f"{self._place.url}/{uuid.uuid4().hex}")
        return replace(self._place, url=f"{self._place.url}-{next(self._numbers)}")

    def _forget(self, place: Place) -> None:
        if "://" not in place.url:
            shutil.rmtree(place.url, ignore_errors=True)


@pytest.fixture
def deaths(zygote: Zygote, place: Place) -> Deaths:
    """On a folder."""
    return Deaths(zygote, place)


def sample(count: int, size: int) -> list[int]:
    """``size`` numbers from 1 to ``count``, evenly apart."""
    return [1 + round(index * (count - 1) / (size - 1)) for index in range(size)]


def sweep(deaths: Deaths, kind: str, ats: Iterable[int], count: int) -> int:
    """Die at each point, until beyond ``count`` there is none; how many deaths that were.

    Two saves that overlap may share a request or not, so a life may pass one point less, or one more.
    """
    struck = 0
    for at in ats:
        if deaths.die(kind, at):
            struck += 1
        elif at > count:
            break
        else:
            assert at > 0.95 * count, f"{kind} {at} was not reached"
    return struck


def test_a_run_that_is_left_alone_ends_as_its_script_says(deaths: Deaths) -> None:
    assert not deaths.die("store", 0)


@pytest.mark.parametrize("kind", ["store", "file"])
def test_whatever_call_a_process_dies_at_the_next_one_goes_on(deaths: Deaths, kind: str) -> None:
    count = deaths.count(kind)
    assert sweep(deaths, kind, sample(count, 6), count) >= 5


def test_whatever_step_a_process_dies_in_the_next_one_goes_on(deaths: Deaths) -> None:
    for name in POINTS:
        assert deaths.die(f"point:{name}", 1), f"{name} was not reached"


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("kind", ["store", "file", "point"])
def test_at_every_single_point_a_process_may_die(deaths: Deaths, kind: str, shard: int) -> None:
    count = deaths.count(kind)
    struck = sweep(deaths, kind, range(1 + shard, 2 * count, SHARDS), count)
    assert struck >= 0.95 * count // SHARDS  # all of them: the sweep ends only beyond the last
    print(f"{struck} deaths at {kind} points of shard {shard}")


@pytest.mark.heavy
@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["store", "point"])
def test_a_process_may_die_anywhere_over_a_real_server(zygote: Zygote, remote_place: Place, kind: str) -> None:
    deaths = Deaths(zygote, remote_place)
    count = deaths.count(kind)
    assert sweep(deaths, kind, sample(count, 60), count) >= 57
