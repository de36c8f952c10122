"""Row 21: a writer is stopped at any call, a successor saves, retires and sweeps, and then the first one goes on.

It must learn of its replacement at its next commit, and nothing that it still does may touch what is live.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kills.checking import assert_like, assert_nothing_left_over, keys_of, live_of
from tests.kills.forks import Ended, Zygote
from tests.kills.life import LIFE, SESSIONS, Live, Place, live_after, open_place, state_of
from tests.kills.test_kills import sample

import limpet
from limpet import Checkpointer
from limpet.format.layout import LOG_PREFIX

pytestmark = [pytest.mark.crash, pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")]

SHARDS = 3


class Zombies:
    """Writers that were stopped, and their successors.

    Args:
        session: index in ``SESSIONS`` of the one that is stopped.
    """

    def __init__(self, zygote: Zygote, place: Place, session: int) -> None:
        self._zygote = zygote
        self._place = place
        self._first, self._last = SESSIONS[session]
        self._numbers = itertools.count()

    def count(self, kind: str) -> int:
        """How many points the session passes."""
        place, report = self._fresh()
        return self._zygote.live(place, report, first=self._first, last=self._last, kind=kind, at=0).points

    def stop(self, kind: str, at: int) -> bool:
        """Stop a writer at a point and let its successor and then itself go on; whether there was such a point."""
        place, report = self._fresh()
        records = len(log_of(place))
        span = {"first": self._first, "last": self._last}
        pid = self._zygote.fork(place, report, kind=kind, at=at, signal=int(signal.SIGSTOP), **span)
        stopped = self._zygote.wait(pid, report, self._first)
        if not stopped.was_struck:
            return False
        owns = len(log_of(place)) > records
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="limpet took", category=RuntimeWarning)
            with open_place(place, takeover=True) as cp:
                found = self._succeed(cp, place, stopped)
                left = live_of(cp)
                os.kill(pid, signal.SIGCONT)
                ended = self._zygote.wait(pid, report, self._first)
                assert ended.how == {"exit": 0}, ended.errors
                held = [line[2] for line in ended.lines if line[0] == "refused"] == ["HeldError"]
                if held:  # it had not even locked the run
                    self._go_on(cp, place, left)
                elif owns:
                    self._check_zombie(ended, found)
                    self._go_on(cp, place, left)
                else:
                    self._check_replaced(cp)
        if owns or held:
            assert_nothing_left_over(place)
            with limpet.open(place.url, storage=place.storage) as run:
                assert_like(run.read(strict=True), state_of(103, Path(place.files)))
        else:
            self._check_own_life(place, left)
        if "://" not in place.url:
            shutil.rmtree(place.url)
        return True

    def _succeed(self, cp: Checkpointer, place: Place, stopped: Ended) -> Live:
        """Save three times, so that nothing of the zombie's but what it pinned is live; returns what it had left."""
        found = live_of(cp)
        assert found in stopped.allowed()
        cp.resume({"step": 0})
        for step in (100, 101, 102):
            cp.write(state_of(step, Path(place.files)), step=step, durable=True)
        cp.sweep()
        return found

    def _check_zombie(self, ended: Ended, found: Live) -> None:
        """Nothing that was not in the log when the successor came was acknowledged; the next commit was refused."""
        states = live_after(LIFE)
        landed = max(index for index in range(max(ended.indices("begin")) + 2) if states[index] == found)
        changing = [index for index in range(self._first, self._last) if states[index + 1] != states[index]]
        assert [index for index in ended.indices("done") if index in changing and index >= landed] == []
        refused = [line for line in ended.lines if line[0] == "refused"]
        if refused and LIFE[int(refused[0][1])].name == "read":  # what it reads was retired, and is gone
            assert refused.pop(0)[2] == "NotFoundError"
        if any(index >= landed for index in changing):
            assert [line[2] for line in refused] == ["FencedError"], ended.lines
        else:
            assert refused == []

    def _go_on(self, cp: Checkpointer, place: Place, left: Live) -> None:
        """The successor notices nothing of what the zombie did."""
        assert live_of(cp) == left
        for info in cp.checkpoints():
            assert cp.verify(info) is not None
        assert_like(cp.read(strict=True), state_of(102, Path(place.files)))
        cp.write(state_of(103, Path(place.files)), step=103, durable=True)
        cp.sweep()

    def _check_replaced(self, cp: Checkpointer) -> None:
        """A writer that had not opened yet when it was stopped is the newer one: now the successor is refused."""
        with pytest.raises(limpet.FencedError):
            cp.write(b"too late", step=104, durable=True)

    def _check_own_life(self, place: Place, before: Live) -> None:
        with limpet.open(place.url, storage=place.storage) as run:
            assert live_of(run) == live_after(LIFE[self._first : self._last], before)[-1]
            for info in run.checkpoints():
                assert run.verify(info) is not None

    def _fresh(self) -> tuple[Place, Path]:
        """A place where the sessions before have been."""
        number = next(self._numbers)
        place = replace(self._place, url=self._root(number))
        if self._first:
            ready = Path(self._place.url + "-ready")
            remote = "://" in place.url
            if remote or not ready.exists():
                target = place if remote else replace(place, url=str(ready))
                report = Path(place.scratch) / f"ready-{number}"
                assert self._zygote.live(target, report, last=self._first, kind="none", at=0).how == {"exit": 0}
            if not remote:
                shutil.copytree(ready, place.url)
        return place, Path(self._place.scratch) / f"report-{number}"

    def _root(self, number: int) -> str:
        if "://" in self._place.url:
            return f"{self._place.url}/{uuid.uuid4().hex}"
        return f"{self._place.url}-{number}"


