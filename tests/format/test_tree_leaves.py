from __future__ import annotations

import enum
import io
import math
import pathlib
import random
import struct
import tempfile
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet import UnsupportedLeafError, UsageError
from limpet.types import Files

Point = namedtuple("Point", "x y")


class Named(Point):
    __slots__ = ()


@dataclass
class Config:
    rate: float
    tags: list[str]
    total: int = field(init=False, default=3)
    kind: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        self.constructed = True  # would be seen if a constructor ran


@dataclass
class Plain:
    rate: float
    tags: list[str] = field(default_factory=list)
    total: int = field(init=False, default=3)
    kind: ClassVar[str] = "fixed"


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    size: int


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Mode(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def same(one: object, other: object) -> bool:
    """Equal in type, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return bits(one) == bits(other)
    if isinstance(one, complex):
        return bits(one.real) == bits(other.real) and bits(one.imag) == bits(other.imag)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(k, j) and same(v, w) for (k, v), (j, w) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, Plain):
        return same([one.rate, one.tags, one.total], [other.rate, other.tags, other.total])
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    return bool(one == other)


any_text = st.text(st.characters(codec=None, exclude_categories=()))
nans = st.integers(1, 2**51 - 1).map(lambda payload: struct.unpack(">d", struct.pack(">Q", 0x7FF8 << 48 | payload))[0])
floats = st.floats() | nans
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | floats
    | st.complex_numbers()
    | any_text
    | st.text(min_size=1000, max_size=1100)
    | st.binary()
    | st.binary().map(bytearray)
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
)
plain_keys = st.recursive(
    any_text | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.binary() | st.none(),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=3,
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.dictionaries(plain_keys, inner, max_size=4)
        | st.dictionaries(plain_keys, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(plain_keys, inner, max_size=4).map(lambda d: defaultdict(list, d))
        | st.builds(Point, inner, inner)
        | st.builds(Plain, floats, st.lists(any_text))
        | st.sets(plain_keys, max_size=4)
        | st.frozensets(plain_keys, max_size=4)
    ),
    max_leaves=12,
)


@given(state=trees)
def test_every_tree_comes_back_equal_in_types_order_and_bits(state, fresh_trip):
    assert same(fresh_trip()(state), state)


@given(state=trees)
def test_a_tree_fits_its_own_copy_as_the_target(state, fresh_trip):
    trip = fresh_trip()
    target = trip(state)
    assert same(trip(state, into=target), state)


@pytest.mark.parametrize(
    "value",
    [
        2**53 - 1,
        2**53,
        -(2**53),
        10**5000,
        -0.0,
        math.inf,
        -math.inf,
        5e-324,
        1e16,
        complex(-0.0, math.nan),
        "",
        "\ud800",
        "\ud83d\ude00",
        "\x00",
        "x" * 1025,
        "é" * 1024 + "\udcff",
        b"",
        b"\x1f\x8b\x08",
        b"\x80\x04.",
        bytearray(),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=-3, microseconds=1), "odd")),
        datetime.max,
        date.min,
        time(23, 59, 59, 999999, fold=1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        timedelta.min,
        timedelta.max,
        Decimal("1.10"),
        Decimal("-0"),
        Decimal("-Infinity"),
        Decimal("1E+999999"),
        Fraction(-(10**400), 3),
        uuid.UUID(int=7),
        pathlib.PurePosixPath("a/\udcff"),
        pathlib.PureWindowsPath("C:/x"),
        pathlib.Path("/tmp/é"),
        Colour.RED,
        Level.LOW,
        Word.YES,
        Mode.READ | Mode.WRITE,
        Mode(0),
        Point(1, "two"),
        Named(1, 2),
        Frozen("n", 3),
        Counter({"a": 2}),
        deque([1, 2], maxlen=2),
        {Colour.RED, 1.5, (1, frozenset({b"x"}))},
        frozenset(),
        (),
        [],
        {},
        {None: 1, True: 2, 0: 3, 2.5: 4, b"k": 5, (1, ("a",)): 6, "\ud800": 7},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_leaf_comes_back_as_it_was(trip, value):
    assert same(trip(value), value)
    assert same(trip({"inside": [value]}), {"inside": [value]})


@pytest.mark.parametrize("text", ["NaN123", "-sNaN", "NaN"])
def test_decimal_nans_keep_their_payload(trip, text):
    assert str(trip(Decimal(text))) == text


@given(value=nans)
def test_the_payload_of_a_nan_is_kept(value, fresh_trip):
    assert bits(fresh_trip()({"x": value})["x"]) == bits(value)


def test_a_zone_keeps_its_name_and_not_only_its_offset(trip):
    value = datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York"))
    assert trip(value).tzinfo is value.tzinfo


def test_empty_bytes_come_back_as_empty_bytes(trip):
    assert trip(b"") == b""


def test_a_view_of_bytes_comes_back_as_bytes(trip):
    assert trip(memoryview(b"abcdef")[::2]) == b"ace"
    assert trip(memoryview(bytearray(b"abc"))) == b"abc"
    assert trip(memoryview(b"")) == b""


def test_a_stream_is_read_from_its_position_which_stays(trip, stream):
    stream.seek(4)
    assert trip(stream) == b"456789"
    assert stream.tell() == 4


def test_a_stream_beyond_its_end_is_empty(trip, stream):
    stream.seek(40)
    assert trip(stream) == b""


@pytest.mark.parametrize("buffering", [0, -1])
def test_an_open_file_is_read_from_its_position_which_stays(trip, tmp_path, buffering):
    (tmp_path / "data").write_bytes(b"0123456789")
    with open(tmp_path / "data", "r+b", buffering=buffering) as file:
        file.seek(3)
        assert trip({"f": file}) == {"f": b"3456789"}
        assert file.tell() == 3


def test_a_temporary_file_is_read(trip):
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"abc")
        file.seek(1)
        assert trip(file) == b"bc"


def test_a_file_that_is_only_written_is_refused(trip, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        with pytest.raises(UnsupportedLeafError, match=r"^log is an open file that cannot be read"):
            trip({"log": file})


def test_a_file_opened_as_text_is_refused(trip, tmp_path):
    (tmp_path / "data").write_text("x")
    with open(tmp_path / "data") as file:
        with pytest.raises(UnsupportedLeafError, match="binary mode"):
            trip(file)


@pytest.mark.parametrize("factory", [None, list, dict, set, int, float, str, tuple, bool, bytes, Plain])
def test_a_defaultdict_keeps_its_factory(trip, factory):
    made = trip(defaultdict(factory, {"a": 1}))
    assert made == {"a": 1}
    assert made.default_factory is factory


def test_a_defaultdict_with_a_lambda_is_refused(trip):
    with pytest.raises(UnsupportedLeafError, match=r"^d is a defaultdict whose factory .* cannot be found again"):
        trip({"d": defaultdict(lambda: 1)})


def test_the_order_of_a_dict_is_kept(trip):
    assert list(trip({"b": 1, "a": 2})) == ["b", "a"]


def test_metadata_of_a_state_dict_is_kept(trip):
    state = OrderedDict(w=1)
    state._metadata = OrderedDict({"": {"version": 2}})
    assert trip(state)._metadata == {"": {"version": 2}}


def test_a_set_is_stored_in_one_order_whatever_its_history(trip):
    one, other = set(range(0, 1000, 7)), set()
    for number in sorted(one, key=lambda n: -n):
        other.add(number)
    assert trip.save(one)[0].node == trip.save(other)[0].node


def test_python_generators_continue(trip):
    generator = random.Random(3)
    generator.gauss(0, 1)
    twin = trip({"rng": generator})["rng"]
    assert [twin.gauss(0, 1), twin.random()] == [generator.gauss(0, 1), generator.random()]


def test_a_dataclass_is_rebuilt_without_its_constructor(trip, registry):
    calls = []

    @dataclass
    class Watched:
        value: int

        def __post_init__(self):
            calls.append(self.value)

    registry.register(Watched)
    made = trip(Watched(4))
    assert (made.value, calls) == (4, [4])


def test_a_dataclass_with_other_attributes_is_refused_because_they_would_be_lost(trip):
    with pytest.raises(UnsupportedLeafError, match="attributes beside its fields: constructed"):
        trip(Config(0.1, []))


def test_a_dataclass_with_an_unset_field_is_refused(trip):
    value = Plain(1.0)
    del value.tags
    with pytest.raises(UnsupportedLeafError, match="field tags has no value"):
        trip([value])


class Odd:
    pass


class OddDict(dict):
    pass


class OddZone(tzinfo):
    def utcoffset(self, when):
        return timedelta(0)


@pytest.mark.parametrize(
    "value",
    [Odd(), OddDict(), object, print, lambda: 1, range(3), iter([]), OddZone(), NotImplemented],
    ids=lambda value: type(value).__name__,
)
def test_an_unsupported_leaf_names_its_path_type_and_the_way_out(trip, value):
    with pytest.raises(UnsupportedLeafError, match=r'^model\."a\.b"\[1\] is a .*limpet\.register\(.*allow_pickle=True'):
        trip({"model": {"a.b": [0, value]}})


def test_an_unsupported_state_is_named_too(trip):
    with pytest.raises(UnsupportedLeafError, match=r"^the state itself is a "):
        trip(Odd())


@pytest.mark.parametrize("key", [Colour.RED, frozenset(), Decimal(1), Point(1, 2), Level.LOW])
def test_a_key_that_no_path_can_name_is_refused(trip, key):
    with pytest.raises(UnsupportedLeafError, match=r"^table has the key "):
        trip({"table": {key: 1}})


def test_an_unknown_time_zone_class_is_refused(trip):
    with pytest.raises(UnsupportedLeafError, match=r"^at has the time zone "):
        trip({"at": datetime(2024, 1, 1, tzinfo=OddZone())})


def test_a_list_that_contains_itself_is_refused_with_both_places(trip):
    loop: list[object] = [1]
    loop.append({"back": loop})
    with pytest.raises(
        UnsupportedLeafError, match=r"^a\[1\]\.back is a again: a state cannot contain itself"
    ) as caught:
        trip({"a": loop})
    assert caught.value.kind == "cycle"


def test_the_same_list_twice_is_no_cycle(trip):
    shared = [1, 2]
    assert trip({"a": shared, "b": shared}) == {"a": [1, 2], "b": [1, 2]}


def nested(levels: int) -> object:
    state: object = 1
    for _ in range(levels):
        state = [state]
    return state


def test_64_levels_come_back_and_65_are_refused(trip):
    assert trip(nested(64)) == nested(64)
    with pytest.raises(UnsupportedLeafError, match="lies deeper than 64 levels"):
        trip(nested(65))


def test_a_files_leaf_is_captured_by_the_engine(trip, tmp_path):
    leaf, handle = Files(tmp_path), Files("elsewhere")
    tree, copies = trip.save({"f": leaf}, files=lambda found, add: {"path": str(found.path)})
    assert tree.node == ["dict", ["f"], [["files", {"path": str(tmp_path)}]]]
    assert trip.load(tree, copies, files=lambda payload: handle) == {"f": handle}


def test_a_files_leaf_without_an_engine_is_refused(trip):
    with pytest.raises(UnsupportedLeafError, match=r"^f is a Files leaf"):
        trip({"f": Files("x")})
    with pytest.raises(UsageError, match=r"^f is a Files leaf"):
        trip.load(*trip.save({"f": Files("x")}, files=lambda leaf, add: 1))


def test_bytes_and_strings_are_referenced_and_arrays_are_not(trip):
    big, buffer = b"x" * 10, bytearray(b"y")
    tree, _ = trip.save([big, "s" * 2000, buffer, memoryview(buffer), io.BytesIO(b"z")])
    assert [b.immutable for b in tree.buffers] == [True, True, False, False, True]
    assert tree.buffers[0].data is big
