import asyncio
import concurrent.futures
import errno
import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from limpet.engine.extract import Extraction
from limpet.errors import CorruptError, StoreError, UsageError

BIG = bytes(range(256)) * (3 << 12)  # 3 MiB


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


@pytest.fixture
def saved(source, capture):
    """A directory with a bit of everything."""
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "file").write_bytes(b"content")
    (source / "sub" / "big").write_bytes(BIG)
    (source / "sub" / "deep" / "empty").touch()
    (source / "link").symlink_to("sub/big")
    return capture(source)


def extraction_of(saved, target):
    return Extraction(saved.payload, saved.sizes, target)


# Where it goes


def test_a_directory_is_restored_to_the_target_itself(saved, source, target, listing):
    assert saved.restore(target) == target
    assert listing(target) == listing(source)


def test_a_file_is_restored_below_the_target(capture, source, target):
    (source / "model.bin").write_bytes(BIG)
    assert capture(source / "model.bin").restore(target) == target / "model.bin"
    assert (target / "model.bin").read_bytes() == BIG


def test_missing_directories_above_the_target_are_made(saved, target, listing, source):
    saved.restore(target / "a" / "b")
    assert listing(target / "a" / "b") == listing(source)


def test_without_a_target_a_new_private_directory_is_made(saved, source, listing, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source.chmod(0o755)
    back = saved.restore(None)
    assert back.parent == tmp_path
    assert back.name.startswith("limpet-")
    assert stat.S_IMODE(back.stat().st_mode) == 0o700
    assert listing(back) == listing(source)


def test_a_target_that_is_a_link_to_a_directory_is_followed(saved, source, target, tmp_path, listing):
    real = tmp_path / "real"
    real.mkdir()
    target.symlink_to(real)
    assert saved.restore(target) == target
    assert listing(real) == listing(source)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_target_that_is_a_file_is_refused(saved, target, below):
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="cannot be restored"):
        saved.restore(target / below)
    assert target.read_bytes() == b"mine"


def test_a_target_that_is_a_dangling_link_is_refused(saved, target):
    target.symlink_to("nowhere")
    with pytest.raises(UsageError, match="cannot be restored"):
        saved.restore(target)


def test_a_target_that_may_not_be_written_is_refused(saved, private_folder, unprivileged):
    with unprivileged():
        closed = private_folder / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(UsageError, match="closed' may not be written"):
            extraction_of(saved, closed)


# What is there already


def test_other_content_of_the_target_is_left_alone(saved, target, source, listing):
    (target / "sub").mkdir(parents=True)
    (target / "mine").write_bytes(b"mine")
    (target / "sub" / "mine").symlink_to("/outside")
    saved.restore(target)
    found = listing(target)
    assert found.pop(b"mine")[2] == b"mine"
    assert found.pop(b"sub/mine") == ("link", b"/outside")
    assert found == listing(source)


def test_a_second_restore_replaces_the_first(saved, target, source, listing):
    saved.restore(target)
    (target / "file").write_bytes(b"changed since")
    (target / "link").unlink()
    (target / "link").write_bytes(b"was a link")
    saved.restore(target)
    assert listing(target) == listing(source)


def test_a_second_restore_gets_into_directories_without_write_permission(private_folder, unprivileged, listing):
    target = private_folder / "target"
    payload = {
        "root": [0o700, 0],
        "dirs": [[0, "closed", 0o500, 0]],
        "files": [[1, "file", 0o400, 0, 7, 0]],
        "links": [],
    }
    with unprivileged():
        for content in (b"content", b"CONTENT"):
            with Extraction(payload, [7], target) as extraction:
                extraction.write_whole(0, content)
                extraction.finish()
            assert listing(target) == {b"closed": ("dir", 0o500), b"closed/file": ("file", 0o400, content)}


def test_directories_that_nobody_may_enter_are_restored_with_their_content(private_folder, unprivileged):
    payload = {
        "root": [0o700, 0],
        "dirs": [[0, "outer", 0o000, 11], [1, "inner", 0o000, 12]],
        "files": [[2, "file", 0o000, 13, 0, None]],
        "links": [],
    }
    target = private_folder / "target"
    with unprivileged():
        with Extraction(payload, [], target) as extraction:
            extraction.finish()
        for path, time_ns in (("outer", 11), ("outer/inner", 12), ("outer/inner/file", 13)):
            found = (target / path).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0, time_ns)
            (target / path).chmod(0o700)


