"""``delta=True``: fewer bytes for what changed a little, the same bits back, and nothing that waits, fails or stays for it."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import PATIENCE_SECONDS, Gated, checkpointer_over, down, noise

import limpet
from limpet import Checkpointer, Last, LimpetError, UsageError
from limpet.engine import kept as kept_module
from limpet.engine import upload as upload_module
from limpet.engine.index import Known
from limpet.format import manifest as manifest_module
from limpet.format.chunks import ChunkSource
from limpet.format.manifest import Manifest, depth

SIZE = 300_000
"""Of an array in words of two bytes: above what shares a chunk, and above what travels in a record."""
ENGINES = pytest.mark.parametrize("engine", ["thread", pytest.param("process", marks=pytest.mark.crash)])


class Weights:
    """Words of two bytes that a step moves by little, as it moves bf16 weights."""

    def __init__(self, seed: int = 0, names: tuple[str, ...] = ("a", "b")) -> None:
        self._random = np.random.default_rng(seed)
        self.state: dict[str, Any] = {
            name: self._random.integers(0, 1 << 16, SIZE, dtype=np.uint16).view(np.int16) for name in names
        }

    def step(self) -> dict[str, Any]:
        for array in self.state.values():
            if array.dtype == np.int16:
                array += self._random.integers(-2, 3, array.size, dtype=np.int16)
        return {name: array.copy() for name, array in self.state.items()}


def manifest_of(cp: Checkpointer, at: int | None = None) -> Manifest:
    """Of the checkpoint of a step, or the newest."""
    session = cp._open_session
    live = session.writer.live.checkpoints
    seq = max(seq for seq, one in live.items() if at is None or one.info.step == at)
    opening = session.loop.call(session.writer.reader.open, live[seq])
    assert opening.wait(PATIENCE_SECONDS)
    return opening.get().manifest


def depths(cp: Checkpointer, at: int | None = None) -> list[int]:
    """How many deltas lead to each of its chunks."""
    return depth(manifest_of(cp, at))


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@ENGINES
def test_what_changed_a_little_is_stored_in_fewer_bytes_and_comes_back_bit_by_bit(tmp_path: Path, engine: Any) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True, engine=engine, retain=Last(9)) as cp:
        states = [weights.step() for _ in range(4)]
        receipts = [cp.write(state, step=step).result() for step, state in enumerate(states)]
        assert receipts[0].new_bytes >= receipts[0].raw_bytes
        assert all(receipt.new_bytes < receipt.raw_bytes / 3 for receipt in receipts[1:])
        assert depths(cp) == [3, 3]
    with limpet.open(tmp_path) as run:
        for step, state in enumerate(states):
            assert_equal(run.read(at=step), state)


def test_what_a_checkpoint_takes_counts_its_bases(tmp_path: Path) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True) as cp:
        first, second = (cp.write(weights.step()).result() for _ in range(2))
        assert abs(second.stored_bytes - (first.stored_bytes + second.new_bytes)) < 4096  # the manifests


def test_without_delta_nothing_is_kept_or_stored_as_a_difference(tmp_path: Path) -> None:
    weights = Weights()
    with Checkpointer(tmp_path) as cp:
        for _ in range(3):
            cp.write(weights.step()).result()
        assert manifest_of(cp).version == 1
        assert not cp._open_session.pool.kept


@ENGINES
def test_chains_are_never_longer_than_eight_and_then_begin_anew(tmp_path: Path, engine: Any) -> None:
    weights = Weights(names=("a",))
    with Checkpointer(tmp_path, delta=True, engine=engine, retain=Last(50)) as cp:
        states = [weights.step() for _ in range(20)]
        for step, state in enumerate(states):
            cp.write(state, step=step).result()
        assert [depths(cp, step)[0] for step in range(20)] == [*range(9), *range(9), 0, 1]
        for step, state in enumerate(states):
            assert_equal(cp.read(at=step), state)


@ENGINES
def test_a_chain_s_packs_stay_when_the_checkpoint_that_wrote_them_is_deleted(tmp_path: Path, engine: Any) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True, engine=engine, retain=Last(1)) as cp:
        for step in range(6):
            state = weights.step()
            cp.write(state, step=step).result()
            cp.sweep()
        assert [info.step for info in cp.checkpoints()] == [5]
        assert depths(cp) == [5, 5]
    with limpet.open(tmp_path) as run:
        assert_equal(run.read(), state)
    with Checkpointer(tmp_path, retain=Last(1)) as cp:  # key frames for all: nothing older is needed any more
        state = weights.step()
        cp.write(state, step=9).result()
        cp.sweep()
        assert_equal(cp.read(), state)
    assert len([*tmp_path.rglob("*.pack")]) <= 1


@ENGINES
def test_a_new_writer_stores_what_changed_in_full_and_refers_to_deltas_where_nothing_did(
    tmp_path: Path, engine: Any
) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True, engine=engine) as cp:
        for _ in range(3):
            state = weights.step()
            cp.write(state).result()
    state["a"] += np.int16(1)
    with Checkpointer(tmp_path, delta=True, engine=engine) as cp:
        receipt = cp.write(state).result()
        assert SIZE * 2 <= receipt.new_bytes < SIZE * 3
        assert depths(cp) == [0, 2]
    with limpet.open(tmp_path) as run:
        assert_equal(run.read(), state)


def test_a_state_of_another_shape_uses_what_still_matches(tmp_path: Path) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True) as cp:
        cp.write(weights.step()).result()
        state = weights.step() | {"c": noise(3, 2 * SIZE).view(np.int16)}
        cp.write(state).result()
        assert depths(cp) == [1, 1, 0]
        assert_equal(cp.read(), state)
        other = {"a": state["a"].astype(np.int32), "b": state["b"] + np.int16(1)}
        cp.write(other).result()
        assert depths(cp) == [0, 2]
        assert_equal(cp.read(), other)


def test_a_difference_that_is_no_smaller_is_not_stored_and_its_place_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def counting(*args: Any, **options: Any) -> memoryview | None:
        tried.append(1)
        return encode_delta(*args, **options)

    encode_delta: Callable[..., memoryview | None] = kept_module.encode_delta
    monkeypatch.setattr(kept_module, "encode_delta", counting)
    with Checkpointer(tmp_path, delta=True) as cp:
        for seed in range(14):
            cp.write({"noise": noise(seed, 2 * SIZE).view(np.int16)}).result()
        assert depths(cp) == [0]
    assert len(tried) == 2  # the second save, and the eleventh


def test_a_place_that_began_with_zeros_is_stored_as_a_difference_from_its_second_change_on(tmp_path: Path) -> None:
    weights = Weights(names=("a",))
    with Checkpointer(tmp_path, delta=True, compression="zstd") as cp:
        found = []
        for state in ({"a": np.zeros(SIZE, np.int16)}, weights.step(), weights.step()):
            cp.write(state).result()
            found += depths(cp)
    assert found == [0, 0, 1]


def test_an_inline_save_leaves_what_was_kept(tmp_path: Path) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True) as cp:
        cp.write(weights.step() | {"step": np.int64(0)}).result()
        same = {name: array.copy() for name, array in weights.state.items()} | {"step": np.int64(1)}
        inline = cp.write(same).result()
        state = weights.step() | {"step": np.int64(2)}
        cp.write(state).result()
        assert inline.new_bytes < 4096
        assert depths(cp) == [1, 1]
        assert_equal(cp.read(), state)


# What the memory must never cost.


def limited(store: Any, slots: int, **settings: Any) -> Checkpointer:
    """Room for so many slots of one array."""
    return checkpointer_over(store, delta=True, memory_limit=slots * (2 << 20), **settings)


def test_a_save_that_needs_the_room_of_what_is_kept_takes_it_at_once() -> None:
    store, weights = Gated(), Weights(names=("a",))
    with limited(store, 2, on_busy="skip") as cp:
        cp.write(weights.step()).result()
        hold = store.hold("put")
        second = cp.write(weights.step())
        hold.wait_until_reached()
        third_state = weights.step()
        third = cp.write(third_state)
        hold.release()
        assert [second.result().outcome, third.result().outcome] == ["committed", "committed"]
        assert_equal(cp.read(), third_state)


def test_where_there_is_no_room_at_all_every_save_is_stored_in_full() -> None:
    weights = Weights(names=("a",))
    with limited(Gated(), 1) as cp:
        for _ in range(3):
            state = weights.step()
            cp.write(state).result()
            assert depths(cp) == [0]
        assert_equal(cp.read(), state)


def test_a_child_run_takes_the_room_of_what_its_parent_keeps() -> None:
    weights = Weights(names=("a",))
    with limited(Gated(), 1) as cp:
        cp.write(weights.step()).result()
        child = cp.child("other")
        child.write(weights.step()).result()
        assert not cp._open_session.pool.kept
        assert child._open_session.pool.kept


@ENGINES
def test_what_is_kept_ends_with_the_checkpointer(tmp_path: Path, engine: Any) -> None:
    with Checkpointer(tmp_path, delta=True, engine=engine) as cp:
        cp.write(Weights().step()).result()
        session = cp._open_session
        (kept,) = session.pool.kept
    assert (kept.is_held, session.threads.budget._leased_bytes) == (False, 0)


@pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")
def test_a_fenced_writer_keeps_nothing() -> None:
    store = Gated()
    weights = Weights()
    cp = checkpointer_over(store, delta=True)
    cp.write(weights.step()).result()
    session = cp._open_session
    with checkpointer_over(store.store):
        pass
    with pytest.raises(LimpetError):
        cp.write(weights.step()).result()
    assert not session.pool.kept
    with pytest.raises(LimpetError):
        cp.write(weights.step())
    cp.close()


# What a manifest has room for: every link of every chain takes some.


def small_manifests(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    monkeypatch.setattr(manifest_module, "MANIFEST_BYTES_MAX", most_bytes)


@pytest.mark.parametrize("net_only", [False, True], ids=["the budget of links", "the net below it"])
def test_chains_never_outgrow_the_manifest(monkeypatch: pytest.MonkeyPatch, net_only: bool) -> None:
    """24 chunks of 8 deltas each are 192 links: twice what there is room for."""
    small_manifests(monkeypatch, 20 << 10)
    if net_only:
        monkeypatch.setattr(kept_module, "bases_max", lambda: 1 << 30)
    random = np.random.default_rng(1)
    state = {f"l{i}": random.integers(0, 1 << 16, 4 << 15, dtype=np.uint16).view(np.int16) for i in range(24)}
    with checkpointer_over(Gated(), delta=True) as cp:
        receipts = []
        for step in range(11):
            for array in [*state.values()][:: 1 + step % 2]:
                array += random.integers(-1, 2, array.size, dtype=np.int16)
            receipts.append(cp.write(state, step=step).result())
            assert_equal(cp.read(), state)
        assert receipts[1].new_bytes < receipts[0].new_bytes / 3


def test_a_save_makes_no_more_links_than_a_quarter_of_a_manifest_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    small_manifests(monkeypatch, 4 * 200 * 5)
    weights = Weights(names=("a", "b", "c", "d"))
    with checkpointer_over(Gated(), delta=True) as cp:
        for _ in range(6):
            cp.write(weights.step()).result()
            assert sum(depths(cp)) <= 5 + 3  # what is tried at the same time
        assert any(depths(cp))


def test_a_large_manifest_is_made_on_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def encode(made: Manifest) -> tuple[bytes, str]:
        threads.append(threading.current_thread() is cp._open_session.loop._thread)
        return encode_manifest(made)

    encode_manifest = manifest_module.encode_manifest
    monkeypatch.setattr(upload_module, "encode_manifest", encode)
    weights = Weights()
    with checkpointer_over(Gated(), delta=True) as cp:
        for most in (2, 1):
            monkeypatch.setattr(upload_module, "_CHUNKS_AT_ONCE", most)
            state = weights.step()
            cp.write(state).result()
        assert threads == [True, False]
        assert depths(cp) == [1, 1]
        assert_equal(cp.read(), state)


def test_a_state_with_too_many_leaves_is_refused_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights()
    with checkpointer_over(Gated(), delta=True) as cp:
        cp.write(weights.step()).result()
        small_manifests(monkeypatch, 200)
        with pytest.raises(UsageError, match="structure"):
            cp.write(weights.step()).result()


# What may not become a base.


@pytest.mark.parametrize("buffers", [2, 3])
def test_after_a_commit_that_failed_the_next_is_compared_with_the_one_before(buffers: int) -> None:
    store, weights = Gated(), Weights()
    with checkpointer_over(store, delta=True, buffers=buffers) as cp:
        cp.write(weights.step(), step=0).result()
        store.fail("create", down())
        with pytest.raises(LimpetError):
            cp.write(weights.step()).result()
        for links in ([1, 1], [2, 2]):
            state = weights.step()
            cp.write(state).result()
            assert depths(cp) == links
        assert_equal(cp.read(), state)


def test_a_save_that_begins_while_another_is_committed_is_compared_to_its_end() -> None:
    store, weights = Gated(), Weights(names=("a",))
    with checkpointer_over(store, delta=True, buffers=3, on_busy="wait") as cp:
        cp.write(weights.step(), step=0).result()
        create = store.hold("create")
        handles = [cp.write(weights.step(), step=1)]
        create.wait_until_reached()
        put = store.hold("put")
        state = weights.step()
        handles.append(cp.write(state, step=2))
        put.wait_until_reached()
        create.release()
        handles[0].result()
        put.release()
        handles[1].result()
        assert [depths(cp, step) for step in (0, 1, 2)] == [[0], [1], [1]]
        assert_equal(cp.read(), state)
        cp.write(weights.step(), step=3).result()
        assert (depths(cp), len(cp._open_session.pool.kept)) == ([2], 1)


def test_what_is_compared_with_stays_until_that_is_done() -> None:
    memory = FakeMemory(noise(1, SIZE))
    kept = kept_module.Kept(memory, [], {})
    with kept.in_use():
        with kept.in_use():
            kept.retire()
        held = memory.is_held
    assert (held, memory.is_held) == (True, False)


def test_only_a_commit_that_is_certain_makes_a_base() -> None:
    last = kept_module.LastCommitted(wanted=True)
    for ending in (LimpetError("nobody knows"), KeyboardInterrupt()):
        snapshot = FakeSnapshot()
        with pytest.raises(type(ending)), last.replacing(snapshot, manifest(), inline=False) as kept:
            assert kept
            raise ending
        assert (snapshot.memory.is_held, last.differences({})) == (False, None)
    snapshot = FakeSnapshot()
    with last.replacing(snapshot, manifest(), inline=False):
        assert last.differences({}) is None
    assert last.differences({}) is not None
    snapshot.memory.release()
    assert last.differences({}) is None


def test_a_superseded_save_is_nobody_s_base() -> None:
    store, weights = Gated(), Weights(names=("a",))
    with checkpointer_over(store, delta=True, buffers=3) as cp:
        cp.write(weights.step()).result()
        hold = store.hold("put")
        handles = [cp.write(weights.step()) for _ in range(2)]
        handles += [cp.write(state := weights.step()) for _ in range(6)]
        hold.release()
        handles[-1].result()
        assert_equal(cp.read(), state)


def manifest() -> Manifest:
    return Manifest(1, "r", "1/1", None, [], [], [])


class FakeMemory:
    """Memory that somebody may write to."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content
        self.is_held = True

    def copy_if_held(self, offset: int, out: np.ndarray) -> bool:
        out[:] = self.content[offset : offset + out.size]
        return self.is_held

    def release(self) -> None:
        self.is_held = False


