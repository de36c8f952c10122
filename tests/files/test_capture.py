import errno
import fcntl
import os
import shutil
import socket
import stat
import tracemalloc
from pathlib import Path

import pytest

from limpet.engine import capture as capture_module
from limpet.engine import copying
from limpet.engine.capture import Spool, read_slice
from limpet.errors import StoreError, UnsupportedLeafError, UsageError
from limpet.format.buffers import FileSlice
from limpet.format.filetree import DEPTH_MAX
from limpet.types import Files

SMALL = b"small" * 10
BIG = bytes(range(256)) * (3 << 12)  # 3 MiB: goes to the spool
contents = pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])


# As it was at the call


def overwrite(path):
    with path.open("r+b") as file:
        file.write(b"CHANGED")


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"new")
    other.rename(path)


CHANGES = {
    "overwritten": overwrite,
    "truncated": lambda path: os.truncate(path, 3),
    "grown": lambda path: os.truncate(path, 10 << 20),
    "deleted": Path.unlink,
    "renamed": lambda path: path.rename(path.with_name("elsewhere")),
    "replaced": replace,
}


@contents
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_is_saved_as_it_was_at_the_call(capture, source, tmp_path, content, change):
    path = source / "weights"
    path.write_bytes(content)
    saved = capture(path)
    change(path)
    assert saved.restore(tmp_path / "back").read_bytes() == content


def test_a_directory_that_is_rotated_away_right_after_the_call_is_saved_complete(capture, source, tmp_path, listing):
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "big").write_bytes(BIG)
    (source / "small").write_bytes(SMALL)
    before = listing(source)
    saved = capture(source)
    shutil.rmtree(source)
    assert listing(saved.restore(tmp_path / "back")) == before


@pytest.mark.parametrize(("hook", "content"), [("read_up_to", SMALL), ("copy_file", BIG)])
def test_a_file_that_changes_while_it_is_copied_is_copied_again(capture, source, tmp_path, monkeypatch, hook, content):
    path = source / "log"
    path.write_bytes(content)
    copy = getattr(capture_module, hook)
    changes = iter([b"first", b"second"])

    def copy_and_change(*args):
        result = copy(*args)
        if change := next(changes, None):
            path.write_bytes(content + change)
        return result

    monkeypatch.setattr(capture_module, hook, copy_and_change)
    saved = capture(path)
    assert saved.restore(tmp_path / "back").read_bytes() == content + b"second"
    assert saved.spool.nbytes + saved.spool.held_bytes == len(content + b"second")


@pytest.mark.parametrize(("hook", "content"), [("read_up_to", SMALL), ("copy_file", BIG)])
def test_a_file_that_keeps_changing_is_an_error_that_names_it(capture, source, spool, monkeypatch, hook, content):
    path = source / "busy.log"
    path.write_bytes(content)
    copy = getattr(capture_module, hook)

    def copy_and_change(*args):
        result = copy(*args)
        with path.open("ab") as file:
            file.write(b"more")
        return result

    monkeypatch.setattr(capture_module, hook, copy_and_change)
    with pytest.raises(UsageError, match=r"busy\.log.* changed while it was captured"):
        capture(path)
    assert (spool.nbytes, spool.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("hook", "short", "content"),
    [("read_up_to", lambda *_: SMALL[:-1], SMALL), ("copy_file", lambda *_: (len(BIG) - 1, False), BIG)],
)
def test_a_copy_that_comes_out_short_is_not_taken(capture, source, monkeypatch, hook, short, content):
    (source / "file").write_bytes(content)
    monkeypatch.setattr(capture_module, hook, short)
    with pytest.raises(UsageError, match="file' changed"):
        capture(source)


def test_a_file_that_shrinks_to_nothing_while_it_is_cloned_is_saved_empty(capture, source, tmp_path, monkeypatch):
    path = source / "log"
    path.write_bytes(BIG)
    monkeypatch.setattr(copying, "_reflink", lambda _source, _fd: True)  # a clone of a file just truncated
    assert capture(path).restore(tmp_path / "back").read_bytes() == b""


def test_a_clone_needs_no_second_try_though_the_file_grows(capture, source, tmp_path, monkeypatch):
    path = source / "log"
    path.write_bytes(BIG)

    def clone(fd, request, source_fd):
        assert request == 0x40049409
        os.pwrite(fd, os.pread(source_fd, len(BIG), 0), 0)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(fcntl, "ioctl", clone)
    assert capture(path).restore(tmp_path / "back").read_bytes() == BIG


