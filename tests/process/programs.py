"""What the children run: each function is a script, whose end is judged from outside.

They print ``accepted N`` once a write of step N has returned, and ``acknowledged N`` once it is durable. What ends in
order commits all that was accepted; what does not keeps all that was acknowledged.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from tests.faults.server import FaultyS3
from tests.support import Gated, checkpointer_over, down

import limpet.session
from limpet import Checkpointer, LimpetError, UsageError
from limpet.stores.local import LocalStore
from limpet.stores.local_files import FileOps

kept: list[Any] = []
"""What lives as long as the interpreter."""


def state_of(step: int, nbytes: int = 100_000) -> dict[str, Any]:
    """The state of ``step``: it has a pack of its own, and no two are alike."""
    return {"step": step, "data": np.random.default_rng(step).integers(0, 256, nbytes, dtype=np.uint8)}


def say(*words: object) -> None:
    """Print a line that is out when this returns, whatever happens next."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def accept(cp: Checkpointer, step: int, **how: Any) -> Any:
    """Write ``step``."""
    pending = cp.write(state_of(step), step=step, **how)
    say("acknowledged" if how.get("durable") else "accepted", step)
    return pending


def place(root: str) -> tuple[str, dict[str, Any]]:
    """Url and options: ``root`` is a folder, or ``s3://bucket/name?port`` on this host."""
    url, mark, port = root.rpartition("?")
    return (url, FaultyS3.storage(SimpleNamespace(port=port))) if mark else (root, {})


def beside(root: str, suffix: str) -> str:
    """Another run beside ``root``."""
    name, mark, port = root.partition("?")
    return f"{name}{suffix}{mark}{port}"


def at(root: str) -> Checkpointer:
    """The writer of the run at ``root``."""
    url, storage = place(root)
    return Checkpointer(url, storage=storage)


def begin(root: str) -> Checkpointer:
    """A run with one acknowledged and one accepted step."""
    cp = at(root)
    accept(cp, 0, durable=True)
    accept(cp, 1)
    return cp


def begin_gated(root: str, **settings: Any) -> tuple[Checkpointer, Gated]:
    """The same over a store whose calls can be held; step 0 only."""
    store = Gated(LocalStore(root))
    cp = checkpointer_over(store, **settings)
    accept(cp, 0, durable=True)
    return cp, store


def short_drain(seconds: float = 0.5) -> None:
    """Give the drain at the end of the program less time: nobody can sit out five minutes."""
    limpet.session._EXIT_SECONDS = seconds


def stopping(number: int, frame: object) -> None:
    """What people do on SIGTERM."""
    raise SystemExit(128 + number)


# The script ends, one way or another.


def ends(root: str) -> None:
    begin(root)


def ends_with_a_child_run(root: str) -> None:
    cp = begin(root)
    accept(cp.child("shard"), 5)


def ends_with_two_runs(root: str) -> None:
    kept.append(begin(root))
    begin(beside(root, "-2"))


def ends_as_a_module_global(root: str) -> None:
    kept.append(begin(root))


def raises(root: str) -> None:
    cp = begin(root)
    accept(cp, 2)
    raise RuntimeError("boom")


def raises_in_with(root: str) -> None:
    with begin(root) as cp:
        accept(cp, 2)
        raise RuntimeError("boom")


def raises_in_with_while_closing_is_late(root: str) -> None:
    cp, store = begin_gated(root)
    store.hold("create")
    close = cp.close
    cp.close = lambda: close(0.2)
    with cp:
        accept(cp, 1)
        raise RuntimeError("boom")


def exits(root: str, status: str) -> None:
    cp = begin(root)
    accept(cp, 2)
    sys.exit(int(status) if status.isdigit() else status)


def exits_in_with(root: str, status: str) -> None:
    with begin(root) as cp:
        accept(cp, 2)
        sys.exit(int(status))


def exits_at_once(root: str) -> None:
    begin(root)
    os._exit(5)


def loses_a_save(root: str, how: str) -> None:
    cp, store = begin_gated(root)
    store.fail("put", down())
    cp.write(state_of(7), step=7)
    if how == "raise":
        raise RuntimeError("boom")
    sys.exit(0 if how == "exit" else 3)


