"""``write(lazy=True)``: what it may still read after the call, who waits for it, and what ends it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_saves import cancel_when
from tests.support import (
    PATIENCE_SECONDS,
    Gated,
    HeldPieces,
    checkpointer_over,
    down,
    noise,
    run_async,  # noqa: F401 - a fixture
    run_script,
)

import limpet
from limpet import Every, StoreError, UsageError
from limpet.engine import checking, cutting, lazy
from limpet.engine.lazy import Copying, Crew
from limpet.engine.save import Save
from limpet.pending import PendingWrite
from limpet.stores.memory import MemoryStore
from limpet.workers import Workers

BIG = 1 << 20
PIECES = 16


@pytest.fixture
def pieces(monkeypatch):
    """Lazy copies of ``BIG`` bytes in ``PIECES`` pieces, held one by one."""
    held = HeldPieces(monkeypatch, BIG // PIECES)
    yield held
    held.let_go()


def in_thread(function, *args):
    """Start ``function(*args)``; calling what is returned waits for it, and gives its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()

    def result():
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        return results[0]

    result.running = thread.is_alive
    return result


def raises(kind, function):
    with pytest.raises(kind):
        function()


def mutated(cp, state, body=lambda: None):
    with cp.mutating():
        state[:] = 0
        body()


# The copy


def test_a_lazy_write_returns_before_the_state_is_copied(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        state = noise(1, BIG)
        pending = cp.write(state, step=1, lazy=True)
        assert not pending.staged.done()
        assert repr(pending) == "<PendingWrite step=1, staging>"
        with pytest.raises(TimeoutError):
            pending.staged.wait(0.01)
        pieces.let_go()
        pending.staged.wait(PATIENCE_SECONDS)
        state[:] = 0
        pending.result(PATIENCE_SECONDS)
        assert np.array_equal(cp.read(), noise(1, BIG))


def test_small_leaves_are_copied_in_the_call(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        state = {"weights": noise(1, BIG), "mean": noise(2, 100_000), "note": bytearray(b"then"), "step": [1]}
        cp.write(state, lazy=True)
        state["mean"][:] = 0
        state["note"][:] = b"now!"
        state["step"][0] = 2
        pieces.let_go()
        cp.wait()
        found = cp.read()
        assert np.array_equal(found["mean"], noise(2, 100_000))
        assert (found["note"], found["step"]) == (b"then", [1])


def test_a_lazy_write_of_what_cannot_change_is_staged_in_the_call():
    with checkpointer_over(MemoryStore()) as cp:
        assert cp.write(bytes(BIG), lazy=True).staged.done()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1 << 18, dtype=np.float32).reshape(8, -1)[:, ::2],
        np.asfortranarray(np.arange(1 << 17, dtype=np.float64).reshape(16, -1)),
        np.arange(1 << 18, dtype=np.float32).reshape(1, 4, 2, -1)[..., ::-1],
        np.arange(1 << 17).astype("M8[s]").reshape(4, -1).T,
        np.zeros((2, 3), dtype="V300000"),
    ],
    ids=["columns", "fortran", "reversed", "transposed times", "huge items"],
)
def test_arrays_of_every_layout_are_cut_and_come_back_equal(array, pieces):
    pieces.let_go()
    with checkpointer_over(MemoryStore()) as cp:
        cp.write(array, lazy=True, step=1)
        cp.write(array, step=2)
        cp.wait()
        assert pieces.copied > 1
        assert all(np.array_equal(cp.read(at=info), array) for info in cp.checkpoints())


def test_whoever_waits_has_the_copy_go_on_other_threads_too(pieces, monkeypatch):
    names = set()
    copy = lazy.copy_piece

    def noting(target, source):
        names.add(threading.current_thread().name.rpartition("-")[0])
        copy(target, source)

    monkeypatch.setattr(lazy, "copy_piece", noting)
    with checkpointer_over(MemoryStore()) as cp:
        pending = cp.write(noise(1, BIG), lazy=True)
        pieces.wait_until_held()
        waiting = in_thread(pending.staged.wait)
        while len(names) < 2:
            time.sleep(0.001)
        assert names == {"limpet-lazy", "limpet-copy"}
        pieces.let_go()
        waiting()


