"""A state of a known structure gives, byte for byte, what the whole walk would have given."""

from __future__ import annotations

import copy
import enum
import random
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import date
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet import UnsupportedLeafError
from limpet.engine.memory import MemoryBudget
from limpet.engine.slots import SlotPool
from limpet.engine.staging import Copier, Draft, Snapshot, detach_small
from limpet.format.registry import Registry
from limpet.format.tree import Recall, flatten
from limpet.types import Files

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Config:
    rate: Any
    parts: Any


class Module:
    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.asked = 0

    def state_dict(self) -> Any:
        self.asked += 1
        return {"inner": self.inner}

    def load_state_dict(self, state: Any) -> None:
        self.inner = state["inner"]


class Custom:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


@pytest.fixture(scope="module")
def stage():
    """What a state becomes on its way into a manifest and its chunks: node, plan, and the bytes of every chunk."""
    pool = SlotPool(1, MemoryBudget(1 << 30))
    copier = Copier()

    def staged(state: Any, registry: Registry, recall: Recall | None = None, *, allow_pickle: bool = False) -> Any:
        draft = Draft.of(flatten(state, registry=registry, recall=recall, allow_pickle=allow_pickle))
        lease = pool.try_lease(draft.plan.slot_bytes)
        assert lease is not None
        try:
            lease.memory[:] = 0xAA
            copier.copy(draft, lease)
            snapshot = Snapshot(draft, lease)
            chunks = [snapshot.read(chunk).tobytes() for chunk in draft.plan.chunks]
            return repr(snapshot.node), draft.plan, chunks, [buffer.dtype for buffer in draft.tree.buffers]
        finally:
            lease.release()

    yield staged
    pool.close()
    copier.close()


class Watched(Recall):
    """Says whether the last state was known."""

    was_known = False

    def find(self, state: object, registry: Registry) -> Any:
        found = super().find(state, registry)
        self.was_known = found is not None
        return found


def registry_of_custom() -> Registry:
    registry = Registry()
    registry.register(Custom, lambda custom: [custom.inner], lambda made: Custom(made[0]))
    return registry


dtypes = st.sampled_from(
    ["<f4", ">f4", "f8", "?", "i1", "u8", "c8", "M8[s]", "S3", "U2", "V5", ml_dtypes.bfloat16, [("a", "i4")]]
)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 3), (2, 1, 3)]))
    array = np.zeros(shape, draw(dtypes))
    raw = np.random.default_rng(draw(st.integers(0, 9))).bytes(array.nbytes)
    array = np.ndarray(shape, array.dtype, buffer=raw or None).copy()
    return draw(st.sampled_from([array, np.asfortranarray(array), array[..., ::-1] if array.ndim else array]))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.just("x" * 1025),
    st.just("\ud800"), st.binary(max_size=3), st.sampled_from(Colour), st.just(date(2026, 1, 2)),
    st.complex_numbers(), st.builds(np.float32, st.floats(width=32)), st.builds(bytearray, st.binary(max_size=3)),
    st.builds(memoryview, st.binary(max_size=3)), st.builds(random.Random, st.integers(0, 3)),
    st.sets(st.integers(0, 9)), st.builds(Counter, st.text("abc")), arrays(),
)  # fmt: skip
keys = st.one_of(st.text(max_size=2), st.integers(0, 2), st.booleans(), st.none(), st.binary(max_size=1))
states = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.dictionaries(keys, inner, max_size=4),
        st.builds(OrderedDict, st.dictionaries(keys, inner, max_size=3)),
        st.builds(lambda found: defaultdict(list, found), st.dictionaries(keys, inner, max_size=2)),
        st.dictionaries(st.floats(), inner, max_size=2),
        st.lists(inner, max_size=4),
        st.builds(tuple, st.lists(inner, max_size=3)),
        st.builds(deque, st.lists(inner, max_size=3)),
        st.builds(Point, inner, inner),
        st.builds(Config, inner, inner),
        st.builds(Module, inner),
        st.builds(Custom, inner),
    ),
    max_leaves=12,
)


def changed(value: Any, draw: Any) -> Any:
    """``value`` with the same structure, for the most part: other numbers, sometimes another shape, key or type."""
    if draw(st.integers(0, 40)) == 0:
        return draw(scalars)
    match value:
        case bool():
            return draw(st.booleans())
        case int() | float() | complex():
            return draw(st.sampled_from([value, value * 2, -value]))
        case str() | bytes() if len(value) < 9:
            return draw(st.sampled_from([value, value * 2, value[::-1]]))
        case np.ndarray():
            other = value.copy("K")
            if other.flags.c_contiguous:
                other.reshape(-1).view(np.uint8)[:1] = 7
            return draw(st.sampled_from([value, other, other.T]))
        case dict():
            for key in list(value):
                value[key] = changed(value[key], draw)
            if value and draw(st.integers(0, 20)) == 0:
                first = next(iter(value))
                value[first] = value.pop(first)  # now the last one
        case list() | deque():
            for index, inner in enumerate(value):
                value[index] = changed(inner, draw)
        case Point():
            return Point(*(changed(inner, draw) for inner in value))
        case tuple():
            return tuple(changed(inner, draw) for inner in value)
        case Config():
            value.rate, value.parts = changed(value.rate, draw), changed(value.parts, draw)
        case Module() | Custom():
            value.inner = changed(value.inner, draw)
        case random.Random():
            value.random()
        case _:
            pass
    return value


