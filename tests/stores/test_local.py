from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.stores.contract import PACK, RECORD, keys, parts_of
from tests.stores.recording import Failing, Recording

from limpet.errors import CorruptError, StoreError, UsageError
from limpet.stores.base import Bytes, KeyExistsError, KeyMissingError
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps

NEXT_RECORD = "log/0000000000000/0000000000000002.json"


@asynccontextmanager
async def opened(path: Path, files: FileOps | None = None) -> AsyncIterator[LocalStore]:
    store = LocalStore(path, files=files)
    try:
        yield store
    finally:
        await store.close()


def temporary_files(root: Path) -> list[Path]:
    return list((root / "tmp").glob("*"))


async def failure_of(call: Awaitable[object]) -> StoreError | None:
    try:
        await call
    except StoreError as error:
        return error
    return None


# Order


async def test_a_file_is_durable_before_its_name_and_the_folder_after_it(tmp_path: Path) -> None:
    files = Recording()
    async with opened(tmp_path, files) as store:
        await store.prepare()
        await store.put(PACK, parts_of([b"x"]))
        files.done.clear()
        await store.put(PACK + "2", parts_of([b"x"]))
        assert files.changes() == [
            "writev *",
            "fsync *",
            f"rename * > {PACK.rpartition('/')[2]}2",
            "fsync_dir 0000000000000001",
        ]


async def test_a_record_is_durable_before_its_link_and_the_folder_after_it(tmp_path: Path) -> None:
    files = Recording()
    async with opened(tmp_path, files) as store:
        await store.prepare()
        await store.create(RECORD, b"x")
        files.done.clear()
        await store.create(NEXT_RECORD, b"x")
        assert files.changes() == [
            "writev *",
            "fsync *",
            "link * > 0000000000000002.json",
            "unlink *",
            "fsync_dir 0000000000000",
        ]


async def test_every_folder_is_durable_in_its_parent_before_it_is_used(tmp_path: Path) -> None:
    files = Recording()
    async with opened(tmp_path / "above" / "run", files) as store:
        await store.prepare()
        assert files.changes()[:4] == [
            "mkdir above",
            f"fsync_dir {tmp_path.name}",
            "mkdir run",
            "fsync_dir above",
        ]
        files.done.clear()
        await store.create(RECORD, b"x")
        made = [each for each in files.changes() if each.startswith(("mkdir", "fsync_dir", "link"))]
        assert made == [
            "mkdir log",
            "fsync_dir run",
            "mkdir 0000000000000",
            "fsync_dir log",
            "link * > 0000000000000001.json",
            "fsync_dir 0000000000000",
        ]


async def test_a_folder_that_a_killed_process_made_is_made_durable_too(tmp_path: Path) -> None:
    (tmp_path / RECORD).parent.mkdir(parents=True)
    files = Recording()
    async with opened(tmp_path, files) as store:
        await store.create(RECORD, b"x")
    assert {f"fsync_dir {tmp_path.name}", "fsync_dir log"} <= set(files.done)


async def test_settling_syncs_file_folder_and_the_folders_above(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await first.create(RECORD, b"x")
    files = Recording()
    async with opened(tmp_path, files) as store:
        await store.settle(RECORD)
    synced = [each for each in files.done if each.startswith("fsync")]
    assert synced[0] == "fsync 0000000000000001.json"
    assert set(synced[1:]) == {f"fsync_dir {tmp_path.name}", "fsync_dir log", "fsync_dir 0000000000000"}


async def test_reading_creates_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "run") as store:
        assert await store.list("") == []
        with pytest.raises(KeyMissingError):
            await store.get(RECORD)
        await store.delete(RECORD)
        assert await store.free_bytes()
    assert list(tmp_path.iterdir()) == []


async def test_files_and_folders_are_private(tmp_path: Path) -> None:
    async with opened(tmp_path / "run") as store:
        await store.prepare()
        await store.create(RECORD, b"x")
        await store.put(PACK, parts_of([b"x"]))
        store.acquire_writer_lock("me")
    for path in (tmp_path / "run").rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert (path, stat.S_IMODE(path.stat().st_mode)) == (path, expected)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