@given(
    piece_counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    stops=st.lists(st.sampled_from(["pause", "hurry", "resume", "end"]), max_size=8),
)
@settings(max_examples=40)
def test_however_it_is_paused_and_joined_each_piece_is_copied_once_or_it_is_given_up(piece_counts, stops):
    """And nothing is written while it is paused, nor once it has ended."""
    helpers = Workers(2, "limpet-copy")
    crew = Crew(helpers)
    sources = [np.arange(count, dtype=np.uint8) + 1 for count in piece_counts]
    targets = [np.zeros_like(source) for source in sources]
    finished, released = [], []
    ready = threading.Event()

    def finish(error):
        finished.append(error)
        ready.set()

    pieces = [
        (target[i : i + 1], source[i : i + 1])
        for target, source in zip(targets, sources, strict=True)
        for i in range(len(source))
    ]
    copying = Copying(pieces, crew, None, lambda: released.append(True))
    copying.then(finish)
    copying.begin()
    for stop in stops:
        if getattr(copying, stop)() and stop != "hurry":
            before = [target.copy() for target in targets]
            time.sleep(0)
            assert all(np.array_equal(*pair) for pair in zip(before, targets, strict=True))
    copying.resume()
    assert released or ready.wait(PATIENCE_SECONDS)
    crew.close()
    helpers.close()
    assert (finished, released) in (([None], []), ([], [True]))
    if finished:
        assert all(np.array_equal(*pair) for pair in zip(targets, sources, strict=True))


# Who waits