def test_a_planted_link_in_the_place_of_a_file_is_replaced_and_not_followed(saved, target, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    target.mkdir()
    for name in ("file", "link"):
        (target / name).symlink_to(outside)
    saved.restore(target)
    assert outside.read_bytes() == b"precious"
    assert not (target / "file").is_symlink()
    assert (target / "link").readlink() == Path("sub/big")


def test_a_planted_hard_link_is_replaced_and_its_other_name_unchanged(saved, target, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    outside.chmod(0o600)
    target.mkdir()
    (target / "file").hardlink_to(outside)
    saved.restore(target)
    assert outside.read_bytes() == b"precious"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    assert (target / "file").read_bytes() == b"content"


def test_a_planted_pipe_is_replaced_and_never_opened(saved, target):
    target.mkdir()
    os.mkfifo(target / "file")
    saved.restore(target)
    assert (target / "file").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["sub", "sub/deep"])
def test_a_planted_link_in_the_place_of_a_directory_is_refused(saved, target, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / name).parent.mkdir(parents=True)
    (target / name).symlink_to(outside)
    with pytest.raises(UsageError, match=f"target/{name}' cannot be restored"):
        extraction_of(saved, target)
    assert list(outside.iterdir()) == []
    assert not (target / "file").exists()


def test_a_link_that_is_planted_during_the_restore_is_refused_too(saved, target, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    target.mkdir()
    with extraction_of(saved, target) as extraction:
        for file in extraction.files:
            extraction.write_whole(file.buffer, saved.content(file.buffer))
        (target / "sub").symlink_to(outside)
        with pytest.raises(UsageError, match="target/sub"):
            extraction.finish()
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in target.iterdir()) == ["sub"]


@pytest.mark.parametrize("name", ["file", "link", "sub/deep/empty"])
def test_a_directory_in_the_place_of_a_file_is_refused_before_anything_is_fetched(saved, target, name):
    (target / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=f"target/{name}' cannot be restored"):
        extraction_of(saved, target)
    assert (target / name).is_dir()


def test_a_file_in_the_place_of_a_directory_is_refused_before_anything_is_fetched(saved, target):
    target.mkdir()
    (target / "sub").write_bytes(b"mine")
    with pytest.raises(UsageError, match="target/sub' cannot be restored"):
        extraction_of(saved, target)
    assert (target / "sub").read_bytes() == b"mine"


def test_another_file_system_below_the_target_is_refused_clearly(saved, target, monkeypatch):
    def rename(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(UsageError, match="another file system"):
        saved.restore(target)


# Failures


def test_until_finish_nothing_in_the_target_changes(saved, target, listing):
    target.mkdir()
    (target / "file").write_bytes(b"old")
    before = listing(target)
    with extraction_of(saved, target) as extraction:
        for file in extraction.files:
            extraction.write_whole(file.buffer, saved.content(file.buffer))
        visible = {name: found for name, found in listing(target).items() if not name.startswith(b".limpet-restore-")}
        assert visible == before
    assert listing(target) == before


def test_a_failed_restore_removes_the_directory_that_it_made(saved, target, tmp_path, monkeypatch):
    extraction_of(saved, target).close()
    assert not target.exists()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    extraction_of(saved, None).close()
    assert list(temporary.iterdir()) == []


def test_finish_without_all_content_is_refused(saved, target):
    with extraction_of(saved, target) as extraction:
        extraction.write_whole(extraction.files[0].buffer, saved.content(extraction.files[0].buffer))
        with pytest.raises(CorruptError, match="sub/big' was not restored"):
            extraction.finish()
    assert not target.exists()


@pytest.mark.parametrize(("data", "size"), [(b"conten", "6"), (b"content!", "8 or more"), (b"", "0")])
def test_content_of_another_length_is_refused(saved, target, data, size):
    with extraction_of(saved, target) as extraction:
        with pytest.raises(CorruptError, match=f"file' has {size} bytes instead of 7"):
            extraction.write_whole(0, data)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(saved, small_disk):
    with pytest.raises(StoreError, match=r"no space to restore .*sub/big") as caught:
        saved.restore(small_disk / "target")
    assert caught.value.kind == "no_space"
    assert list(small_disk.iterdir()) == []


def test_closing_twice_is_fine(saved, target):
    extraction = extraction_of(saved, target)
    extraction.close()
    extraction.close()


def test_content_that_comes_after_the_end_is_an_error_and_goes_nowhere(saved, target):
    extraction = extraction_of(saved, target)
    extraction.close()
    with pytest.raises(StoreError):
        extraction.write_whole(0, b"content")
    assert not target.exists()


def test_a_finished_restore_stays_when_it_is_closed(saved, target):
    with extraction_of(saved, target) as extraction:
        for file in extraction.files:
            extraction.write_whole(file.buffer, saved.content(file.buffer))
        extraction.finish()
    assert (target / "file").read_bytes() == b"content"


# Sinks


def pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_content_is_streamed_in_pieces_of_any_size(saved, source, target, listing):
    with extraction_of(saved, target) as extraction:
        for file in extraction.files:
            async with extraction.sink(file.buffer) as sink:
                for piece in pieces(saved.content(file.buffer), 99_999):
                    await sink.write(memoryview(piece))
        extraction.finish()
    assert listing(target) == listing(source)


async def test_several_files_are_streamed_side_by_side(saved, source, target, listing):
    async def stream(extraction, file):
        async with extraction.sink(file.buffer) as sink:
            for piece in pieces(saved.content(file.buffer), 1 << 16):
                await sink.write(piece)

    with extraction_of(saved, target) as extraction:
        await asyncio.gather(*(stream(extraction, file) for file in extraction.files))
        await asyncio.to_thread(extraction.finish)
    assert listing(target) == listing(source)


async def test_sinks_use_the_executor_that_they_are_given(saved, target):
    names = set()

    class Recording(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function, *args):
            return super().submit(lambda: (names.add(threading.current_thread().name), function(*args))[1])

    with Recording(1, "ours") as executor, extraction_of(saved, target) as extraction:
        async with extraction.sink(0, executor) as sink:
            await sink.write(b"content")
    assert names == {"ours_0"}


@pytest.mark.parametrize("sent", [[b"cont"], [b"content", b"!"], []])
async def test_a_stream_of_another_length_is_refused_and_can_be_sent_again(saved, target, sent):
    with extraction_of(saved, target) as extraction:
        with pytest.raises(CorruptError, match=r"file' has .* instead of 7"):
            async with extraction.sink(0) as sink:
                for piece in sent:
                    await sink.write(piece)
        async with extraction.sink(0) as sink:
            await sink.write(b"content")
        extraction.write_whole(1, saved.content(1))
        extraction.finish()
    assert (target / "file").read_bytes() == b"content"


async def test_an_error_in_the_middle_of_a_stream_is_the_one_that_is_seen(saved, target):
    with extraction_of(saved, target) as extraction:
        with pytest.raises(ZeroDivisionError):
            async with extraction.sink(0) as sink:
                await sink.write(b"con")
                raise ZeroDivisionError
        with pytest.raises(CorruptError, match="was not restored"):
            extraction.finish()
    assert not target.exists()


async def test_a_cancelled_stream_leaves_nothing_open_and_nothing_behind(saved, target):
    entered = asyncio.Event()

    async def stream(extraction):
        async with extraction.sink(1) as sink:
            for piece in pieces(saved.content(1), 1000):
                await sink.write(piece)
                entered.set()

    with extraction_of(saved, target) as extraction:
        task = asyncio.create_task(stream(extraction))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not target.exists()


async def test_a_cancel_while_the_file_is_opened_leaves_nothing_open(saved, target):
    gate = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as executor, extraction_of(saved, target) as extraction:
        executor.submit(gate.wait)
        task = asyncio.create_task(extraction.sink(0, executor).__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await asyncio.get_running_loop().run_in_executor(executor, int)
        await asyncio.sleep(0)


async def test_a_full_disk_in_a_stream_is_a_clear_error(saved, small_disk):
    with extraction_of(saved, small_disk / "target") as extraction:
        with pytest.raises(StoreError, match=r"no space to restore .*sub/big") as caught:
            async with extraction.sink(1) as sink:
                for piece in pieces(saved.content(1), 1 << 18):
                    await sink.write(piece)
    assert caught.value.kind == "no_space"
    assert list(small_disk.iterdir()) == []
