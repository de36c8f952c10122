"""What a save promises: the state as it was, committed entirely or not at all, and never a silent loss.

Ids such as S1 are those of ``docs/cases.md``.
"""

import asyncio
import errno
import gzip
import io
import os
import pickle
import signal
import tarfile
import threading
import warnings
from collections import deque

import anyio
import numpy as np
import pytest
from tests.support import Gated, checkpointer_over, down, noise, run_script

import limpet
from limpet import Checkpointer, StoreError, UnsupportedLeafError, UsageError
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps
from limpet.stores.memory import MemoryStore

BIG = 3 << 20  # above what is copied on the caller's thread, and above what shares a chunk


def reopened(store):
    """The newest state, as the next attempt finds it."""
    with checkpointer_over(store) as cp:
        return cp.read()


# S1: the caller changes the state right after the call


def changing_state(size):
    return {
        "array": np.arange(size // 8, dtype=np.int64),
        "strided": np.arange(size // 4, dtype=np.int64)[::2],
        "counts": {"seen": 1},
        "list": [1, 2],
        "queue": deque([1]),
        "bytes": bytearray(b"before"),
        "long": bytearray(size),
    }


def change(state):
    state["array"][:] = -1
    state["strided"][:] = -1
    state["counts"]["seen"] = 2
    state["list"].append(3)
    state["queue"].append(2)
    state["bytes"][:] = b"after!"
    state["long"][:] = b"\xff" * len(state["long"])


def assert_unchanged(found, size):
    expected = changing_state(size)
    assert found["array"].tolist() == expected["array"].tolist()
    assert found["strided"].tolist() == expected["strided"].tolist()
    assert {key: found[key] for key in ("counts", "list", "queue", "bytes", "long")} == {
        key: expected[key] for key in ("counts", "list", "queue", "bytes", "long")
    }


@pytest.mark.parametrize("size", [1 << 10, BIG])
def test_a_state_that_changes_after_write_is_saved_as_it_was(url, size):
    """S1."""
    with Checkpointer(url) as cp:
        state = changing_state(size)
        cp.write(state)
        change(state)
        cp.wait()
        assert_unchanged(cp.read(), size)


@pytest.mark.parametrize("size", [1 << 10, BIG])
def test_a_state_that_changes_after_write_async_is_saved_as_it_was(url, size, run_async):
    """S1."""

    async def main():
        async with Checkpointer(url) as cp:
            state = changing_state(size)
            pending = await cp.write_async(state)
            change(state)
            await pending
            assert_unchanged(await cp.read_async(), size)

    run_async(main)


def small_leaves():
    return {"array": np.zeros(8), "dict": {"a": 1}, "bytes": bytearray(b"x"), "list": [0]}


@pytest.mark.parametrize("opened", [True, False], ids=["open", "first-call"])
def test_small_leaves_are_taken_before_the_first_await(opened, run_async):
    """S1: whatever runs while ``write_async`` waits may already change them."""
    store = Gated()

    async def main():
        cp = checkpointer_over(store)
        if opened:
            await cp.wait_async()
        state = {"big": noise(1, BIG), **small_leaves()}
        result = []
        called = anyio.Event()

        async def write():
            called.set()
            result.append(await cp.write_async(state))

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await called.wait()
            while not result:
                await anyio.lowlevel.checkpoint()
                state["array"] += 1
                state["dict"]["a"] += 1
                state["bytes"][0] = 0
                state["list"].append(1)
        await result[0]
        found = await cp.read_async()
        await cp.close_async()
        expected = small_leaves()
        assert found["array"].tolist() == expected["array"].tolist()
        assert {key: found[key] for key in ("dict", "bytes", "list")} == {
            key: expected[key] for key in ("dict", "bytes", "list")
        }

    run_async(main)


def test_small_leaves_are_taken_before_the_first_await_of_a_write_that_waits_for_a_buffer(run_async):
    """S1."""
    store = Gated()

    async def main():
        async with checkpointer_over(store, on_busy="wait") as cp:
            held = store.hold("put", times=1)
            await cp.write_async(noise(1))
            await held.reached()
            await cp.write_async(noise(2))
            state = small_leaves()
            async with anyio.create_task_group() as group:
                group.start_soon(cp.write_async, state)
                await anyio.sleep(0.02)
                state["array"] += 1
                state["dict"]["a"] += 1
                held.release()
            await cp.wait_async()
            found = await cp.read_async()
            assert (found["array"].sum(), found["dict"]) == (0, {"a": 1})

    run_async(main)


# S5: exceptions and cancellations in the middle


CANCELS = ["task", "scope"]


async def cancel_when(reached, function, *args):
    """Call the coroutine function in a task, and cancel that once ``reached`` has come; whether it was cancelled."""
    cancelled = []

    async def body():
        try:
            await function(*args)
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(body)
        await reached()
        group.cancel_scope.cancel()
    return bool(cancelled)


async def cancel_task_when(reached, function, *args):
    """The same with ``Task.cancel``, which knows no scopes."""
    task = asyncio.create_task(function(*args))
    await reached()
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return isinstance(outcome, asyncio.CancelledError)


def test_a_cancelled_durable_write_is_committed_all_the_same(run_async):
    """S5: it was accepted."""
    store = Gated()

    async def main():
        async with checkpointer_over(store) as cp:
            await cp.write_async(noise(0), durable=True)
            held = store.hold("put", times=1)
            write = cp.write_async(noise(1), step=1, durable=True)
            assert await cancel_when(held.reached, lambda: write)
            assert np.array_equal(await cp.read_async(), noise(0))
            held.release()
            await cp.wait_async()
            assert np.array_equal(await cp.read_async(), noise(1))

    run_async(main)


async def test_a_durable_write_whose_task_is_cancelled_is_committed_all_the_same():
    """S5."""
    store = Gated()
    async with checkpointer_over(store) as cp:
        held = store.hold("create", match="log/", times=1)
        write = cp.write_async(b"1", step=1, durable=True)
        assert await cancel_task_when(held.reached, lambda: write)
        held.release()
        await cp.wait_async()
        assert await cp.read_async() == b"1"


@pytest.mark.parametrize("operation", ["get", "create", "list"])
def test_a_write_in_a_scope_that_is_cancelled_while_it_opens_the_run_leaves_nothing_open(operation, run_async):
    """S5: at the first await, wherever the opening waits."""
    store = Gated()
    assert reopened(store.store) is None
    held = store.hold(operation, times=1)
    cp = checkpointer_over(store)

    async def main():
        async def release():
            await held.reached()
            threading.Timer(0.05, held.release).start()

        await cancel_when(release, cp.write_async, b"1")
        await cp.close_async()

    run_async(main)
    assert reopened(store.store) == b"1"  # a scope cancels at the next await: by then it was accepted


@pytest.mark.parametrize("operation", ["get", "create", "list"])
async def test_a_write_whose_task_is_cancelled_while_it_opens_the_run_was_never_accepted(operation, recwarn):
    """S5."""
    store = Gated()
    held = store.hold(operation, times=1)
    cp = checkpointer_over(store)

    async def release():
        await held.reached()
        threading.Timer(0.05, held.release).start()

    assert await cancel_task_when(release, cp.write_async, b"1")
    await cp.close_async()
    assert reopened(store.store) is None
    assert [str(warning.message) for warning in recwarn] == []


def test_a_write_that_is_cancelled_while_it_waits_for_a_buffer_was_never_accepted(run_async):
    """S5."""
    store = Gated()

    async def main():
        async with checkpointer_over(store, on_busy="wait") as cp:
            held = store.hold("put", times=1)
            await cp.write_async(noise(1))
            await held.reached()
            await cp.write_async(noise(2), step=2)

            async def soon():
                await anyio.sleep(0.02)

            assert await cancel_when(soon, cp.write_async, noise(3))
            held.release()
            await cp.wait_async()
            assert cp.latest.step == 2
            await cp.write_async(noise(4), step=4, durable=True)
            assert cp.latest.step == 4

    run_async(main)


class SlowCopies:
    """Replaces the copier: a copy waits until ``go`` is set."""

    def __init__(self, copier):
        self._copier = copier
        self.began = threading.Event()
        self.go = threading.Event()

    def copy(self, draft, lease):
        self.began.set()
        assert self.go.wait(10)
        self._copier.copy(draft, lease)

    def close(self):
        self._copier.close()

    async def reached(self):
        while not self.began.is_set():
            await anyio.sleep(0.001)
        threading.Timer(0.05, self.go.set).start()


@pytest.mark.parametrize("cancel", [cancel_when, cancel_task_when], ids=["scope", "task"])
async def test_a_write_that_is_cancelled_while_it_is_copied_is_committed_and_whole(cancel):
    """S5: the copy ends before the cancellation is delivered, so the state may change afterwards."""
    async with checkpointer_over(MemoryStore()) as cp:
        await cp.wait_async()
        slow = cp._session.threads.copier = SlowCopies(cp._session.threads.copier)
        state = noise(1, BIG)
        await cancel(slow.reached, cp.write_async, state)
        state[:] = 0
        await cp.wait_async()
        assert np.array_equal(await cp.read_async(), noise(1, BIG))


async def test_the_failure_of_a_write_that_was_cancelled_while_it_was_copied_is_not_lost():
    """S5, S7."""
    store = Gated()
    cp = checkpointer_over(store)
    await cp.wait_async()
    slow = cp._session.threads.copier = SlowCopies(cp._session.threads.copier)
    store.fail("put", down())
    assert await cancel_task_when(slow.reached, cp.write_async, noise(1, BIG))
    with pytest.raises(StoreError, match="down"):
        await cp.close_async()


@pytest.mark.parametrize("body", [KeyError, asyncio.CancelledError])
async def test_an_exception_in_the_body_does_not_cost_the_last_save(body):
    """S5."""
    store = Gated()
    with pytest.raises(body):
        async with checkpointer_over(store) as cp:
            await cp.write_async(noise(1))
            raise body
    assert np.array_equal(reopened(store.store), noise(1))


def test_a_cancelled_scope_does_not_cost_the_last_save(run_async):
    """S5: the ``async with`` block ends in a scope in which every await is cancelled."""
    store = Gated()

    async def main():
        with anyio.CancelScope() as scope:
            async with checkpointer_over(store) as cp:
                await cp.write_async(noise(1))
                scope.cancel()
                await anyio.sleep(10)

    run_async(main)
    assert np.array_equal(reopened(store.store), noise(1))


async def test_a_cancelled_close_ends_what_it_began():
    """S5."""
    store = Gated()
    cp = checkpointer_over(store)
    await cp.write_async(noise(1))
    held = store.hold("put", times=1)
    await cp.write_async(noise(2))
    await held.reached()

    async def closing():
        while not cp._closed:
            await anyio.sleep(0)
        threading.Timer(0.05, held.release).start()

    assert await cancel_task_when(closing, cp.close_async)
    assert np.array_equal(reopened(store.store), noise(2))


@pytest.mark.parametrize("operation", ["put", "create"])
def test_a_failed_save_leaves_the_previous_commit_as_it_was(operation):
    """S5."""
    store = Gated()
    with checkpointer_over(store) as cp:
        first = cp.write(noise(1), step=1).result(10)
        before = {entry.key for entry in objects(store)}
        store.fail(operation, down())
        with pytest.raises(StoreError, match="down"):
            cp.write(noise(2), step=2).result(10)
        assert np.array_equal(cp.read(), noise(1))
        assert before <= {entry.key for entry in objects(store)}
        assert cp.latest.seq == first.seq


def objects(store):
    return asyncio.run(store.store.list(""))


def test_a_state_that_cannot_be_saved_names_the_leaf_and_changes_nothing():
    """S5."""
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.write(b"good", durable=True)
        with pytest.raises(UnsupportedLeafError, match=r"model\.odd"):
            cp.write({"model": {"odd": object()}})
        assert cp.read() == b"good"
        cp.write(b"better", durable=True)
        assert cp.read() == b"better"


def test_a_write_that_is_cancelled_while_another_opens_the_run_does_not_disturb_it(run_async):
    """S5."""
    store = Gated()

    async def main():
        cp = checkpointer_over(store)
        held = store.hold("list", times=1)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: cp.write_async(b"first", durable=True))
            await held.reached()
            assert await cancel_when(anyio.lowlevel.checkpoint, cp.write_async, b"second")
            held.release()
        assert await cp.read_async() == b"first"
        await cp.close_async()

    run_async(main)


# S6: the script ends right after a save


SCRIPT = """
    from limpet import Checkpointer
    import numpy as np
    cp = Checkpointer(sys.argv[1])
    for step in range(int(sys.argv[2])):
        cp.write({"step": step, "data": np.random.default_rng(step).integers(0, 256, 200_000, dtype=np.uint8)}, step=step)
"""


@pytest.mark.crash
@pytest.mark.parametrize("steps", [1, 50])
def test_a_script_that_ends_without_close_commits_its_last_save(tmp_path, steps):
    """S6."""
    ended = run_script(SCRIPT, tmp_path / "run", steps)
    assert (ended.returncode, ended.stderr) == (0, "")
    with limpet.open(tmp_path / "run") as run:
        assert run.read()["step"] == steps - 1


@pytest.mark.crash
def test_a_script_that_ends_with_an_exception_commits_its_last_save(tmp_path):
    """S6."""
    ended = run_script(SCRIPT + "    raise RuntimeError('boom')", tmp_path / "run", 3)
    assert ended.returncode == 1
    assert "RuntimeError: boom" in ended.stderr
    with limpet.open(tmp_path / "run") as run:
        assert run.read()["step"] == 2


@pytest.mark.crash
def test_a_script_that_ends_without_close_commits_the_last_save_of_its_child_run(tmp_path):
    """S6."""
    ended = run_script(
        """
        from limpet import Checkpointer
        cp = Checkpointer(sys.argv[1])
        cp.child("shard").write(bytes(100_000), step=5)
        """,
        tmp_path / "run",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with limpet.open(tmp_path / "run") as run:
        assert run.child("shard").read() == bytes(100_000)


@pytest.mark.crash
def test_a_script_that_ends_without_close_commits_the_last_throttled_state(tmp_path):
    """S6, S16. Its pack is the first one: every thread that it needs has been started before."""
    ended = run_script(
        """
        import numpy as np
        from limpet import Checkpointer, Every
        cp = Checkpointer(sys.argv[1], every=Every(steps=100))
        for step in range(8):
            data = np.random.default_rng(step).bytes(100 if step == 0 else 100_000)
            cp.write({"step": step, "data": data}, step=step)
        """,
        tmp_path / "run",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with limpet.open(tmp_path / "run") as run:
        assert run.read()["step"] == 7


@pytest.mark.crash
def test_a_thread_that_outlives_the_main_thread_may_still_write(tmp_path):
    """S6."""
    ended = run_script(
        """
        import threading, time
        from limpet import Checkpointer
        cp = Checkpointer(sys.argv[1])
        cp.write({"step": 0}, step=0)
        def work():
            time.sleep(0.3)
            cp.write({"step": 1, "data": bytes(200_000)}, step=1)
        threading.Thread(target=work).start()
        """,
        tmp_path / "run",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with limpet.open(tmp_path / "run") as run:
        assert run.read()["step"] == 1


LOST = """
    from tests.support import Gated, checkpointer_over, down
    store = Gated()
    cp = checkpointer_over(store)
    cp.write(b"first", durable=True)
    store.fail(sys.argv[1], down())
    cp.write(bytes(range(256)) * 400, step=7)
"""


@pytest.mark.crash
@pytest.mark.parametrize("operation", ["put", "create"])
def test_a_save_that_is_lost_at_the_end_of_a_script_is_loud(operation):
    """S6: exit status 70, and a line that says what was lost and why."""
    ended = run_script(LOST, operation)
    assert ended.returncode == 70
    assert "step=7" in ended.stderr
    assert "the store is down" in ended.stderr


@pytest.mark.crash
def test_a_failure_that_was_seen_does_not_change_the_exit_status():
    """S6, S7."""
    code = """
    pending = cp.write(bytes(range(256)) * 400, step=8)
    try: pending.result()
    except Exception: pass
    """
    ended = run_script(LOST.replace("\n    cp.write(bytes(range(256)) * 400, step=7)\n", code), "put")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.crash
def test_a_write_from_an_exit_hook_that_comes_too_late_is_refused_and_does_not_hang(tmp_path):
    """S6: exit hooks run after the drain."""
    ended = run_script(
        """
        import atexit
        from limpet import Checkpointer, UsageError
        cp = Checkpointer(sys.argv[1])
        def late():
            try:
                cp.write(b"late", durable=True)
            except UsageError as error:
                print(error.kind)
        atexit.register(late)
        cp.write(b"in time", step=1)
        """,
        tmp_path / "run",
        timeout=15,
    )
    assert (ended.returncode, ended.stdout) == (0, "closed\n")


# S7: a failure that nobody awaits


def failing(operation="put", **settings):
    store = Gated()
    cp = checkpointer_over(store, **settings)
    cp.write(b"first", step=0, durable=True)
    store.fail(operation, down())
    pending = cp.write(noise(1), step=1)
    pending._completion.wait(10)
    return store, cp, pending


def test_the_handle_raises_the_failure_and_nothing_else_does():
    """S7: what was seen is not raised again."""
    _, cp, pending = failing()
    with pytest.raises(StoreError, match="down"):
        pending.result(10)
    cp.write(noise(2), step=2)
    cp.wait()
    cp.close()


def test_the_next_write_raises_an_unseen_failure_once_and_stages_its_state_all_the_same():
    """S7."""
    _, cp, _ = failing()
    with pytest.raises(StoreError, match="down") as caught:
        cp.write(noise(2), step=2)
    assert caught.value.pending.result(10).outcome == "committed"
    assert np.array_equal(cp.read(), noise(2))
    cp.write(noise(3), step=3)
    cp.close()


def test_close_raises_an_unseen_failure():
    """S7."""
    _, cp, _ = failing()
    with pytest.raises(StoreError, match="down"):
        cp.close()
    cp.close()


def test_close_names_every_unseen_failure():
    """S7."""
    store, cp, _ = failing()
    store.fail("put", down("and down again"))
    with pytest.raises(StoreError, match="the store is down") as caught:
        cp.write(noise(2), step=2)
    caught.value.pending._completion.wait(10)
    store.fail("put", down("a third time"))
    with pytest.raises(StoreError, match="down again") as caught:
        cp.write(noise(3), step=3)
    caught.value.pending._completion.wait(10)
    with pytest.raises(StoreError, match="a third time"):
        cp.close()


def test_wait_raises_an_unseen_failure_once():
    """S7."""
    _, cp, _ = failing()
    with pytest.raises(StoreError, match="down"):
        cp.wait()
    cp.wait()
    cp.close()


def test_a_durable_write_raises_its_own_failure():
    """S7."""
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.write(b"first")
        cp.wait()
        store.fail("put", down())
        with pytest.raises(StoreError, match="down"):
            cp.write(noise(1), durable=True)
        assert cp.read() == b"first"


def test_with_warnings_the_next_write_warns_and_goes_on():
    """S7: on_error="warn"."""
    _, cp, _ = failing(on_error="warn")
    with pytest.warns(RuntimeWarning, match="step 1 failed: the store is down"):
        cp.write(noise(2), step=2)
    cp.close()


def test_with_warnings_close_still_raises():
    """S7: on_error="warn" is about the next write only."""
    _, cp, _ = failing(on_error="warn")
    with pytest.raises(StoreError, match="down"):
        cp.close()


def test_five_failures_in_a_row_are_raised_although_warnings_were_asked_for():
    """S7."""
    store, cp, pending = failing(on_error="warn")
    for step in range(2, 7):
        pending._completion.wait(10)
        store.fail("put", down())
        with pytest.warns(RuntimeWarning, match=f"step {step - 1} failed"):
            pending = cp.write(noise(step), step=step)
    pending._completion.wait(10)
    with pytest.raises(StoreError, match="down"):
        cp.write(noise(8), step=8)
    cp.close()


def test_close_ends_at_its_deadline_while_another_thread_still_opens_the_run():
    store = Gated()
    held = store.hold("list")
    cp = checkpointer_over(store)
    opening = threading.Thread(target=cp.write, args=(1,))
    opening.start()
    held.wait_until_reached()
    with pytest.raises(StoreError, match="still opening") as raised:
        cp.close(timeout=0.05)
    assert raised.value.kind == "late"
    held.release()
    opening.join()
    cp.close()
    assert opening.is_alive() is False


def test_the_exception_of_the_body_is_not_masked_by_close():
    """S7: it carries a note of what closing met."""
    with pytest.raises(ZeroDivisionError) as caught:
        with failing()[1]:
            raise ZeroDivisionError
    assert any("the store is down" in note for note in caught.value.__notes__)


async def test_the_exception_of_an_async_body_is_not_masked_by_close():
    """S7."""
    store = Gated()
    with pytest.raises(ZeroDivisionError) as caught:
        async with checkpointer_over(store) as cp:
            store.fail("put", down())
            await cp.write_async(noise(1))
            raise ZeroDivisionError
    assert any("the store is down" in note for note in caught.value.__notes__)


def test_a_superseded_save_fails_with_the_one_that_replaced_it():
    """S7: and is not reported a second time."""
    store = Gated()
    cp = checkpointer_over(store)
    cp.write(b"first", durable=True)
    held = store.hold("put", times=1)
    cp.write(noise(1), step=1)
    held.wait_until_reached()
    older = cp.write(noise(2), step=2)
    newer = cp.write(noise(3), step=3)
    store.fail("put", down("one"), down("two"))
    held.release()
    for pending in (older, newer):
        with pytest.raises(StoreError, match="two"):
            pending.result(10)
    with pytest.raises(StoreError, match="one"):
        cp.close()


# S8: disk full


class FullDisk(FileOps):
    """Has no room for packs while ``full``."""

    full = False

    def writev(self, fd, buffers):
        if self.full and sum(map(len, buffers)) > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().writev(fd, buffers)


def test_a_full_disk_fails_the_save_commits_nothing_and_leaves_no_temporary_file(tmp_path):
    """S8."""
    disk = FullDisk()
    root = tmp_path / "run"
    with checkpointer_over(LocalStore(root, files=disk)) as cp:
        cp.write(noise(1), step=1, durable=True)
        before = sorted(path for path in root.rglob("*") if path.is_file())
        disk.full = True
        with pytest.raises(StoreError) as caught:
            cp.write(noise(2), step=2).result(20)
        assert caught.value.kind == "no_space"
        assert before == sorted(path for path in root.rglob("*") if path.is_file())
        disk.full = False
        cp.write(noise(3), step=3, durable=True)
        assert [info.step for info in cp.checkpoints()] == [1, 3]
        assert np.array_equal(cp.read(), noise(3))


def test_a_full_disk_makes_room_with_what_retention_gave_up(tmp_path):
    """S8: data in its grace goes at once when space runs out."""
    disk = FullDisk()
    root = tmp_path / "run"
    with checkpointer_over(LocalStore(root, files=disk), retain=limpet.Last(1)) as cp:
        for step in range(3):
            cp.write(noise(step), step=step, durable=True)
        assert len(list((root / "data").rglob("*.pack"))) == 3
        disk.full = True
        pending = cp.write(noise(3), step=3)
        while len(list((root / "data").rglob("*.pack"))) > 1:
            assert not pending.done()
        disk.full = False
        assert pending.result(10).outcome == "committed"


# S10: transient errors


def test_three_transient_errors_are_tried_again_and_reported(tmp_path):
    """S10."""
    events = []
    store = Gated()
    with checkpointer_over(store, hooks=[events.append]) as cp:
        cp.write(b"first", durable=True)
        store.fail("put", *(down(f"503 number {n}", transient=True) for n in range(3)))
        assert cp.write(noise(1), step=1).result(20).outcome == "committed"
        assert np.array_equal(cp.read(), noise(1))
    retried = [event for event in events if type(event).__name__ == "Retried"]
    assert [(event.operation, event.attempt, event.error.message) for event in retried] == [
        ("put", n + 1, f"503 number {n}") for n in range(3)
    ]


def test_a_transient_error_while_listing_is_tried_again_and_reported():
    """S10."""
    events = []
    store = Gated()
    store.fail("list", down("503", transient=True))
    with checkpointer_over(store, hooks=[events.append]) as cp:
        assert cp.read() is None
    assert [event.operation for event in events if type(event).__name__ == "Retried"] == ["list"]


def test_a_commit_whose_create_fails_in_passing_is_tried_again():
    """S10."""
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.write(b"first", durable=True)
        store.fail("create", *(down(transient=True) for _ in range(3)))
        assert cp.write(b"second").result(20).outcome == "committed"


# S11 to S13: bytes


def tar_bytes():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", tar_bytes(), gzip.compress(b"x"), pickle.dumps({"a": 1}), b"{}", b"null", bytes(5 << 20)],
    ids=["empty", "nul", "tar", "gzip", "pickle", "json", "null", "5 MiB"],
)
def test_bytes_come_back_as_the_same_bytes(url, content):
    """S11, S12: nothing is unpacked, nothing is None."""
    with Checkpointer(url) as cp:
        cp.write(content)
        cp.wait()
        assert cp.read() == content
    with Checkpointer(url) as cp:
        found = cp.resume().state
        assert (type(found), found) == (bytes, content)


def open_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"skipped-content")
    stream = path.open("rb")
    stream.seek(8)
    return stream


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: bytearray(b"content"), bytearray(b"content")),
        (lambda _: memoryview(b"xcontentx")[1:-1], b"content"),
        (lambda _: io.BytesIO(b"content"), b"content"),
        (open_file, b"content"),
    ],
    ids=["bytearray", "memoryview", "BytesIO", "file"],
)
def test_everything_like_bytes_is_accepted(url, tmp_path, make, expected):
    """S13."""
    value = make(tmp_path)
    with Checkpointer(url) as cp:
        cp.write(value)
        cp.wait()
        found = cp.read()
        found = found.read() if hasattr(found, "read") else found
        assert found == expected
    if hasattr(value, "close"):
        value.close()