class FakeSnapshot:
    """One chunk of words of two bytes."""

    def __init__(self) -> None:
        from limpet.format.chunks import BufferSpec, plan_chunks

        self.plan = plan_chunks([BufferSpec(SIZE, "i2", False)])
        self.memory = FakeMemory(noise(1, SIZE))

    def keep(self) -> kept_module.Kept:
        return kept_module.Kept(self.memory, self.plan.chunks, {})


def attempt_on(memory: FakeMemory) -> kept_module.Attempt:
    import blake3

    known = Known(blake3.blake3(memory.content.data).hexdigest(), "pack", 9, "raw", 0, SIZE, "", SIZE)
    return kept_module.Attempt(
        "delta2", known, kept_module.Kept(memory, [ChunkSource(SIZE, "i2", -1, 0)], {}), 0, SIZE // 2
    )


def test_memory_that_is_taken_back_before_it_was_copied_gives_no_difference() -> None:
    memory = FakeMemory(noise(1, SIZE))
    attempt, raw = attempt_on(memory), memory.content.copy()
    assert attempt.encode(raw, 1, None)[0] is not None
    memory.release()
    assert attempt.encode(raw, 1, None) == (None, False)


def test_memory_that_is_taken_back_while_it_is_compared_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory(noise(1, SIZE))
    attempt, raw = attempt_on(memory), memory.content.copy()
    expected = bytes(attempt.encode(raw, 1, None)[0] or b"")

    def taken(*args: Any, **options: Any) -> memoryview | None:
        memory.release()
        memory.content[:] = 0
        return encode_delta(*args, **options)

    encode_delta: Callable[..., memoryview | None] = kept_module.encode_delta
    monkeypatch.setattr(kept_module, "encode_delta", taken)
    difference, tried = attempt.encode(raw, 1, None)
    assert (bytes(difference or b""), tried, expected != b"") == (expected, True, True)