@settings(max_examples=150, deadline=None)
@given(data=st.data(), state=states)
def test_a_recalled_structure_gives_what_the_whole_walk_gives(data, state, stage):
    registry, recall = registry_of_custom(), Recall()
    for _ in range(4):
        assert stage(state, registry, recall) == stage(state, registry)
        recall._skip = 0
        state = changed(state, data.draw)


def known_after(state: Any, change: Any, stage: Any, *, registry: Registry | None = None) -> bool:
    """Whether a state is still known after ``change(state)``; what it gives is right either way."""
    registry, recall = registry or registry_of_custom(), Watched()
    stage(state, registry, recall)
    stage(state, registry, recall)
    assert recall.was_known, "nothing was learned"
    state = change(state) or state
    assert stage(state, registry, recall) == stage(state, registry)
    return recall.was_known


def assign(key: Any, value: Any) -> Any:
    return lambda state: state.__setitem__(key, value)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({"w": np.ones(3), "n": 1}, assign("n", 2)),
        ({"w": np.ones(3), "n": 1}, assign("n", 2**80)),
        ({"w": np.ones(3), "x": 0.5}, assign("x", float("nan"))),
        ({"w": np.ones(3)}, assign("w", np.arange(3.0))),
        ({"s": "abc"}, assign("s", "\udfff")),
        ({"b": b"abc"}, assign("b", b"xyz")),
        ({"r": random.Random(1)}, lambda state: state["r"].random() and None),
        ([1, [2, (3, {"a": 4})]], assign(0, 9)),
        (OrderedDict(a=np.ones(2)), assign("a", np.zeros(2))),
    ],
)
def test_new_values_in_the_old_places_are_taken_in(state, change, stage):
    assert known_after(state, change, stage)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({"w": np.ones(3)}, assign("w", np.ones(4))),
        ({"w": np.ones(3)}, assign("w", np.ones(3, np.float32))),
        ({"w": np.ones((2, 3))}, assign("w", np.asfortranarray(np.ones((2, 3))))),
        ({"w": np.ones(3)}, assign("v", np.ones(3))),
        ({"n": 1}, assign("n", True)),
        ({"n": 1}, assign("n", 1.0)),
        ({1: "a"}, lambda _: {True: "a"}),
        ({"a": 1, "b": 2}, lambda _: {"b": 2, "a": 1}),
        ({"s": "a"}, assign("s", "a" * 1025)),
        ({"b": b"abc"}, assign("b", b"abcd")),
        ([1, 2], lambda state: state.append(3)),
        (deque([np.arange(6.0)]), lambda state: state.__setitem__(0, np.arange(12.0)[::2])),
        ((1, 2), lambda _: [1, 2]),
        (OrderedDict(a=1), lambda state: setattr(state, "_metadata", {"version": 1})),
        (Point(1, 2), lambda _: (1, 2)),
        ({"f": np.float32(1)}, assign("f", np.float64(1))),
    ],
)
def test_another_structure_is_noticed(state, change, stage):
    assert not known_after(state, change, stage)


def test_a_codec_that_is_registered_meanwhile_is_used(stage):
    registry = Registry()

    def change(state: Any) -> None:
        registry.register(Point, lambda point: list(point), lambda made: Point(*made))

    assert not known_after({"p": Point(1, 2)}, change, stage, registry=registry)


@pytest.mark.parametrize("put", [lambda it: it, lambda it: deque([it]), lambda it: {"in": (it,)}])
def test_an_object_is_asked_once_for_its_state_whatever_else_changes(stage, put):
    """Some give what is new since they were asked last: an answer that was thrown away would be lost."""
    module, recall, registry = Module({"w": np.ones(3)}), Recall(), Registry()
    for size in (1, 1, 2, 3, 3):
        before = module.asked
        stage([put(module), np.ones(size)], registry, recall)
        assert module.asked == before + 1


@pytest.mark.parametrize("put", [lambda it: it, lambda it: deque([it])])
def test_an_object_in_place_of_something_that_was_known_is_asked_once(stage, put):
    module, recall, registry = Module({"w": np.ones(3)}), Watched(), Registry()
    for _ in range(3):
        stage([put(1.5)], registry, recall)
    assert recall.was_known
    stage([put(module)], registry, recall)
    assert module.asked == 1


