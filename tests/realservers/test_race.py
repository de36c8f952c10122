"""Fault row 20, its foundation: of eight that create one object at one moment, one wins, on every store."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

import pytest
from tests.realservers.racing import Race, race_processes, race_threads
from tests.servers import Server

from limpet.stores.urls import open_store

WRITERS = 8
COUNTS = [pytest.param(20, id="few"), pytest.param(1000, marks=pytest.mark.heavy, id="many")]
ARENA = pytest.mark.leaks(reason="multiprocessing keeps the shared memory of a barrier")
SIDE_BY_SIDE = 84
"""SeaweedFS takes seconds for a contended create, however many run beside it."""


@pytest.mark.parametrize("objects", COUNTS)
def test_in_a_folder_one_thread_wins_each_race(tmp_path: Path, objects: int) -> None:
    race_threads(partial(open_store, tmp_path / "run"), objects, WRITERS).check(objects)


@pytest.mark.parametrize("objects", COUNTS)
def test_in_memory_one_thread_wins_each_race(objects: int) -> None:
    race_threads(partial(open_store, f"memory://{uuid.uuid4().hex}"), objects, WRITERS).check(objects)


@pytest.mark.heavy
@ARENA
def test_in_a_folder_one_process_wins_each_race(tmp_path: Path) -> None:
    race_processes(str(tmp_path / "run"), {}, 500, WRITERS).check(500)


@pytest.mark.heavy
def test_in_a_bucket_one_thread_wins_each_race(bucket: Server) -> None:
    race = race_threads(partial(open_store, bucket.fresh_url(), bucket.storage), 250, WRITERS, SIDE_BY_SIDE)
    race.check(250)


@pytest.mark.heavy
@pytest.mark.server
@ARENA
def test_in_a_bucket_one_process_wins_each_race(s3_server: Server) -> None:
    race_processes(s3_server.fresh_url(), s3_server.storage, 100, WRITERS, SIDE_BY_SIDE).check(100)


@pytest.mark.parametrize(
    ("winners", "unclear", "held"),
    [([1, 2], [], 1), ([2], [], 1), ([], [], 1), ([1], [], -1)],
    ids=["two-winners", "the-loser's-bytes", "nobody-was-told", "mixed-bytes"],
)
def test_a_race_that_went_wrong_is_seen(winners: list[int], unclear: list[str], held: int) -> None:
    with pytest.raises(AssertionError):
        Race({"a": winners}, {"a": unclear}, {"a": held}).check(1)
