import dataclasses
import os
import random
import sys

import pytest

pytest.importorskip("rich", reason="the extra 'cli'")

from limpet.cli.demo import supervisor
from limpet.cli.demo.live import Lines, Silence
from limpet.cli.demo.messages import Settings, Stepped
from limpet.cli.demo.supervisor import ChildError, kill_steps, run_to_end

# A child without a network: it counts, and keeps its count in a file as the real one keeps its state.
COUNTING = """
import os, sys, time
from limpet.cli.demo.messages import Finished, Resumed, Settings, Stepped, encode
settings = Settings.decode(sys.stdin.readline())
say = lambda message: print(encode(message), flush=True)
start = int(open(settings.url).read()) if os.path.exists(settings.url) else 0
say(Resumed(start, start, 0, 0, 0))
for step in range(start, settings.steps):
    time.sleep(0.002)
    with open(settings.url + ".new", "w") as file:
        file.write(str(step + 1))
    os.replace(settings.url + ".new", settings.url)
    say(Stepped(step, 0.0))
say(Finished("w", "s", "s", 1.0))
"""
SAYS = "import sys; from limpet.cli.demo.messages import *; from limpet.cli.demo.messages import encode\n"


def python(script):
    return [sys.executable, "-c", script]


@pytest.fixture
def settings(tmp_path):
    return Settings(str(tmp_path / "count"), 200, 5, 0, str(tmp_path), 8, 0)


class Watching(Silence):
    def __init__(self):
        self.begun_numbers = []
        self.ended_attempts = []

    def begun(self, number, attempt):
        self.begun_numbers.append(number)

    def ended(self, attempt):
        self.ended_attempts.append(attempt)


@pytest.mark.crash
def test_each_planned_kill_falls_and_the_run_is_completed(settings):
    watching = Watching()
    attempts = run_to_end(settings, [20, 60, 100], random.Random(0), watching, python(COUNTING))
    assert [attempt.killed for attempt in attempts] == [True, True, True, False]
    assert [attempt.finished is not None for attempt in attempts] == [False, False, False, True]
    assert watching.begun_numbers == [1, 2, 3, 4]
    assert watching.ended_attempts == attempts


@pytest.mark.crash
def test_a_kill_never_comes_before_its_step_and_the_next_attempt_resumes(settings):
    attempts = run_to_end(settings, [20, 60], random.Random(1), Silence(), python(COUNTING))
    assert attempts[0].last_step >= 20
    assert attempts[1].last_step >= 60
    assert attempts[1].resumed.next_step >= attempts[0].last_step + 1
    assert attempts[2].last_step == settings.steps - 1


def test_without_kills_there_is_one_attempt(settings):
    attempts = run_to_end(settings, [], random.Random(0), Silence(), python(COUNTING))
    assert len(attempts) == 1
    assert not attempts[0].killed


def test_a_child_that_finishes_before_its_kill_is_the_last(settings):
    quick = dataclasses.replace(settings, steps=3)
    attempts = run_to_end(quick, [1_000, 2_000], random.Random(0), Silence(), python(COUNTING))
    assert [attempt.killed for attempt in attempts] == [False]


def test_a_child_that_explains_its_failure_is_quoted(settings):
    script = SAYS + 'print(encode(Failed("no such bucket"))); sys.exit(1)'
    with pytest.raises(ChildError, match=r"^no such bucket$"):
        run_to_end(settings, [], random.Random(0), Silence(), python(script))


def test_a_child_that_crashes_is_an_error_with_its_last_words(settings):
    with pytest.raises(ChildError, match="exit code 1: ZeroDivisionError"):
        run_to_end(settings, [5], random.Random(0), Silence(), python("1 / 0"))


def test_a_child_that_dies_before_it_reads_its_settings_is_an_error(settings):
    with pytest.raises(ChildError, match="exit code 9"):
        run_to_end(settings, [], random.Random(0), Silence(), python("import os; os._exit(9)"))


def test_a_silent_child_is_given_up_and_killed(settings, monkeypatch):
    monkeypatch.setattr(supervisor, "SILENCE_SECONDS", 0.3)
    with pytest.raises(ChildError, match="said nothing"):
        run_to_end(settings, [], random.Random(0), Silence(), python("import time; time.sleep(60)"))


def test_torn_and_foreign_lines_are_passed_over(settings):
    script = SAYS + (
        'print("a warning of some library"); print(encode(Stepped(7, 0.0)));'
        'print(encode(Finished("w", "s", "s", 1.0))); print(encode(Stepped(8, 0.0))[:-4], end="")'
    )
    attempts = run_to_end(settings, [], random.Random(0), Silence(), python(script))
    assert attempts[0].last_step == 7


def test_an_interrupted_parent_leaves_no_child_behind(settings, tmp_path):
    class Impatient(Silence):
        def told(self, attempt, message):
            if isinstance(message, Stepped):
                raise KeyboardInterrupt

    script = COUNTING.replace(
        "start = int", "open(settings.scratch + '/pid', 'w').write(str(os.getpid())); start = int"
    )
    with pytest.raises(KeyboardInterrupt):
        run_to_end(settings, [], random.Random(0), Impatient(), python(script))
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("kills", [0, 1, 5, 50])
def test_kills_are_planned_in_order_and_before_the_end(kills):
    for seed in range(20):
        planned = kill_steps(kills, 800, random.Random(seed))
        assert len(planned) == kills
        assert planned == sorted(planned)
        assert all(0 < step < 800 * 0.93 for step in planned)


def test_kills_differ_from_run_to_run():
    assert kill_steps(5, 800, random.Random(1)) != kill_steps(5, 800, random.Random(2))


@pytest.mark.crash
def test_lines_say_where_each_attempt_starts_and_ends(settings, capsys):
    run_to_end(settings, [30], random.Random(0), Lines("killed", settings.steps), python(COUNTING))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "killed, attempt 1: started from nothing"
    assert lines[1].startswith("killed, attempt 1: killed (SIGKILL) after step ")
    assert lines[2].startswith("killed, attempt 2: resumed at step ")
    assert lines[3].startswith("killed, attempt 2: finished 200 steps")
