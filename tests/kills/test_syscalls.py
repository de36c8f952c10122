"""Row 1 from outside: strace kills the process at the n-th write, fsync, link, rename, unlink, mkdir or open.

It sees what the kernel sees, also calls that do not go through ``FileOps``. strace counts by thread, so the
folder's lanes are one thread here, and a life is taken session by session.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kills.checking import check_survival, live_of
from tests.kills.forks import Ended, Zygote
from tests.kills.life import LIFE, SESSIONS, Live, Place, live_after

import limpet

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(STRACE is None, reason="strace is not installed"),
    pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning"),
]
CALLS = ["write", "writev", "fsync", "linkat", "renameat", "unlinkat", "mkdirat", "openat"]
MOST = 2000


class Traced:
    """Lives under strace.

    Attributes:
        trace: what strace wrote of the last one.
    """

    trace: Path

    def __init__(self, zygote: Zygote, place: Place) -> None:
        self._zygote = zygote
        self._place = place
        self._numbers = itertools.count()

    def live(self, inject: str, first: int, last: int) -> tuple[Ended, Place]:
        """One life from act ``first`` to ``last``; what strace injects, by its own syntax."""
        number = next(self._numbers)
        place = replace(self._place, url=f"{self._place.url}-{number}")
        if first:
            shutil.copytree(self._ready(first), place.url)
        report = Path(place.scratch) / f"report-{number}"
        pid = self._zygote.fork(place, report, wait=True, kind="none", at=0, first=first, last=last, one_thread=True)
        assert self._zygote.wait(pid, report).how == {"stopped": signal.SIGSTOP}
        call = inject.partition(":")[0]
        self.trace = Path(place.scratch) / f"trace-{number}"
        command = [str(STRACE), "-f", "-qq", "-o", str(self.trace), "-p", str(pid)]
        command += ["-e", f"trace={call}", "-e", f"inject={inject}"]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
        wait_until_traced(pid, tracer)
        os.kill(pid, signal.SIGCONT)
        ended = self._zygote.wait(pid, report, first)
        tracer.communicate(timeout=30)
        return ended, place

    def _ready(self, first: int) -> Path:
        """A folder in which the acts before ``first`` were done."""
        ready = Path(f"{self._place.url}-ready-{first}")
        if not ready.exists():
            report = Path(self._place.scratch) / f"ready-{first}"
            ended = self._zygote.live(replace(self._place, url=str(ready)), report, kind="none", at=0, last=first)
            assert ended.how == {"exit": 0}, ended.errors
        return ready


def wait_until_traced(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    """Return once strace has attached; skip where it may not."""
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None:
            _, errors = tracer.communicate()
            os.kill(pid, signal.SIGKILL)
            pytest.skip(f"strace may not trace here: {errors.decode()}")


@pytest.fixture
def traced(zygote: Zygote, place: Place) -> Traced:
    return Traced(zygote, place)


def sweep(traced: Traced, call: str, session: int, step: int = 1) -> int:
    """Kill at every ``step``-th ``call`` of a session's busiest thread; how many there were."""
    first, last = SESSIONS[session]
    for at in range(1, MOST, step):
        ended, place = traced.live(f"{call}:signal=SIGKILL:when={at}", first, last)
        try:
            check_survival(place, ended.allowed())
        except BaseException as error:
            error.add_note(f"killed at {call} {at}: {ended.lines[-3:]}")
            raise
        shutil.rmtree(place.url, ignore_errors=True)
        if not ended.was_struck:
            return at // step
    raise AssertionError("the sweep did not end")


@pytest.mark.parametrize("call", ["fsync", "linkat", "renameat"])
def test_the_kernel_s_view_agrees_a_process_may_die_at_any_call(traced: Traced, call: str) -> None:
    ended, place = traced.live(f"{call}:signal=SIGKILL:when=3", *SESSIONS[0])
    assert ended.was_struck
    check_survival(place, ended.allowed())


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("call", "session"), [*itertools.product(CALLS, (0, 1)), ("renameat", 2), ("mkdirat", 2), ("openat", 2)]
)
def test_a_process_may_die_at_every_single_system_call(traced: Traced, call: str, session: int) -> None:
    struck = sweep(traced, call, session, step=8 if call == "openat" else 1)
    assert struck >= (3 if session < 2 else 1)
    print(f"{struck} deaths at {call} of session {session}")


def possible(ended: Ended) -> list[Live]:
    """What may be live after a life in which acts failed: a commit whose answer is unknown is there or not."""
    found = [Live()]
    for index, act in enumerate(LIFE):
        refused = next((line[2] for line in ended.lines if line[:2] == ["refused", str(index)]), None)
        if index in ended.indices("done"):
            found = [live_after([act], live)[-1] for live in found]
        elif refused == "CommitUnknownError":
            found += [live_after([act], live)[-1] for live in found]
    return found


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("fsync", "EIO"),
        ("linkat", "EIO"),
        ("writev", "ENOSPC"),
        ("renameat", "ENOSPC"),
        *(
            pytest.param(*each, marks=pytest.mark.heavy)
            for each in [("fsync", "ENOSPC"), ("linkat", "ENOSPC"), ("writev", "EIO"), ("renameat", "EIO")]
        ),
    ],
)
def test_an_error_of_the_kernel_costs_at_most_the_save_that_met_it(traced: Traced, call: str, error: str) -> None:
    first_save = {"writev": 4, "fsync": 15, "linkat": 4, "renameat": 1}[call]  # what comes before opens the run
    ended, place = traced.live(f"{call}:error={error}:when={first_save}", 0, 7)
    assert ended.how == {"exit": 0}, ended.errors
    assert "(INJECTED)" in traced.trace.read_text()
    with limpet.open(place.url) as run:
        found = live_of(run)
    assert found in possible(ended)
    assert found.steps, ended.lines
    check_survival(place, [found])
