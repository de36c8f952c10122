"""What a write does while others are still being written: bounded memory, order, and what gives way to what.

Ids such as S2 are those of ``docs/cases.md``.
"""

import mmap
import threading
import time

import anyio
import numpy as np
import pytest
from tests.support import Gated, checkpointer_over, noise

import limpet
from limpet import Best, Checkpointer, Last, Periodic, StoreError, UsageError

MIB = 1 << 20
POLICIES = ["wait", "skip", "supersede"]


def steps(cp):
    return [info.step for info in cp.checkpoints()]


class Busy:
    """A checkpointer whose first save is held in the store."""

    def __init__(self, operation="put", **settings):
        self.store = Gated()
        self.cp = checkpointer_over(self.store, retain=Last(100), **settings)
        self.cp.write(b"", step=0, durable=True)
        self.held = self.store.hold(operation, times=1)
        self.first = self.cp.write(noise(1), step=1)
        self.held.wait_until_reached()

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.held.release()
        self.cp.close()


def in_thread(function):
    """Start ``function`` in a thread; returns it, and the list that its result will be in."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


# S2: a second save while the first is in flight


def test_who_waits_for_memory_has_the_oldest_save_go_at_full_speed_and_no_other(monkeypatch):
    with Busy(on_busy="wait") as busy:
        queue = busy.cp._session.queue
        busy.cp.write(noise(2), step=2)
        oldest, other = queue.unfinished()
        assert (oldest.urgent, other.urgent) == (False, False)
        pressed, press = threading.Event(), queue.press
        monkeypatch.setattr(queue, "press", lambda: (press(), pressed.set()))
        thread, _ = in_thread(lambda: busy.cp.write(noise(3), step=3))
        assert pressed.wait(10)
        assert (oldest.urgent, other.urgent) == (True, False)
        busy.held.release()
        thread.join(10)


def test_waiting_writes_are_all_committed_in_order():
    """S2: on_busy="wait"."""
    with Busy(on_busy="wait") as busy:
        second = busy.cp.write(noise(2), step=2)
        thread, third = in_thread(lambda: busy.cp.write(noise(3), step=3))
        thread.join(0.1)
        assert not third
        busy.held.release()
        thread.join(10)
        seqs = [pending.result(10).seq for pending in (busy.first, second, *third)]
        assert seqs == sorted(seqs)
        assert steps(busy.cp) == [0, 1, 2, 3]
        for step in (1, 2, 3):
            assert np.array_equal(busy.cp.read(at=step), noise(step))


def test_a_skipped_write_returns_at_once_and_is_never_visible():
    """S2: on_busy="skip"."""
    with Busy(on_busy="skip") as busy:
        second = busy.cp.write(noise(2), step=2)
        third = busy.cp.write(noise(3), step=3)
        assert third.done()
        receipt = third.result()
        assert (receipt.outcome, receipt.step, receipt.durable_step, receipt.seq) == ("skipped", 3, 0, None)
        assert third.staged.done()
        busy.held.release()
        assert second.result(10).outcome == "committed"
        assert steps(busy.cp) == [0, 1, 2]


def test_the_newest_state_takes_the_place_of_the_one_that_waits():
    """S2: on_busy="supersede". A superseded save is never visible; its handle waits for the newer one."""
    with Busy() as busy:
        second = busy.cp.write(noise(2), step=2)
        third = busy.cp.write(noise(3), step=3)
        fourth = busy.cp.write(noise(4), step=4)
        assert not any(pending.done() for pending in (second, third, fourth))
        busy.held.release()
        receipt = fourth.result(10)
        for pending in (second, third):
            superseded = pending.result(10)
            assert (superseded.outcome, superseded.durable_step) == ("superseded", 4)
            assert (superseded.step, superseded.seq) == (pending.step, receipt.seq)
        assert busy.first.result(10).outcome == "committed"
        assert steps(busy.cp) == [0, 1, 4]
        for step in (1, 4):
            assert np.array_equal(busy.cp.read(at=step), noise(step))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [100, 40_000, 2 * MIB])
def test_states_of_two_saves_are_never_mixed(policy, size):
    """S2: buffers are reused, and each checkpoint is one state."""
    store = Gated()
    with checkpointer_over(store, on_busy=policy, retain=Last(100), buffers=3) as cp:
        for step in range(30):
            value = noise(step, size)
            cp.write({"a": value, "b": value.copy(), "step": step}, step=step)
        cp.wait()
        for info in cp.checkpoints():
            found = cp.read(at=info)
            assert found["step"] == info.step
            assert np.array_equal(found["a"], noise(info.step, size))
            assert np.array_equal(found["b"], noise(info.step, size))
        assert policy == "skip" or steps(cp)[-1] == 29
        assert policy != "wait" or steps(cp) == list(range(30))


def test_thousands_of_superseded_saves_end_with_the_one_that_replaced_them():
    with Busy() as busy:
        pending = [busy.cp.write(step.to_bytes(4), step=step) for step in range(2, 5000)]
        busy.held.release()
        newest = pending[-1].result(10)
        assert newest.outcome == "committed"
        assert {one.result(10).seq for one in pending} == {newest.seq}


def test_superseded_saves_that_nobody_holds_take_next_to_no_memory_and_are_all_reported():
    """S9: a store that does not answer for minutes must not make the process grow."""
    events = []
    with Busy(hooks=[events.append]) as busy:
        kept = busy.cp.write(b"kept", step=2)
        for step in range(3, 3000):
            busy.cp.write(b"", step=step)
        [waiting] = [save for save in busy.cp._session.queue.unfinished() if save.step == 2999]
        assert len(waiting.replaced) < 100
        for step in range(3000, 5000):
            busy.cp.write(b"", step=step)
        [waiting] = [save for save in busy.cp._session.queue.unfinished() if save.step == 4999]
        assert len(waiting.replaced) < 100
        busy.held.release()
        busy.cp.wait()
        assert kept.result(10).durable_step == 4999
        superseded = [event for event in events if type(event).__name__ == "Superseded"]
        assert sorted(event.step for event in superseded) == list(range(2, 4999))
        assert {event.by_step for event in superseded} == {4999}


@pytest.mark.parametrize(
    ("settings", "write"),
    [
        ({}, {"pin": True}),
        ({"retain": Last(1) | Periodic(steps=2)}, {}),
        ({"retain": Best("loss")}, {"meta": {"loss": -1.0}}),
    ],
    ids=["pinned", "periodic", "best"],
)
def test_what_is_kept_for_its_own_sake_is_never_superseded(settings, write):
    """S2: then, and only then, the call waits."""
    store = Gated()
    with checkpointer_over(store, **settings) as cp:
        cp.write(b"", step=1, meta={"loss": 0.0}, durable=True)
        held = store.hold("put", times=1)
        cp.write(noise(1), step=1, meta={"loss": 1.0})
        held.wait_until_reached()
        kept = cp.write(noise(2), step=2, **write)
        thread, third = in_thread(lambda: cp.write(noise(3), step=3))
        thread.join(0.1)
        assert not third
        held.release()
        thread.join(10)
        assert kept.result(10).outcome == "committed"
        assert np.array_equal(cp.read(at=2), noise(2))


def test_a_durable_write_is_never_superseded():
    """S2."""
    with Busy() as busy:
        thread, durable = in_thread(lambda: busy.cp.write(noise(2), step=2, durable=True))
        while len(busy.cp._session.queue.unfinished()) < 2:
            time.sleep(0.001)
        other, third = in_thread(lambda: busy.cp.write(noise(3), step=3))
        other.join(0.1)
        assert not third
        busy.held.release()
        thread.join(10)
        other.join(10)
        assert durable[0].result(10).outcome == "committed"


@pytest.mark.parametrize("policy", ["skip", "supersede"])
def test_a_durable_write_waits_for_a_buffer_whatever_the_policy(policy):
    with Busy(on_busy=policy) as busy:
        busy.cp.write(noise(2), step=2, pin=True)
        thread, durable = in_thread(lambda: busy.cp.write(noise(3), step=3, durable=True))
        thread.join(0.1)
        assert not durable
        busy.held.release()
        thread.join(10)
        assert durable[0].result().outcome == "committed"


def test_a_state_that_is_refused_supersedes_nothing():
    """The place of an older save is taken only by a state that can be saved."""
    with Busy() as busy:
        second = busy.cp.write(noise(2), step=2)
        with pytest.raises(limpet.UnsupportedLeafError):
            busy.cp.write({"odd": object()}, step=3)
        busy.held.release()
        assert second.result(10).outcome == "committed"


def test_a_state_that_does_not_fit_beside_what_is_written_supersedes_nothing():
    """Memory would not do even with the waiting save's place: that one is kept."""
    store = Gated()
    with checkpointer_over(store, memory_limit=8 * MIB, buffers=3) as cp:
        cp.write(b"", durable=True)
        held = store.hold("put", times=2)
        active = [cp.write(noise(step, 2 * MIB), step=step) for step in (1, 2)]
        held.wait_until_reached()
        waiting = cp.write(noise(3, 50_000), step=3)
        thread, big = in_thread(lambda: cp.write(noise(4, 7 * MIB), step=4))
        thread.join(0.1)
        assert not big
        held.release()
        thread.join(10)
        assert [pending.result(10).outcome for pending in (*active, waiting, *big)] == ["committed"] * 4


