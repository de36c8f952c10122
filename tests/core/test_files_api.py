"""``save`` and ``restore``: files and directories as they are at the call.

Ids such as S3 are those of ``docs/cases.md``.
"""

import errno
import os
import shutil
import threading

import anyio
import pytest
from tests.support import Gated, checkpointer_over, noise

import limpet
from limpet import Checkpointer, Files, StoreError, UsageError
from limpet.engine import capture, copying
from limpet.stores.memory import MemoryStore

MIB = 1 << 20


def make_directory(path, version=0, big=2 * MIB):
    """A directory with everything that ``save`` takes."""
    (path / "deep" / "er").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "weights.bin").write_bytes(noise(version, big).tobytes())
    (path / "deep" / "er" / "config.json").write_text(f'{{"version": {version}}}')
    (path / "nothing").touch()
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    (path / "link").symlink_to("deep/er/config.json")
    return path


def shown(path):
    """What a directory holds."""
    found = {}
    for entry in sorted(path.rglob("*")):
        name = str(entry.relative_to(path))
        if entry.is_symlink():
            found[name] = str(entry.readlink())
        elif entry.is_dir():
            found[name] = None
        else:
            found[name] = (entry.read_bytes(), entry.stat().st_mode & 0o777)
    return found


# S3: the directory changes right after the call


def remove(path):
    shutil.rmtree(path)


def rotate(path):
    path.rename(path.with_name("rotated"))
    make_directory(path, version=9)


def rewrite(path):
    with (path / "weights.bin").open("r+b") as stream:
        stream.write(b"\0" * MIB)
    (path / "deep" / "er" / "config.json").write_text("{}")


@pytest.mark.parametrize("change", [remove, rotate, rewrite])
def test_a_directory_that_changes_after_save_is_saved_as_it_was(url, tmp_path, change):
    """S3."""
    path = make_directory(tmp_path / "checkpoint")
    expected = shown(path)
    with Checkpointer(url) as cp:
        cp.save(path, step=1)
        change(path)
        cp.wait()
        assert shown(cp.restore(tmp_path / "restored")) == expected


@pytest.mark.parametrize("change", [remove, rotate, rewrite])
def test_a_directory_that_changes_after_save_async_is_saved_as_it_was(url, tmp_path, change, run_async):
    """S3."""
    path = make_directory(tmp_path / "checkpoint")
    expected = shown(path)

    async def main():
        async with Checkpointer(url) as cp:
            await cp.save_async(path, step=1)
            change(path)
            await cp.wait_async()
            assert shown(await cp.restore_async(tmp_path / "restored")) == expected

    run_async(main)


def test_a_file_comes_back_under_its_name(url, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(noise(1, 3 * MIB).tobytes())
    with Checkpointer(url) as cp:
        cp.save(path)
        path.unlink()
        cp.wait()
        restored = cp.restore(tmp_path / "restored")
        assert restored == tmp_path / "restored" / "weights.bin"
        assert restored.read_bytes() == noise(1, 3 * MIB).tobytes()


def test_files_and_state_commit_together(url, tmp_path, run_async):
    path = make_directory(tmp_path / "tokenizer")
    expected = shown(path)

    async def main():
        async with Checkpointer(url) as cp:
            await cp.write_async({"step": 3, "weights": noise(1, 2 * MIB), "files": Files(path)}, durable=True)
            state = await cp.read_async()
            assert state["step"] == 3
            assert state["weights"].tobytes() == noise(1, 2 * MIB).tobytes()
            assert shown(await state["files"].restore_async(tmp_path / "restored")) == expected

    run_async(main)


def test_copies_of_files_are_gone_when_the_save_has_ended(tmp_path):
    path = make_directory(tmp_path / "source")
    run = tmp_path / "run"
    with Checkpointer(run) as cp:
        cp.save(path, durable=True)
        assert [entry for entry in (run / "tmp").rglob("*") if entry.is_file()] == []


# S14: nothing there


def test_saving_what_is_not_there_is_refused_before_anything_changes(tmp_path):
    """S14."""
    store = Gated()
    cp = checkpointer_over(store)
    with pytest.raises(FileNotFoundError, match="missing"):
        cp.save(tmp_path / "missing")
    assert store.calls == []
    cp.close()


def test_saving_what_is_not_there_is_refused_from_coroutines_too(tmp_path, run_async):
    """S14."""
    store = Gated()

    async def main():
        async with checkpointer_over(store) as cp:
            before = list(store.calls)
            with pytest.raises(FileNotFoundError, match="missing"):
                await cp.save_async(tmp_path / "missing")
            with pytest.raises(FileNotFoundError, match="missing"):
                await cp.write_async({"a": noise(1, MIB), "files": Files(tmp_path / "missing")})
            assert store.calls == before
            await cp.write_async(b"on", durable=True)

    run_async(main)


# S15: never on the event loop's thread


@pytest.fixture
def copying_threads(monkeypatch):
    """The threads in which files were copied."""
    threads = []

    def watch(module, name):
        function = getattr(module, name)

        def watched(*args, **keywords):
            threads.append(threading.current_thread())
            return function(*args, **keywords)

        monkeypatch.setattr(module, name, watched)

    watch(capture, "copy_file")
    watch(capture, "read_up_to")
    return threads


@pytest.mark.parametrize("how", ["save", "leaf"])
def test_files_are_copied_off_the_event_loop(tmp_path, copying_threads, how, run_async):
    """S15."""
    path = make_directory(tmp_path / "source")

    async def main():
        async with checkpointer_over(MemoryStore()) as cp:
            await (cp.save_async(path) if how == "save" else cp.write_async({"files": [Files(path)]}))
            assert len(copying_threads) >= 4
            assert threading.current_thread() not in copying_threads

    run_async(main)


def test_the_loop_goes_on_while_a_directory_is_copied(tmp_path, monkeypatch, run_async):
    """S15: as long as the copy takes."""
    path = make_directory(tmp_path / "source")
    began, go = threading.Event(), threading.Event()
    copy = copying.copy_file

    def slow_copy(*args):
        began.set()
        assert go.wait(10)
        return copy(*args)

    monkeypatch.setattr(capture, "copy_file", slow_copy)

    async def main():
        async with checkpointer_over(MemoryStore()) as cp:
            async with anyio.create_task_group() as group:
                group.start_soon(cp.save_async, path)
                while not began.is_set():
                    await anyio.sleep(0.001)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                go.set()
            await cp.wait_async()
            assert shown(await cp.restore_async(tmp_path / "restored")) == shown(path)

    run_async(main)


def test_a_save_that_is_cancelled_while_it_copies_files_leaves_no_copies(tmp_path, monkeypatch, run_async):
    """S5."""
    path = make_directory(tmp_path / "source")
    spools = tmp_path / "spools"
    spools.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spools))
    began, go = threading.Event(), threading.Event()
    copy = copying.copy_file

    def slow_copy(*args):
        began.set()
        assert go.wait(10)
        return copy(*args)

    monkeypatch.setattr(capture, "copy_file", slow_copy)

    async def main():
        async with checkpointer_over(MemoryStore()) as cp:
            async with anyio.create_task_group() as group:
                group.start_soon(cp.save_async, path)
                while not began.is_set():
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            go.set()
            assert await cp.read_async() is None

    run_async(main)
    assert list(spools.iterdir()) == []


