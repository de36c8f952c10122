"""Two faces, one engine: what threads can call, coroutines can await, with the same names and the same meaning."""

import inspect
import os
import sys
import threading

import anyio
import numpy as np
import pytest
from tests.support import Gated, checkpointer_over, noise, run_script

import limpet
from limpet import Checkpointer, Run, UsageError
from limpet.stores.memory import MemoryStore

AT_ONCE = {"child", "mutating"}
"""Calls that wait for nothing have no twin; nor has a block that may be entered with ``async with``."""


def methods(cls):
    return {
        name: value
        for name, value in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name not in AT_ONCE
    }


def twins(cls):
    return sorted(name for name in methods(cls) if not name.endswith("_async"))


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in (Checkpointer, Run) for name in twins(cls)])
def test_every_call_has_a_twin_for_coroutines_with_the_same_parameters(cls, name):
    plain = inspect.signature(getattr(cls, name))
    twin = getattr(cls, f"{name}_async")
    assert inspect.iscoroutinefunction(twin)
    assert plain == inspect.signature(twin)


@pytest.mark.parametrize("cls", [Checkpointer, Run])
def test_no_coroutine_function_is_alone(cls):
    assert {name.removesuffix("_async") for name in methods(cls) if name.endswith("_async")} == set(twins(cls))


def test_every_call_works_from_coroutines(url, tmp_path, run_async):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")

    async def write():
        async with Checkpointer(url, retain=limpet.Last(9)) as cp:
            assert (await cp.resume_async(initial=b"new")).state == b"new"
            await cp.prewarm_async({"a": noise(0)})
            for step in range(3):
                pending = await cp.write_async({"a": noise(step)}, step=step, meta={"loss": step}, durable=True)
                assert pending.done()
            assert np.array_equal((await cp.read_async(at=1))["a"], noise(1))
            assert [info.step for info in await cp.checkpoints_async()] == [0, 1, 2]
            assert (await cp.best_async("loss")).step == 0
            assert (await cp.verify_async()).info.step == 2
            assert [row.path for row in await cp.describe_async()] == ["a"]
            assert (await cp.pin_async(1)).pinned
            await cp.delete_async(0)
            assert (await cp.sweep_async()).objects == 1
            pending = await cp.save_async(source, step=3)
            await cp.wait_async()
            assert (await pending).outcome == "committed"
            restored = await cp.restore_async(tmp_path / "restored")
            assert (restored / "file").read_bytes() == b"content"

    async def read():
        async with limpet.open(url) as run:
            assert (await run.resume_async()).next_step == 4
            assert np.array_equal((await run.read_async(at=2))["a"], noise(2))
            assert [info.step for info in await run.checkpoints_async()] == [1, 2, 3]
            assert (await run.verify_async()).info.step == 3
            assert (await run.best_async("loss")).step == 1
            restored = await run.restore_async(tmp_path / "again")
            assert (restored / "file").read_bytes() == b"content"
            assert len(await run.describe_async(at=2)) == 1

    run_async(write)
    run_async(read)


def test_plain_calls_work_within_a_running_loop(url, run_async):
    """The engine has a loop of its own, so blocking the caller's blocks nothing that a save needs."""

    async def main():
        with Checkpointer(url) as cp:
            cp.write(noise(1), step=1, durable=True)
            assert np.array_equal(cp.read(), noise(1))
            assert (await cp.write_async(noise(2), step=2)).result(10).step == 2
            cp.wait()

    run_async(main)


def test_one_checkpointer_serves_loops_and_threads_at_once(run_async):
    with checkpointer_over(MemoryStore()) as cp:

        async def main():
            await cp.write_async(b"from a coroutine", step=1, durable=True)

        run_async(main)
        cp.write(b"from a thread", step=2, durable=True)
        run_async(main)
        assert [info.step for info in cp.checkpoints()] == [1, 2, 1]


def test_the_loop_goes_on_while_a_write_waits(run_async):
    """A durable write of a stuck store stalls nobody else."""
    store = Gated()

    async def main():
        async with checkpointer_over(store) as cp:
            held = store.hold("put", times=1)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: cp.write_async(noise(1), durable=True))
                await held.reached()
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                held.release()

    run_async(main)


def test_a_wait_can_be_given_up(run_async):
    store = Gated()

    async def main():
        async with checkpointer_over(store) as cp:
            held = store.hold("put", times=1)
            pending = await cp.write_async(noise(1))
            with anyio.move_on_after(0.02) as scope:
                await pending
            assert scope.cancelled_caught
            with pytest.raises(TimeoutError):
                await cp.wait_async(0.02)
            held.release()
            assert (await pending).outcome == "committed"

    run_async(main)


def test_a_coroutine_that_is_thrown_away_while_it_waits_says_nothing():
    """Not even "coroutine ignored GeneratorExit"."""
    store = Gated()
    with checkpointer_over(store) as cp:
        cp.wait()
        held = store.hold("put", times=1)

        async def main():
            coroutine = cp.write_async(noise(1), durable=True)
            iterator = coroutine.__await__()
            next(iterator)
            coroutine.close()

        anyio.run(main)
        held.release()
        cp.wait()
        assert np.array_equal(cp.read(), noise(1))


# Where it must not be called from