def test_a_write_that_waits_and_is_given_up_supersedes_nothing(run_async):
    """Cancelled in line, it leaves every accepted save in place."""
    store = Gated()

    async def main():
        async with checkpointer_over(store, memory_limit=8 * MIB, buffers=3) as cp:
            await cp.write_async(b"", durable=True)
            held = store.hold("put", times=2)
            for step in (1, 2):
                await cp.write_async(noise(step, 2 * MIB), step=step)
            await held.reached()
            waiting = await cp.write_async(noise(3, 100_000), step=3)
            with anyio.move_on_after(0.05):
                await cp.write_async(noise(4, 7 * MIB), step=4)
            held.release()
            assert (await waiting).outcome == "committed"
            assert np.array_equal(await cp.read_async(), noise(3, 100_000))

    run_async(main)


# S4: order


def test_a_save_whose_upload_is_faster_is_committed_after_the_one_before_it():
    """S4."""
    with Busy(buffers=3) as busy:
        second = busy.cp.write(noise(2), step=2)
        while busy.store.count("put") < 2 or repr(second) != "<PendingWrite step=2, writing>":
            time.sleep(0.001)
        assert not second._completion.wait(0.1)
        assert steps(busy.cp) == [0]
        busy.held.release()
        assert busy.first.result(10).seq < second.result(10).seq
        assert steps(busy.cp) == [0, 1, 2]