@pytest.mark.slow
def test_a_large_directory_is_saved_without_stalling_the_loop(tmp_path, run_async):
    """S15: 60 MB. The bound is far above what is promised, and far below what copying takes on the loop's thread."""
    path = tmp_path / "source"
    path.mkdir()
    for index in range(60):
        (path / f"{index}.bin").write_bytes(noise(index, MIB).tobytes())
    gaps = []

    async def tick():
        last = anyio.current_time()
        while True:
            await anyio.sleep(0.001)
            now = anyio.current_time()
            gaps.append(now - last)
            last = now

    async def main():
        async with Checkpointer(tmp_path / "run") as cp:
            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                await cp.save_async(path)
                group.cancel_scope.cancel()

    run_async(main)
    assert max(gaps) < 0.5


# Errors


def test_a_source_that_does_not_fit_on_the_disk_is_an_error_and_commits_nothing(tmp_path, monkeypatch):
    """S8."""
    path = make_directory(tmp_path / "source")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with checkpointer_over(MemoryStore()) as cp:
        cp.write(b"before", durable=True)
        monkeypatch.setattr(capture, "copy_file", full)
        with pytest.raises(StoreError) as caught:
            cp.save(path)
        assert caught.value.kind == "no_space"
        assert cp.read() == b"before"
        monkeypatch.undo()
        cp.save(path, durable=True)


def test_the_run_cannot_be_saved_into_itself(tmp_path):
    with Checkpointer(tmp_path / "run") as cp:
        cp.write(b"", durable=True)
        make_directory(tmp_path / "run" / "tmp" / "x")
        with pytest.raises(UsageError, match="its own data"):
            cp.save(tmp_path / "run")


def test_a_path_may_be_a_string(tmp_path):
    make_directory(tmp_path / "source")
    with checkpointer_over(MemoryStore()) as cp:
        cp.save(str(tmp_path / "source"), durable=True)
        assert shown(cp.restore(str(tmp_path / "restored"))) == shown(tmp_path / "source")


def test_restore_of_nothing_is_none(url, tmp_path):
    with limpet.open(url) as run:
        assert run.restore(tmp_path / "restored") is None


def test_restore_of_a_state_is_refused(url, tmp_path):
    with Checkpointer(url) as cp:
        cp.write(b"state", durable=True)
        with pytest.raises(UsageError, match="write"):
            cp.restore(tmp_path / "restored")


def test_superseded_and_skipped_saves_leave_no_copies(tmp_path, monkeypatch):
    """S3, S9."""
    path = make_directory(tmp_path / "source")
    spools = tmp_path / "spools"
    spools.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spools))
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.write(b"", durable=True)
        held = store.hold("put", times=1)
        for step in range(6):
            cp.save(path, step=step)
        assert len(list(spools.iterdir())) <= 2
        held.release()
        cp.wait()
        assert list(spools.iterdir()) == []
