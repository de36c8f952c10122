"""States larger than ``memory_limit=``: written segment by segment, and whole or not at all, whatever comes when.

``MIB``-sized limits are real ones: the window has two halves of 8 MiB, and the state of most tests five segments.
"""

import asyncio
import functools
import gc
import signal
import subprocess
import sys
import threading
import time

import anyio
import numpy as np
import pytest
from tests.support import PATIENCE_SECONDS, Gated, checkpointer_over, down, noise

from limpet import Checkpointer, FencedError, Files, Last, StoreError, UsageError
from limpet.engine import cutting, staging
from limpet.engine.memory import MemoryBudget
from limpet.engine.slots import SlotPool
from limpet.engine.staging import Copier
from limpet.engine.timing import Timing
from limpet.pending import Completion

MIB = 1 << 20
LIMIT = 16 * MIB
SEGMENTS = 5
EVERY_SEGMENT = pytest.mark.parametrize(
    "segment", [pytest.param(n, marks=[pytest.mark.heavy] if n in (1, 3, 4) else []) for n in range(SEGMENTS)]
)


def large(seed=0, nbytes=40 * MIB):
    return _some(nbytes) + np.uint8(seed)


@functools.cache
def _some(nbytes):
    return noise(0, nbytes)


def streaming(store, **settings):
    return checkpointer_over(
        store, **{"memory_limit": LIMIT, "compression": "off", "retain": Last(100), "on_busy": "wait"} | settings
    )


def steps(cp):
    return [info.step for info in cp.checkpoints()]


def packs(store):
    return [key for key in asyncio.run(_keys(store)) if key.endswith(".pack")]


async def _keys(store):
    return [entry.key for entry in await store.list("data/")]


def hold_pack(store, segment):
    """Hold the put of the pack with this segment."""
    return store.hold("put", match=f"-{segment:03}.pack", times=1)


def in_thread(function):
    results = []

    def run():
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(PATIENCE_SECONDS)
        assert results, "it goes on"
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    return result


def assert_usable(cp, store):
    """Everything was given back: a large state goes through, and nothing that was broken off is left."""
    assert cp.write(large(9), step=9).result(PATIENCE_SECONDS).outcome == "committed"
    assert np.array_equal(cp.read(), large(9))
    cp.sweep()
    assert len(packs(store)) == SEGMENTS
    assert cp._session.threads.budget._leased_bytes == 0


def interrupt_when(reached):
    """A KeyboardInterrupt in this, the main thread, once ``reached()`` has returned."""

    def strike():
        reached()
        time.sleep(0.02)  # the call is in its wait by then, or a little before it: both must do
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


# It goes through


def test_a_state_larger_than_the_limit_is_written_within_it():
    store = Gated()
    with streaming(store) as cp:
        receipt = cp.write(large(), step=1).result(PATIENCE_SECONDS)
        assert (receipt.outcome, receipt.raw_bytes) == ("committed", 40 * MIB)
        assert np.array_equal(cp.read(), large())
        assert len(packs(store)) == SEGMENTS


def test_a_coroutine_writes_one_too_and_its_loop_goes_on(run_async):
    store = Gated()

    async def main():
        async with streaming(store) as cp:
            await cp.write_async(b"", durable=True)
            held = hold_pack(store, 2)
            turns = 0
            async with anyio.create_task_group() as group:

                async def write():
                    pending = await cp.write_async(large(), step=1)
                    assert pending.staged.done()
                    assert (await pending).outcome == "committed"

                group.start_soon(write)
                await held.reached()
                for _ in range(10):
                    await anyio.sleep(0)
                    turns += 1
                held.release()
            assert turns == 10
            assert np.array_equal(await cp.read_async(), large())

    run_async(main)


def test_write_returns_when_the_rest_is_in_the_window():
    store = Gated()
    with streaming(store) as cp:
        cp.write(b"", durable=True)
        held = [hold_pack(store, SEGMENTS - 3), hold_pack(store, SEGMENTS - 2)]
        written = in_thread(lambda: cp.write(large(), step=1))
        held[0].wait_until_reached()
        assert cp._session.queue._active[0].handle.phase == "writing"
        assert not cp._session.queue._active[0].handle.staged.done()
        held[0].release()
        pending = written()
        assert not pending.done()
        held[1].release()
        assert pending.result(PATIENCE_SECONDS).staged_seconds > 0


