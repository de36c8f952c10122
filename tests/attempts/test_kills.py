"""R6: kill -9 at any moment of a save or of a read; the next attempt has the newest that was acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.attempts.killed import check

import limpet
from limpet import Checkpointer

ROOT = Path(__file__).parents[2]
KILLS = 14
READ_KILLS = 6
LONGEST_SECONDS = 0.25


def lines_until_killed(job: str, root: Path, delay: float) -> list[tuple[str, int]]:
    """Run a job, kill it that long after its first line, and give what it had printed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.attempts.killed", job, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    threading.Event().wait(delay)  # not for luck: the moment of the kill is what is drawn
    process.kill()
    rest, errors = process.communicate()
    assert first, errors
    text = first + rest
    whole = text[: text.rindex("\n") + 1]  # the last line may be half written
    return [(word, int(number)) for word, number in (line.split() for line in whole.splitlines())]


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")
def test_whenever_a_save_is_killed_the_next_attempt_has_the_newest_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    newest = -1
    for kill in range(KILLS):
        lines = lines_until_killed("save", tmp_path, draw.uniform(0, LONGEST_SECONDS))
        resumed = lines[0][1]
        assert newest <= resumed <= newest + 1, f"seed {seed}, kill {kill}"  # one may have landed unacknowledged
        newest = max(number for _, number in lines)
        with limpet.open(tmp_path) as run:
            state = run.read(strict=True)
            assert newest <= (check(state) if state is not None else -1) <= newest + 1, f"seed {seed}, kill {kill}"
    assert newest > 0  # some attempt got somewhere; how far depends on the machine
    with Checkpointer(tmp_path) as cp:
        cp.sweep()
        assert len(cp.checkpoints()) <= 2
        for info in cp.checkpoints():
            assert cp.verify(info) is not None
    reached = {path.name for path in tmp_path.rglob("*.pack")}
    assert len(reached) <= 8


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")
def test_whenever_a_read_is_killed_nothing_changes(tmp_path: Path) -> None:
    lines_until_killed("save", tmp_path, LONGEST_SECONDS)
    with limpet.open(tmp_path) as run:
        before = check(run.read())
    draw = random.Random(before)
    for _ in range(READ_KILLS):
        lines = lines_until_killed("read", tmp_path, draw.uniform(0, LONGEST_SECONDS))
        assert {number for _, number in lines} == {before}
    with limpet.open(tmp_path) as run:
        assert check(run.read(strict=True)) == before
        assert run.verify() is not None
