"""A disk without any room: what is there can be read and taken over, and what frees room can be said."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faulty import write_over
from tests.powerloss.lives import same, state_of
from tests.stores.recording import Recording
from tests.support import noise

import limpet
from limpet import Checkpointer, Last, StoreError
from limpet.engine.timing import Timing
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps

DISK_BYTES = 8 << 20
ASKS_FOR_ROOM = ("writev", "mkdir", "link", "rename")


class FullDisk(Recording):
    """Has no room at all while the run's reserve lies there."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.reserve = root / "reserve"
        self.full = True

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        if self.full and name in ASKS_FOR_ROOM and self.reserve.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def free_bytes(self, path: str) -> int:
        return 0 if self.full else super().free_bytes(path)


def writer_over(root: Path, files: FileOps | None = None, **settings: Any) -> Checkpointer:
    return write_over(LocalStore(root, files=files), **{"retain": Last(2), "on_busy": "wait", **settings})


def saved(root: Path, *steps: int) -> None:
    with writer_over(root) as writer:
        for step in steps:
            writer.write(state_of(step), step=step, durable=True)


def test_a_run_on_a_full_disk_is_taken_over_with_what_was_kept_back(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    disk = FullDisk(tmp_path)
    with writer_over(tmp_path, disk) as writer:
        assert same(writer.resume().state, 2)
        writer.write(state_of(5), step=5, durable=True)  # tiny: it needs no more than its record
        writer.delete(2)
    assert not disk.reserve.exists()
    with limpet.open(tmp_path) as run:
        assert [info.step for info in run.checkpoints()] == [5]


def test_the_reserve_is_never_given_up_for_data(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    disk = FullDisk(tmp_path)
    disk.full = False
    with writer_over(tmp_path, disk) as writer:
        writer.read()
        disk.full = True
        with pytest.raises(StoreError) as caught:
            writer.write(state_of(4), step=4, durable=True)
        assert caught.value.kind == "no_space"
        assert disk.reserve.exists()
        assert list((tmp_path / "tmp").iterdir()) == []
        disk.full = False
        writer.write(state_of(6), step=6, durable=True)


def test_the_reserve_is_made_again_once_data_finds_room(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    disk = FullDisk(tmp_path)
    with writer_over(tmp_path, disk) as writer:
        writer.write(state_of(5), step=5, durable=True)
        assert not disk.reserve.exists()
        disk.full = False
        writer.write(state_of(6), step=6, durable=True)
    assert disk.reserve.stat().st_blocks * 512 >= 256 << 10


def test_without_a_reserve_opening_on_a_full_disk_fails_at_once_and_reading_works(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    (tmp_path / "reserve").rename(tmp_path / "elsewhere")
    disk = FullDisk(tmp_path)
    disk.reserve = tmp_path / "elsewhere"
    started = time.monotonic()
    writer = writer_over(tmp_path, disk)
    writer._timing = Timing()
    with pytest.raises(StoreError) as caught:
        writer.read()
    assert caught.value.kind == "no_space"
    assert time.monotonic() - started < 5  # the deadline for taking over is a minute
    with limpet.open(tmp_path) as run:
        assert same(run.read(), 2)


def test_a_planted_reserve_is_not_written_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    for plant in (os.symlink, os.link):
        root = tmp_path / plant.__name__
        root.mkdir()
        plant(outside, root / "reserve")
        saved(root, 2)
        assert outside.read_bytes() == b"secret"


def test_children_share_the_reserve_of_their_parent(tmp_path: Path) -> None:
    with writer_over(tmp_path) as writer:
        writer.child("worker").write({"x": 1}, durable=True)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("reserve")] == [Path("reserve")]


# A real one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place: Path, leave_bytes: int) -> Path:
    """Take all the room but so much."""
    junk = place / "junk"
    with junk.open("wb", buffering=0) as file:
        left = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - leave_bytes
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 16)))
    return junk


@pytest.mark.parametrize("leave_bytes", [0, 4 << 10, 8 << 10, 16 << 10, 32 << 10])
def test_on_a_disk_that_is_really_full_the_task_goes_on_and_saves_again_once_there_is_room(
    small_disk: Path, leave_bytes: int
) -> None:
    root = small_disk / "run"
    first = {"w": noise(1, 1 << 20)}
    with writer_over(root) as writer:
        writer.write(first, step=1, durable=True)
    junk = fill(small_disk, leave_bytes)
    with writer_over(root) as writer:
        assert writer.resume().state["w"].tobytes() == first["w"].tobytes()
        writer.write(state_of(5), step=5, durable=True)
        with pytest.raises(StoreError) as caught:
            writer.write({"w": noise(2, 3 << 20)}, step=6, durable=True)
        assert caught.value.kind == "no_space"
        assert list((root / "tmp").iterdir()) == []
        assert same(writer.read(), 5)
        junk.unlink()
        writer.write({"w": noise(3, 2 << 20)}, step=7, durable=True)
    with limpet.open(root) as run:
        assert run.read()["w"].tobytes() == noise(3, 2 << 20).tobytes()
        assert [info.step for info in run.checkpoints()] == [5, 7]