def test_a_file_that_vanishes_during_the_call_is_an_error_that_names_it(capture, source, monkeypatch):
    (source / "a").write_bytes(SMALL)
    (source / "b").write_bytes(SMALL)
    read = capture_module.read_up_to

    def read_and_remove(*args):
        (source / "b").unlink()
        return read(*args)

    monkeypatch.setattr(capture_module, "read_up_to", read_and_remove)
    with pytest.raises(UsageError, match="source/b' changed"):
        capture(source)


# What is kept


def test_modes_and_times_are_kept(capture, source, tmp_path):
    (source / "tool").write_bytes(b"#!/bin/sh")
    (source / "sub").mkdir()
    for path, mode, time_ns in [
        (source / "tool", 0o751, 1_234_567_890_123_456_789),
        (source / "sub", 0o510, -5_000_000_001),
        (source, 0o750, 1_000_000_000_000_000_001),
    ]:
        path.chmod(mode)
        os.utime(path, ns=(time_ns, time_ns))
    back = capture(source).restore(tmp_path / "back")
    for name in (".", "tool", "sub"):
        expected, actual = (source / name).stat(), (back / name).stat()
        assert (stat.S_IMODE(expected.st_mode), expected.st_mtime_ns) == (
            stat.S_IMODE(actual.st_mode),
            actual.st_mtime_ns,
        )


