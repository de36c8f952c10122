"""A long life grows nothing: the figures of ``soak`` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDS_PER_FOLDER = 1000
# Large blocks go back to the system when they are freed, instead of breaking up the C library's heap: mallopt(3).
MEASURABLE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


def soaked(commits: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.age.soak", "--commits", str(commits)]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | MEASURABLE, capture_output=True, text=True, timeout=800, check=False
    )
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def check(grown: dict[str, Any], commits: int) -> None:
    assert grown["commits"] + grown["failed"] >= commits
    assert grown["failed"] <= commits // 1000
    assert {"put", "create", "delete"} <= set(grown["faults"])
    there, needed = grown["packs"]
    assert there == needed
    before, after = grown["threads"]
    assert before == after
    before, after = grown["descriptors"]
    # A folder that is written into stays open, 32 of them at most; the log begins one every thousand records.
    assert after - before <= commits / RECORDS_PER_FOLDER


@pytest.mark.slow
def test_a_short_life_with_faults_leaves_what_is_live_and_nothing_else() -> None:
    check(soaked(300), 300)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_ten_thousand_commits_with_faults_grow_neither_memory_nor_threads_nor_garbage() -> None:
    grown = soaked(10_000)
    check(grown, 10_000)
    assert grown["growth"] < 0.01