def test_a_save_is_committed_although_the_one_before_it_failed():
    """S4."""
    store = Gated()
    cp = checkpointer_over(store, buffers=3)
    cp.write(b"", durable=True)
    held = store.hold("put", times=1)
    first = cp.write(noise(1), step=1)
    held.wait_until_reached()
    store.fail("put", StoreError("one is enough"), StoreError("down"))
    second = cp.write(noise(2), step=2)
    with pytest.raises(StoreError, match="enough"):
        second.result(10)
    held.release()
    with pytest.raises(StoreError, match="down"):
        first.result(10)
    cp.write(noise(3), step=3, durable=True)
    assert steps(cp)[-1] == 3
    cp.close()


class OneSlowCopy:
    """Copies the first state only when told to."""

    def __init__(self, copier):
        self._copier = copier
        self.began = threading.Event()
        self.go = threading.Event()

    def copy(self, draft, lease):
        if not self.began.is_set():
            self.began.set()
            assert self.go.wait(10)
        self._copier.copy(draft, lease)

    def close(self):
        self._copier.close()


def test_coroutines_that_write_at_once_are_committed_in_the_order_of_their_calls(run_async):
    """S4: a small state is copied sooner than the big one before it."""
    store = Gated()

    async def main():
        async with checkpointer_over(store, buffers=4, retain=Last(9)) as cp:
            await cp.write_async(b"", step=0, durable=True)
            slow = cp._session.threads.copier = OneSlowCopy(cp._session.threads.copier)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: cp.write_async(noise(1, 2 * MIB), step=1))
                while not slow.began.is_set():
                    await anyio.sleep(0.001)
                pending = await cp.write_async(noise(2), step=2)
                with anyio.move_on_after(0.1):
                    await pending
                assert not pending.done()
                slow.go.set()
            await cp.wait_async()
            assert [info.step for info in await cp.checkpoints_async()] == [0, 1, 2]

    run_async(main)


def test_calls_that_wait_for_a_buffer_get_it_in_their_order():
    """S4: nobody pushes in."""
    with Busy(on_busy="wait") as busy:
        busy.cp.write(noise(2), step=2)
        threads = []
        for step in range(3, 8):
            threads.append(in_thread(lambda step=step: busy.cp.write(noise(step), step=step))[0])
            while len(busy.cp._session.queue._line) < step - 2:
                time.sleep(0.001)
        busy.held.release()
        for thread in threads:
            thread.join(10)
        busy.cp.wait()
        assert steps(busy.cp) == list(range(8))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("buffers", [1, 2, 4])