# Receipts and handles


def test_the_receipt_says_what_became_of_the_save(url):
    with Checkpointer(url) as cp:
        receipt = cp.write(noise(1, BIG), step=4).result(10)
        info = cp.latest
    assert (receipt.outcome, receipt.step, receipt.durable_step, receipt.seq) == ("committed", 4, 4, info.seq)
    assert receipt.raw_bytes == BIG == info.raw_bytes
    assert BIG <= receipt.new_bytes == receipt.stored_bytes == info.stored_bytes < BIG + 10_000
    phases = (
        receipt.stalled_seconds,
        receipt.staged_seconds,
        receipt.encoded_seconds,
        receipt.uploaded_seconds,
        receipt.committed_seconds,
    )
    assert phases[0] > 0
    assert list(phases) == sorted(phases)


def test_what_did_not_change_is_not_stored_again(url):
    with Checkpointer(url) as cp:
        state = {"base": noise(1, BIG), "head": noise(2, 1000)}
        cp.write(state).result(10)
        state["head"] = noise(3, 1000)
        receipt = cp.write(state).result(10)
    assert receipt.raw_bytes == BIG + 1000
    assert receipt.stored_bytes > BIG
    assert receipt.new_bytes < 10_000


def test_the_repr_of_a_handle_shows_the_phase_it_is_in():
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.write(b"first", durable=True)
        held = store.hold("put", times=1)
        commit = store.hold("create", times=1)
        pending = cp.write(noise(1), step=3)
        held.wait_until_reached()
        assert repr(pending) == "<PendingWrite step=3, writing>"
        waiting = cp.write(noise(2))
        assert repr(waiting) == "<PendingWrite waiting>"
        held.release()
        commit.wait_until_reached()
        assert repr(pending) == "<PendingWrite step=3, committing>"
        assert not pending.done()
        commit.release()
        pending.result(10)
        assert repr(pending) == "<PendingWrite step=3, committed>"
        waiting.result(10)
        store.fail("put", down())
        failed = cp.write(noise(3), step=4)
        with pytest.raises(StoreError):
            failed.result(10)
        assert repr(failed) == "<PendingWrite step=4, failed: StoreError>"