def has_a_stuck_store_at_its_end(root: str, operation: str) -> None:
    short_drain()
    cp, store = begin_gated(root)
    store.hold(operation)
    cp.write(state_of(7), step=7)
    say("ready")


def has_a_stuck_and_a_sound_run_at_its_end(root: str) -> None:
    has_a_stuck_store_at_its_end(beside(root, "-stuck"), "put")
    begin(root)


# Signals.


def loops(root: str, how: str = "plain") -> None:
    """Write until something from outside ends it."""
    if how == "impatient":
        short_drain()
    if how in ("handled", "impatient"):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stopping)
    cp = begin(root)
    say("ready")
    if how == "with":
        with cp:
            write_on(cp)
    write_on(cp)


def write_on(cp: Checkpointer) -> None:
    for step in itertools.count(2):
        accept(cp, step)


def closes_for_long(root: str) -> None:
    """Ready once ``close`` waits for a store that does not answer."""
    cp, store = begin_gated(root)
    held = store.hold("put")
    cp.write(state_of(7), step=7)
    threading.Timer(0.05, lambda: (held.wait_until_reached(), time.sleep(0.1), say("ready"))).start()
    cp.close()


def drains_for_long(root: str) -> None:
    """Ready once the drain at the end of the program waits for a store that does not answer."""
    cp, store = begin_gated(root)
    store.hold("put")
    cp.write(state_of(7), step=7)
    cp._session.before_drain = lambda: say("ready")


def is_blocked_in_a_durable_write(root: str) -> None:
    signal.signal(signal.SIGTERM, stopping)
    short_drain(1.0)
    cp, store = begin_gated(root)
    held = store.hold("create")
    threading.Thread(target=lambda: (held.wait_until_reached(), say("ready")), daemon=True).start()
    cp.write(state_of(7), step=7, durable=True)


def is_blocked_in_a_durable_write_that_goes_through(root: str) -> None:
    """The write is interrupted, the save is not: the store answers again while the program drains."""
    signal.signal(signal.SIGTERM, stopping)
    cp, store = begin_gated(root)
    held = store.hold("create")
    threading.Thread(target=lambda: (held.wait_until_reached(), say("ready")), daemon=True).start()
    try:
        cp.write(state_of(7), step=7, durable=True)
    finally:
        held.release()
        say("accepted", 7)


def is_busy(root: str, where: str) -> None:
    """The main thread is in C code, for a second at most, when the signal comes."""
    signal.signal(signal.SIGTERM, stopping)
    begin(root)
    data = np.random.default_rng(0).bytes(1 << 20)
    square = np.ones((300, 300))
    say("ready")
    while True:
        if where == "sleep":
            time.sleep(60)
        elif where == "zlib":
            zlib.compress(data, 9)
        else:
            square @ square


def writes_in_its_handler(root: str) -> None:
    """A handler that saves, as the README says not to: it must never end in a deadlock."""
    cp = begin(root)

    def save(number: int, frame: object) -> None:
        try:
            accept(cp, 1000)
        except UsageError as error:
            say("refused", error.kind)

    signal.signal(signal.SIGTERM, save)
    say("ready")
    for step in range(2, 150):
        accept(cp, step)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    accept(cp, 2000)


def closes_in_its_handler(root: str) -> None:
    cp = begin(root)

    def close(number: int, frame: object) -> None:
        cp.close()
        say("closed")
        sys.exit(7)

    signal.signal(signal.SIGTERM, close)
    say("ready")
    while True:
        time.sleep(1)


def opens_for_long(root: str) -> None:
    """Ready once the opening waits for a store that does not answer."""
    store = Gated(LocalStore(root))
    held = store.hold("list")
    threading.Thread(target=lambda: (held.wait_until_reached(), say("ready")), daemon=True).start()
    checkpointer_over(store).__enter__()


# Threads.


def writes_from_many_threads(root: str) -> None:
    cp = begin(root)
    steps = itertools.count(2)
    lock = threading.Lock()

    def work() -> None:
        for _ in range(5):
            with lock:
                accept(cp, next(steps))

    for thread in [threading.Thread(target=work) for _ in range(8)]:
        thread.start()


