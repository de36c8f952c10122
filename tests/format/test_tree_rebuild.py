from __future__ import annotations

import enum
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import numpy as np
import pytest

from limpet import MismatchError, NotFoundError, UnsupportedLeafError, UsageError
from limpet.format.assemble import MISSING, prepare, walk
from limpet.format.registry import Registry, default_registry, register
from limpet.format.tree import flatten
from limpet.types import Files

Pair = namedtuple("Pair", "left right")


@dataclass
class Live:
    count: int
    weights: Any = field(default_factory=lambda: np.zeros(2))


@dataclass(frozen=True)
class Fixed:
    count: int
    weights: Any


class Shade(enum.Enum):
    DARK = 1


class Model:
    """A stateful object whose state_dict holds references."""

    def __init__(self, size: int = 2) -> None:
        self.weights = np.zeros(size)
        self.steps = 0
        self.loads = 0

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "steps" not in state:
            raise KeyError("steps")
        self.loads += 1
        self.weights, self.steps = state["weights"], state["steps"]


class Copying(Model):
    """A stateful object whose state_dict holds copies."""

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.copy(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loads += 1
        self.weights[:] = state["weights"]
        self.steps = state["steps"]


def trained(cls: type[Model] = Model) -> Model:
    model = cls()
    model.weights += 5
    model.steps = 9
    return model


# Live containers


def test_mutable_containers_are_updated_in_place_and_keep_their_order(trip):
    live = {"b": [1, {"x": 0}], "a": OrderedDict(k=1), "c": Live(0)}
    inner = live["b"], live["b"][1], live["a"], live["c"], live["c"].weights
    state = {"a": OrderedDict(k=2), "b": [3, {"x": 4}], "c": Live(7, np.ones(2))}
    assert trip(state, into=live) is live
    assert inner == (live["b"], live["b"][1], live["a"], live["c"], live["c"].weights)
    assert all(one is other for one, other in zip(inner, (live["b"], live["b"][1], live["a"], live["c"]), strict=False))
    assert list(live) == ["b", "a", "c"]
    assert (live["b"], live["a"], live["c"].count, inner[4].tolist()) == ([3, {"x": 4}], {"k": 2}, 7, [1, 1])


def test_immutable_states_come_back_as_new_objects(trip):
    assert trip((1, 2), into=(3, 4)) == (1, 2)
    assert trip(5, into=6) == 5
    assert trip(Pair(1, [2]), into=Pair(0, [0])) == Pair(1, [2])


def test_a_frozen_dataclass_is_replaced_and_its_arrays_are_filled(trip):
    live = Fixed(0, np.zeros(2))
    made = trip({"f": Fixed(3, np.ones(2))}, into={"f": live})["f"]
    assert (made.count, live.count) == (3, 0)
    assert made.weights is live.weights
    assert live.weights.tolist() == [1, 1]


def test_a_namedtuple_of_filled_arrays_stays_the_same_object(trip):
    live = Pair(np.zeros(1), np.zeros(2))
    assert trip(Pair(np.ones(1), np.ones(2)), into=live) is live


def test_none_in_the_live_state_stands_for_anything(trip):
    assert trip({"best": {"loss": 0.5}, "w": np.ones(2)}, into={"best": None, "w": None})["best"] == {"loss": 0.5}


def test_sets_counters_and_deques_take_other_contents(trip):
    live = [{1}, Counter(a=1), deque([1], 5), bytearray(b"x")]
    inner = list(live)
    trip([{2, 3}, Counter(b=2), deque([4, 5], 5), bytearray(b"yz")], into=live)
    assert live == [{2, 3}, Counter(b=2), deque([4, 5]), bytearray(b"yz")]
    assert all(one is other for one, other in zip(inner, live, strict=True))


def test_a_live_file_gives_the_target_path(trip, registry, tmp_path):
    tree, _ = trip.save([Files("a"), Files("b")], files=lambda leaf, add: str(leaf.path))
    live, handle = [Files(tmp_path), None], Files("handle")
    assembly = prepare(tree.node, [], registry=registry, into=live, files=lambda payload: handle)
    assert [(r.payload, r.target, r.handle) for r in assembly.files] == [("a", tmp_path, None), ("b", None, handle)]
    assert assembly.finish()[1] is handle


# Mismatches


@pytest.mark.parametrize(
    ("stored", "live", "words"),
    [
        (1, 1.0, "the state itself: the checkpoint has int, the state has float"),
        (1, True, "the checkpoint has int, the state has bool"),
        (None, 1, "the checkpoint has None, the state has int"),
        ("x", b"x", "the checkpoint has str, the state has bytes"),
        ({"a": 1}, {"a": 1, "b": 2}, "b: only the state has it"),
        ({"a": 1, "b": 2}, {"a": 1}, "b: only the checkpoint has it"),
        ({1: 0}, {True: 0}, r"\[1\]: only the checkpoint has it; \[True\]: only the state has it"),
        ([1, 2], [1], "the checkpoint has list of 2, the state has list of 1"),
        ((1,), [1], "the checkpoint has tuple of 1, the state has list of 1"),
        ({}, OrderedDict(), "the checkpoint has dict of 0, the state has OrderedDict of 0"),
        (deque(maxlen=2), deque(maxlen=3), "deque of at most 2, the state has deque of at most 3"),
        (Live(1), Fixed(1, 2), "the dataclass .*Live, the state has .*Fixed"),
        (Pair(1, 2), (1, 2), "the namedtuple .*Pair, the state has tuple"),
        (Shade.DARK, 1, "an enum member, the state has int"),
        (Model(), 1, "the state of a .*Model, the state has int"),
        (np.random.default_rng(0), np.random.RandomState(0), "a numpy.Generator, the state has .*RandomState"),
        (np.float32(1), np.float64(1), r"float32, the state has float64 \(\) \(numpy.float64\)"),
    ],
    ids=str,
)
def test_what_differs_is_named_with_both_sides(trip, stored, live, words):
    with pytest.raises(MismatchError, match=words):
        trip(stored, into=live)


def test_every_leaf_that_differs_is_named_at_once(trip):
    state = {"a": np.ones(2), "b": [1, "x"], "c": 1}
    live = {"a": np.zeros(3), "b": [1.0, 2], "d": 1}
    with pytest.raises(MismatchError) as caught:
        trip(state, into=live)
    assert str(caught.value).startswith("5 leaves differ from the checkpoint: a: ")
    assert all(f" {path}: " in str(caught.value) for path in ("a", "b[0]", "b[1]", "c", "d"))
    assert live["b"] == [1.0, 2]


# Classes


def test_a_class_is_found_in_a_module_that_is_imported_and_nowhere_else(trip, monkeypatch):
    module = types.ModuleType("a_module_of_the_user")
    module.Setup = make_dataclass("Setup", ["x"])
    module.Setup.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    tree, copies = trip.save(module.Setup(1))
    assert type(trip.load(tree, copies)) is module.Setup
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(
        UsageError, match=r"a_module_of_the_user\.Setup, which is not known here.*Import.*register.*into="
    ) as caught:
        trip.load(tree, copies)
    assert caught.value.kind == "unknown_class"
    assert module.__name__ not in sys.modules


def test_looking_for_a_class_runs_no_code_of_a_module(trip, monkeypatch):
    class Trap(types.ModuleType):
        def __getattribute__(self, name):
            raise AssertionError(name)

    tree, copies = trip.save(Live(1))
    tree.node[1:3] = ["trap", "Setup.Inner"]
    monkeypatch.setitem(sys.modules, "trap", Trap("trap"))
    with pytest.raises(UsageError, match=r"trap.Setup.Inner"):
        trip.load(tree, copies)


@pytest.mark.parametrize(
    ("module", "qualname"), [("os", "system"), ("pathlib", "Path"), ("builtins", "dict"), ("os", "sys.path")]
)
def test_a_name_that_is_no_dataclass_is_not_used(trip, module, qualname):
    tree, copies = trip.save(Live(1))
    tree.node[1:3] = [module, qualname]
    with pytest.raises(UsageError, match="which is not known here"):
        trip.load(tree, copies)


def test_a_class_with_a_finalizer_must_be_registered(trip, registry, monkeypatch):
    module = types.ModuleType("with_finalizer")
    module.Temp = make_dataclass("Temp", ["path"], namespace={"__del__": lambda self: None})
    module.Temp.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    tree, copies = trip.save(module.Temp("x"))
    with pytest.raises(UsageError, match="not known here"):
        trip.load(tree, copies)
    registry.register(module.Temp)
    assert trip.load(tree, copies).path == "x"


def test_a_local_class_comes_from_into_or_the_registry(trip, registry):
    @dataclass
    class Local:
        x: int

    tree, copies = trip.save(Local(3))
    with pytest.raises(UsageError, match="not known here"):
        trip.load(tree, copies)
    assert trip.load(tree, copies, into=Local(0)).x == 3
    registry.register(Local)
    assert trip.load(tree, copies) == Local(3)


def test_a_moved_class_is_found_by_its_old_name(trip, registry):
    tree, copies = trip.save(Pair(1, 2))
    tree.node[1] = "the_old_module"
    registry.register(Pair, name="the_old_module.Pair")
    assert type(trip.load(tree, copies)) is Pair


def test_fields_that_changed_are_a_mismatch(trip):
    tree, copies = trip.save(Live(1))
    tree.node[3] = ["count", "other"]
    with pytest.raises(MismatchError, match=r"has the fields \(count, weights\), the checkpoint has \(count, other\)"):
        trip.load(tree, copies)


def test_an_enum_member_that_is_gone_is_a_mismatch(trip):
    tree, copies = trip.save(Shade.DARK)
    tree.node[3] = "LIGHT"
    with pytest.raises(MismatchError, match="has no member 'LIGHT'"):
        trip.load(tree, copies)


# Registered codecs


class Ring:
    def __init__(self, items: list[int]) -> None:
        self.items = items


def test_a_codec_brings_any_class_back(trip, registry):
    registry.register(Ring, lambda ring: {"items": ring.items}, lambda tree: Ring(tree["items"]))
    made = trip({"r": Ring([1, 2])})["r"]
    assert type(made) is Ring
    assert made.items == [1, 2]
    assert trip({"r": Ring([1, 2])}, select="r.items[1]") == 2


def test_a_codec_that_is_gone_is_named(trip, registry):
    registry.register(Ring, vars, lambda tree: Ring(**tree), name="ring")
    tree, copies = trip.save([Ring([])])
    trip.registry = Registry()
    with pytest.raises(UsageError, match=r"^\[0\] is a ring, for which no codec is registered"):
        trip.load(tree, copies)


def test_a_codec_that_fails_is_one_clear_error(trip, registry):
    registry.register(Ring, vars, lambda tree: Ring(tree["absent"]))
    with pytest.raises(MismatchError, match=r"^\[0\]: the codec of .*Ring could not decode"):
        trip([Ring([])])
    registry.register(Ring, lambda ring: 1 / 0, Ring)
    with pytest.raises(UnsupportedLeafError, match=r"^\[0\] is a .*Ring whose codec failed: ZeroDivisionError"):
        trip([Ring([])])


@pytest.mark.parametrize(
    "call",
    [
        lambda: Registry().register(Ring),
        lambda: Registry().register(Ring, vars),
        lambda: Registry().register(Ring([]), vars, Ring),
        lambda: Registry().register(dict, list, dict),
        lambda: [(r := Registry()).register(Ring, vars, Ring, name="x"), r.register(Live, name="x")],
    ],
)
def test_a_registration_that_cannot_work_is_a_usage_error(call):
    with pytest.raises(UsageError):
        call()


def test_a_copy_of_a_registry_is_independent():
    registry = Registry()
    twin = registry.copy()
    twin.register(Live)
    assert registry.class_named(f"{Live.__module__}.Live") is None


def test_register_fills_the_default_registry(monkeypatch):
    monkeypatch.setattr("limpet.format.registry.default_registry", registry := Registry())
    assert register(Live) is Live
    assert registry.class_named(f"{Live.__module__}.Live") is Live
    assert default_registry is not registry


# Stateful objects


def test_a_stateful_object_comes_back_as_its_state_without_a_live_one(trip):
    state = trip({"m": trained()})["m"]
    assert (state["weights"].tolist(), state["steps"]) == ([5, 5], 9)


@pytest.mark.parametrize("cls", [Model, Copying])
def test_a_live_stateful_object_is_told_once_and_keeps_its_memory(trip, cls):
    live = {"m": cls()}
    model, weights = live["m"], live["m"].weights
    assert trip({"m": trained(cls)}, into=live)["m"] is model
    assert model.weights is weights
    assert (weights.tolist(), model.steps, model.loads) == ([5, 5], 9, 1)


def test_a_live_stateful_object_of_another_shape_is_not_touched(trip):
    live = Model(3)
    with pytest.raises(
        MismatchError, match=r"weights: the checkpoint has float64 \(2,\), the state has float64 \(3,\)"
    ):
        trip(trained(), into=live)
    assert (live.loads, live.weights.tolist()) == (0, [0, 0, 0])


def test_what_load_state_dict_does_not_accept_is_a_mismatch_with_its_cause(trip):
    class Other(Model):
        def state_dict(self):
            return {"weights": self.weights}

    with pytest.raises(MismatchError, match=r"m did not accept the state of a .*Other: KeyError") as caught:
        trip({"m": Other()}, into={"m": Model()})
    assert isinstance(caught.value.__cause__, KeyError)


def test_keys_that_differ_are_left_to_load_state_dict(trip):
    class Growing(Model):
        def state_dict(self):
            return {**super().state_dict(), "extra": {"a": 1}} if self.steps else {"weights": self.weights}

    live = Growing()
    trip(trained(Growing), into=live)
    assert live.steps == 9


def test_a_state_dict_that_fails_is_named(trip):
    class Broken(Model):
        def state_dict(self):
            raise RuntimeError("no state")

    with pytest.raises(UnsupportedLeafError, match=r"^m is a .*Broken whose state_dict.. failed: RuntimeError"):
        trip({"m": Broken()})


# Pickle


class Odd:
    def __init__(self, value: int) -> None:
        self.value = value


def test_pickle_needs_permission_on_both_sides(trip):
    with pytest.raises(UnsupportedLeafError, match="allow_pickle=True"):
        trip.save({"o": Odd(1)})
    tree, copies = trip.save({"o": Odd(1)}, allow_pickle=True)
    with pytest.raises(UsageError, match=r"^o is a pickled .*Odd, and unpickling can run any code") as caught:
        trip.load(tree, copies)
    assert caught.value.kind == "pickle"
    assert trip.load(tree, copies, allow_pickle=True)["o"].value == 1


def test_pickle_takes_only_what_nothing_else_can(trip):
    tree, _ = trip.save({"a": np.ones(2), "o": [np.array([Odd(1)]), 1]}, allow_pickle=True)
    assert [leaf.kind for _, leaf in walk(tree.node)] == ["ndarray", "pickle", "int"]


def test_what_cannot_be_pickled_is_named(trip):
    with pytest.raises(UnsupportedLeafError, match=r"^f is a builtins.function, which cannot be pickled"):
        trip.save({"f": lambda: 1}, allow_pickle=True)


def test_a_cycle_is_an_error_with_pickle_too(trip):
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnsupportedLeafError, match="cannot contain itself"):
        trip.save(loop, allow_pickle=True)


