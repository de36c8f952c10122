"""Row 30: a call is cancelled at each of its awaits, before, during and after what it waits for.

Whatever the moment: a save that was staged is committed, whole; one that was not leaves nothing; the caller may use
its arrays again once the call has ended; the next save works, and no memory stays taken.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np
import pytest
from tests.faulty import Shelf
from tests.support import noise

import limpet
from limpet import Checkpointer, Files, Last
from limpet import loop as limpet_loop
from limpet.events import Staged
from limpet.format.record import decode_record, from_ranges
from limpet.loop import Wait
from limpet.stores.memory import MemoryStore

BIG = 3 << 20
SMALL = 1 << 10
PATIENCE_SECONDS = 10.0
MOMENTS = ["before", "during", "after"]
KINDS = ["asyncio-scope", "asyncio-task", "trio-scope"]
DEFAULT_KINDS = {
    ("write-big", True): "asyncio-task",
    ("write-durable", True): "trio-scope",
    ("await-pending", True): "asyncio-task",
    ("write-files", True): "asyncio-scope",
    ("write-crowded", True): "trio-scope",
    ("write-close", True): "asyncio-task",
    ("read", True): "trio-scope",
    ("close", True): "asyncio-task",
    ("prewarm", True): "trio-scope",
    ("write-big", False): "asyncio-task",
}
NEVER_WAITS = {("write", True), ("write-lazy", True), ("wait", True), ("close", False)}
"""Calls that have nothing to wait for, on a run that is open and idle, or not open yet."""


class Call(NamedTuple):
    """An asynchronous call to cancel: given the checkpointer and a state to write."""

    name: str
    begin: Callable[[Checkpointer, dict[str, Any], Path], Awaitable[Any]]
    writes: bool = False
    nbytes: int = SMALL


async def write_and_await(cp: Checkpointer, state: dict[str, Any], _: Path) -> None:
    await (await cp.write_async(state, step=2))


async def write_when_crowded(cp: Checkpointer, state: dict[str, Any], _: Path) -> None:
    """All buffers are taken: the write waits in line until they come back."""
    await cp.wait_async()
    pool = cp._open_session.pool
    taken = [pool.try_lease(BIG) for _ in range(pool.count)]
    threading.Timer(0.01, lambda: [lease.release() for lease in taken if lease is not None]).start()
    await cp.write_async(state, step=2)


async def write_and_close(cp: Checkpointer, state: dict[str, Any], _: Path) -> None:
    await cp.write_async(state, step=2)
    await cp.close_async()


CALLS = [
    Call("write", lambda cp, state, _: cp.write_async(state, step=2), True),
    Call("write-big", lambda cp, state, _: cp.write_async(state, step=2), True, BIG),
    Call("write-durable", lambda cp, state, _: cp.write_async(state, step=2, durable=True), True, BIG),
    Call("write-lazy", lambda cp, state, _: cp.write_async(state, step=2, lazy=True), True, SMALL),
    Call("write-files", lambda cp, state, files: cp.write_async({**state, "files": Files(files)}, step=2), True, BIG),
    Call("await-pending", write_and_await, True, BIG),
    Call("write-crowded", write_when_crowded, True, BIG),
    Call("write-close", write_and_close, True, BIG),
    Call("read", lambda cp, _, __: cp.read_async()),
    Call("resume", lambda cp, _, __: cp.resume_async({})),
    Call("verify", lambda cp, _, __: cp.verify_async()),
    Call("checkpoints", lambda cp, _, __: cp.checkpoints_async()),
    Call("pin", lambda cp, _, __: cp.pin_async(1)),
    Call("sweep", lambda cp, _, __: cp.sweep_async()),
    Call("prewarm", lambda cp, state, _: cp.prewarm_async(state), False, BIG),
    Call("wait", lambda cp, _, __: cp.wait_async()),
    Call("close", lambda cp, _, __: cp.close_async()),
]


class Canceller:
    """Cancels a task at the n-th wait of the operation that it runs.

    Args:
        at: counted from 1.
        moment: before it waits, while it waits, or once that has come.
        kind: library, and what is cancelled.
    """

    def __init__(self, at: int, moment: str, kind: str) -> None:
        self.at = at
        self.moment = moment
        self.kind = kind
        self.fired = False
        self._waits = 0
        self._cancel: Callable[[], Any] | None = None
        self._settled = limpet_loop._settled

    async def run(self, call: Callable[[], Awaitable[Any]]) -> str:
        """What came of the call: ``"done"``, ``"cancelled"``, or the name of an error."""
        if self.kind == "asyncio-task":
            task = asyncio.ensure_future(self._outcome(call))
            self._cancel = task.cancel
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            self._cancel = None
            return "cancelled" if isinstance(outcome, asyncio.CancelledError) else str(outcome)
        outcome = "cancelled"
        with anyio.CancelScope() as scope:
            self._cancel = scope.cancel
            outcome = await self._outcome(call)
        self._cancel = None
        return outcome

    async def _outcome(self, call: Callable[[], Awaitable[Any]]) -> str:
        try:
            await call()
        except limpet.LimpetError as error:
            return type(error).__name__
        return "done"

    async def settled(self, wait: Wait) -> bool:
        """In place of ``limpet.loop._settled``."""
        cancel = self._cancel
        if cancel is not None:
            self._waits += 1
            if self._waits == self.at:
                self.fired = True
                return await self._cancelled(wait, cancel)
        return await self._settled(wait)

    async def _cancelled(self, wait: Wait, cancel: Callable[[], Any]) -> bool:
        if self.moment == "before":
            cancel()
        elif self.moment == "after":
            assert wait.completion.wait(PATIENCE_SECONDS)
            cancel()
            await anyio.lowlevel.checkpoint_if_cancelled() if wait.shielded is False else None
        elif self.kind == "trio-scope":
            import trio

            trio.lowlevel.current_trio_token().run_sync_soon(cancel)
        else:
            asyncio.get_running_loop().call_soon(cancel)
        return await self._settled(wait)


def state_of(step: int, nbytes: int) -> dict[str, Any]:
    return {"step": step, "array": noise(step, nbytes), "rest": bytearray(b"%d" % step)}


def assert_state(found: Any, step: int, nbytes: int) -> None:
    wanted = state_of(step, nbytes)
    assert found["step"] == step
    assert np.array_equal(found["array"], wanted["array"])
    assert found["rest"] == wanted["rest"]


def spoil(state: dict[str, Any]) -> None:
    """What a trainer does once the call has ended."""
    state["array"][:] = 0xEE
    state["rest"][:] = b"?" * len(state["rest"])
    state["step"] = -1


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one").write_bytes(b"1")
    return tmp_path / "files"


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Canceller], None]:
    """Puts a canceller in the place of every wait."""
    return lambda canceller: monkeypatch.setattr(limpet_loop, "_settled", canceller.settled)


async def scenario(call: Call, canceller: Canceller, url: str, files: Path, *, opened: bool) -> int:
    """One cancelled call, and what must hold after it; the step that the next attempt must find."""
    events: list[Any] = []
    cp = Checkpointer(url, retain=Last(2), hooks=[events.append], on_busy="wait")
    if opened:
        await cp.write_async(state_of(1, SMALL), step=1, durable=True)
        await cp.wait_async()
    state = state_of(2, call.nbytes)
    outcome = await canceller.run(lambda: call.begin(cp, state, files))
    assert outcome in ("done", "cancelled") or not opened, outcome
    if call.name == "write-lazy":
        async with cp.mutating():
            pass
    spoil(state)
    if cp._closed:
        was_staged = any(isinstance(event, Staged) and event.step == 2 for event in events)
        return 2 if was_staged else 1
    await cp.wait_async()
    found = await cp.read_async()
    is_new = found is not None and found["step"] == 2
    assert is_new or not (call.writes and outcome == "done")
    if is_new:
        assert_state(found, 2, call.nbytes)
    elif opened:
        assert_state(found, 1, SMALL)
    assert cp._session is not None
    assert cp._session.queue.idle()
    await until(lambda: cp._session.pool._leased == cp._session.threads.budget._leased_bytes == 0)
    await cp.write_async(state_of(3, SMALL), step=3, durable=True)
    await cp.sweep_async()
    await cp.close_async()
    was_staged = any(isinstance(event, Staged) and event.step == 2 for event in events)
    assert is_new or not was_staged  # what was accepted is committed
    return 3


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what a thread that cannot be cancelled still does."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not holds():
            await anyio.sleep(0.001)


def check_store(url: str, step: int, nbytes: int) -> None:
    """The next attempt finds the newest state, and nothing but what is live is stored."""
    with limpet.open(url) as run:
        assert_state(run.read(strict=True), step, nbytes)
        infos = run.checkpoints()
    store = MemoryStore(url.removeprefix("memory://"))
    shelf = Shelf(store)
    records = {seq: decode_record(shelf.objects[key], seq)[0] for seq, key in enumerate(shelf.keys("log/"), 1)}
    head = records[max(records)]
    assert head.kind == "close"
    assert from_ranges(head.live) == {info.seq for info in infos}
    live = [records[info.seq].commit for info in infos]
    assert set(shelf.packs()) == {use.key for commit in live if commit for use in commit.packs}


def cases() -> list[Any]:
    """Every call, open and as the first one, under every kind of cancellation; a part of them by default."""
    found = []
    for call, opened, kind in itertools.product(CALLS, (True, False), KINDS):
        at_once = kind == DEFAULT_KINDS.get((call.name, opened))
        name = f"{call.name}-{'open' if opened else 'first-call'}-{kind}"
        found.append(pytest.param(call, opened, kind, id=name, marks=() if at_once else pytest.mark.heavy))
    return found


@pytest.mark.parametrize(("call", "opened", "kind"), cases())
def test_wherever_a_call_is_cancelled_nothing_is_torn_or_lost(
    call: Call, opened: bool, kind: str, patch: Callable[[Canceller], None], files: Path
) -> None:
    fired = sum(cancel_everywhere(call, kind, moment, patch, files, opened=opened) for moment in MOMENTS)
    assert fired >= (0 if (call.name, opened) in NEVER_WAITS else 3)


def cancel_everywhere(
    call: Call, kind: str, moment: str, patch: Callable[[Canceller], None], files: Path, *, opened: bool
) -> int:
    """Cancel at the first wait, at the second ... until there is none; how many there were."""
    for at in itertools.count(1):
        url = f"memory://{uuid.uuid4().hex}"
        canceller = Canceller(at, moment, kind)
        patch(canceller)

        async def main() -> int:
            with anyio.fail_after(PATIENCE_SECONDS):
                return await scenario(call, canceller, url, files, opened=opened)  # noqa: B023 - run at once

        try:
            step = anyio.run(main, backend=kind.partition("-")[0])
            if step > 1 or opened:
                check_store(url, step, call.nbytes if step == 2 else SMALL)
        except BaseException as error:
            error.add_note(f"cancelled {moment} wait {at}")
            raise
        if not canceller.fired:
            return at - 1
    raise AssertionError("unreachable")
