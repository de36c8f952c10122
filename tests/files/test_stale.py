import os
import shutil
import subprocess
import sys
import time

import pytest

from limpet.engine.capture import Spool, clear_stale_spools
from limpet.engine.scratch import Scratch
from limpet.types import Files

HOLD_SPOOL = """
import sys
from pathlib import Path
from limpet.engine.capture import Spool
from limpet.types import Files
spool = Spool([Path(sys.argv[2])])
spool.capture(Files(sys.argv[1]), lambda buffer: 0)
print("ready", flush=True)
sys.stdin.read()
"""
HOLD_RESTORE = """
import sys
from pathlib import Path
from limpet.engine.extract import Extraction
payload = {"root": [0o755, 0], "dirs": [], "files": [[0, "file", 0o644, 0, 7, 0]], "links": []}
extraction = Extraction(payload, [7], Path(sys.argv[2]))
extraction.write_whole(0, b"content")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process(source, spool_folder):
    """Starts a process that holds a temporary folder until it is killed."""
    started = []

    def start(code):
        command = [sys.executable, "-c", code, source, spool_folder]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout.readline() == b"ready\n"
        return child

    (source / "big").write_bytes(bytes(2 << 20))
    yield start
    for child in started:
        kill(child)


def kill(child):
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


@pytest.mark.crash
def test_the_spool_of_a_killed_process_is_removed(process, spool_folder):
    child = process(HOLD_SPOOL)
    assert clear_stale_spools(spool_folder) == 0
    assert len(list(spool_folder.iterdir())) == 1
    kill(child)
    assert clear_stale_spools(spool_folder) == 1
    assert list(spool_folder.iterdir()) == []


@pytest.mark.crash
def test_what_a_killed_restore_left_is_removed_by_the_next_one(process, spool_folder, capture, tmp_path):
    child = process(HOLD_RESTORE)
    (leftover,) = spool_folder.iterdir()
    saved = capture_small(capture, tmp_path)
    saved.restore(spool_folder)
    assert leftover.is_dir()
    kill(child)
    saved.restore(spool_folder)
    assert not leftover.exists()
    shutil.rmtree(spool_folder / "sub")


def capture_small(capture, tmp_path):
    folder = tmp_path / "small"
    (folder / "sub").mkdir(parents=True)
    return capture(folder)


def test_a_spool_in_use_is_left_alone_by_its_own_process_too(source, spool_folder):
    (source / "big").write_bytes(bytes(2 << 20))
    spool = Spool([spool_folder])
    spool.capture(Files(source), lambda _: 0)
    assert clear_stale_spools(spool_folder) == 0
    spool.close()


def test_a_folder_whose_owner_may_be_about_to_lock_it_is_left_alone_for_an_hour(spool_folder):
    folder = spool_folder / "limpet-spool-1-abc"
    folder.mkdir()
    assert clear_stale_spools(spool_folder) == 0
    long_ago = time.time() - 7200
    os.utime(folder, (long_ago, long_ago))
    assert clear_stale_spools(spool_folder) == 1


def test_what_only_looks_like_a_spool_is_left_alone(spool_folder, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").touch()
    (spool_folder / "limpet-spool-link").symlink_to(precious)
    (spool_folder / "limpet-spool-file").touch()
    (spool_folder / "other").mkdir()
    (spool_folder / "other" / "lock").touch()
    assert clear_stale_spools(spool_folder) == 0
    assert (precious / "lock").exists()
    assert len(list(spool_folder.iterdir())) == 3
    for path in spool_folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_link_in_the_place_of_the_lock_is_not_followed(spool_folder, tmp_path):
    folder = spool_folder / "limpet-spool-x"
    folder.mkdir()
    (tmp_path / "elsewhere").touch()
    (folder / "lock").symlink_to(tmp_path / "elsewhere")
    assert clear_stale_spools(spool_folder) == 0
    shutil.rmtree(folder)


def test_a_missing_folder_has_no_stale_spools(tmp_path):
    assert clear_stale_spools(tmp_path / "missing") == 0


@pytest.mark.parametrize("moment", ["before the lock file", "before the lock"])
def test_a_folder_that_is_cleared_before_its_lock_stands_is_made_again(spool_folder, monkeypatch, moment):
    """The cleaner wins the race once, at the two moments where it can."""
    names = []
    real_open = os.open

    def racing_open(path, flags, *args, **kwargs):
        fd = None if moment == "before the lock file" else real_open(path, flags, *args, **kwargs)
        if path == "lock" and not names:
            names.extend(spool_folder.iterdir())
            shutil.rmtree(names[0])
        return real_open(path, flags, *args, **kwargs) if fd is None else fd

    monkeypatch.setattr("limpet.engine.scratch.os.open", racing_open)
    parent_fd = real_open(spool_folder, os.O_RDONLY)
    scratch = Scratch(parent_fd, "limpet-spool-")
    assert [path.name for path in spool_folder.iterdir()] == [scratch.name]
    assert scratch.name != names[0].name
    scratch.remove()
    os.close(parent_fd)