# Parts of a state


@pytest.fixture
def state() -> dict[str, Any]:
    return {
        "model": {"layer1.0.weight": np.arange(3.0), "layer1.0.bias": np.zeros(3)},
        "history": [1, (2, 3)],
        "table": {1: "int", True + 1: "two", (1, "x"): "tuple"},
        "pair": Pair(1, 2),
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("history[1][0]", 2),
        ("history[1]", (2, 3)),
        ("table[1]", "int"),
        ('table[(1, "x")]', "tuple"),
        ("pair.right", 2),
    ],
)
def test_a_part_is_read_by_its_path(trip, state, path, expected):
    assert trip(state, select=path) == expected


def test_only_the_buffers_of_the_part_are_needed(trip, registry, state):
    tree, copies = trip.save(state)
    assembly = prepare(tree.node, list(map(len, copies)), registry=registry, select='model."layer1.0.weight"')
    assert {index: len(memory) for index, memory in assembly.destinations.items()} == {0: 24}


def test_a_part_goes_into_its_own_counterpart(trip, state):
    live = np.zeros(3)
    assert trip(state, into=live, select='model."layer1.0.weight"') is live
    assert live.tolist() == [0, 1, 2]


@pytest.mark.parametrize("path", ["model.layer1", "history[2]", "history[-1]", "table[True]", "history[1][0].x", "[0]"])
def test_a_path_to_nothing_names_some_that_exist(trip, state, path):
    with pytest.raises(NotFoundError, match=r"has no leaf .*It has, for example: "):
        trip(state, select=path)