# Failures


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["open", "writev", "fsync", "close", "rename", "mkdir", "fsync_dir"])
async def test_a_put_that_fails_anywhere_leaves_nothing_and_the_next_succeeds(
    tmp_path: Path, name: str, code: int
) -> None:
    for first in range(1, 30):
        root = tmp_path / str(first)
        files = Failing(name, code, first, first)
        async with opened(root, files) as store:
            files.armed = False
            await store.prepare()
            files.armed = True
            error = await failure_of(store.put(PACK, parts_of([b"x"], [b"y"])))
            if error is None:
                assert files.count < first
                return
            assert error.transient
            assert error.kind == ("no_space" if code == errno.ENOSPC else "store")
            assert await keys(store) == []
            assert temporary_files(root) == []
            await store.put(PACK + "2", parts_of([b"z"]))
            assert await store.get(PACK + "2") == b"z"
    pytest.fail("the failing call was always reached")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["open", "writev", "fsync", "close", "link", "mkdir"])
async def test_a_create_that_fails_before_its_folder_is_synced_leaves_nothing(
    tmp_path: Path, name: str, code: int
) -> None:
    for first in range(1, 30):
        root = tmp_path / str(first)
        files = Failing(name, code, first, first)
        async with opened(root, files) as store:
            files.armed = False
            await store.prepare()
            (root / "reserve").unlink()  # it would be given up for the record
            files.armed = True
            error = await failure_of(store.create(RECORD, b"x"))
            if error is None:
                assert files.count < first
                return
            assert error.transient
            assert await keys(store) == []
            assert temporary_files(root) == []
            await store.create(RECORD, b"y")
            assert await store.get(RECORD) == b"y"
    pytest.fail("the failing call was always reached")


async def test_a_file_whose_fsync_failed_is_never_synced_again(tmp_path: Path) -> None:
    files = Failing("fsync", errno.EIO, 1, 1)
    async with opened(tmp_path, files) as store:
        with pytest.raises(StoreError):
            await store.create(RECORD, b"x")
        assert [each for each in files.done if each.startswith("fsync ")] == ["fsync * FAILED"]
        await store.create(RECORD, b"x")
    assert len({each for each in files.done if each.startswith("fsync *")}) == 2


