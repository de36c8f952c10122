"""An interrupt wherever the interpreter may deliver one, in every call.

CPython looks for signals at the start of a function, at a jump backwards, and after a call of a C function
(``CHECK_EVAL_BREAKER`` in its ceval.c). A trace function raises on purpose at the n-th such place in our code that the
call passes, for every n. Whatever comes of the call itself, what follows must work: later saves commit, ``close`` ends,
and what is read is whole.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from tests.faulty import write_over
from tests.support import Gated

import limpet
from limpet import Checkpointer, LimpetError, UsageError
from limpet.engine import staging
from limpet.stores.memory import MemoryStore

_OURS = str(Path(limpet.__file__).parent)
CLOSE_SECONDS = 20.0


@functools.cache
def _places(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


def _is_checked(operation: str) -> bool:
    return operation in ("RESUME", "JUMP_BACKWARD", "CALL", "CALL_KW", "CALL_FUNCTION_EX")


class AtPlace:
    """Calls ``what`` at the n-th place of limpet's code where this thread may be interrupted; counts them if ``n`` is 0."""

    def __init__(self, n: int, what: Callable[[], None]) -> None:
        self.passed = 0
        self.where = ""
        self._n = n
        self._what = what
        self._last: dict[FrameType, str] = {}

    def __enter__(self) -> AtPlace:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self._last.clear()

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_back in self._last:
            self._last[frame.f_back] = ""  # a Python function was called: it looks for signals itself
        if not frame.f_code.co_filename.startswith(_OURS) or frame.f_code.co_name == "__del__":
            return None  # CPython prints what a finalizer raises, and goes on: nobody is interrupted there
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            last = self._last.get(frame, "")
            self._last[frame] = _places(frame.f_code).get(frame.f_lasti, "")
            if _is_checked(last):
                self._pass(frame)
        elif event == "return":
            self._last.pop(frame, None)
        return self._step

    def _pass(self, frame: FrameType) -> None:
        self.passed += 1
        if self.passed == self._n:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            sys.settrace(None)
            self._last.clear()  # frames hold what nobody else does
            self._what()


def interrupt() -> None:
    raise KeyboardInterrupt


def state(step: int, nbytes: int = 300_000) -> dict[str, Any]:
    return {"step": step, "data": np.full(nbytes, step % 251, dtype=np.uint8)}


def check(found: Any) -> int:
    assert found["data"].tobytes() == state(found["step"])["data"].tobytes()
    return int(found["step"])


def begin(**settings: Any) -> Checkpointer:
    store = Gated(MemoryStore())
    cp = write_over(store, **settings)
    cp.write(state(0), step=0, durable=True)
    return cp


@pytest.fixture(autouse=True)
def _traced_before() -> None:
    places_of("write")


CALLS: dict[str, tuple[Callable[[Checkpointer], Any], dict[str, Any]]] = {
    "write": (lambda cp: cp.write(state(1), step=1), {}),
    "waiting": (lambda cp: cp.write(state(1), step=1), {"on_busy": "wait"}),
    "tiny": (lambda cp: cp.write(b"tiny", step=1), {}),
    "durable": (lambda cp: cp.write(state(1), step=1, durable=True), {}),
    "lazy": (lambda cp: cp.write(state(1), step=1, lazy=True).staged.wait(), {}),
    "throttled": (lambda cp: cp.write(state(1), step=1), {"every": limpet.Every(steps=100)}),
    "result": (lambda cp: cp.write(state(1), step=1).result(), {}),
    "read": (lambda cp: cp.read(), {}),
    "wait": (lambda cp: (cp.write(state(1), step=1), cp.wait()), {}),
}


def places_of(name: str) -> int:
    call, settings = CALLS[name]
    for _ in range(2):  # CPython shows all of them only once they were traced (3.12, 3.13)
        cp = begin(**settings)
        with AtPlace(0, interrupt) as counted:
            call(cp)
        cp.close()
    return counted.passed


