"""Nothing that is read is run or imported, whatever it names (threat A1)."""

from __future__ import annotations

import contextlib
import enum
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.corruption.limits import nothing_runs
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.crafted import craft

from limpet import LimpetError, MismatchError, UnsupportedLeafError, UsageError
from limpet.format.assemble import prepare
from limpet.format.registry import Registry
from limpet.format.rows import describe_leaves
from limpet.format.tree import flatten

RAN: list[str] = []
"""What ran of the classes below; nothing may."""


@dataclass
class Plain:
    value: int = 0


@dataclass
class Guarded:
    """Everything that Python might call on the way to an object."""

    value: int = 0
    kept: ClassVar[int] = 1

    def __new__(cls, *_: object, **__: object) -> Guarded:
        RAN.append("__new__")
        return object.__new__(cls)

    def __post_init__(self) -> None:
        RAN.append("__post_init__")

    def __setattr__(self, name: str, value: object) -> None:
        RAN.append("__setattr__")
        object.__setattr__(self, name, value)

    def __setstate__(self, state: object) -> None:
        RAN.append("__setstate__")

    def __reduce__(self) -> tuple[object, ...]:
        RAN.append("__reduce__")
        return (os.system, ("true",))


@dataclass
class WithProperty:
    """A field behind a property: an assignment runs its setter."""

    value: int = 0

    @property  # type: ignore[no-redef]
    def value(self) -> int:  # noqa: F811
        return 0

    @value.setter
    def value(self, value: int) -> None:
        RAN.append(f"value.setter({value})")


@dataclass
class WithFinalizer:
    value: int = 0

    def __del__(self) -> None:
        RAN.append("__del__")


class _Curious(type):
    """A metaclass that runs code for every look at its classes."""

    def __getattribute__(cls, name: str) -> Any:
        if not name.startswith("__dataclass") and name not in {"__module__", "__qualname__", "__mro__", "__flags__"}:
            RAN.append(f"metaclass.{name}")
        return super().__getattribute__(name)


@dataclass
class Watched(metaclass=_Curious):
    value: int = 0


class Bits(enum.Flag):
    A = 1
    B = 2

    @classmethod
    def _missing_(cls, value: object) -> Any:
        RAN.append(f"_missing_({value})")
        return super()._missing_(value)


class Soft(enum.IntFlag):
    A = 1


