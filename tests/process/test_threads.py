"""What ends while somebody still asks for it: nobody waits for ever, and a thread that is needed does not die."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.support import PATIENCE_SECONDS, RunAsync, checkpointer_over

from limpet import Checkpointer, UsageError
from limpet.engine import lazy
from limpet.loop import EngineLoop, on_worker
from limpet.pending import Completion
from limpet.stores.memory import MemoryStore
from limpet.workers import Workers

ROUNDS = 40


async def answer() -> int:
    return 42


def test_a_call_that_meets_the_end_of_the_loop_is_answered():
    """Every call that was made before, while and after the loop ended has its answer or its error."""
    for _ in range(ROUNDS):
        ask_while_it_ends()


def ask_while_it_ends() -> None:
    loop = EngineLoop()
    calls: list[Completion[int]] = []
    started = threading.Event()

    def ask() -> None:
        for number in range(400):
            calls.append(loop.call(answer))
            if number == 100:
                started.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert started.wait(PATIENCE_SECONDS)
    assert loop.stop()
    thread.join()
    assert [call for call in calls if not call.wait(PATIENCE_SECONDS)] == []
    assert {call.error.kind for call in calls if call.error is not None} <= {"closed"}


def test_a_call_whose_task_is_cancelled_before_its_first_step_is_answered():
    loop = EngineLoop()
    blocked, go = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go.wait(PATIENCE_SECONDS)

    loop.call_soon(block)
    assert blocked.wait(PATIENCE_SECONDS)
    loop.call_soon(loop._stop.set)
    call = loop.call(answer)
    last = loop.call(answer)
    go.set()
    assert loop.stop()
    assert call.wait(PATIENCE_SECONDS)
    assert last.wait(PATIENCE_SECONDS)


def test_work_for_threads_that_were_told_to_end_is_refused_and_not_forgotten():
    workers = Workers(1, "limpet-test")
    workers.start()
    assert workers.close()
    done = on_worker(workers, lambda: 1)
    assert done.wait(0)
    with pytest.raises(UsageError) as caught:
        done.get()
    assert caught.value.kind == "closed"


def test_a_worker_survives_a_job_that_raises(monkeypatch):
    said: list[type[BaseException]] = []
    monkeypatch.setattr("sys.excepthook", lambda kind, *_: said.append(kind))
    workers = Workers(1, "limpet-test")
    done = threading.Event()
    workers.submit(lambda: 1 / 0)
    workers.submit(done.set)
    assert done.wait(PATIENCE_SECONDS)
    assert workers.close()
    assert said == [ZeroDivisionError]


def test_a_save_whose_copying_thread_dies_fails_and_the_next_one_goes_through(monkeypatch):
    cp = checkpointer_over(MemoryStore())
    cp.write(b"first", step=0, durable=True)
    with monkeypatch.context() as patched:
        patched.setattr(lazy, "copy_piece", lambda *_: (_ for _ in ()).throw(SystemExit))
        pending = cp.write(bytearray(300_000), step=1, lazy=True)
        with pytest.raises(Exception, match="not staged"):
            pending.staged.wait(PATIENCE_SECONDS)
    with pytest.raises(Exception, match="not staged"):
        pending.result(PATIENCE_SECONDS)
    cp.write(bytes(100_000), step=2, durable=True)
    cp.close()
    assert cp.latest.step == 2


def test_a_loop_of_async_writes_lets_other_tasks_run(run_async: RunAsync):
    """Whatever it saves to: a write that has nothing to wait for gives the others their turn all the same."""
    import anyio

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.sleep(0)

        async with checkpointer_over(MemoryStore()) as cp, anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await cp.write_async(b"first", step=0)
            before = turns
            for step in range(1, 20):
                await cp.write_async(b"tiny", step=step)
            assert turns >= before + 15
            tasks.cancel_scope.cancel()

    run_async(main)


def test_a_forgotten_checkpointer_commits_and_lets_go(tmp_path):
    cp = Checkpointer(tmp_path)
    pending = cp.write(bytes(100_000), step=1)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del cp
    assert pending.result(PATIENCE_SECONDS).durable_step == 1
    for thread in threading.enumerate():
        if thread.name.startswith("limpet-guard"):
            thread.join(PATIENCE_SECONDS)
    with Checkpointer(tmp_path) as again:
        assert again.read() == bytes(100_000)


async def test_the_loop_goes_on_while_a_run_is_opened(tmp_path):
    """Threads and imports come from another thread: no part of it runs on the caller's."""
    cp = Checkpointer(tmp_path)
    opening = asyncio.create_task(cp.__aenter__())
    turns = 0
    while not opening.done():
        await asyncio.sleep(0)
        turns += 1
    await cp.close_async()
    assert turns > 3