def interrupted_at(name: str, n: int) -> str:
    """Interrupt a call at its n-th place, and see whether all goes on; where that was, if it does not."""
    call, settings = CALLS[name]
    cp = begin(**settings)
    at = AtPlace(n, interrupt)
    try:
        with at:
            call(cp)
    except KeyboardInterrupt:
        pass
    except LimpetError:
        pass
    problem = following(cp)
    try:
        cp.close(timeout=0 if problem else CLOSE_SECONDS)  # what hangs is a daemon
    except LimpetError as error:
        problem = problem or repr(error)
    return f"{name}, place {n}, {at.where}: {problem}" if problem else ""


def following(cp: Checkpointer, told: list[str] | None = None) -> str:
    """Save and read, on another thread, since nothing may hang; what went wrong, and the kinds of what was told."""
    problems: list[str] = []

    def work() -> None:
        with cp.mutating():  # whatever became of a lazy one
            pass
        for step in (2, 3, 4):
            try:
                cp.write(state(step), step=step, pin=True)
            except LimpetError as error:  # what became of the interrupted one: told once
                if told is not None:
                    told.append(error.kind)
                if error.kind != "interrupted":
                    problems.append(repr(error))
        cp.wait()
        if check(cp.read()) != 4:
            problems.append("the last save is not the newest")
        if cp._session.pool._leased:
            problems.append("a buffer is lost")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        problems.append("a later save hangs")
    return "; ".join(problems)


def exchange_interrupted_at(n: int) -> str:
    """Interrupt a write that takes the place of one that waits: one of the two is committed, or the loss is told."""
    store = Gated(MemoryStore())
    cp = write_over(store)
    cp.write(state(0), step=0, durable=True)
    held = store.hold("put")
    cp.write(state(1), step=1)
    held.wait_until_reached()
    replaced = cp.write(state(2), step=2)
    at = AtPlace(n, interrupt)
    with contextlib.suppress(KeyboardInterrupt), at:
        cp.write(state(3), step=3)
    held.release()
    told: list[str] = []
    problem = following(cp, told)
    if not replaced._completion.wait(0 if problem else CLOSE_SECONDS):
        problem += "; the one that was replaced is never settled"
    try:
        cp.close(timeout=0 if problem else CLOSE_SECONDS)
    except LimpetError as error:
        told.append(error.kind)
    if replaced._completion.error is not None and "interrupted" not in told:
        problem += "; the one that was replaced, and accepted, is lost, and nobody told"
    return f"place {n}, {at.where}: {problem}" if problem else ""


def test_a_write_that_is_interrupted_while_it_replaces_another_loses_none_silently():
    assert [found for n in range(1, places_of("write") + 30, 7) if (found := exchange_interrupted_at(n))] == []


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_write_that_is_interrupted_at_every_place_of_an_exchange_loses_none_silently():
    assert [found for n in range(1, places_of("write") + 30) if (found := exchange_interrupted_at(n))] == []


def sweep(name: str, stride: int) -> list[str]:
    return [found for n in range(1, places_of(name) + 1, stride) if (found := interrupted_at(name, n))]


@pytest.mark.leaks(reason="an interrupt may leave a lease behind")
@pytest.mark.parametrize("name", ["write", "durable", "lazy"])
def test_a_call_that_was_interrupted_anywhere_leaves_a_run_that_works(name):
    assert sweep(name, 17) == []


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.leaks(reason="an interrupt may leave a lease behind")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_was_interrupted_at_every_place_leaves_a_run_that_works(name):
    assert sweep(name, 1) == []