def test_a_result_that_takes_longer_is_a_timeout_and_the_save_goes_on():
    store = Gated()
    with checkpointer_over(store) as cp:
        held = store.hold("put", times=1)
        pending = cp.write(noise(1), step=3)
        with pytest.raises(TimeoutError, match="step=3"):
            pending.result(0.01)
        held.release()
        assert pending.result(10).outcome == "committed"


def test_a_handle_can_be_awaited_on_both_libraries_and_from_several_tasks(run_async):
    async def main():
        async with checkpointer_over(MemoryStore()) as cp:
            pending = await cp.write_async(noise(1), step=1)
            await pending.staged
            assert pending.staged.done()
            receipts = []

            async def wait():
                receipts.append(await pending)

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(wait)
            assert [receipt.step for receipt in receipts] == [1, 1, 1]

    run_async(main)


# Ending


def test_close_commits_what_was_accepted_and_may_be_called_again(url):
    cp = Checkpointer(url)
    cp.write(noise(1), step=1)
    cp.close()
    cp.close()
    assert cp.latest.step == 1
    with limpet.open(url) as run:
        assert np.array_equal(run.read(), noise(1))


def test_close_of_what_was_never_used_touches_nothing(tmp_path):
    Checkpointer(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda cp: cp.write(b""),
        lambda cp: cp.read(),
        lambda cp: cp.resume(),
        lambda cp: cp.wait(),
        lambda cp: cp.checkpoints(),
        lambda cp: cp.sweep(),
        lambda cp: cp.prewarm(b""),
        lambda cp: cp.child("x"),
        lambda cp: cp.__enter__(),
    ],
    ids=["write", "read", "resume", "wait", "checkpoints", "sweep", "prewarm", "child", "with"],
)
@pytest.mark.parametrize("used", [True, False])
def test_a_closed_checkpointer_refuses_every_call(call, used):
    cp = checkpointer_over(MemoryStore())
    if used:
        cp.write(b"")
    cp.close()
    with pytest.raises(UsageError, match="closed") as caught:
        call(cp)
    assert caught.value.kind == "closed"


