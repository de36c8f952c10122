"""What is read is not trusted: whatever a node says, the answer is a state or one of limpet's errors."""

from __future__ import annotations

import copy
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.format.test_tree_leaves import Colour, Mode, Plain, Point

from limpet import CorruptError, LimpetError
from limpet.format.assemble import prepare, walk
from limpet.format.registry import Registry
from limpet.format.tree import flatten


def rich_state() -> dict[Any, Any]:
    """Every kind of node that needs no framework."""
    structured = np.zeros(2, [("a", "u1"), ("b", "f4", (2,))])
    return {
        "scalars": [None, True, 2**70, 1.5, float("nan"), 1j, "x", "\ud800", "y" * 2000, b"z", bytearray(b"w")],
        "times": [
            datetime(2024, 1, 1, tzinfo=UTC),
            timedelta(3),
            datetime(1, 1, 1, tzinfo=ZoneInfo("UTC")),
        ],
        "values": [Decimal("1.5"), Fraction(1, 3), UUID(int=3), PurePosixPath("a"), timedelta(1)],
        "classes": [Point(1, [2]), Plain(0.5), Colour.RED, Mode.READ | Mode.WRITE],
        "arrays": [np.arange(6.0).reshape(2, 3), structured, np.float32(1), np.zeros((0, 2)), np.array("s")],
        "fortran": np.asfortranarray(np.ones((2, 2))),
        "mappings": [OrderedDict(a=1), defaultdict(list, b=[2]), Counter("ab"), {(1, b"k"): {2.5: None}}],
        "sets": [{1, (2, "x"), Colour.RED}, frozenset({b"y"}), deque([1], 3)],
        "random": [random.Random(1), np.random.default_rng(2), np.random.RandomState(3), np.random.Philox(4)],
    }


FLAT = flatten(rich_state(), registry=Registry())
BYTES = [bytes(buffer.flat()) for buffer in FLAT.buffers]
STRINGS = sorted(
    {"__reduce__", "posix", "system", "../..", "<f8", "|O8", "O", "ml_dtypes.bfloat16", "\x00", "torch", "jax"}
)
TAGS = [
    "dict",
    "nd",
    "rng",
    "set",
    "dataclass",
    "enum",
    "custom",
    "pickle",
    "torch",
    "files",
    "stateful",
    "str",
    "zone",
    "struct",
]
NUMBERS = [-1, 0, 1, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**70), 0.5, 1e308]
atoms = st.none() | st.booleans() | st.integers() | st.sampled_from([*NUMBERS, *STRINGS, *TAGS]) | st.text(max_size=4)
json = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(st.sampled_from(TAGS), inner, inner, inner).map(list),
    max_leaves=8,
)


def places(node: Any, at: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """The position of every item in a nested list."""
    found = [at]
    if isinstance(node, list):
        for index, item in enumerate(node):
            found += places(item, (*at, index))
    return found


PLACES = places(FLAT.node)


def at(node: Any, place: tuple[int, ...]) -> Any:
    for index in place:
        node = node[index]
    return node


def attempt(node: Any, sizes: list[Any]) -> None:
    """Read a node as a checkpoint's; only an error of limpet's own may come out."""
    with suppress(LimpetError):
        list(walk(node))
    with suppress(LimpetError):
        assembly = prepare(node, sizes, registry=Registry(), allow_pickle=False)
        for index, memory in assembly.destinations.items():
            assert memory.nbytes == sizes[index]
            memory[:] = np.frombuffer(BYTES[index], np.uint8) if sizes == list(map(len, BYTES)) else 0xFF
        assembly.finish()


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_changed_node_is_a_state_or_an_error_of_ours(data):
    node = copy.deepcopy(FLAT.node)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(PLACES[1:]))
        try:
            holder = at(node, place[:-1])
            old = holder[place[-1]]
        except (IndexError, TypeError):
            continue  # an earlier change took it away
        if isinstance(holder, list):
            action = data.draw(st.sampled_from(["replace", "drop", "double", "swap"]))
            if action == "replace":
                holder[place[-1]] = data.draw(json)
            elif action == "drop":
                del holder[place[-1]]
            elif action == "double":
                holder.append(copy.deepcopy(old))
            else:
                holder[place[-1]] = copy.deepcopy(at(FLAT.node, data.draw(st.sampled_from(PLACES))))
    attempt(node, list(map(len, BYTES)))


@settings(max_examples=300)
@given(node=json, sizes=st.lists(st.integers(0, 100) | st.sampled_from([*NUMBERS, None]), max_size=3))
def test_any_json_is_a_state_or_an_error_of_ours(node, sizes):
    if sum(size for size in sizes if isinstance(size, int) and size > 0) < 10_000:
        attempt(node, sizes)
    else:
        with pytest.raises(LimpetError):
            prepare([node] if isinstance(node, str) else ["list", [node, ["bytes", "no"]]], sizes, registry=Registry())


