"""However a process ends: what was accepted is committed, or its loss is loud; nothing hangs, nothing panics.

The default run takes each scenario of ``QUICKLY`` once. With ``-m heavy`` all of them run, ``ROUNDS`` times over,
on a folder and on an S3 server.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence

import pytest
from tests.faults.server import url
from tests.process.children import Ended, Nursery, judge, newest
from tests.process.scenarios import (
    ALL,
    COROUTINES,
    ENDINGS,
    FORGOTTEN,
    FORKS,
    ON_S3,
    QUICKLY,
    SIGNALS,
    THREADS,
    Scenario,
    alone,
)

ROUNDS = int(os.environ.get("LIMPET_ROUNDS", "5"))
"""How often each scenario runs in the heavy tests."""
AT_ONCE = 2

pytestmark = pytest.mark.crash


def run(nursery: Nursery, scenario: Scenario, root: str, *, cold: bool = False) -> Ended:
    """Run a scenario and judge it: how it ended, and what a reader finds."""
    child = nursery.start(scenario.program[0], root, *scenario.program[1:], cold=cold)
    scenario.during(child)
    ended = child.end()
    judge(ended, scenario.code, says=scenario.says, quiet=scenario.quiet)
    assert ended.seconds < scenario.seconds, f"it took {ended.seconds:.1f} s to end"
    for line in scenario.prints:
        assert any(printed.startswith(line) for printed in ended.lines), f"{line!r} is not in {ended.lines[-5:]}"
    assert not [line for line in ended.lines if "was not refused" in line or line.endswith("slow")], ended.lines
    durable = ended.steps("acknowledged") + (ended.steps("accepted") if scenario.commits == "accepted" else [])
    expected = max(durable, default=None) if scenario.exactly is None else scenario.exactly
    found = newest(root, scenario.child)
    if scenario.during is alone or expected is None or found is None:
        assert found == expected, ended.lines
    elif found < expected:  # the signal came in the middle of an exchange of two saves
        assert "its copy was interrupted" in ended.stderr, (found, ended.lines, ended.stderr)
    return ended


def named(scenarios: Sequence[Scenario]) -> list[object]:
    return [pytest.param(scenario, id=scenario.name) for scenario in scenarios]


@pytest.mark.parametrize("scenario", named(QUICKLY))
def test_what_was_accepted_is_committed_or_its_loss_is_loud(nursery, tmp_path, scenario):
    run(nursery, scenario, str(tmp_path / "run"))


@pytest.mark.parametrize("scenario", named([SIGNALS[0], COROUTINES[0]]))
def test_an_interpreter_of_its_own_ends_in_the_same_way(nursery, tmp_path, scenario):
    run(nursery, scenario, str(tmp_path / "run"), cold=True)


@pytest.mark.parametrize("scenario", named(ON_S3[:4]))
def test_an_object_store_s_client_does_not_disturb_the_end(nursery, s3, scenario):
    run(nursery, scenario, f"{url('run')}?{s3.port}")


def test_a_store_that_became_a_black_hole_does_not_keep_the_process(nursery, s3):
    """Row 12, with the real client: the drain at the end has a deadline, and says what was lost."""
    root = f"{url('run')}?{s3.port}"
    child = nursery.start("loops", root, "impatient")
    child.read_until("ready")
    s3.script(act="hang")
    child.read_until("accepted")
    child.nudge(15)
    ended = child.end()
    s3.heal()
    judge(ended, 70, says=r"not committed at the end of the program: <PendingWrite step=\d+")
    assert ended.seconds < 8
    assert newest(root) >= 0


def in_turn(work: Iterator[tuple[Scenario, str, bool]]) -> list[str]:
    """Run everything, ``AT_ONCE`` at a time; what failed."""
    failures: list[str] = []
    lock = threading.Lock()

    def worker() -> None:
        nursery = Nursery()
        while True:
            with lock:
                task = next(work, None)
            if task is None:
                break
            scenario, root, cold = task
            try:
                run(nursery, scenario, root, cold=cold)
            except Exception as error:
                failures.append(f"{scenario.name} at {root}: {error}")
            except AssertionError as error:
                failures.append(f"{scenario.name} at {root}: {error}")
        nursery.close()

    threads = [threading.Thread(target=worker) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "scenarios",
    [ENDINGS + THREADS + FORGOTTEN, SIGNALS, FORKS, COROUTINES],
    ids=["endings", "signals", "forks", "coroutines"],
)
def test_no_process_hangs_however_often_it_ends(tmp_path, scenarios, capsys):
    """Rows 24 to 27: forks of one interpreter in all rounds but the first, which starts a fresh one each time."""
    numbers = itertools.count()
    work = (
        (scenario, str(tmp_path / str(next(numbers))), number == 0)
        for number in range(ROUNDS)
        for scenario in scenarios
    )
    failures = in_turn(work)
    with capsys.disabled():
        print(f" {ROUNDS * len(scenarios)} runs", end="")
    assert not failures, f"{len(failures)} failed:\n" + "\n".join(failures)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_no_process_hangs_however_often_it_ends_on_an_object_store(s3, capsys):
    numbers = itertools.count()
    work = ((scenario, f"{url(str(next(numbers)))}?{s3.port}", False) for _ in range(ROUNDS) for scenario in ON_S3)
    failures = in_turn(work)
    with capsys.disabled():
        print(f" {ROUNDS * len(ON_S3)} runs", end="")
    assert not failures, f"{len(failures)} failed:\n" + "\n".join(failures)


def test_the_counts_of_the_table_hold():
    assert len(ALL) * ROUNDS + len(ON_S3) * ROUNDS >= 500