def test_memory_that_holds_something_else_than_the_base_gives_no_difference() -> None:
    memory = FakeMemory(noise(1, SIZE))
    attempt, raw = attempt_on(memory), memory.content.copy()
    memory.content[17] ^= 1
    assert attempt.encode(raw, 1, None) == (None, False)


@pytest.mark.crash
def test_a_slot_counts_while_its_mark_is_that_of_the_save() -> None:
    import weakref

    from limpet.engine.memory import MemoryBudget
    from limpet.engine.slots import SlotPool
    from limpet.remote.memory import KeptSlot, SharedMemory, ViewedMemory

    pool = SlotPool(1, MemoryBudget(8 << 20), lambda nbytes: SharedMemory(nbytes, lambda _: None))
    lease = pool.try_lease(1 << 20)
    assert lease is not None
    shared = lease.mapping
    assert isinstance(shared, SharedMemory)
    lease.memory[:] = 5
    shared.hold(lease, 7)
    viewed = ViewedMemory(shared.fd, shared.content_bytes)
    slot = KeptSlot(weakref.ref(viewed), 7)
    memory = lease.keep()
    assert memory is not None
    out = np.zeros(10, np.uint8)
    assert (slot.is_held, slot.copy_if_held(0, out), out.tolist()) == (True, True, [5] * 10)
    memory.release()
    assert (slot.is_held, slot.copy_if_held(0, out)) == (False, False)
    del viewed
    pool.close()