def log_of(place: Place) -> list[str]:
    """Keys of the log."""
    if "://" not in place.url and not Path(place.url).exists():
        return []
    return [key for key in keys_of(place) if key.startswith(LOG_PREFIX)]


def sweep(zombies: Zombies, kind: str, ats: Iterable[int]) -> int:
    """Stop at each point until one does not exist; how many did."""
    struck = 0
    for at in ats:
        try:
            if not zombies.stop(kind, at):
                break
        except BaseException as error:
            error.add_note(f"stopped at {kind} {at}")
            raise
        struck += 1
    return struck


@pytest.mark.parametrize("session", [0, 1])
@pytest.mark.parametrize("kind", ["store", "file"])
def test_a_writer_that_was_stopped_and_replaced_is_refused_and_harms_nothing(
    zygote: Zygote, place: Place, kind: str, session: int
) -> None:
    zombies = Zombies(zygote, place, session)
    ats = sample(zombies.count(kind), 5)[1:4]
    assert sweep(zombies, kind, ats) == len(ats)


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("session", [0, 1])
@pytest.mark.parametrize("kind", ["store", "point", *[f"file-{shard}" for shard in range(SHARDS)]])
def test_at_whatever_call_a_writer_is_stopped_it_is_refused_and_harms_nothing(
    zygote: Zygote, place: Place, kind: str, session: int
) -> None:
    kind, _, shard = kind.partition("-")
    zombies = Zombies(zygote, place, session)
    count = zombies.count(kind)
    struck = sweep(zombies, kind, range(1 + int(shard or 0), 2 * count, SHARDS if shard else 1))
    assert struck >= count // (SHARDS if shard else 1)
    print(f"{struck} zombies at {kind} points of session {session}")


@pytest.mark.heavy
@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize("session", [0, 1])
def test_over_a_real_server_too_a_zombie_is_refused_and_harms_nothing(
    zygote: Zygote, remote_place: Place, session: int
) -> None:
    zombies = Zombies(zygote, remote_place, session)
    ats = sample(zombies.count("store"), 20)
    assert sweep(zombies, "store", ats) == len(ats)