async def test_a_create_whose_folder_fsync_failed_is_unknown(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await first.create(RECORD, b"x")
    files = Failing("fsync_dir", errno.EIO)
    async with opened(tmp_path, files) as store:
        files.armed = False
        await store.prepare()
        await store.settle(RECORD)
        files.armed = True
        with pytest.raises(StoreError) as caught:
            await store.create(NEXT_RECORD, b"y")
        assert (caught.value.kind, caught.value.transient) == ("create_unknown", False)
        assert await store.get(NEXT_RECORD) == b"y"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
async def test_a_mount_that_cannot_sync_folders_is_used_with_one_warning(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, Failing("fsync_dir", code)) as store:
        await store.create(RECORD, b"x")
        await store.create(NEXT_RECORD, b"x")
        assert await keys(store) == [RECORD, NEXT_RECORD]
    assert len(caplog.records) == 1
    assert "loss of power" in caplog.text


class ShortWrites(FileOps):
    def writev(self, fd: int, buffers: Sequence[Bytes]) -> int:
        joined = b"".join(buffers)
        return os.write(fd, joined[: max(1, len(joined) // 3)])


async def test_short_writes_are_continued(tmp_path: Path) -> None:
    data = [bytes([number]) * (number * 7) for number in range(40)]
    async with opened(tmp_path, ShortWrites()) as store:
        assert await store.put(PACK, parts_of(data[:20], data[20:])) == sum(map(len, data))
        assert await store.get(PACK) == b"".join(data)


async def test_more_buffers_than_the_system_takes_at_once_are_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert await store.put(PACK, parts_of([b"ab"] * 3000)) == 6000
        assert await store.get(PACK) == b"ab" * 3000


class ShortReads(FileOps):
    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return os.preadv(fd, [memoryview(buffers[0])[:3]], offset)


async def test_short_reads_are_continued_to_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path, ShortReads()) as store:
        await store.create(RECORD, b"0123456789")
        assert await store.get(RECORD) == b"0123456789"
        assert await store.get_range(RECORD, 1, 8) == b"12345678"
        with pytest.raises(CorruptError):
            await store.read_into(RECORD, 1, [memoryview(bytearray(10))])


async def test_a_read_error_of_the_disk_is_not_corruption(tmp_path: Path) -> None:
    async with opened(tmp_path, Failing("preadv", errno.EIO)) as store:
        await store.create(RECORD, b"x")
        with pytest.raises(StoreError) as caught:
            await store.get(RECORD)
        assert caught.value.transient


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
async def test_without_hard_links_a_rename_that_never_replaces_creates(tmp_path: Path, code: int) -> None:
    async with opened(tmp_path, Failing("link", code)) as store:
        await store.create(RECORD, b"first")
        with pytest.raises(KeyExistsError):
            await store.create(RECORD, b"second")
        assert await store.get(RECORD) == b"first"
        assert temporary_files(tmp_path) == []


class NoAtomicCreate(FileOps):
    def link(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        raise OSError(errno.EPERM, "no links")

    def rename_new(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        raise OSError(errno.EINVAL, "no flags")


async def test_a_file_system_without_an_atomic_create_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, NoAtomicCreate()) as store:
        with pytest.raises(StoreError, match="without an atomic create") as caught:
            await store.create(RECORD, b"x")
        assert (caught.value.kind, caught.value.transient) == ("no_atomic_create", False)
        assert await keys(store) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
async def test_a_folder_that_is_not_writable_is_refused_for_good(tmp_path: Path, code: int) -> None:
    files = Failing("mkdir", code)
    async with opened(tmp_path / "run", files) as store:
        with pytest.raises(StoreError, match="not writable") as caught:
            await store.prepare()
        assert (caught.value.kind, caught.value.transient) == ("access", False)


class Gate(Recording):
    """Stops the thread in the rename until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.opened = threading.Event()

    def before(self, name: str, args: tuple[object, ...]) -> None:
        if name == "rename":
            self.reached.set()
            self.opened.wait()


async def test_a_put_cancelled_while_it_is_published_leaves_nothing(tmp_path: Path) -> None:
    files = Gate()
    async with opened(tmp_path, files) as store:
        task = asyncio.create_task(store.put(PACK, parts_of([b"x"])))
        while not files.reached.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        files.opened.set()
        await store.delete("data/barrier/x")  # same thread: what was queued before has been done
        assert await keys(store) == []
        assert temporary_files(tmp_path) == []


# Places


async def test_a_root_that_is_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        async with opened(root) as store:
            for call in (store.prepare(), store.list(""), store.get(RECORD), store.create(RECORD, b"")):
                with pytest.raises(UsageError, match="is a file"):
                    await call


async def test_the_root_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with opened(tmp_path / "link" / "run") as store:
        await store.prepare()
        await store.create(RECORD, b"x")
        assert await store.get(RECORD) == b"x"
    assert (tmp_path / "real" / "run" / RECORD).read_bytes() == b"x"


@pytest.mark.parametrize("at", ["log", "log/0000000000000", RECORD])
async def test_a_planted_link_is_never_followed(tmp_path: Path, at: str) -> None:
    outside = tmp_path / "outside"
    target = outside / RECORD.removeprefix(at).strip("/") if at != RECORD else outside / "secret"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"secret")
    run = tmp_path / "run"
    (run / at).parent.mkdir(parents=True)
    (run / at).symlink_to(outside if at != RECORD else target)
    async with opened(run) as store:
        with pytest.raises(StoreError, match="links are not followed"):
            await store.get(RECORD)
        with pytest.raises(StoreError):
            await store.create(RECORD, b"mine")
        assert await keys(store) == []
        if at != RECORD:
            with pytest.raises(StoreError, match="links are not followed"):
                await store.delete(RECORD)
            with pytest.raises(StoreError, match="links are not followed"):
                await store.create(NEXT_RECORD, b"mine")
    assert [path for path in outside.rglob("*") if path.is_file()] == [target]
    assert target.read_bytes() == b"secret"


async def test_a_link_in_place_of_the_temporary_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tmp").symlink_to(tmp_path / "outside")
    async with opened(tmp_path / "run") as store:
        with pytest.raises(StoreError, match="links are not followed"):
            await store.put(PACK, parts_of([b"x"]))
    assert list((tmp_path / "outside").iterdir()) == []


async def test_a_pipe_in_place_of_a_record_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / RECORD).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / RECORD)
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError, match="not a regular file"):
            await asyncio.wait_for(store.get(RECORD), 5)


async def test_temporary_files_and_the_lock_are_not_objects(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.prepare()
        store.acquire_writer_lock("me")
        (tmp_path / "tmp" / "1-ab").write_bytes(b"x")
        assert await store.list("") == []
        for key in ("writer.lock", "tmp/1-ab"):
            with pytest.raises(UsageError, match="reserved"):
                await store.get(key)


async def test_a_removed_temporary_folder_is_made_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put(PACK, parts_of([b"x"]))
        (tmp_path / "tmp").rmdir()
        await store.put(PACK + "2", parts_of([b"y"]))
        assert await store.get(PACK + "2") == b"y"


async def test_a_folder_that_was_moved_away_takes_no_commit_along(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.create(RECORD, b"x")
        (tmp_path / "log").rename(tmp_path / "moved")
        await store.create(NEXT_RECORD, b"y")
        assert (tmp_path / NEXT_RECORD).read_bytes() == b"y"


async def test_a_root_that_was_removed_is_not_made_again_by_a_commit(tmp_path: Path) -> None:
    async with opened(tmp_path / "run") as store:
        await store.prepare()
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(StoreError, match="removed"):
            await store.create(RECORD, b"x")
    assert list(tmp_path.iterdir()) == []


async def test_the_root_stays_where_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(Path("run")) as store:
        monkeypatch.chdir("/")
        await store.prepare()
        assert (tmp_path / "run").is_dir()


async def test_a_folder_is_removed_with_its_last_pack_but_not_the_top_ones(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put(PACK, parts_of([b"x"]))
        await store.delete(PACK)
    assert list((tmp_path / "data").iterdir()) == []


async def test_many_folders_do_not_hold_many_descriptors(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(100):
            await store.create(f"log/{number:013d}/{number:016d}.json", b"")
        assert len(os.listdir("/proc/self/fd")) < 100


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.close()
    with pytest.raises(UsageError, match="closed"):
        await store.get(RECORD)


async def test_a_child_outlives_the_close_of_its_parent(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    child = store.child("child/1")
    await store.close()
    await child.prepare()
    await child.create(RECORD, b"x")
    assert await child.get(RECORD) == b"x"
    await child.close()


# Processes


RACE = """
import asyncio, sys
from limpet.stores.base import KeyExistsError
from limpet.stores.local import LocalStore

async def main():
    store = LocalStore(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(50):
        try:
            await store.create(f"log/0/{number}", sys.argv[2].encode())
        except KeyExistsError:
            continue
        print(number)
    await store.close()

asyncio.run(main())
"""


async def test_of_racing_processes_exactly_one_creates_each_record(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", RACE, str(tmp_path), f"racer {each}"] for each in range(3)]
    racers = [subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for each in commands]
    for each in racers:
        assert each.stdout.readline() == "ready\n"
    for each in racers:
        each.stdin.write("go\n")
        each.stdin.flush()
    won = {f"racer {at}": each.communicate(timeout=60)[0].split() for at, each in enumerate(racers)}
    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(50))
    async with opened(tmp_path) as store:
        for name, numbers in won.items():
            assert {await store.get(f"log/0/{number}") for number in numbers} <= {name.encode()}


@pytest.mark.crash
def test_a_full_disk_is_an_error_that_leaves_the_committed_alone(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the same short write, then the same error, of the real kernel."""
    code = f"""
import asyncio, resource, signal, sys
from limpet.errors import StoreError
from limpet.stores.local import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def parts():
    for _ in range(8):
        yield [bytes(1 << 20)]

async def main():
    store = LocalStore({str(tmp_path)!r})
    await store.create("log/0/1", b"first")
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 19, resource.RLIM_INFINITY))
    try:
        await store.put("data/1/x", parts())
    except StoreError as error:
        print(await store.get("log/0/1"), [each.key for each in await store.list("")])
    await store.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "b'first' ['log/0/1']"
    assert temporary_files(tmp_path) == []