def test_what_can_be_nobody_s_base_is_not_kept(tmp_path: Path) -> None:
    weights = Weights(names=("a",)).step()
    blob = bytes(noise(1, 8 * SIZE))
    with Checkpointer(tmp_path, delta=True) as cp:
        before = sys.getrefcount(blob)
        cp.write({"blob": blob} | weights).result()
        gc.collect()
        budget = cp._open_session.threads.budget
        assert (sys.getrefcount(blob), 0 < budget._leased_bytes <= 2 << 20) == (before, True)


def test_a_state_of_which_less_than_half_can_be_a_base_is_not_kept(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, delta=True) as cp:
        cp.write({"bytes": noise(1, 8 * SIZE)} | Weights(names=("a",)).step()).result()
        assert cp._open_session.threads.budget._leased_bytes == 0


# Deaths, and damage.


@pytest.mark.crash
@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_writer_s_process_that_dies_takes_what_was_kept_with_it(tmp_path: Path) -> None:
    weights = Weights()
    with Checkpointer(tmp_path, delta=True, engine="process") as cp:
        for _ in range(2):
            cp.write(weights.step()).result()
        os.kill(cp._open_session.threads.link.pid, signal.SIGKILL)
        state = weights.step()
        cp.write(state).result()
        assert depths(cp) == [0, 0]
        assert_equal(cp.read(), state)
        state = weights.step()
        cp.write(state).result()
        assert depths(cp) == [1, 1]
        assert_equal(cp.read(), state)