@pytest.mark.parametrize("operation", ["put", "create"])
def test_close_with_a_stuck_store_returns_at_its_deadline_and_names_what_was_lost(operation):
    store = Gated()
    cp = checkpointer_over(store)
    cp.write(b"first", step=0, durable=True)
    store.hold(operation)
    cp.write(noise(1), step=1)
    cp.write(noise(2), step=2)
    started = anyio.run(_clock)
    with pytest.raises(StoreError, match=r"step=1, \w+.*step=2, \w+") as caught:
        cp.close(timeout=0.2)
    assert anyio.run(_clock) - started < 1.2
    assert caught.value.kind == "late"


async def _clock():
    return anyio.current_time()


def test_an_interrupt_from_the_keyboard_ends_close_at_once():
    """Who presses Ctrl-C while the last save is written wants out."""
    store = Gated()
    cp = checkpointer_over(store)
    held = store.hold("put")
    pending = cp.write(noise(1), step=1)
    held.wait_until_reached()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        cp.close(timeout=60)
    assert "step=1" in str(caught.value.__notes__)
    with pytest.raises(StoreError):
        pending.result(0)


def test_handles_of_what_close_gave_up_raise():
    store = Gated()
    cp = checkpointer_over(store)
    held = store.hold("put")
    writing = cp.write(noise(1), step=1)
    held.wait_until_reached()
    waiting = cp.write(noise(2), step=2)
    with pytest.raises(StoreError):
        cp.close(timeout=0.05)
    for pending in (writing, waiting):
        with pytest.raises(StoreError) as caught:
            pending.result(10)
        assert caught.value.kind == "late"