def test_set_id_and_sticky_bits_are_not_kept(capture, source, tmp_path):
    (source / "tool").write_bytes(b"x")
    (source / "tool").chmod(0o6755)
    (source / "shared").mkdir()
    (source / "shared").chmod(0o1777)
    back = capture(source).restore(tmp_path / "back")
    assert stat.S_IMODE((back / "tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((back / "shared").stat().st_mode) == 0o777


def test_empty_files_and_directories_are_kept(capture, source, tmp_path, listing):
    (source / "empty").touch()
    (source / "hollow" / "inside").mkdir(parents=True)
    saved = capture(source)
    assert saved.buffers == []
    assert listing(saved.restore(tmp_path / "back")) == listing(source)


def test_an_empty_directory_can_be_saved(capture, source, tmp_path):
    back = capture(source).restore(tmp_path / "back")
    assert list(back.iterdir()) == []


def test_links_inside_are_kept_as_links(capture, source, tmp_path, listing):
    (source / "snapshots" / "main").mkdir(parents=True)
    (source / "blobs").mkdir()
    (source / "blobs" / "abc").write_bytes(BIG)
    (source / "snapshots" / "main" / "model").symlink_to("../../blobs/abc")
    (source / "latest").symlink_to("./snapshots//main/")
    (source / "dangling").symlink_to("not/there")
    (source / "itself").symlink_to("itself")
    back = capture(source).restore(tmp_path / "back")
    assert listing(back) == listing(source)
    assert (back / "latest" / "model").read_bytes() == BIG


def test_the_path_itself_may_be_a_link(capture, source, tmp_path):
    (source / "v1").mkdir()
    (source / "v1" / "file").write_bytes(SMALL)
    (source / "latest").symlink_to("v1")
    (source / "alias").symlink_to("v1/file")
    assert (capture(source / "latest").restore(tmp_path / "a") / "file").read_bytes() == SMALL
    assert capture(source / "alias").restore(tmp_path / "b") == tmp_path / "b" / "alias"


def test_names_in_any_encoding_are_kept(capture, source, tmp_path, listing):
    raw = os.fsencode(source)
    os.mkdir(raw + b"/caf\xe9")
    for name in (b"caf\xe9/na\xefve \xff", b"gr\xc3\xbc\xc3\x9fe", b"new\nline", b" ", b"-rf", b"back\\slash", b"~"):
        with open(raw + b"/" + name, "wb") as file:
            file.write(name)
    os.symlink(b"caf\xe9/na\xefve \xff", raw + b"/l\xf6nk")
    assert listing(capture(source).restore(tmp_path / "back")) == listing(source)


def test_a_single_file_with_an_undecodable_name_is_restored_under_it(capture, source, tmp_path):
    path = Path(os.fsdecode(os.fsencode(source) + b"/\xff"))
    path.write_bytes(SMALL)
    assert os.fsencode(capture(path).restore(tmp_path / "back").name) == b"\xff"


def test_hard_linked_files_become_files_of_their_own(capture, source, tmp_path):
    (source / "one").write_bytes(SMALL)
    (source / "two").hardlink_to(source / "one")
    back = capture(source).restore(tmp_path / "back")
    (back / "one").write_bytes(b"changed")
    assert (back / "two").read_bytes() == SMALL


def test_a_sparse_file_keeps_its_content(capture, source, tmp_path):
    with (source / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    assert capture(source / "sparse").restore(tmp_path / "back").read_bytes() == bytes(5 << 20) + b"end"


def test_the_same_directory_always_gives_the_same_payload(capture, source, tmp_path):
    copy = tmp_path / "copy"
    for root, order in ((source, range(300)), (copy, reversed(range(300)))):
        for number in order:
            (root / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
            (root / f"d{number % 7}" / f"{number}").write_bytes(b"%d" % number)
        for path in (*sorted(root.rglob("*"), reverse=True), root):
            os.utime(path, ns=(0, 0))
    first, second = capture(source), capture(copy)
    assert first.payload == second.payload
    assert [buffer.data for buffer in first.buffers] == [buffer.data for buffer in second.buffers]


def test_directories_as_deep_as_allowed_are_saved_and_deeper_ones_refused(capture, source, tmp_path):
    deepest = source.joinpath(*"d" * DEPTH_MAX)
    deepest.mkdir(parents=True)
    (deepest / "file").write_bytes(SMALL)
    back = capture(source).restore(tmp_path / "back")
    assert back.joinpath(*"d" * DEPTH_MAX, "file").read_bytes() == SMALL
    (deepest / "d").mkdir()
    with pytest.raises(UnsupportedLeafError, match=f"deeper than {DEPTH_MAX}"):
        capture(source)


# What is refused


def test_a_missing_path_is_a_file_not_found_error(capture, source, spool_folder):
    for path in (source / "missing", source / "missing" / "deeper"):
        with pytest.raises(FileNotFoundError, match=r"no file or directory to save.*missing"):
            capture(path)
    (source / "file").touch()
    with pytest.raises(FileNotFoundError):
        capture(source / "file" / "below")
    (source / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        capture(source / "dangling")
    assert list(spool_folder.iterdir()) == []


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../sibling", "sub/../../x", "sub/../file", "sub/link/.."])
def test_a_link_that_may_lead_outside_is_refused_by_name(capture, source, target):
    (source / "way").symlink_to(target)
    with pytest.raises(UnsupportedLeafError, match="source/way' points to"):
        capture(source)


def test_a_link_may_go_up_to_the_saved_directory_but_not_above(capture, source, tmp_path):
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "top").symlink_to("../..")
    assert (capture(source).restore(tmp_path / "back") / "a" / "b" / "top").resolve() == tmp_path / "back"
    (source / "a" / "b" / "above").symlink_to("../../..")
    with pytest.raises(UnsupportedLeafError, match="a/b/above"):
        capture(source)


def test_pipes_and_sockets_are_refused_by_name(capture, source):
    os.mkfifo(source / "pipe")
    for path in (source, source / "pipe"):
        with pytest.raises(UnsupportedLeafError, match=r"source/pipe'.*a pipe"):
            capture(path)
    (source / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(source / "socket"))
        with pytest.raises(UnsupportedLeafError, match="source/socket'"):
            capture(source)


def test_a_device_is_refused(capture):
    with pytest.raises(UnsupportedLeafError, match="/dev/null"):
        capture("/dev/null")


def test_a_leaf_that_came_from_a_checkpoint_has_nothing_to_save(spool):
    leaf = Files._from_checkpoint(None, None)
    with pytest.raises(UnsupportedLeafError, match="restore"):
        spool.capture(leaf, lambda _: 0)


def test_a_directory_that_holds_the_copies_is_refused(tmp_path, spool_folder, capture):
    with pytest.raises(UsageError, match="spools' is where this run keeps its own data"):
        capture(tmp_path)


def test_a_file_that_may_not_be_read_is_an_error_that_names_it(private_folder, unprivileged):
    with unprivileged():
        (private_folder / "secret").write_bytes(SMALL)
        (private_folder / "secret").chmod(0)
        with pytest.raises(UsageError, match="secret' may not be read"):
            Spool([]).capture(Files(private_folder), lambda _: 0)


# The spool


def test_small_files_are_held_and_big_ones_spooled(capture, source):
    (source / "big").write_bytes(BIG)
    (source / "small").write_bytes(SMALL)
    saved = capture(source)
    assert [isinstance(buffer.data, FileSlice) for buffer in saved.buffers] == [True, False]
    assert all(buffer.immutable for buffer in saved.buffers)
    assert (saved.spool.nbytes, saved.spool.held_bytes) == (len(BIG), len(SMALL))


def test_many_small_files_are_held_up_to_a_limit(capture, source, tmp_path, monkeypatch, listing):
    monkeypatch.setattr(capture_module, "_HELD_BYTES_MAX", 1000)
    for number in range(50):
        (source / str(number)).write_bytes(b"%050d" % number)
    saved = capture(source)
    assert saved.spool.held_bytes == 1000
    assert len(saved.spooled) == 30
    assert listing(saved.restore(tmp_path / "back")) == listing(source)


def test_a_big_file_is_never_in_memory(capture, source):
    with (source / "huge").open("wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    saved = capture(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert saved.sizes == [64 << 20]
    assert peak < 4 << 20


def test_copies_are_readable_by_this_user_only(capture, source, spool_folder):
    (source / "big").write_bytes(BIG)
    (source / "big").chmod(0o666)
    capture(source)
    (folder,) = spool_folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_copies_go_to_the_file_system_of_the_source(source, tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    (source / "big").write_bytes(BIG)
    here = tmp_path / "here"
    here.mkdir()
    spool = Spool([memory, here])
    buffers = []
    spool.capture(Files(source), lambda buffer: buffers.append(buffer) or 0)
    assert Path(buffers[0].data.path).is_relative_to(here)
    spool.close()


def test_a_folder_that_cannot_be_used_is_passed_over(source, spool_folder, tmp_path):
    (source / "big").write_bytes(BIG)
    spool = Spool([tmp_path / "missing", spool_folder])
    spool.capture(Files(source), lambda _: 0)
    assert spool.nbytes == len(BIG)
    spool.close()
    spool = Spool([tmp_path / "missing"])
    with pytest.raises(StoreError, match=r"none of the folders for copies can be written: .*missing"):
        spool.capture(Files(source), lambda _: 0)
    spool.close()


def test_a_full_disk_is_a_clear_error_and_leaves_no_copies(capture, source, spool, spool_folder, small_disk):
    (source / "fits").write_bytes(bytes(1200 << 10))
    (source / "much").write_bytes(bytes(3 << 20))
    full = Spool([small_disk])
    with pytest.raises(StoreError, match="no space for a copy of 3145728 bytes") as caught:
        full.capture(Files(source), lambda _: 0)
    assert caught.value.kind == "no_space"
    full.close()
    assert list(small_disk.iterdir()) == []


def test_another_folder_is_used_when_one_is_full(source, spool_folder, small_disk):
    (source / "much").write_bytes(bytes(3 << 20))
    spool = Spool([small_disk, spool_folder])
    saved = []
    spool.capture(Files(source), lambda buffer: saved.append(buffer) or 0)
    assert Path(saved[0].data.path).is_relative_to(spool_folder)
    spool.close()
    assert list(small_disk.iterdir()) == []


def test_a_spool_can_be_closed_twice_and_takes_nothing_afterwards(source, spool_folder):
    (source / "big").write_bytes(BIG)
    spool = Spool([spool_folder])
    spool.capture(Files(source), lambda _: 0)
    spool.close()
    spool.close()
    assert list(spool_folder.iterdir()) == []
    with pytest.raises(UsageError, match="has ended"):
        spool.capture(Files(source), lambda _: 0)


# Copying


def no_kernel_copy(monkeypatch):
    monkeypatch.delattr(os, "copy_file_range", raising=False)


def kernel_copy_fails(monkeypatch):
    def fail(*_):
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "copy_file_range", fail, raising=False)


def kernel_copy_stops_half_way(monkeypatch):
    copy = os.copy_file_range
    monkeypatch.setattr(
        os, "copy_file_range", lambda i, o, count, a, b: copy(i, o, min(count, 1 << 20), a, b) if a < 1 << 20 else 0
    )


@pytest.mark.parametrize("obstacle", [no_kernel_copy, kernel_copy_fails, kernel_copy_stops_half_way])
def test_a_copy_is_complete_where_the_system_helps_less(capture, source, monkeypatch, obstacle):
    (source / "big").write_bytes(BIG)
    obstacle(monkeypatch)
    saved = capture(source)
    assert saved.content(0) == BIG


def test_short_writes_are_continued(capture, source, monkeypatch):
    (source / "big").write_bytes(BIG)
    no_kernel_copy(monkeypatch)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:100_000], offset))
    assert capture(source).content(0) == BIG


# Reading back


def test_slices_are_read_piece_by_piece(capture, source):
    (source / "big").write_bytes(BIG)
    (piece,) = capture(source).spooled
    assert read_slice(piece, 1 << 20, 5).tobytes() == BIG[1 << 20 :][:5]
    assert read_slice(piece, 0, 0).tobytes() == b""
    assert b"".join(read_slice(piece, at, 1 << 18) for at in range(0, len(BIG), 1 << 18)) == BIG


def test_a_copy_that_was_cut_or_removed_is_a_store_error(capture, source):
    (source / "big").write_bytes(BIG)
    (piece,) = capture(source).spooled
    os.truncate(piece.path, 10)
    with pytest.raises(StoreError, match="ends at byte 10"):
        read_slice(piece, 0, 20)
    Path(piece.path).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_slice(piece, 0, 20)