def test_a_chain_with_a_damaged_link_is_not_built_upon(tmp_path: Path) -> None:
    weights = Weights(names=("a",))
    with Checkpointer(tmp_path, delta=True, retain=Last(5)) as cp:
        for step in range(3):
            cp.write(weights.step(), step=step).result()
        session = cp._open_session
        root = manifest_of(cp).bases[-1]
        session.loop.call_soon(session.writer.discard, manifest_of(cp).packs[root.pack])
        state = weights.step()
        cp.write(state, step=3).result()
        assert depths(cp) == [0]
        assert_equal(cp.read(), state)


def test_whatever_changes_and_whoever_dies_every_checkpoint_comes_back(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    weights = Weights(names=("a", "b", "c"))
    saved: dict[int, dict[str, Any]] = {}
    steps = itertools.count()
    for _ in range(4):
        with Checkpointer(tmp_path, delta=True, retain=Last(4), buffers=int(random.integers(1, 4))) as cp:
            for step in itertools.islice(steps, 8):
                frozen = weights.state["a"].copy()
                state = weights.step()
                if random.random() < 0.3:
                    weights.state["a"][:] = state["a"] = frozen
                if random.random() < 0.2 and saved:
                    back = saved[int(random.choice([*saved]))]  # as after a restart from an older one
                    state = {name: array.copy() for name, array in back.items()}
                saved[step] = state
                cp.write(state, step=step)
            cp.wait()
            for info in cp.checkpoints():
                assert info.step is not None
                assert_equal(cp.read(at=info.step), saved[info.step])
            assert all(link <= 8 for link in depths(cp))


# The setting.


def test_delta_without_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"delta=True .* compression=\"off\""):
        Checkpointer(tmp_path, delta=True, compression="off")


def test_delta_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="delta="):
        Checkpointer(tmp_path, delta="yes")  # type: ignore[arg-type]


def test_a_held_back_state_that_is_committed_at_the_end_leaves_nothing_behind(tmp_path: Path) -> None:
    weights = Weights(names=("a",))
    with Checkpointer(tmp_path, delta=True, every=limpet.Every(steps=5)) as cp:
        for step in range(3):
            state = weights.step()
            cp.write(state, step=step)
    with limpet.open(tmp_path) as run:
        assert_equal(run.read(), state)