class Lazy(ModuleType):
    """A module that runs code for a name that it lacks, as many packages do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # test runners look
            raise AttributeError(name)
        RAN.append(f"module.{name}")
        return Plain


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    sys.modules["limpet_lazy_module"] = Lazy("limpet_lazy_module")
    RAN.clear()
    yield
    del sys.modules["limpet_lazy_module"]
    assert RAN == []


def read(tree: Any, **options: Any) -> Any:
    return prepare(tree, [], registry=Registry(), **options).finish()


HERE = __name__
NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "type"),
    ("builtins", "object"),
    ("builtins", "__import__"),
    ("builtins", "complex"),
    ("builtins", "memoryview"),
    ("subprocess", "Popen"),
    ("pickle", "Unpickler"),
    ("types", "FunctionType"),
    ("types", "CodeType"),
    ("functools", "partial"),
    ("collections", "OrderedDict"),
    ("antigravity", "fly"),
    ("this", "s"),
    ("limpet_not_there", "Thing"),
    ("limpet_lazy_module", "Anything"),
    ("", "eval"),
    ("builtins.eval", ""),
    ("os.path", "os.system"),
    (HERE, "RAN"),
    (HERE, "read"),
    (HERE, "Plain.__init__"),
    (HERE, "Plain.__class__"),
    (HERE, "Plain.__new__.__self__"),
    (HERE, "os.system"),
    (HERE, "WithProperty"),
    (HERE, "WithFinalizer"),
    (HERE, ""),
    (HERE, "."),
    ("\ud800", "x"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_that_is_no_plain_class_is_refused_and_nothing_is_imported(module: str, name: str) -> None:
    before = set(sys.modules)
    names = [module.encode("utf-8", "surrogatepass").hex(), name]
    where = [["utf8", names[0]], name]
    trees = [
        ["dataclass", *where, ["value"], [1]],
        ["dataclass", *where, [], []],
        ["namedtuple", *where, ["value"], [1]],
        ["namedtuple", *where, [], []],
        ["enum", *where, "A", None],
        ["enum", *where, None, 3],
        ["ddict", [], [], where],
        ["custom", f"{module}.{name}", 1],
        ["pickle", f"{module}.{name}", 0],
        ["rng", f"{module}.{name}", 1],
        ["ddict", [], [], name],
        ["path", name, "x"],
        [name, 1],
    ]
    for tree in trees:
        with nothing_runs(), pytest.raises(LimpetError):
            read(tree)
        with nothing_runs():
            with contextlib.suppress(LimpetError):
                describe_leaves(tree, [0])
    assert set(sys.modules) == before


def test_a_dataclass_is_made_without_any_of_its_code() -> None:
    made = read(["dataclass", HERE, "Guarded", ["value"], [5]])
    assert (type(made), vars(made)) == (Guarded, {"value": 5})


def test_a_class_is_looked_at_without_asking_its_metaclass() -> None:
    made = read(["dataclass", HERE, "Watched", ["value"], [5]])
    assert [look for look in RAN if look not in ("metaclass.__class__", "metaclass.__dict__")] == []
    RAN.clear()
    assert vars(made) == {"value": 5}


def test_a_field_behind_a_property_needs_a_class_that_was_registered() -> None:
    with pytest.raises(UsageError, match="not known here"):
        read(["dataclass", HERE, "WithProperty", ["value"], [5]])
    assert RAN == []
    registry = Registry()
    registry.register(WithProperty)
    prepare(["dataclass", HERE, "WithProperty", ["value"], [5]], [], registry=registry).finish()
    assert RAN == ["value.setter(5)"]
    RAN.clear()


@pytest.mark.parametrize(
    "fields", [["__class__"], ["__dict__"], ["value", "__class__"], ["__reduce__"], ["kept"], ["value", "extra"], [], ["value", "value"]]
)  # fmt: skip
def test_no_attribute_beside_the_fields_can_be_set(fields: list[str]) -> None:
    with pytest.raises(LimpetError):
        read(["dataclass", HERE, "Plain", fields, [1] * len(fields)])
    with pytest.raises(LimpetError):
        read(["dataclass", HERE, "Plain", fields, [1] * len(fields)], into=Plain())


def test_an_enum_that_takes_unknown_values_its_own_way_is_not_asked() -> None:
    with pytest.raises(UsageError, match="not known here"):
        read(["enum", HERE, "Bits", None, 3])


def test_flags_of_any_number_of_bits_are_no_way_to_take_memory() -> None:
    assert read(["enum", HERE, "Soft", None, 9]) == Soft(9)
    with pytest.raises(LimpetError):
        read(["enum", HERE, "Soft", None, ["int", "f" * 1_000_000]])


def test_a_factory_is_one_of_few_builtins_or_a_dataclass() -> None:
    for name in ("eval", "exec", "type", "object", "open", "__import__", "print", "input", "help", "exit"):
        with pytest.raises(LimpetError):
            read(["ddict", [], [], name])
    assert read(["ddict", [], [], "list"]).default_factory is list


def note(what: str) -> None:
    RAN.append(what)


class Bomb:
    """A pickle of it runs code."""

    def __reduce__(self) -> tuple[object, ...]:
        return (note, ("unpickled",))


def test_a_pickle_runs_only_where_both_the_writer_and_the_reader_of_this_very_call_allowed_it(
    store: Faulty, tmp_path: Path
) -> None:
    with write_over(store) as cp, pytest.raises(UnsupportedLeafError):
        cp.write({"x": Bomb()}, durable=True)
    with write_over(store, allow_pickle=True) as cp:
        cp.write({"x": Bomb(), "y": np.zeros(9000)}, durable=True)
    with read_over(store) as run:
        with (
            nothing_runs(but=("open", "import", "socket.__new__")),
            pytest.raises(UsageError, match="allow_pickle=True"),
        ):
            run.read()
        with pytest.raises(UsageError, match="allow_pickle=True"):
            run.read(select="x")
        with pytest.raises(UsageError, match="allow_pickle=True"):
            run.read(into={"x": None, "y": None})
        assert run.read(select="y").size == 9000
        assert run.verify() is not None
        assert [row.kind for row in run.describe()] == ["pickle", "ndarray"]
    assert RAN == []
    with write_over(store, allow_pickle=True) as cp:
        cp.resume()
    assert RAN == ["unpickled"]
    RAN.clear()


def test_bytes_that_were_no_pickle_are_none_because_a_manifest_says_so(store: Faulty, shelf: Shelf) -> None:
    with write_over(store) as cp:
        cp.write({"x": pickle.dumps(Bomb()) + np.random.default_rng(1).bytes(9000)}, durable=True)

    def change(fields: dict[str, Any]) -> None:
        fields["tree"] = ["dict", ["x"], [["pickle", "builtins.list", 0]]]

    craft(shelf, 2, change)
    with read_over(store) as run, pytest.raises(UsageError, match="allow_pickle=True"):
        run.read(strict=True)


def test_a_codec_is_found_by_the_name_that_was_registered_and_by_no_other() -> None:
    registry = Registry()
    registry.register(Bomb, lambda _: 1, lambda _: "decoded", name="bomb")
    assert prepare(["custom", "bomb", 1], [], registry=registry).finish() == "decoded"
    for name in (f"{HERE}.Bomb", "Bomb", "bomb ", "BOMB", ""):
        with pytest.raises(UsageError):
            prepare(["custom", name, 1], [], registry=registry)


def test_a_registered_codec_that_chokes_is_no_crash() -> None:
    registry = Registry()
    registry.register(Bomb, lambda _: 1, lambda tree: tree["missing"], name="bomb")
    with pytest.raises(MismatchError, match="could not decode"):
        prepare(["custom", "bomb", 1], [], registry=registry).finish()


def test_a_state_whose_class_name_is_a_lie_is_only_shown() -> None:
    assert read(["stateful", "os.system", ["dict", ["a"], [1]]]) == {"a": 1}
    assert flatten({"a": 1}, registry=Registry()).node[0] == "dict"