def test_a_codec_is_asked_once_whatever_else_changes(stage):
    asked, recall, registry = [], Recall(), Registry()
    registry.register(Custom, lambda custom: asked.append(custom) or [custom.inner], lambda made: Custom(made[0]))
    for times, size in enumerate((1, 1, 2, 2, 3), 1):
        stage([Custom(1), np.ones(size)], registry, recall)
        assert len(asked) == times


def test_a_leaf_that_cannot_be_saved_is_named_the_second_time_too(stage):
    state, registry, recall = {"a": [1, 2]}, Registry(), Recall()
    stage(state, registry, recall)
    state["a"][1] = object()
    with pytest.raises(UnsupportedLeafError, match=r"^a\[1\] is a builtins.object"):
        stage(state, registry, recall)


def test_a_state_that_came_to_contain_itself_is_refused(stage):
    state, registry, recall = {"a": [1, [2]]}, Registry(), Recall()
    stage(state, registry, recall)
    state["a"][1] = state["a"]
    with pytest.raises(UnsupportedLeafError, match="contain itself"):
        stage(state, registry, recall)


def test_files_are_captured_anew_each_time():
    state, recall, captured = {"f": Files("some/path")}, Recall(), []

    def capture(leaf: Any, add: Any) -> Any:
        captured.append(leaf)
        return {}

    for _ in range(3):
        flatten(state, registry=Registry(), recall=recall, files=capture)
    assert len(captured) == 3


def test_a_structure_that_changes_every_time_is_looked_at_ever_more_seldom(monkeypatch):
    looked = []
    recall = Recall()
    monkeypatch.setattr("limpet.format.tree.learn", lambda *args: looked.append(1))
    for number in range(300):
        flatten([0] * number, registry=(registry := Registry()), recall=recall)
    assert registry is not None
    assert len(looked) < 15


def test_the_structure_keeps_no_leaf_alive():
    array = np.ones(3)
    gone = weakref.ref(array)
    recall = Recall()
    flatten({"w": array}, registry=Registry(), recall=recall)
    del array
    assert gone() is None


def test_immutable_leaves_are_not_copied_in_the_call(stage):
    pool, copier = SlotPool(1, MemoryBudget(1 << 30)), Copier()
    state = [b"a" * 100, (b"b" * 100_000, b"c" * 1_000_000), b"d" * 9000]
    draft = Draft.of(flatten(state, registry=Registry()))
    lease = pool.try_lease(draft.plan.slot_bytes)
    lease.memory[:] = 0
    copier.copy(draft, lease)
    assert not lease.memory.any()
    snapshot = Snapshot(draft, lease)
    read = b"".join(snapshot.read(chunk).tobytes() for chunk in draft.plan.chunks)
    assert all(leaf in read for leaf in (state[0], *state[1], state[2]))
    big = next(chunk for chunk in draft.plan.chunks if chunk.buffer >= 0)
    assert np.shares_memory(snapshot.read(big), np.frombuffer(state[1][1], np.uint8))
    snapshot.release()
    copier.close()


def test_copies_of_small_arrays_are_taken_in_the_call(stage):
    pool, copier = SlotPool(1, MemoryBudget(1 << 30)), Copier()
    arrays = [np.full(size, size, np.float32) for size in (1, 10, 5000, 3, 90_000)]
    expected = copy.deepcopy(arrays)
    draft = Draft.of(flatten(arrays, registry=Registry()))
    lease = pool.try_lease(draft.plan.slot_bytes)
    copier.copy(draft, lease)
    for array in arrays:
        array[:] = -1
    snapshot = Snapshot(draft, lease)
    read = b"".join(snapshot.read(chunk).tobytes() for chunk in draft.plan.chunks)
    assert all(array.tobytes() in read for array in expected)
    snapshot.release()
    copier.close()


def test_what_was_detached_once_is_still_copied_in_the_next_call():
    """Of a detached state every small leaf counts as immutable: that must not be remembered."""
    pool, copier, registry, recall = SlotPool(1, MemoryBudget(1 << 30)), Copier(), Registry(), Recall()
    array = np.zeros(100)
    flatten([array], registry=registry, recall=recall)
    first = flatten([array], registry=registry, recall=recall)
    assert first.structure is not None
    detach_small(first)
    Draft.of(first)
    draft = Draft.of(flatten([array], registry=registry, recall=recall))
    lease = pool.try_lease(draft.plan.slot_bytes)
    copier.copy(draft, lease)
    array[:] = 1
    snapshot = Snapshot(draft, lease)
    assert not snapshot.read(draft.plan.chunks[0]).any()
    snapshot.release()
    copier.close()