def test_wait_that_takes_longer_is_a_timeout_and_the_saves_go_on():
    store = Gated()
    with checkpointer_over(store) as cp:
        held = store.hold("put", times=1)
        pending = cp.write(noise(1))
        with pytest.raises(TimeoutError):
            cp.wait(0.05)
        held.release()
        cp.wait(10)
        assert pending.done()


def test_an_attempt_that_could_not_open_may_be_repeated(tmp_path):
    with Checkpointer(tmp_path) as first:
        second = Checkpointer(tmp_path)
        with pytest.raises(limpet.HeldError):
            second.write(b"2")
        first.write(b"1", durable=True)
    with second:
        assert second.read() == b"1"
        second.write(b"2", durable=True)


@pytest.mark.leaks(reason="a leak is what it is about")
def test_a_checkpointer_that_is_forgotten_warns_that_it_was_not_closed():
    cp = checkpointer_over(MemoryStore())
    cp.write(b"1")
    session = cp._session
    with pytest.warns(ResourceWarning, match="unclosed <Checkpointer memory://"):
        del cp
    with warnings.catch_warnings():
        limpet.loop.drive(session.close(5))


def test_s8_a_disk_too_full_for_the_commit_record_fails_at_once_and_the_next_save_works(tmp_path):
    """S8: nothing is gained by waiting for the deadline of an unclear commit."""
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.write(b"first", step=1, durable=True)
        store.fail("create", StoreError("disk full", kind="no_space", transient=True))
        with pytest.raises(StoreError) as caught:
            cp.write(b"second", step=2, durable=True)
        assert caught.value.kind == "no_space"
        cp.write(b"third", step=3, durable=True)
        assert cp.read() == b"third"
        assert [info.step for info in cp.checkpoints()] == [1, 3]


def test_a_higher_level_of_zstd_is_the_one_that_is_used(tmp_path):
    state = {"text": " ".join(f"{n * n % 9973} {n % 97}" for n in range(60_000)).encode()}
    taken = []
    for level in ("zstd:1", "zstd:19"):
        with limpet.Checkpointer(tmp_path / level.replace(":", "-"), compression=level) as cp:
            taken.append(cp.write(state).result(30).new_bytes)
    assert taken[1] < taken[0] * 0.97
