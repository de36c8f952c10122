"""Fault row 20: two to eight writers that take a run from each other; one record a slot, nothing acknowledged lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.faulty import write_over
from tests.protocol.logs import tiny_commit
from tests.realservers.history import Ack, check_history, check_kept
from tests.realservers.storms import Storm
from tests.servers import Server
from tests.support import noise

from limpet.format.record import Prev, Record, Writer
from limpet.stores.base import Store
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps
from limpet.stores.urls import open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning"),
    pytest.mark.timeout(240),
]


def unpaced(open_one: Callable[[], Store]) -> Store:
    """A store that lets commits follow each other at once."""
    store = open_one()
    store.commit_interval_seconds = 0.0
    return store


def weather(open_one: Callable[[], Store], writers: int, slots: int, seed: int) -> Storm:
    """Run a storm and check it."""
    storm = Storm(partial(unpaced, open_one), writers, slots, seed)
    storm.run()
    assert storm.check() >= slots
    assert storm.fenced > 0, "nobody met anybody"
    return storm


@pytest.mark.parametrize("writers", [2, 5])
def test_a_storm_in_memory_loses_nothing(writers: int) -> None:
    weather(partial(open_store, f"memory://{uuid.uuid4().hex}"), writers, 150, seed=writers)


def test_a_storm_in_a_folder_loses_nothing(tmp_path: Path) -> None:
    weather(partial(open_store, tmp_path / "run"), 3, 80, seed=0)


@pytest.mark.heavy
@pytest.mark.parametrize("writers", range(2, 9))
def test_long_storms_in_memory_lose_nothing(writers: int) -> None:
    weather(partial(open_store, f"memory://{uuid.uuid4().hex}"), writers, 1200, seed=writers)


@pytest.mark.heavy
@pytest.mark.parametrize("writers", [2, 4, 8])
def test_long_storms_in_a_folder_lose_nothing(tmp_path: Path, writers: int) -> None:
    weather(partial(open_store, tmp_path / "run"), writers, 700, seed=writers)


@pytest.mark.heavy
@pytest.mark.parametrize("writers", [2, 8])
def test_storms_in_a_bucket_lose_nothing(bucket: Server, writers: int) -> None:
    weather(partial(open_store, bucket.fresh_url(), bucket.storage), writers, 120, seed=writers)


def history() -> list[tuple[Record, str]]:
    """Two writers: the first saves twice, the second once."""
    kinds = [("open", 1), ("commit", 1), ("commit", 1), ("open", 4), ("commit", 4)]
    made, live = [], []
    for seq, (kind, epoch) in enumerate(kinds, 1):
        commit = tiny_commit(seq) if kind == "commit" else None
        live = [*live, (seq, seq)] if commit else live
        prev = Prev(seq - 1, f"{seq - 1}") if seq > 1 else None
        made.append(
            (
                Record(1, "r", seq, epoch, kind, f"n{seq}", f"w{epoch}", 0.0, Writer(), {}, prev, live, commit=commit),
                f"{seq}",
            )
        )
    return made


def test_a_sound_history_passes() -> None:
    check_history(history())
    check_kept(history(), [Ack(2, "w1", 2), Ack(5, "w4", 5)])


@pytest.mark.parametrize(
    ("seq", "change"),
    [
        (3, {"prev": Prev(2, "another")}),
        (5, {"epoch": 1}),
        (4, {"live": [(3, 3)]}),
        (5, {"live": [(2, 3)]}),
        (3, {"live": [(3, 3), (5, 5)]}),
        (3, {"nonce": "n2"}),
    ],
    ids=["chain", "epoch", "open-drops", "commit-is-not-live", "live-beforehand", "nonce"],
)
def test_a_history_with_a_fault_is_seen(seq: int, change: dict[str, Any]) -> None:
    made = history()
    made[seq - 1] = (msgspec.structs.replace(made[seq - 1][0], **change), made[seq - 1][1])
    with pytest.raises(AssertionError):
        check_history(made)


@pytest.mark.parametrize(
    "acks",
    [[Ack(2, "w4", 2)], [Ack(2, "w1", 3)], [Ack(4, "w4", 4)], [Ack(2, "w1", 2), Ack(2, "w1", 2)]],
    ids=["another's", "another-step", "no-commit", "twice"],
)
def test_a_save_that_was_acknowledged_and_is_not_there_is_seen(acks: list[Ack]) -> None:
    with pytest.raises(AssertionError):
        check_kept(history(), acks)


class Clearing(FileOps):
    """Somebody clears ``tmp/`` just before the first file is published."""

    def __init__(self, folder: Path) -> None:
        self._temporary = folder / "tmp"
        self.cleared = 0

    def link(self, *args: Any, **keywords: Any) -> None:
        self._clear()
        super().link(*args, **keywords)

    def rename(self, *args: Any, **keywords: Any) -> None:
        self._clear()
        super().rename(*args, **keywords)

    def _clear(self) -> None:
        if self.cleared < 1:
            self.cleared += 1
            for path in self._temporary.iterdir():
                path.unlink()


@pytest.mark.parametrize("size", [10, 100_000], ids=["record", "pack"])
def test_a_save_whose_temporary_file_was_cleared_by_another_writer_is_tried_again(tmp_path: Path, size: int) -> None:
    files = Clearing(tmp_path)
    files.cleared = 1
    with write_over(LocalStore(tmp_path, files=files)) as cp:
        cp.write(b"first", step=0, durable=True)
        files.cleared = 0
        cp.write(noise(1, size), step=1, durable=True)
        assert files.cleared == 1
        assert cp.read().tobytes() == noise(1, size).tobytes()
        assert [info.step for info in cp.checkpoints()] == [0, 1]