def test_the_state_may_be_changed_once_write_has_returned():
    store = Gated()
    with streaming(store) as cp:
        state = large()
        pending = cp.write(state)
        state[:] = 0
        pending.result(PATIENCE_SECONDS)
        assert np.array_equal(cp.read(), large())


@pytest.mark.parametrize("how", [{"durable": True}, {"pin": True}, {"lazy": True}])
def test_durable_pinned_and_lazy_saves_are_streamed_too(how):
    with streaming(Gated(), retain=Last(1)) as cp:
        pending = cp.write(large(1), step=1, **how)
        pending.staged.wait(PATIENCE_SECONDS)
        pending.result(PATIENCE_SECONDS)
        for step in (2, 3):
            cp.write(large(step), step=step).result(PATIENCE_SECONDS)
        assert steps(cp) == ([1, 3] if "pin" in how else [3])
        assert np.array_equal(cp.read(), large(3))


def test_arrays_in_any_order_and_small_leaves_and_files_come_back_bit_for_bit(tmp_path):
    (tmp_path / "file").write_bytes(large(2, 6 * MIB).tobytes())
    rng = np.random.default_rng(0)
    state = {
        "strided": rng.random((3001, 700, 3))[::2, :, ::2],
        "fortran": np.asfortranarray(rng.random((1000, 1001))),
        "items of 5 bytes": np.frombuffer(large(3, 10 * MIB).tobytes(), "V5")[::2],
        "small": [rng.random(n) for n in range(300)],
        "immutable": large(4, 20 * MIB).tobytes(),
        "file": Files(tmp_path / "file"),
    }
    with streaming(Gated()) as cp:
        cp.write(state, step=1).result(PATIENCE_SECONDS)
        found = cp.read()
        for name in ("strided", "fortran", "items of 5 bytes", "immutable"):
            assert np.asarray(found[name]).tobytes() == np.asarray(state[name]).tobytes()
        assert all(map(np.array_equal, found["small"], state["small"]))
        found["file"].restore(tmp_path / "again")
    assert (tmp_path / "again" / "file").read_bytes() == (tmp_path / "file").read_bytes()


def test_what_nobody_can_change_needs_no_window():
    with streaming(Gated(), memory_limit=MIB) as cp:
        state = {"still": large(1, 30 * MIB).tobytes(), "step": 1}
        assert cp.write(state).result(PATIENCE_SECONDS).raw_bytes >= 30 * MIB
        assert cp.read() == state


def test_what_is_known_already_makes_no_pack():
    store = Gated()
    with streaming(store) as cp:
        state = large()
        cp.write(state, durable=True)
        before = set(packs(store))
        state[-1] += 1
        receipt = cp.write(state, durable=True)
        assert receipt.result().new_bytes < 5 * MIB
        assert len(set(packs(store)) - before) == 1
        assert np.array_equal(cp.read(), state)


def test_what_was_streamed_is_no_base_of_differences_and_has_none():
    store = Gated()
    state = np.ones(10 * MIB, np.float32)
    with streaming(store, compression="auto", delta=True) as cp:
        for step in range(2):
            state += np.float32(1e-7)
            cp.write(state, step=step, durable=True)
        assert cp._session.writer._last.differences({}) is None
        assert np.array_equal(cp.read(), state)