def opening_interrupted_at(n: int, folder: Path, how: str) -> tuple[bool, str]:
    """Interrupt the call that opens a run; whether there was such a place, and what did not work afterwards."""
    cp = Checkpointer(folder)
    at = AtPlace(n, interrupt)
    with contextlib.suppress(KeyboardInterrupt), at:
        cp.write(state(1), step=1)
    problems: list[str] = []

    def work() -> None:
        try:
            if how == "again":
                cp.write(state(2), step=2, durable=True)
            cp.close()
            with Checkpointer(folder) as other:
                other.write(state(3), step=3, durable=True)
        except LimpetError as error:
            problems.append(repr(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        problems.append("a later call hangs")
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("limpet")]
    if left and not thread.is_alive():
        problems.append(f"threads are left: {left}")
    return at.passed >= n, f"{how}, place {n}, {at.where}: {'; '.join(problems)}" if problems else ""


def openings(folder: Path, first: int, stride: int) -> list[str]:
    found: list[str] = []
    for how in ("again", "closed"):
        n, reached = first, True
        while reached:
            reached, problem = opening_interrupted_at(n, folder / f"{how}-{n}", how)
            found += [problem] if problem else []
            n += stride
    return found


def test_an_opening_that_was_interrupted_anywhere_can_be_repeated_and_holds_no_lock(tmp_path):
    assert openings(tmp_path / "run", 5, 23) == []


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_an_opening_that_was_interrupted_at_every_place_can_be_repeated_and_holds_no_lock(tmp_path):
    assert openings(tmp_path / "run", 1, 1) == []


# A signal handler, or a finalizer, that comes back.


def reentered_at(n: int, **how: Any) -> str:
    """Write from on top of a write, at its n-th place: it goes through, or is refused, and nothing hangs."""
    cp = begin()
    outcomes: list[str] = []

    def handler() -> None:
        try:
            cp.write(state(9), step=9, **how)
            outcomes.append("written")
        except UsageError as error:
            outcomes.append(error.kind)

    at = AtPlace(n, handler)
    with at:
        cp.write(state(1), step=1)
    if at.passed < n:  # the number of places differs a little from run to run
        cp.close()
        return "not reached"
    problem = "" if outcomes in (["written"], ["reentrant"]) else f"{outcomes}"
    problem = problem or following(cp)
    cp.close(timeout=0 if problem else CLOSE_SECONDS)
    return f"place {n}, {at.where}: {problem}" if problem else outcomes[0]


def reentries(stride: int, **how: Any) -> set[str]:
    return {reentered_at(n, **how) for n in range(1, places_of("write") + 1, stride)} - {"not reached"}


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_from_a_handler_that_interrupted_a_write_goes_through_or_is_refused(durable):
    assert reentries(9, durable=durable) == {"written", "reentrant"}


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("durable", [False, True])
def test_a_write_from_a_handler_goes_through_or_is_refused_at_every_place(durable):
    assert reentries(1, durable=durable) == {"written", "reentrant"}


def in_the_copy(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Call ``what`` once, when the next state is being copied."""
    drain = staging._drain

    def interrupted_drain(pieces: Any) -> None:
        monkeypatch.setattr(staging, "_drain", drain)
        what()
        drain(pieces)

    monkeypatch.setattr(staging, "_drain", interrupted_drain)


def test_close_from_a_handler_that_interrupted_a_write_is_refused(monkeypatch):
    cp = begin()
    kinds: list[str] = []

    def handler() -> None:
        try:
            cp.close()
        except UsageError as error:
            kinds.append(error.kind)

    in_the_copy(monkeypatch, handler)
    cp.write(state(1), step=1)
    assert kinds == ["reentrant"]
    cp.close()
    assert cp.latest.step == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_accepted_save_outlives_the_interruption_of_the_write_that_replaces_it(monkeypatch, interruption):
    """It had given up its place: so the copy is finished first, also if a handler ends the program."""
    store = Gated(MemoryStore())
    cp = write_over(store)
    cp.write(state(0), step=0, durable=True)
    held = store.hold("put")
    cp.write(state(1), step=1)
    held.wait_until_reached()
    replaced = cp.write(state(2), step=2)

    def interrupting() -> None:
        raise interruption

    in_the_copy(monkeypatch, interrupting)
    with pytest.raises(interruption):
        cp.write(state(3), step=3)
    held.release()
    assert replaced.result().durable_step == 3
    assert check(cp.read()) == 3
    cp.close()


def test_an_interrupt_in_the_exchange_itself_is_delivered_after_it():
    store = Gated(MemoryStore())
    cp = write_over(store)
    cp.write(state(0), step=0, durable=True)
    held = store.hold("put")
    cp.write(state(1), step=1)
    held.wait_until_reached()
    replaced = cp.write(state(2), step=2)
    queue = cp._session.queue
    join = queue._join

    def interrupted_join(save: Any) -> None:
        del queue._join
        join(save)
        raise KeyboardInterrupt

    queue._join = interrupted_join
    with pytest.raises(KeyboardInterrupt):
        cp.write(state(3), step=3)
    held.release()
    assert replaced.result().durable_step == 3
    cp.close()