def test_several_threads_may_write_at_once(policy, buffers):
    """Whatever was accepted is committed, superseded by something newer, or skipped; each thread's order holds."""
    if (policy, buffers) == ("skip", 1):
        pytest.skip("a contradiction that the settings refuse")
    store = Gated()
    accepted = [[] for _ in range(4)]
    with checkpointer_over(store, on_busy=policy, buffers=buffers, retain=Last(1000)) as cp:

        def work(worker):
            for index in range(25):
                step = 100 * worker + index
                accepted[worker].append(cp.write({"step": step, "data": noise(step)}, step=step))

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        cp.wait()
        seqs = {info.seq: info.step for info in cp.checkpoints()}
        for worker in range(4):
            receipts = [pending.result(10) for pending in accepted[worker]]
            assert len(receipts) == 25
            committed = [receipt.seq for receipt in receipts if receipt.outcome == "committed"]
            assert committed == sorted(committed)
            for receipt in receipts:
                if receipt.outcome == "committed":
                    assert seqs[receipt.seq] == receipt.step
                elif receipt.outcome == "superseded":
                    by = seqs[receipt.seq]
                    assert by // 100 != worker or by > receipt.step
            if policy == "wait":
                assert {receipt.outcome for receipt in receipts} == {"committed"}
        newest = cp.read()
        assert np.array_equal(newest["data"], noise(newest["step"]))


# S9: memory


class Leases:
    """Counts the snapshots in memory, and the bytes that they take."""

    def __init__(self, pool):
        self.pool = pool
        self.most = self.most_bytes = 0
        self._lease = pool.try_lease
        pool.try_lease = self

    def __call__(self, nbytes, **instead):
        lease = self._lease(nbytes, **instead)
        self.most = max(self.most, self.pool._leased)
        self.most_bytes = max(self.most_bytes, self.pool._budget._leased_bytes)
        return lease


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_a_slow_store_never_has_more_snapshots_in_memory_than_buffers(policy, buffers):
    """S9."""
    store = Gated()
    limit = buffers * 2 * MIB
    with checkpointer_over(store, on_busy=policy, buffers=buffers, memory_limit=limit) as cp:
        cp.write(b"", durable=True)
        leases = Leases(cp._session.pool)
        for step in range(12):
            held = store.hold("put", times=1)
            threading.Timer(0.01, held.release).start()
            cp.write(noise(step, MIB), step=step)
        cp.wait()
        assert leases.most <= buffers
        assert leases.most_bytes <= limit
    assert cp._throttle._held is None


def test_one_buffer_stages_only_while_nothing_is_written():
    """S9: buffers=1."""
    with Busy(buffers=1) as busy:
        thread, second = in_thread(lambda: busy.cp.write(noise(2), step=2))
        thread.join(0.1)
        assert not second
        busy.held.release()
        thread.join(10)
        assert second[0].result(10).outcome == "committed"


def test_as_many_saves_are_written_at_once_as_there_are_buffers_but_one():
    with Busy(buffers=4) as busy:
        more = busy.store.hold("put")
        for step in (2, 3, 4):
            busy.cp.write(noise(step), step=step)
        while busy.store.count("put") < 3:
            time.sleep(0.001)
        time.sleep(0.05)
        assert busy.store.count("put") == 3
        more.release()


def test_a_buffer_is_free_once_the_upload_is_done_and_before_the_commit_is():
    """The snapshot is not needed for the commit, so the next write need not wait for it."""
    with Busy("create", on_busy="wait", buffers=1) as busy:
        assert busy.first.phase == "committing"
        second = busy.cp.write(noise(2), step=2)
        assert not busy.first.done()
        busy.held.release()
        assert busy.first.result(10).seq < second.result(10).seq


def test_a_state_that_needs_more_than_the_memory_limit_is_refused_before_anything_is_allocated(monkeypatch):
    with checkpointer_over(Gated(), memory_limit=MIB) as cp:
        cp.write(b"small", step=1)
        monkeypatch.setattr(mmap, "mmap", None)
        with pytest.raises(UsageError, match="memory_limit") as caught:
            cp.write(noise(1, 2 * MIB))
        assert caught.value.kind == "memory_limit"
        with pytest.raises(UsageError, match="memory_limit"):
            cp.prewarm(noise(1, 2 * MIB))
        monkeypatch.undo()
        cp.wait()
        assert cp.read() == b"small"