def test_reading_imports_nothing_that_a_checkpoint_names():
    before = set(sys.modules)
    for tag in ("dataclass", "namedtuple"):
        with pytest.raises(LimpetError):
            prepare([tag, "antigravity", "Fly", [], []], [], registry=Registry())
    with pytest.raises(LimpetError):
        prepare(["enum", "this", "Zen", "X", None], [], registry=Registry())
    assert {"antigravity", "this"}.isdisjoint(set(sys.modules) - before)


def nested(levels: int) -> Any:
    node: Any = 1
    for _ in range(levels):
        node = ["list", [node]]
    return node


@pytest.mark.parametrize("depth", [65, 100_000])
def test_a_node_of_any_depth_is_refused_without_recursion(depth):
    for read in (lambda node: prepare(node, [], registry=Registry()), lambda node: list(walk(node))):
        with pytest.raises(CorruptError, match="deeper than 64 levels"):
            read(nested(depth))


def test_deep_stateful_nodes_are_refused_too():
    node: Any = 1
    for _ in range(1000):
        node = ["stateful", "x", node]
    for read in (lambda: prepare(node, [], registry=Registry()), lambda: list(walk(node))):
        with pytest.raises(CorruptError):
            read()


@pytest.mark.parametrize(
    ("node", "sizes"),
    [
        (["nd", "<f4", [2**62, 4], 0], [16]),
        (["nd", "<f4", [2**63], 0], [0]),
        (["nd", "<f4", [-1, -4], 0], [16]),
        (["nd", "<f4", [3], 0], [16]),
        (["nd", "<f4", [4], 1], [16]),
        (["nd", "<f4", [4], -1], [16]),
        (["nd", "<f4", [True], 0], [4]),
        (["nd", "|O8", [1], 0], [8]),
        (["nd", "O", [1], 0], [8]),
        (["nd", "f4,f4", [1], 0], [8]),
        (["nd", "<f4", [1] * 65, 0], [4]),
        (["nd", ["struct", 4, False, [["a", 2, "<f4", []]]], [1], 0], [4]),
        (["nd", ["struct", 4, False, [["a", 0, "|O8", []]]], [1], 0], [4]),
        (["nd", "<f4", [4, 0, 2**62], 0], [0]),
        (["list", [["bytes", 0], ["bytes", 0]]], [3]),
        (["list", [["bytes", 0], ["nd", "|u1", [3], 0]]], [3]),
        (["dict", ["a", "a"], [1, 2]], []),
        (["dict", ["a"], []], []),
        (["dict", [["nd", "<f4", [1], 0]], [1]], [4]),
        (["set", [1, 1]], []),
        (["set", [["npscalar", ["struct", 1, False, [["a", 0, "|u1", []]]], "00"]]], []),
        (["fraction", "1", "0"], []),
        (["datetime", [2024, 13, 1, 0, 0, 0, 0], 0, None], []),
        (["datetime", [2024, 1, 1, 0, 0, 0, 0], 0, ["zone", "../../etc/passwd"]], []),
        (["path", "Path", "x"], []),
        (["decimal", "x"], []),
        (["int", "0x1"], []),
        (["int", "1_0"], []),
        (["rng", "os.system", 1], []),
        (["deque", [1, 2], 1], []),
        (["ddict", ["a"], [1], "eval"], []),
        (["unknown", 1], []),
        ([], []),
        ({}, []),
        ([["list", []]], []),
        (["bytes", 0], [2**70]),
        (["bytes", 0], [-1]),
        (["bytes", 0], ["16"]),
    ],
)
def test_a_node_that_does_not_fit_the_schema_is_corrupt(node, sizes):
    with pytest.raises(CorruptError):
        prepare(node, sizes, registry=Registry())


@pytest.mark.parametrize(
    ("generator", "path", "value"),
    [
        (np.random.MT19937(1), ("state", "state", "pos"), 625),
        (np.random.Philox(1), ("state", "buffer_pos"), -1),
        (np.random.Philox(1), ("state", "buffer_pos"), 1000),
    ],
)
def test_a_generator_never_gets_an_index_outside_its_memory(generator, path, value):
    """numpy's own setters take these, and then read memory that is not theirs."""
    flat = flatten(generator, registry=Registry())
    node = flat.node[2]
    for key in path[:-1]:
        node = node[2][node[1].index(key)]
    node[2][node[1].index(path[-1])] = value
    assembly = prepare(flat.node, [buffer.nbytes for buffer in flat.buffers], registry=Registry())
    for index, memory in assembly.destinations.items():
        flat.buffers[index].copy_into(memory)
    with pytest.raises(CorruptError, match="random generator's state is damaged"):
        assembly.finish()


def test_bytes_that_are_no_text_are_corrupt():
    assembly = prepare(["str", 0], [1], registry=Registry())
    assembly.destinations[0][:] = 0xFF
    with pytest.raises(CorruptError, match="not UTF-8"):
        assembly.finish()