def test_a_near_path_is_suggested(trip, state):
    with pytest.raises(NotFoundError, match=r'for example: model\."layer1\.0\.weight"'):
        trip(state, select='model."layer1.0.wieght"')


def test_the_empty_path_is_the_whole_state(trip):
    assert trip({"a": 1}, select="") == {"a": 1}


def test_walk_lists_every_leaf_without_building_one(trip, registry):
    registry.register(Ring, vars, lambda tree: Ring(**tree))
    state = {"m": trained(), "a": np.ones((2, 3), np.float32), "e": {}, "b": b"x", "r": Ring([7]), "d": deque([1])}
    tree, _ = trip.save(state)
    assert [(path, leaf.kind, leaf.dtype, leaf.shape, leaf.buffers) for path, leaf in walk(tree.node)] == [
        (("m", "weights"), "ndarray", "<f8", (2,), (0,)),
        (("m", "steps"), "int", "", (), ()),
        (("a",), "ndarray", "<f4", (2, 3), (1,)),
        (("e",), "dict", "", (), ()),
        (("b",), "bytes", "", (), (2,)),
        (("r", "items", 0), "int", "", (), ()),
        (("d", 0), "int", "", (), ()),
    ]


def test_a_factory_class_must_still_be_known(trip):
    tree, copies = trip.save(defaultdict(Live, {}))
    tree.node[3] = ["os", "_Environ"]
    with pytest.raises(UsageError, match=r"factory os._Environ"):
        trip.load(tree, copies)


def test_missing_is_not_none(registry):
    assert MISSING is not None
    flat = flatten(None, registry=registry)
    assert prepare(flat.node, [], registry=registry, into=None).finish() is None