def test_the_memory_of_a_window_is_not_taken_for_small_saves_which_would_leave_none_for_others():
    pool = SlotPool(3, MemoryBudget(LIMIT))
    pool.try_lease(LIMIT).release()
    small = [pool.try_lease(LIMIT // 4) for _ in range(3)]
    assert all(lease is not None for lease in small)
    pool.close()


def test_prewarm_makes_the_window():
    with streaming(Gated()) as cp:
        cp.prewarm(large())
        assert [slot.nbytes for slot in cp._session.pool._free] == [LIMIT]


# It does not fit


def test_a_limit_that_is_too_small_is_refused_with_the_least_that_would_do():
    with streaming(Gated(), memory_limit=15 * MIB) as cp:
        with pytest.raises(UsageError, match=f"{16 * MIB} bytes or more") as caught:
            cp.write(large())
        assert caught.value.kind == "memory_limit"
        with pytest.raises(UsageError, match=f"{15 * MIB + 1} bytes or more"):
            cp.write(large(0, 15 * MIB + 1))
        cp.write(large(0, 15 * MIB), durable=True)


def test_without_a_limit_of_its_own_a_state_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("limpet.threads.default_limit_bytes", lambda: 20 * MIB)
    with streaming(Gated(), memory_limit=None) as cp, pytest.raises(UsageError, match="memory_limit"):
        cp.write(large())


# Faults at every segment


@EVERY_SEGMENT
def test_a_pack_that_fails_is_written_again_and_the_state_is_whole(segment):
    store = Torn(segment, down(transient=True))
    with streaming(store) as cp:
        cp.write(large(), step=1).result(PATIENCE_SECONDS)
        assert store.torn == [segment]
        assert np.array_equal(cp.read(), large())


@EVERY_SEGMENT
@pytest.mark.parametrize("lazy", [False, True])
def test_a_store_that_fails_ends_the_save_and_nothing_of_it_is_visible(segment, lazy):
    store = Torn(segment, down())
    with streaming(store) as cp:
        cp.write(b"before", step=0, durable=True)
        pending = cp.write(large(), step=1, lazy=lazy)
        with pytest.raises(StoreError, match="the store is down"):
            pending.result(PATIENCE_SECONDS)
        assert pending.staged.done()
        assert steps(cp) == [0]
        assert_usable(cp, store)


@EVERY_SEGMENT
def test_a_durable_write_raises_what_the_store_failed_with(segment):
    with streaming(Torn(segment, down())) as cp:
        with pytest.raises(StoreError, match="the store is down"):
            cp.write(large(), durable=True)
        cp.write(b"", durable=True)


@EVERY_SEGMENT
def test_an_interrupt_from_the_keyboard_gives_the_save_up(segment):
    store = Gated()
    with streaming(store) as cp:
        cp.write(b"before", step=0, durable=True)
        held = hold_pack(store, min(segment, SEGMENTS - 2))
        strike = interrupt_when(held.wait_until_reached)
        with pytest.raises(KeyboardInterrupt):
            cp.write(large(), step=1)
            time.sleep(PATIENCE_SECONDS)
        strike.join()
        held.release()
        cp.wait()
        assert steps(cp) in ([0], [0, 1])
        assert segment >= SEGMENTS - 2 or steps(cp) == [0]
        if steps(cp) == [0]:
            assert_usable(cp, store)


def test_a_second_interrupt_while_the_save_is_given_up_changes_nothing(monkeypatch):
    settle = Completion.set_result
    strikes = [KeyboardInterrupt]

    def struck(self, result):
        if strikes and sys._getframe(1).f_code.co_name == "wake_both":
            raise strikes.pop()
        return settle(self, result)

    store = Gated()
    with streaming(store) as cp:
        cp.write(b"before", step=0, durable=True)
        held = hold_pack(store, 1)
        monkeypatch.setattr(Completion, "set_result", struck)
        strike = interrupt_when(held.wait_until_reached)
        with pytest.raises(KeyboardInterrupt):
            cp.write(large(), step=1)
        strike.join()
        held.release()
        assert not strikes
        assert_usable(cp, store)
        assert steps(cp)[0] == 0


@EVERY_SEGMENT
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_copy_that_fails_gives_the_save_up(segment, error, monkeypatch):
    store = Gated()
    with streaming(store) as cp:
        cp.write(b"before", step=0, durable=True)
        with monkeypatch.context() as patch:
            fail_copy(patch, segment, error)
            with pytest.raises(error):
                cp.write(large(), step=1)
        cp.wait()
        assert steps(cp) == [0]
        assert_usable(cp, store)


@EVERY_SEGMENT
def test_a_lazy_copy_that_fails_fails_the_save(segment, monkeypatch):
    with streaming(Gated()) as cp:
        cp.write(b"before", step=0, durable=True)
        fail_copy(monkeypatch, segment, MemoryError)
        pending = cp.write(large(), step=1, lazy=True)
        with pytest.raises(MemoryError):
            pending.result(PATIENCE_SECONDS)
        with pytest.raises(MemoryError):
            pending.staged.wait(PATIENCE_SECONDS)
        assert steps(cp) == [0]


@EVERY_SEGMENT
def test_a_coroutine_that_is_cancelled_gives_the_save_up(segment, run_async):
    store = Gated()

    async def main():
        async with streaming(store) as cp:
            await cp.write_async(b"before", step=0, durable=True)
            held = hold_pack(store, min(segment, SEGMENTS - 2))
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def cancel():
                        await held.reached()
                        await anyio.sleep(0.02)
                        scope.cancel()

                    group.start_soon(cancel)
                    await cp.write_async(large(), step=1)
                    await anyio.sleep_forever()
            held.release()
            await cp.wait_async()
            found = [info.step for info in await cp.checkpoints_async()]
            assert found in ([0], [0, 1])
            assert segment >= SEGMENTS - 2 or found == [0]
            if found == [0]:
                await (await cp.write_async(large(9), step=9))
                assert np.array_equal(await cp.read_async(), large(9))

    run_async(main)


@EVERY_SEGMENT
@pytest.mark.parametrize("lazy", [False, True])
def test_a_close_that_cannot_wait_ends_the_call(segment, lazy):
    store = Gated()
    cp = streaming(store)
    cp.write(b"before", step=0, durable=True)
    held = hold_pack(store, segment)
    written = in_thread(lambda: cp.write(large(), step=1, lazy=lazy))
    held.wait_until_reached()
    with pytest.raises(StoreError, match="not committed"):
        cp.close(timeout=0.05)
    pending = written()
    with pytest.raises(StoreError, match=r"deadline of close\(\)"):
        pending.result(PATIENCE_SECONDS)
    held.release()
    with streaming(store) as cp:
        assert steps(cp) == [0]


@EVERY_SEGMENT
def test_a_writer_that_was_fenced_meanwhile_commits_nothing(segment):
    store = Gated()
    cp = streaming(store, takeover=True)
    cp.write(b"before", step=0, durable=True)
    held = hold_pack(store, segment)
    written = in_thread(lambda: cp.write(large(), step=1, lazy=True))
    held.wait_until_reached()
    with streaming(store, takeover=True) as newer:
        newer.write(b"newer", step=2, durable=True)
        held.release()
        pending = written()
        with pytest.raises(FencedError):
            pending.result(PATIENCE_SECONDS)
        assert steps(newer) == [0, 2]
    cp.close()


def test_once_the_save_has_ended_nothing_is_read_from_the_state(monkeypatch):
    """A copy that is under way while the store fails stops before ``staged`` settles."""
    store = Torn(0, down())
    copying, ended = threading.Event(), threading.Event()
    copy_piece, late, copied = staging.copy_piece, [], []
    monkeypatch.setattr(cutting, "_PIECE_BYTES", 64 << 10)

    def slowly(target, source):
        copied.append(target.nbytes)
        if len(copied) > 8 * MIB // cutting._PIECE_BYTES:  # in the second segment
            copying.set()
            late.append(ended.is_set())
            time.sleep(0.01)
            late.append(ended.is_set())
        copy_piece(target, source)

    with streaming(store) as cp:
        cp.write(b"before", step=0, durable=True)
        held = hold_pack(store, 0)
        with monkeypatch.context() as patch:
            patch.setattr(staging, "copy_piece", slowly)
            pending = cp.write(large(), step=1, lazy=True)
            pending._staged.add_callback(ended.set)
            held.wait_until_reached()
            assert copying.wait(PATIENCE_SECONDS)
            held.release()
            with pytest.raises(StoreError, match="the store is down"):
                pending.result(PATIENCE_SECONDS)
        assert ended.is_set()
        cp.wait()
    assert len(copied) < 2 * 8 * MIB // (64 << 10)
    assert True not in late


# Beside others


def test_saves_before_and_after_are_committed_in_the_order_of_the_calls():
    store = Gated()
    with streaming(store, buffers=3) as cp:
        cp.write(b"", durable=True)
        held = store.hold("put", times=1)
        first = cp.write(noise(1, 2 * MIB), step=1)
        held.wait_until_reached()
        big = in_thread(lambda: cp.write(large(2), step=2))
        while not cp._session.queue._line:
            time.sleep(0.001)
        last = in_thread(lambda: cp.write(noise(3, 2 * MIB), step=3))
        held.release()
        receipts = [first.result(PATIENCE_SECONDS), *(call().result(PATIENCE_SECONDS) for call in (big, last))]
        assert [receipt.seq for receipt in receipts] == sorted(receipt.seq for receipt in receipts)
        assert [receipt.outcome for receipt in receipts] == ["committed"] * 3


def test_a_streamed_save_takes_nobodys_place_and_nobody_takes_its_place():
    store = Gated()
    with streaming(store, on_busy="supersede", buffers=3) as cp:
        cp.write(b"", durable=True)
        held = store.hold("put", times=2)
        active = [cp.write(noise(n, MIB), step=n) for n in (1, 2)]
        held.wait_until_reached()
        waiting = cp.write(noise(3, MIB), step=3)
        big = in_thread(lambda: cp.write(large(4), step=4))
        while not cp._session.queue._line:
            time.sleep(0.001)
        held.release()
        newer = cp.write(noise(5, MIB), step=5)
        pending = [*active, waiting, big(), newer]
        assert [one.result(PATIENCE_SECONDS).outcome for one in pending] == ["committed"] * 5


def test_a_streamed_save_is_skipped_while_another_one_is_written():
    store = Gated()
    with streaming(store, on_busy="skip") as cp:
        cp.write(b"", durable=True)
        held = store.hold("put", times=1)
        first = cp.write(noise(1, 2 * MIB), step=1)
        held.wait_until_reached()
        assert cp.write(large(2), step=2).result().outcome == "skipped"
        held.release()
        first.result(PATIENCE_SECONDS)
        cp.wait()
        assert cp.write(large(3), step=3).result(PATIENCE_SECONDS).outcome == "committed"


def test_children_that_share_a_budget_wait_for_each_other():
    store = Gated()
    with streaming(store) as cp:
        cp.write(b"", durable=True)
        child = cp.child("child")
        child.write(b"", durable=True)
        held = hold_pack(store, 1)
        parents = in_thread(lambda: cp.write(large(1), step=1))
        held.wait_until_reached()
        childs = in_thread(lambda: child.write(large(2), step=1))
        while not child._session.queue._line:
            time.sleep(0.001)
        held.release()
        assert parents().result(PATIENCE_SECONDS).outcome == "committed"
        assert childs().result(PATIENCE_SECONDS).outcome == "committed"
        assert np.array_equal(child.read(), large(2))


def test_two_streamed_saves_of_two_threads_go_one_after_the_other():
    with streaming(Gated()) as cp:
        calls = [in_thread(lambda n=n: cp.write(large(n), step=n)) for n in range(3)]
        assert [call().result(PATIENCE_SECONDS).outcome for call in calls] == ["committed"] * 3


def test_a_streamed_save_does_not_count_as_a_store_that_stands_still():
    """The upload waits for the copy: that is no fault of the store's."""
    store = Gated()
    cp = streaming(store)
    cp._timing = Timing(upload_deadline=0.2)
    copy_part = Copier.copy_part

    def slowly(*args):
        time.sleep(0.3)
        copy_part(*args)

    with pytest.MonkeyPatch.context() as patch, cp:
        patch.setattr(Copier, "copy_part", slowly)
        cp.write(large(), durable=True)
        assert store.count("put") == SEGMENTS


# Lazy


def test_a_lazy_streamed_save_returns_at_once_and_holds_off_whoever_changes_the_state():
    store = Gated()
    with streaming(store) as cp:
        cp.write(b"", durable=True)
        held = hold_pack(store, 1)
        state = large()
        pending = cp.write(state, lazy=True)
        held.wait_until_reached()
        assert not pending.staged.done()
        entered = in_thread(lambda: cp.mutating().__enter__())
        held.release()
        entered()
        assert pending.staged.done()
        state[:] = 0
        pending.result(PATIENCE_SECONDS)
        assert np.array_equal(cp.read(), large())


def test_small_leaves_of_a_lazy_streamed_save_may_change_at_once():
    with streaming(Gated()) as cp:
        state = {"large": large(), "small": np.zeros(10)}
        pending = cp.write(state, lazy=True)
        state["small"] += 1
        pending.result(PATIENCE_SECONDS)
        assert not cp.read()["small"].any()


def test_what_may_change_at_any_time_is_streamed_in_the_call():
    state = large()
    span = state.__array_interface__["data"][0]
    with streaming(Gated()) as cp:
        cp._lazies.add_volatile(lambda: [(span, span + 10)])
        pending = cp.write(state, lazy=True)
        assert pending.staged.done()
        state[:] = 0
        pending.result(PATIENCE_SECONDS)
        assert np.array_equal(cp.read(), large())


def test_check_names_what_was_changed_before_a_streamed_save_was_staged():
    store = Gated()
    with streaming(store, check=True) as cp:
        cp.write(b"", step=0, durable=True)
        held = hold_pack(store, 1)
        state = {"weights": large()}
        pending = cp.write(state, step=1, lazy=True)
        held.wait_until_reached()
        state["weights"][0] ^= 1
        held.release()
        with (
            pytest.warns(RuntimeWarning, match="weights"),
            pytest.raises(UsageError, match="changed before it was staged: weights"),
        ):
            pending.result(PATIENCE_SECONDS)
        assert steps(cp) == [0]


def test_a_save_that_was_broken_off_is_not_kept_alive():
    store = Torn(2, down())
    with streaming(store) as cp:
        pending = cp.write(large())
        with pytest.raises(StoreError):
            pending.result(PATIENCE_SECONDS)
        gc.collect()
        assert cp._session.threads.budget._leased_bytes == 0


def test_the_writers_process_needs_the_whole_state_and_says_so(tmp_path):
    with (
        Checkpointer(tmp_path / "run", engine="process", memory_limit=LIMIT) as cp,
        pytest.raises(UsageError, match='engine="thread"') as caught,
    ):
        cp.write(large())
    assert caught.value.kind == "memory_limit"


class Torn(Gated):
    """A store that fails once in the middle of one pack of the first stream."""

    def __init__(self, nth, error):
        super().__init__()
        self.nth, self.error = nth, error
        self.torn = []

    async def put(self, key, parts, *, size_hint=0):
        if key.endswith(f"-{self.nth:03}.pack") and not self.torn:

            async def some():
                async for part in parts:
                    yield part
                    if self.torn or sum(memoryview(buffer).nbytes for buffer in part) < MIB:
                        continue
                    self.torn.append(self.nth)
                    raise self.error

            return await super().put(key, some(), size_hint=size_hint)
        return await super().put(key, parts, size_hint=size_hint)


def fail_copy(patch, segment, error):
    copy_part, calls = Copier.copy_part, []

    def failing(*args):
        calls.append(args)
        if len(calls) == segment + 1:
            raise error
        copy_part(*args)

    patch.setattr(Copier, "copy_part", failing)


TRAINING = """
import sys
import numpy as np
from limpet import Checkpointer

base = np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8)
with Checkpointer(sys.argv[1], memory_limit=16 << 20, compression="off") as cp:
    state = cp.resume({"step": 0, "weights": base.copy()}).state
    assert np.array_equal(state["weights"], base + np.uint8(state["step"]))
    print("from", state["step"], flush=True)
    for step in range(state["step"] + 1, 3):
        state["step"] = step
        state["weights"] += 1
        cp.write(state, step=step, durable=step == 1)
        print("wrote", step, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_training_that_is_killed_in_the_middle_of_a_streamed_save_resumes_from_the_one_before(tmp_path):
    command = [sys.executable, "-c", TRAINING, tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert [training.stdout.readline() for _ in range(2)] == ["from 0\n", "wrote 1\n"]
        first = set(tmp_path.glob("run/data/*/*.pack"))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while set(tmp_path.glob("run/data/*/*.pack")) == first:
            assert time.monotonic() < deadline
        training.kill()
        assert training.stdout.read() == "", "it was killed too late"
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert again.stdout == "from 1\nwrote 2\n"
    with Checkpointer(tmp_path / "run") as cp:
        assert cp.read()["step"] == 2
