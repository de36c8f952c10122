"""Throttled writes: what ``every=`` lets pass, what it costs, and what is committed at close.

Ids such as S16 are those of ``docs/cases.md``.
"""

import warnings

import pytest
from tests.support import Gated, checkpointer_over, noise

import limpet
from limpet import Checkpointer, Every, Last, UsageError


class Clock:
    """Seconds that pass only when told to."""

    now = 1000.0

    def __call__(self):
        return self.now


def throttled(every, **settings):
    store = Gated()
    cp = checkpointer_over(store, every=every, retain=Last(100), on_busy="wait", **settings)
    clock = cp._throttle.clock = Clock()
    return store, cp, clock


def committed(store):
    with checkpointer_over(store) as cp:
        return [info.step for info in cp.checkpoints()]


def test_one_commit_per_interval_and_the_last_value_at_close():
    """S16."""
    store, cp, clock = throttled(Every(seconds=30))
    for step in range(100):
        cp.write({"step": step}, step=step)
        clock.now += 1
    cp.close()
    assert committed(store) == [0, 30, 60, 90, 99]
    with checkpointer_over(store) as cp:
        assert cp.read() == {"step": 99}


def test_the_last_value_is_not_committed_twice():
    """S16: it was due."""
    store, cp, _ = throttled(Every(seconds=30))
    cp.write(b"0", step=0)
    cp.close()
    assert committed(store) == [0]


def test_a_state_that_is_held_back_is_the_one_at_the_call():
    """S1, S16."""
    store, cp, _ = throttled(Every(seconds=30))
    cp.write(b"", step=0)
    state = {"array": noise(1, 1000), "list": [1]}
    cp.write(state, step=1)
    state["array"][:] = 0
    state["list"].append(2)
    cp.close()
    with checkpointer_over(store) as cp:
        found = cp.read()
    assert (found["array"].tolist(), found["list"]) == (noise(1, 1000).tolist(), [1])


def test_a_due_write_makes_what_was_held_back_obsolete():
    """S16: nothing older is committed after it."""
    store, cp, clock = throttled(Every(seconds=30))
    cp.write(b"0", step=0)
    cp.write(b"1", step=1)
    clock.now += 30
    cp.write(b"2", step=2)
    cp.close()
    assert committed(store) == [0, 2]


def test_a_throttled_write_is_skipped_and_says_so():
    _, cp, _ = throttled(Every(seconds=30))
    with cp:
        cp.write(b"0", step=0, durable=True)
        pending = cp.write(b"1", step=1)
        assert pending.done()
        receipt = pending.result()
        assert (receipt.outcome, receipt.step, receipt.durable_step) == ("skipped", 1, 0)
        assert repr(pending) == "<PendingWrite step=1, skipped>"


def test_a_large_throttled_state_is_left_out_and_close_says_so():
    """S16: it is not even looked at."""
    store, cp, _ = throttled(Every(seconds=30))
    state = noise(1, 2 << 20)
    cp.write(state, step=9970)
    for step in range(9971, 10_000):
        cp.write(state, step=step)
    with pytest.warns(RuntimeWarning, match="step 9999 was throttled; durable: 9970"):
        cp.close()
    assert committed(store) == [9970]


def test_a_throttled_state_that_grew_too_large_is_left_out():
    store, cp, _ = throttled(Every(seconds=30))
    cp.write(b"small", step=0)
    cp.write(noise(1, 2 << 20), step=1)
    with pytest.warns(RuntimeWarning, match="step 1 was throttled; durable: 0"):
        cp.close()
    assert committed(store) == [0]


def test_no_warning_is_given_when_the_last_state_was_written():
    _, cp, clock = throttled(Every(seconds=30))
    state = noise(1, 2 << 20)
    for step in range(3):
        cp.write(state, step=step)
    clock.now += 30
    cp.write(state, step=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cp.close()


@pytest.mark.parametrize("forced", [{"durable": True}, {"pin": True}])
def test_durable_and_pinned_writes_pass_the_throttle(forced):
    store, cp, _ = throttled(Every(seconds=30))
    cp.write(b"0", step=0)
    cp.write(b"1", step=1, **forced)
    cp.write(b"2", step=2)
    cp.close()
    assert committed(store) == [0, 1, 2]


def test_an_interval_of_steps_counts_steps():
    store, cp, _ = throttled(Every(steps=100))
    for step in range(0, 500, 7):
        cp.write({"step": step}, step=step)
    cp.close()
    assert committed(store) == [0, 105, 203, 301, 406, 497]


def test_an_interval_of_steps_needs_steps():
    _, cp, _ = throttled(Every(steps=100))
    with cp, pytest.raises(UsageError, match="step"):
        cp.write(b"0")


def test_a_write_that_was_skipped_for_want_of_a_buffer_leaves_what_was_held_back_in_place():
    store = Gated()
    cp = checkpointer_over(store, every=Every(seconds=30), on_busy="skip", retain=Last(9))
    clock = cp._throttle.clock = Clock()
    cp.write(b"", step=0, durable=True)
    held = store.hold("put", times=1)
    for step in (1, 2):
        clock.now += 30
        cp.write(noise(step), step=step)
    cp.write(b"3", step=3)
    clock.now += 30
    assert cp.write(b"4", step=4).result().outcome == "skipped"
    held.release()
    cp.close()
    assert committed(store) == [0, 1, 2, 3]


def test_a_small_file_is_held_back_too(tmp_path):
    """S16: its copy, not its path."""
    store, cp, _ = throttled(Every(seconds=30))
    path = tmp_path / "log.txt"
    for step in range(3):
        path.write_text(f"step {step}")
        cp.save(path, step=step)
    path.unlink()
    cp.close()
    with checkpointer_over(store) as cp:
        assert cp.restore(tmp_path / "restored").read_text() == "step 2"


def test_intervals_work_from_coroutines(run_async):
    """S16."""
    store, cp, clock = throttled(Every(seconds=10))

    async def main():
        async with cp:
            for step in range(25):
                await cp.write_async({"step": step}, step=step)
                clock.now += 1

    run_async(main)
    assert committed(store) == [0, 10, 20, 24]


def test_what_was_held_back_and_fails_at_close_is_raised():
    """S7, S16."""
    store, cp, _ = throttled(Every(seconds=30))
    cp.write(b"0", step=0, durable=True)
    cp.write(noise(1), step=1)
    store.fail("put", limpet.StoreError("the store is down"))
    with pytest.raises(limpet.StoreError, match="down"):
        cp.close()


def test_a_throttled_write_touches_no_store(url):
    with Checkpointer(url, every=Every(seconds=3600)) as cp:
        cp.write(b"0", step=0, durable=True)
        first = cp.latest
        for step in range(1, 1000):
            cp.write(b"1", step=step)
        assert cp.latest == first
    with limpet.open(url) as run:
        assert [info.step for info in run.checkpoints()] == [0, 999]