def ends_before_its_threads(root: str) -> None:
    cp = begin(root)

    def work() -> None:
        threading.main_thread().join()
        for step in range(2, 6):
            cp.write(
                {"large": np.zeros(8 << 20, dtype=np.uint8)}
            )  # its copy is shared with threads, if any can be started
            accept(cp, step)

    threading.Thread(target=work).start()


def ends_while_a_daemon_thread_writes(root: str) -> None:
    cp = begin(root)

    def work() -> None:
        try:
            for step in itertools.count(2):
                accept(cp, step)
        except UsageError as error:
            say("refused", error.kind)

    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.05)


def writes_from_an_exit_hook(root: str) -> None:
    cp = begin(root)

    def late() -> None:
        try:
            cp.write(state_of(9), step=9, durable=True)
        except UsageError as error:
            say("refused", error.kind)

    atexit.register(late)


def opens_in_an_exit_hook(root: str) -> None:
    """It works, or is refused with an error, as the interpreter can still start threads or not."""
    begin(root)

    def late() -> None:
        try:
            with at(beside(root, "-late")) as cp:
                cp.write(state_of(0), step=0)
        except LimpetError as error:
            say("refused", repr(error))
        say("hook ended")

    atexit.register(late)


# The checkpointer is forgotten.


def forgets(root: str, how: str) -> None:
    cp = begin(root)
    if how == "cycle":
        cycle: list[Any] = [cp]
        cycle.append(cycle)
        del cycle
    del cp
    gc.collect()
    say("forgotten")


def forgets_and_opens_again(root: str) -> None:
    cp = begin(root)
    del cp
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            again = at(root).__enter__()
        except limpet.HeldError:
            time.sleep(0.01)
        else:
            assert again.read()["step"] == 1
            again.close()
            say("opened again")
            return


def forgets_a_stuck_one(root: str) -> None:
    short_drain()
    cp, store = begin_gated(root)
    store.hold("put")
    cp.write(state_of(7), step=7)
    del cp
    gc.collect()


class Owner:
    """Somebody's object, which saves when it is collected."""

    def __init__(self, cp: Checkpointer) -> None:
        self.cp = cp
        self.itself = self

    def __del__(self) -> None:
        try:
            accept(self.cp, 9)
        except UsageError as error:
            say("refused", error.kind)


def writes_when_collected(root: str, when: str) -> None:
    owner = Owner(begin(root))
    if when == "at the end":
        kept.append(owner)
    del owner
    gc.collect()


# Fork.


def forks(root: str, moment: str, ending: str) -> None:
    """Fork at a moment; the child does nothing with what it inherited, and ends somehow."""
    cp = at(root)
    if moment != "before":
        accept(cp, 0, durable=True)
        for step in range(1, 4) if moment == "in mid-save" else ():
            accept(cp, step)
    pid = os.fork()
    if pid == 0:
        if ending == "own":
            try:
                with at(beside(root, "-own")) as own:
                    own.write(state_of(5), step=5)
                say("own", 5)
            except UsageError as error:
                say("refused", error.kind)
        if ending == "collect":
            cp = None
            gc.collect()
        if ending == "os._exit":
            os._exit(0)
        if ending == "raise":
            raise SystemExit("on purpose")
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (1 if ending == "raise" else 0)
    accept(cp, 10)


def uses_it_in_a_fork(root: str) -> None:
    """Everything that a child has inherited is refused, at once."""
    cp, store = begin_gated(root)
    held = store.hold("put", times=1)
    pending = accept(cp, 1)
    reader = limpet.open(root)
    assert reader.read()["step"] == 0
    held.wait_until_reached()
    pid = os.fork()
    if pid == 0:
        calls = {
            "write": lambda: cp.write(b""),
            "durable": lambda: cp.write(b"", durable=True),
            "read": cp.read,
            "resume": cp.resume,
            "wait": cp.wait,
            "child": lambda: cp.child("a"),
            "enter": cp.__enter__,
            "result": pending.result,
            "await": lambda: asyncio.run(_await(pending)),
            "write_async": lambda: asyncio.run(cp.write_async(b"")),
            "run": reader.read,
        }
        for name, call in calls.items():
            started = time.monotonic()
            try:
                call()
            except UsageError as error:
                slow = time.monotonic() - started > (0.5 if "a" in name else 0.01)
                say(name, error.kind, "slow" if slow else "")
            else:
                say(name, "was not refused")
        cp.close()
        reader.close()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    held.release()
    accept(cp, 2, durable=True)
    reader.close()