def test_mutating_waits_for_what_is_still_to_copy(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        state = noise(1, BIG)
        cp.write(state, lazy=True)
        changing = in_thread(mutated, cp, state)
        pieces.let_go_and_wait(PIECES - 2)
        assert changing.running()
        assert state.any()
        pieces.let_go()
        changing()
        cp.wait()
        assert np.array_equal(cp.read(), noise(1, BIG))


def test_mutating_waits_in_coroutines_without_stalling_them(pieces, run_async):  # noqa: F811
    async def main():
        async with checkpointer_over(MemoryStore()) as cp:
            state = noise(1, BIG)
            await cp.write_async(state, lazy=True)
            with anyio.move_on_after(0.02) as scope:
                async with cp.mutating():
                    raise AssertionError("the state is not copied yet")
            assert scope.cancelled_caught
            pieces.let_go()
            async with cp.mutating():
                state[:] = 0
            await cp.wait_async()
            assert np.array_equal(await cp.read_async(), noise(1, BIG))

    run_async(main)


def test_a_lazy_write_inside_mutating_is_refused_and_others_are_not():
    with checkpointer_over(MemoryStore()) as cp:
        with cp.mutating():
            with pytest.raises(UsageError, match="mutating"):
                cp.write(noise(1, BIG), lazy=True)
            cp.write(noise(1, BIG), step=1)
            with pytest.raises(UsageError, match="mutating"), cp.mutating():
                cp.write(b"", lazy=True)
        cp.write(noise(2, BIG), lazy=True, step=2)
        cp.wait()
        assert cp.latest.step == 2


def test_an_exception_in_the_block_ends_it():
    with checkpointer_over(MemoryStore()) as cp:
        with pytest.raises(KeyError), cp.mutating():
            raise KeyError
        cp.write(noise(1, BIG), lazy=True)


def test_mutating_waits_for_the_saves_of_children_and_refuses_theirs_too(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        child = cp.child("ema")
        state = noise(1, BIG)
        child.write(state, lazy=True)
        changing = in_thread(mutated, cp, state)
        pieces.wait_until_held()
        assert changing.running()
        pieces.let_go()
        changing()
        with cp.mutating(), pytest.raises(UsageError, match="mutating"):
            child.write(state, lazy=True)


def test_mutating_of_a_child_leaves_its_parent_and_its_siblings_alone(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        cp.write(noise(1, BIG), lazy=True)
        cp.child("one").write(noise(2, BIG), lazy=True)
        with cp.child("other").mutating():
            third = cp.write(noise(3, BIG), lazy=True)
        assert not third.staged.done()
        pieces.let_go()


def test_a_read_into_live_arrays_waits_for_the_copy_of_them(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        cp.write(noise(0, BIG), durable=True)
        state = noise(1, BIG)
        pending = cp.write(state, step=1, lazy=True)
        reading = in_thread(lambda: cp.read(at=cp.checkpoints()[0], into=state))
        pieces.wait_until_held()
        assert np.array_equal(state, noise(1, BIG))
        pieces.let_go()
        reading()
        assert np.array_equal(state, noise(0, BIG))
        pending.result()
        assert np.array_equal(cp.read(), noise(1, BIG))


# check=True


def test_a_change_before_the_state_was_staged_is_found_however_fast_the_copy_was():
    with checkpointer_over(MemoryStore(), check=True) as cp:
        state = {"model": {"layer 1": noise(1, BIG), "same": noise(2, BIG)}}
        pending = cp.write(state, lazy=True)
        state["model"]["layer 1"][7] ^= 1
        with pytest.warns(RuntimeWarning, match="layer 1"), pytest.raises(UsageError) as raised:
            pending.staged.wait(PATIENCE_SECONDS)
        assert raised.value.kind == "changed_early"
        assert 'before it was staged: model."layer 1".' in str(raised.value)
        with pytest.raises(UsageError, match="layer 1"):
            pending.result(PATIENCE_SECONDS)
        assert "same" not in str(raised.value)
        assert cp.read() is None


def test_a_copy_that_caught_the_change_is_found_although_the_state_is_as_it_was_again(pieces):
    with checkpointer_over(MemoryStore(), check=True) as cp:
        state = noise(1, BIG)
        pending = cp.write({"array": state[::2], "state": state}, lazy=True)
        state[-1] ^= 1
        pieces.let_go()
        while not pending._hurry or pieces.copied < 3 * PIECES // 2:
            time.sleep(0.001)
        state[-1] ^= 1
        with pytest.warns(RuntimeWarning, match="state"), pytest.raises(UsageError, match="state"):
            pending.result(PATIENCE_SECONDS)


def test_a_state_that_is_left_alone_passes_the_check():
    with checkpointer_over(MemoryStore(), check=True) as cp:
        state = {"model": noise(1, BIG), "odd": np.ones((600, 600))[:, ::2]}
        cp.write(state, lazy=True, step=1)
        with cp.mutating():
            state["model"][:] = 0
        cp.write(state, step=2)
        assert cp.write(state, lazy=True, step=3).result(PATIENCE_SECONDS).outcome == "committed"


def test_a_save_that_nobody_asks_about_is_checked_and_committed_all_the_same():
    committed = threading.Event()
    with checkpointer_over(
        MemoryStore(), check=True, hooks=[lambda event: committed.set() if type(event) is limpet.Committed else None]
    ) as cp:
        cp.write(noise(1, BIG), lazy=True)
        assert committed.wait(PATIENCE_SECONDS)


# Several saves


def test_lazy_writes_one_after_another_return_at_once_and_are_committed_in_order(pieces):
    with checkpointer_over(MemoryStore(), buffers=4, on_busy="wait", retain=limpet.Last(9)) as cp:
        writes = [cp.write(noise(step, BIG), step=step, lazy=step != 2) for step in range(3)]
        assert [write.staged.done() for write in writes] == [False, False, True]
        pieces.let_go()
        assert sorted(write.result().seq for write in writes) == [write.result().seq for write in writes]
        for step in range(3):
            assert np.array_equal(cp.read(at=step), noise(step, BIG))


def wait_until_stopping(cp):
    """Block until somebody waits for the present piece of a copy to be its last."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(save.copying and save.copying._paused for save in list(cp._open_session.queue._staging)):
        assert time.monotonic() < deadline, "nobody stops it"
        time.sleep(0.001)


def superseded(cp, pieces, held, **how):
    """A lazy save in the middle of its copy, while the other buffer is being written; then another one."""
    held.wait_until_reached()
    state = noise(1, BIG)
    older = cp.write(state, step=1, lazy=True)
    pieces.let_go_and_wait(5)
    newer = in_thread(lambda: cp.write(noise(2, BIG), step=2, **how))
    wait_until_stopping(cp)
    pieces.let_go(1)  # the piece that is being copied
    older.staged.wait(PATIENCE_SECONDS)
    return older, newer(), state


@pytest.mark.parametrize("how", [{}, {"lazy": True}], ids=["eager", "lazy"])
def test_a_superseded_lazy_save_stops_at_the_next_piece(how, pieces):
    store = Gated()
    with checkpointer_over(store) as cp:
        held = store.hold("put")
        cp.write(noise(0, BIG), step=0)
        older, newer, state = superseded(cp, pieces, held, **how)
        copied = pieces.copied
        state[:] = 0
        pieces.let_go()
        held.release()
        assert copied == 6
        assert newer.result().outcome == "committed"
        assert (older.result().outcome, older.result().durable_step) == ("superseded", 2)
        assert pieces.copied in (6, 6 + PIECES)
        assert np.array_equal(cp.read(), noise(2, BIG))


@pytest.mark.parametrize("copied", [5, 2 * PIECES - 1], ids=["in the middle", "at the last piece"])
def test_a_lazy_save_goes_on_if_the_newer_one_does_not_fit_in_its_place(copied, pieces):
    store = Gated()
    with checkpointer_over(store, memory_limit=12 << 20) as cp:
        held = store.hold("put")
        cp.write(noise(0, 2 << 20), step=0)
        held.wait_until_reached()
        older = cp.write(noise(1, 2 << 20), step=1, lazy=True)
        pieces.let_go_and_wait(copied)
        newer = in_thread(lambda: cp.write(noise(2, 11 << 20), step=2))
        wait_until_stopping(cp)
        pieces.let_go()
        older.staged.wait(PATIENCE_SECONDS)
        assert pieces.copied == 2 * PIECES
        held.release()
        newer().result()
        assert np.array_equal(cp.read(), noise(2, 11 << 20))


def test_with_one_buffer_a_lazy_copy_is_not_superseded_in_the_middle_so_that_something_gets_written(pieces):
    with checkpointer_over(MemoryStore(), buffers=1) as cp:
        older = cp.write(noise(1, BIG), step=1, lazy=True)
        pieces.let_go_and_wait(5)
        newer = in_thread(lambda: cp.write(noise(2, BIG), step=2, lazy=True))
        pieces.let_go()
        newer().result()
        assert older.done()
        assert pieces.copied == 2 * PIECES


def test_a_write_that_is_cancelled_while_it_waits_for_the_buffer_of_a_lazy_one_was_never_accepted(pieces, run_async):  # noqa: F811
    """S5."""

    async def main():
        async with checkpointer_over(MemoryStore(), buffers=1) as cp:
            await cp.write_async(noise(1, BIG), step=1, lazy=True)
            assert await cancel_when(anyio.lowlevel.checkpoint, cp.write_async, b"second")
            pieces.let_go()
            await cp.wait_async()
            assert [info.step for info in await cp.checkpoints_async()] == [1]

    run_async(main)


# What ends it


def test_a_copy_that_fails_fails_its_save_and_lets_the_state_go(pieces, monkeypatch):
    def torn(_target, _source):
        raise MemoryError("no room")

    monkeypatch.setattr(lazy, "copy_piece", torn)
    with checkpointer_over(MemoryStore()) as cp:
        pending = cp.write(noise(1, BIG), lazy=True)
        with cp.mutating():  # not its to tell
            pass
        for wait in (pending.staged.wait, pending.result):
            with pytest.raises(MemoryError, match="no room"):
                wait(PATIENCE_SECONDS)
        cp.write(b"good", durable=True)


def test_a_fenced_writer_lets_the_state_go(pieces):
    store = MemoryStore()
    cp = checkpointer_over(store)
    cp.write(b"mine", durable=True)
    pending = cp.write(noise(1, BIG), lazy=True)
    pieces.wait_until_held()
    with checkpointer_over(store, takeover=True) as successor:
        successor.write(b"theirs", durable=True)
        pinning = in_thread(raises, limpet.FencedError, lambda: cp.pin(cp.latest))
        wait_until_stopping(cp)
        pieces.let_go(1)
        pinning()
        pending.staged.wait(PATIENCE_SECONDS)
        with cp.mutating():
            pass
        with pytest.raises(limpet.FencedError):
            pending.result()
    cp.close()


def test_close_waits_for_a_lazy_write_and_has_it_hurry(pieces):
    store = MemoryStore()
    with checkpointer_over(store) as cp:
        pending = cp.write(noise(1, BIG), lazy=True)
        closing = in_thread(cp.close)
        pieces.let_go()
        closing()
        assert pending.result().outcome == "committed"


def test_a_close_that_gives_up_lets_the_state_go(pieces):
    cp = checkpointer_over(MemoryStore())
    pending = cp.write(noise(1, BIG), step=7, lazy=True)
    pieces.wait_until_held()
    closing = in_thread(raises, StoreError, lambda: cp.close(timeout=0.05))
    wait_until_stopping(cp)
    pieces.let_go(1)
    pending.staged.wait(PATIENCE_SECONDS)
    with cp.mutating():
        pass
    with pytest.raises(StoreError, match="deadline"):
        pending.result()
    pieces.let_go()
    closing()


def test_an_exception_in_the_loop_does_not_cost_a_lazy_save(pieces):
    store = MemoryStore()
    with pytest.raises(KeyError), checkpointer_over(store) as cp:
        cp.write(noise(1, BIG), lazy=True)
        threading.Timer(0.01, pieces.let_go).start()
        raise KeyError
    with checkpointer_over(store) as cp:
        assert np.array_equal(cp.read(), noise(1, BIG))


def test_an_interrupt_while_it_is_waited_for_leaves_the_copy_alone(pieces, monkeypatch):
    with checkpointer_over(MemoryStore()) as cp:
        pending = cp.write(noise(1, BIG), lazy=True)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            raise_in_wait(patched)
            with cp.mutating():
                raise AssertionError("never entered")
        pieces.let_go()
        assert pending.result().outcome == "committed"
        cp.write(noise(2, BIG), lazy=True)  # the block that was not entered holds off nobody


def raise_in_wait(patched):
    """The next wait of an operation is interrupted from the keyboard."""

    def interrupted(_self, _timeout_seconds=None):
        patched.undo()
        raise KeyboardInterrupt

    patched.setattr(limpet.pending.Completion, "wait", interrupted)


@pytest.mark.crash
def test_a_script_that_ends_during_a_lazy_copy_commits_it(tmp_path):
    """S6."""
    ended = run_script(
        """
        import numpy as np
        from limpet import Checkpointer
        cp = Checkpointer(sys.argv[1])
        cp.write(np.arange(1 << 24), step=5, lazy=True)
        """,
        tmp_path / "run",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with limpet.open(tmp_path / "run") as run:
        assert np.array_equal(run.read(), np.arange(1 << 24))


# Together with the other settings


def test_lazy_and_durable_contradict_each_other():
    with checkpointer_over(MemoryStore()) as cp, pytest.raises(UsageError, match="lazy"):
        cp.write(b"", lazy=True, durable=True)


def test_a_throttled_lazy_write_is_staged_at_once(pieces):
    with checkpointer_over(MemoryStore(), every=Every(steps=10)) as cp:
        first = cp.write(noise(0, BIG), step=0, lazy=True)
        second = cp.write(noise(1, BIG), step=1, lazy=True)
        assert second.result().outcome == "skipped"
        assert second.staged.done()
        pieces.let_go()
        first.result()


def test_a_lazy_write_that_is_refused_holds_off_nobody():
    with checkpointer_over(MemoryStore()) as cp:
        with pytest.raises(limpet.UnsupportedLeafError):
            cp.write(object(), lazy=True)
        with cp.mutating():
            pass


def test_a_lazy_save_that_fails_later_is_raised_by_the_next_write(pieces):
    store = Gated()
    with checkpointer_over(store) as cp:
        store.fail("put", down())
        cp.write(noise(1, BIG), lazy=True)
        pieces.let_go()
        with cp.mutating():
            pass
        while not cp._open_session.queue.idle():
            time.sleep(0.001)
        with pytest.raises(StoreError, match="down"):
            cp.write(b"next")


def test_the_call_is_all_that_a_lazy_save_held_its_caller_up_for(pieces):
    with checkpointer_over(MemoryStore()) as cp:
        pending = cp.write(noise(1, BIG), lazy=True)
        pieces.wait_until_held()
        time.sleep(0.05)
        pieces.let_go()
        receipt = pending.result()
        assert receipt.stalled_seconds < 0.05 <= receipt.staged_seconds


def test_pieces_are_cut_along_the_axes_until_they_are_small(monkeypatch):
    monkeypatch.setattr(cutting, "_PIECE_BYTES", 20_000)
    target = np.zeros((2, 5, 1000))
    cut = [piece.shape for piece, _ in cutting.cut(target, target)]
    assert cut == [(2, 1000), (2, 1000), (1, 1000)] * 2


def test_a_check_of_leaves_that_were_copied_in_the_call_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(checking, "_WAIT_SECONDS", 10 * PATIENCE_SECONDS)
    with checkpointer_over(MemoryStore(), check=True) as cp:
        pending = cp.write({"small": np.ones(3)}, step=1, lazy=True)
        assert pending.staged.done()


def test_a_check_that_fails_itself_ends_the_save(monkeypatch):
    def fails(*_):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(checking.ChangedTooEarly, "_error", fails)
    with checkpointer_over(MemoryStore(), check=True) as cp:
        pending = cp.write({"big": noise(1, BIG)}, step=1, lazy=True)
        with pytest.raises(MemoryError, match="no room for a copy"):
            pending.result(PATIENCE_SECONDS)


def test_a_copy_that_its_caller_took_over_is_not_taken_for_one_that_may_be_replaced():
    with checkpointer_over(MemoryStore()) as cp:
        cp.write({"first": 0}, durable=True)
        queue = cp._open_session.queue
        save = Save(PendingWrite(1))
        save.copying = SimpleNamespace(pause=lambda: True)
        assert not queue.take_copy(save)  # it was replaced: it is not among those that are staged
        queue._staging.append(save)
        assert queue._replaceable() == [save]
        assert queue.take_copy(save)
        assert queue._replaceable() == []
        queue._staging.remove(save)