def test_states_may_grow_and_shrink(url):
    with Checkpointer(url, on_busy="wait", retain=Last(100)) as cp:
        sizes = [1, 100_000, 3 * MIB, 10, 5 * MIB, 5 * MIB + 1, 70_000, 0, *[300_000] * 20, 4 * MIB]
        for step, size in enumerate(sizes):
            cp.write(noise(step, size), step=step)
        cp.wait()
        for step, size in enumerate(sizes):
            assert np.array_equal(cp.read(at=step), noise(step, size))


def test_memory_of_a_state_that_shrank_is_given_back():
    with checkpointer_over(Gated(), on_busy="wait") as cp:
        cp.write(noise(0, 16 * MIB), durable=True)
        for step in range(20):
            cp.write(noise(step, MIB), durable=True)
        assert sum(slot.nbytes for slot in cp._session.pool._free) <= 4 * MIB


def test_prewarmed_memory_is_what_the_first_save_uses(monkeypatch):
    with checkpointer_over(Gated()) as cp:
        cp.prewarm({"a": noise(1, MIB)})
        assert len(cp._session.pool._free) == 2
        monkeypatch.setattr(mmap, "mmap", None)
        cp.write({"a": noise(1, MIB)}, durable=True)


def test_a_save_gives_its_memory_back_when_it_fails():
    store = Gated()
    with checkpointer_over(store, buffers=1) as cp:
        for step in range(3):
            store.fail("put", StoreError("down"))
            with pytest.raises(StoreError):
                cp.write(noise(step), durable=True)
        assert cp._session.pool._leased == 0
        cp.write(noise(3), durable=True)


def test_a_state_that_cannot_be_copied_gives_its_buffer_back():
    class Broken:
        def copy(self, draft, lease):
            raise MemoryError("no page")

    with checkpointer_over(Gated(), buffers=1) as cp:
        cp.write(b"", durable=True)
        copier, cp._session.threads.copier = cp._session.threads.copier, Broken()
        for _ in range(2):
            with pytest.raises(MemoryError):
                cp.write(noise(1))
        cp._session.threads.copier = copier
        cp.write(noise(2), durable=True)
        cp.wait()


def test_an_interrupt_from_the_keyboard_while_a_state_is_copied_costs_neither_it_nor_the_one_before():
    """The older save's place was taken already, so the copy is finished first."""

    class Interrupted:
        def __init__(self, copier):
            self._copier = copier
            self.left = 1

        def copy(self, draft, lease):
            if self.left:
                self.left -= 1
                raise KeyboardInterrupt
            self._copier.copy(draft, lease)

    with Busy() as busy:
        second = busy.cp.write(noise(2), step=2)
        threads = busy.cp._session.threads
        copier, threads.copier = threads.copier, Interrupted(threads.copier)
        with pytest.raises(KeyboardInterrupt):
            busy.cp.write(noise(3), step=3)
        threads.copier = copier
        busy.held.release()
        assert second.result(10).outcome == "superseded"
        assert np.array_equal(busy.cp.read(), noise(3))


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"buffers": 0},
        {"buffers": 17},
        {"buffers": True},
        {"buffers": 1, "on_busy": "skip"},
        {"on_busy": "drop"},
        {"on_error": "ignore"},
        {"memory_limit": 0},
        {"every": 30},
        {"retain": 3},
        {"hooks": [None]},
        {"compression": "lzma"},
    ],
    ids=str,
)
def test_a_setting_that_is_wrong_is_refused_before_anything_is_touched(settings, tmp_path):
    with pytest.raises(UsageError):
        Checkpointer(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [-1, 1.5, True, "1", 2**63])
def test_a_step_that_is_none_is_refused(step):
    with checkpointer_over(Gated()) as cp, pytest.raises(UsageError, match="step"):
        cp.write(b"", step=step)


def test_steps_may_repeat_and_go_back():
    with checkpointer_over(Gated(), on_busy="wait", retain=Last(9)) as cp:
        for step in (np.int64(5), 5, 3, None):
            cp.write(noise(1), step=step)
        cp.wait()
        assert steps(cp) == [5, 5, 3, None]


@pytest.mark.parametrize(
    "meta", [{"x": object()}, {1: 2}, [1], {"x": "y" * 70_000}], ids=["object", "key", "list", "big"]
)
def test_meta_that_cannot_be_stored_is_refused(meta):
    with checkpointer_over(Gated()) as cp, pytest.raises(UsageError, match="meta"):
        cp.write(b"", meta=meta)