async def _await(pending: Any) -> None:
    await pending


def forks_workers(root: str, method: str) -> None:
    """What a data loader does: workers beside an open run, several times over."""
    cp = begin(root)
    for step in range(2, 4 if method == "fork" else 3):
        with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        accept(cp, step)


def forks_loaders(root: str) -> None:
    """Workers that live while the parent saves, and end on their own."""
    cp = begin(root)
    loaders = []
    for _ in range(3):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(ours, 1)  # until the parent has ended its epoch
            return
        loaders.append((pid, theirs))
        for step in range(2, 5):
            accept(cp, step)
    accept(cp, 5, durable=True)
    for pid, pipe in loaders:
        os.write(pipe, b".")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Coroutines.


def runs_async(root: str, library: str, how: str) -> None:
    if library == "trio":
        import trio

        trio.run(coroutine, root, how)
    else:
        asyncio.run(coroutine(root, how))


async def coroutine(root: str, how: str) -> None:
    if how == "in with":
        async with at(root) as cp:
            await write_on_async(cp)
    cp = at(root)
    (await cp.write_async(state_of(0), step=0, durable=True)).result()
    say("acknowledged", 0)
    pending = await cp.write_async(state_of(1), step=1)
    say("accepted", 1)
    if how == "exit":
        sys.exit(4)
    if how == "raise":
        raise RuntimeError("boom")
    if how == "pending":
        task = asyncio.ensure_future(_await(pending))
        await asyncio.sleep(0)
        kept.append(task)
        return
    if how == "loop":
        await write_on_async(cp)


async def write_on_async(cp: Checkpointer) -> None:
    for step in itertools.count(2):
        await cp.write_async(state_of(step), step=step)
        say("accepted", step)
        if step == 3:
            say("ready")


def closes_async_for_long(root: str) -> None:
    """Ready once ``close_async`` waits for a store that does not answer."""
    short_drain()

    async def main() -> None:
        cp, store = await asyncio.to_thread(begin_gated, root)
        held = store.hold("put")
        await cp.write_async(state_of(7), step=7)
        await held.reached()
        asyncio.get_running_loop().call_later(0.1, say, "ready")
        await cp.close_async()

    asyncio.run(main())


def opens_in_a_coroutine(root: str) -> None:
    """The first call imports and starts what it needs elsewhere: the loop goes on meanwhile."""
    gaps = [0.0]

    async def tick() -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - started)

    async def main() -> None:
        cp = at(root)
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.05)
        gaps.clear()
        async with cp:
            await asyncio.sleep(0.05)
            say("stall", round(max(gaps), 3))
            await cp.write_async(state_of(0), step=0)
            say("accepted", 0)
        ticking.cancel()

    asyncio.run(main())


# A store that is stuck.


class HungDisk(FileOps):
    """A disk whose fsync does not come back."""

    stuck = threading.Event()

    def fsync(self, fd: int) -> None:
        if self.stuck.is_set():
            threading.Event().wait()
        super().fsync(fd)


def closes_on_a_hung_disk(root: str, timeout: str) -> None:
    """``close`` returns at its deadline, says what was lost, and the program can end."""
    disk = HungDisk()
    cp = checkpointer_over(LocalStore(root, files=disk))
    accept(cp, 0, durable=True)
    disk.stuck.set()
    for step in (1, 2):
        cp.write(state_of(step), step=step)
    started = time.monotonic()
    try:
        cp.close(timeout=float(timeout))
    except LimpetError as error:
        say("late", round(time.monotonic() - started - float(timeout), 2))
        say("message", error)


def forgets_to_close_on_a_hung_disk(root: str) -> None:
    short_drain()
    disk = HungDisk()
    cp = checkpointer_over(LocalStore(root, files=disk))
    accept(cp, 0, durable=True)
    disk.stuck.set()
    cp.write(state_of(1), step=1)