CALLS = {
    "write": lambda cp, _: cp.write(b""),
    "read": lambda cp, _: cp.read(),
    "wait": lambda cp, _: cp.wait(),
    "close": lambda cp, _: cp.close(),
    "result": lambda _, pending: pending.result(),
    "staged": lambda cp, _: limpet.pending.Staging(limpet.pending.Completion()).wait(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_hook_that_would_wait_for_itself_is_refused(call):
    caught = []
    pending = []
    ready = threading.Event()

    def hook(event):
        if type(event).__name__ == "Committed" and event.step == 1:
            ready.wait(10)
            try:
                call(cp, pending[0])
            except UsageError as error:
                caught.append(error.kind)

    with checkpointer_over(Gated(), hooks=[hook]) as cp:
        cp.write(b"0", durable=True)
        pending.append(cp.write(b"1", step=1))
        ready.set()
        pending[0].result(10)
        cp.write(b"2", step=2, durable=True)
        assert cp.read() == b"2"
    assert caught == ["wrong_thread"]


def test_a_hook_that_fails_costs_no_save(recwarn):
    def hook(_):
        raise ValueError("broken hook")

    with checkpointer_over(Gated(), hooks=[hook]) as cp:
        cp.write(b"1", durable=True)
        assert cp.read() == b"1"
    assert "broken hook" in {str(warning.message).split("'")[-2] for warning in recwarn}


# Fork


FORK = """
    import os, time
    from limpet import Checkpointer, UsageError
    cp = Checkpointer(sys.argv[1])
    for step in range(20):
        cp.write({"step": step, "data": bytes(300_000)}, step=step)
    pid = os.fork()
    if pid == 0:
        CHILD
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    cp.write({"step": 20}, step=20, durable=True)
    assert cp.read() == {"step": 20}
    cp.close()
"""
USE = """
        for call in (lambda: cp.write(b""), cp.read, cp.wait, lambda: cp.child("a"), lambda: cp.__enter__()):
            try:
                call()
            except UsageError as error:
                assert error.kind == "forked", error
            else:
                raise AssertionError("it was not refused")
        cp.close()
"""
OWN = """
        with Checkpointer(sys.argv[1] + "-child") as own:
            own.write(b"mine", durable=True)
            assert own.read() == b"mine"
"""


@pytest.mark.crash
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("child", [USE, OWN], ids=["use", "own"])
def test_a_forked_child_is_refused_at_once_and_may_open_a_run_of_its_own(tmp_path, child):
    ended = run_script(FORK.replace("        CHILD\n", child), tmp_path / "run", timeout=20)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.crash
@pytest.mark.skipif(sys.platform != "linux", reason="fork is the default start method on Linux only")
def test_a_process_pool_beside_an_open_run_works(tmp_path):
    """Its workers inherit the checkpointer, and end without draining it."""
    ended = run_script(
        """
        import multiprocessing
        from limpet import Checkpointer
        def square(x):
            return x * x
        cp = Checkpointer(sys.argv[1])
        cp.write(bytes(200_000), step=0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(square, range(4)))
        cp.write(bytes(200_000), step=1)
        """,
        tmp_path / "run",
    )
    assert (ended.returncode, ended.stdout) == (0, "[0, 1, 4, 9]\n"), ended.stderr
    with limpet.open(tmp_path / "run") as run:
        assert run.checkpoints()[-1].step == 1


# Child runs


def test_a_child_is_a_run_of_its_own(url):
    with Checkpointer(url) as cp:
        child = cp.child("shard/3 ü")
        assert cp.child("shard/3 ü") is child
        cp.write(b"parent", step=1)
        child.write(b"child", step=7, durable=True)
        cp.wait()
        assert (cp.read(), child.read()) == (b"parent", b"child")
        assert child.latest.step == 7
    with limpet.open(url) as run:
        assert run.child("shard/3 ü").read() == b"child"
        assert run.child("other").read() is None
    with pytest.raises(UsageError, match="closed"):
        child.write(b"late")


def test_a_child_is_closed_with_its_parent_and_not_the_other_way_round():
    store = Gated()
    with checkpointer_over(store) as cp:
        with cp.child("a") as child:
            child.write(noise(1), step=1)
        cp.write(b"on", durable=True)
        again = cp.child("a")
        assert again is not child
        assert np.array_equal(again.read(), noise(1))
        again.write(noise(2))
    with checkpointer_over(store) as cp:
        assert np.array_equal(cp.child("a").read(), noise(2))


def test_a_child_that_fails_is_reported_when_its_parent_is_closed():
    store = Gated()
    cp = checkpointer_over(store)
    child = cp.child("a")
    child.write(b"", durable=True)
    store.fail("put", limpet.StoreError("the store is down"))
    child.write(noise(1))
    with pytest.raises(limpet.StoreError, match="down"):
        cp.close()


def test_a_child_and_its_parent_share_memory_and_wake_each_other():
    """One holds it all: the other waits for it, and goes on when it is free."""
    store = Gated()
    with checkpointer_over(store, memory_limit=4 << 20) as cp:
        child = cp.child("a")
        child.write(b"", durable=True)
        held = store.hold("put", times=1)
        cp.write(noise(1, 3 << 20), step=1)
        held.wait_until_reached()
        second = []
        writer = threading.Thread(target=lambda: second.append(child.write(noise(2, 3 << 20), step=2)))
        writer.start()
        writer.join(0.1)
        assert not second
        held.release()
        writer.join(10)
        assert second[0].result(10).outcome == "committed"


@pytest.mark.parametrize("name", ["", None])
def test_a_child_needs_a_name(name):
    with checkpointer_over(MemoryStore()) as cp, pytest.raises(UsageError, match="name"):
        cp.child(name)
