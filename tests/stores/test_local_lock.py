from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from limpet.errors import HeldError, StoreError, UsageError
from limpet.stores.local import LocalStore

HOLD = """
import sys
from limpet.stores.local import LocalStore
store = LocalStore(sys.argv[1])
store.acquire_writer_lock("job 7")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "run")
    yield store
    await store.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "run")
    yield store
    await store.close()


def try_elsewhere(root: Path) -> str:
    """What another process is told: nothing, or the error."""
    code = """
import sys
from limpet.errors import HeldError
from limpet.stores.local import LocalStore
try:
    LocalStore(sys.argv[1]).acquire_writer_lock("other")
except HeldError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


async def test_a_second_writer_of_this_process_is_told_who_holds_it(store: LocalStore, other: LocalStore) -> None:
    store.acquire_writer_lock("job 7")
    with pytest.raises(HeldError, match=rf"process {os.getpid()}, owner 'job 7'"):
        other.acquire_writer_lock("job 8")


async def test_a_second_writer_of_another_process_is_told_who_holds_it(store: LocalStore, tmp_path: Path) -> None:
    store.acquire_writer_lock("job 7")
    assert f"process {os.getpid()}, owner 'job 7'" in try_elsewhere(tmp_path / "run")


async def test_a_refused_writer_does_not_break_the_lock_it_asked_for(
    store: LocalStore, other: LocalStore, tmp_path: Path
) -> None:
    store.acquire_writer_lock("job 7")
    with pytest.raises(HeldError):
        other.acquire_writer_lock("job 8")
    other.release_writer_lock()
    await other.list("")
    assert "job 7" in try_elsewhere(tmp_path / "run")


async def test_a_released_lock_can_be_taken(store: LocalStore, other: LocalStore) -> None:
    store.acquire_writer_lock("job 7")
    store.release_writer_lock()
    other.acquire_writer_lock("job 8")


async def test_closing_gives_the_lock_back(store: LocalStore, other: LocalStore, tmp_path: Path) -> None:
    store.acquire_writer_lock("job 7")
    await store.close()
    assert try_elsewhere(tmp_path / "run") == ""
    other.acquire_writer_lock("job 8")


async def test_taking_a_lock_twice_is_once(store: LocalStore, other: LocalStore) -> None:
    store.acquire_writer_lock("job 7")
    store.acquire_writer_lock("job 7")
    with pytest.raises(HeldError):
        other.acquire_writer_lock("job 8")


@pytest.mark.crash
async def test_the_lock_of_a_killed_writer_is_free(store: LocalStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=rf"process {holder.pid}, owner 'job 7'"):
            store.acquire_writer_lock("job 8")
        holder.kill()
        holder.wait()
        store.acquire_writer_lock("job 8")


async def test_a_child_run_has_a_lock_of_its_own(store: LocalStore, other: LocalStore) -> None:
    store.acquire_writer_lock("job 7")
    child, same = store.child("child/1"), other.child("child/1")
    child.acquire_writer_lock("job 7")
    with pytest.raises(HeldError):
        same.acquire_writer_lock("job 8")
    await child.close()
    await same.close()


async def test_a_lock_that_is_a_link_is_refused(store: LocalStore, tmp_path: Path) -> None:
    await store.prepare()
    (tmp_path / "run" / "writer.lock").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="links are not followed"):
        store.acquire_writer_lock("job 7")
    assert not (tmp_path / "outside").exists()


async def test_a_holder_whose_note_is_damaged_is_still_a_holder(store: LocalStore, tmp_path: Path) -> None:
    store.acquire_writer_lock("job 7")
    (tmp_path / "run" / "writer.lock").stat()
    os.truncate(tmp_path / "run" / "writer.lock", 3)  # by its path: closing a descriptor here would free the lock
    assert "process unknown" in try_elsewhere(tmp_path / "run")


async def test_leftovers_are_removed_with_the_lock_and_only_with_it(
    store: LocalStore, other: LocalStore, tmp_path: Path
) -> None:
    await store.prepare()
    store.acquire_writer_lock("job 7")
    left = tmp_path / "run" / "tmp" / "1-dead"
    left.write_bytes(b"x")
    with pytest.raises(HeldError):
        other.acquire_writer_lock("job 8")
    other.clear_temporary()
    assert left.exists()
    await store.close()
    other.acquire_writer_lock("job 8")
    assert not left.exists()


async def test_a_forked_child_neither_holds_nor_frees_the_lock(store: LocalStore, tmp_path: Path) -> None:
    store.acquire_writer_lock("job 7")
    pid = os.fork()
    if pid == 0:
        os._exit(in_child(store, tmp_path / "run"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "job 7" in try_elsewhere(tmp_path / "run")


def in_child(store: LocalStore, root: Path) -> int:
    try:
        store.clear_temporary()
        store.release_writer_lock()
        try:
            LocalStore(root).acquire_writer_lock("child")
        except HeldError as error:
            held = f"process {os.getppid()}" in str(error)
        else:
            held = False
        try:
            store.acquire_writer_lock("child")
        except UsageError:
            return 0 if held else 1
    except BaseException:
        return 3
    return 2
