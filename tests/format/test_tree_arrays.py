from __future__ import annotations

import errno
import math
import mmap
import sys
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from limpet import MismatchError, UnsupportedLeafError, UsageError
from limpet.format.assemble import prepare
from limpet.format.buffers import Buffer

any_dtype = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.array_dtypes(),
    hnp.nested_dtypes(),
    st.sampled_from([np.dtype("longdouble"), np.dtype("clongdouble"), np.dtype("V5"), np.dtype("m8")]),
)


@st.composite
def any_arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Any dtype over any bytes, NaN payloads and padding included."""
    dtype = draw(any_dtype)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if dtype.subdtype:
        dtype, inner = dtype.subdtype
        shape += inner
    size = math.prod(shape) * dtype.itemsize
    seed = draw(st.integers(0, 2**32 - 1))
    return np.ndarray(shape, dtype, buffer=np.random.default_rng(seed).bytes(size) or None)


any_array = any_arrays()


def same_array(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Equal in dtype, shape and the bits of every item, padding included."""
    return (
        type(one) is np.ndarray
        and one.dtype == other.dtype
        and one.dtype.isalignedstruct == other.dtype.isalignedstruct
        and one.shape == other.shape
        and one.tobytes("C") == other.tobytes("C")
    )


@given(array=any_array, order=st.sampled_from("CF"), axes=st.randoms(use_true_random=False))
def test_every_array_comes_back_bit_for_bit(array, order, axes, fresh_trip):
    array = np.asarray(array, order=order)
    axis_order = list(range(array.ndim))
    axes.shuffle(axis_order)
    array = array.transpose(axis_order)
    back = fresh_trip()([array])[0]
    assert same_array(back, array)
    assert back.flags.writeable


@given(array=any_array)
def test_every_array_takes_its_own_bytes_in_place(array, fresh_trip):
    target = {"a": np.ndarray(array.shape, array.dtype)}
    inside = target["a"]
    fresh_trip()({"a": array}, into=target)
    assert target["a"] is inside
    assert same_array(inside, array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array(5.0),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
        np.arange(6, dtype=">f4"),
        np.array(["2024-01-01", "NaT"], "M8[D]"),
        np.array([1, 2], "m8[25s]"),
        np.array([(1, 2.0)], np.dtype([("a", "u1"), ("b", "f8")], align=True)),
        np.array([(1, 2.0)], {"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [9, 0], "itemsize": 32}),
        np.array([(1, [[2, 3]])], [("a", "i4"), ("b", "i2", (1, 2))]),
        np.array([((1, b"x"),)], [("outer", [("a", "i4"), ("b", "S3")])]),
        np.array([(1,)], [(("a title", "a"), "i4")]),
        np.ndarray((3,), "S0"),
        np.zeros(2, np.dtype([])),
        np.broadcast_to(np.float32(1), (3, 2)),
        np.array([True, False]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}"[:40],
)
def test_an_array_comes_back_as_it_was(trip, array):
    back = trip({"a": array})["a"]
    assert same_array(back, array)


def test_fortran_order_is_kept_and_gathered_arrays_are_c_order(trip):
    assert trip(np.asfortranarray(np.ones((2, 3)))).flags.fnc
    assert trip(np.ones((4, 6))[::2]).flags.c_contiguous


def test_titles_of_fields_are_kept(trip):
    dtype = np.dtype([(("a title", "a"), "i4")])
    assert trip(np.zeros(1, dtype)).dtype.fields["a title"]


def test_a_mapped_array_comes_back_as_a_plain_one(trip, tmp_path):
    mapped = np.memmap(tmp_path / "data", np.float32, "w+", shape=(4,))
    mapped[:] = 3
    back = trip(mapped)
    assert type(back) is np.ndarray
    assert back.tolist() == [3.0] * 4


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_ml_dtypes_come_back_by_name(trip, name):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the dtypes are ml_dtypes' own")
    array = np.array([1, 2, 3], getattr(ml_dtypes, name))
    assert same_array(trip([array])[0], array)
    assert type(trip(array[0])) is getattr(ml_dtypes, name)


def test_an_ml_dtype_without_ml_dtypes_says_what_to_import(trip, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the dtypes are ml_dtypes' own")
    tree, copies = trip.save(np.zeros(2, ml_dtypes.bfloat16))
    monkeypatch.delitem(sys.modules, "ml_dtypes")
    with pytest.raises(UsageError, match="ml_dtypes is not imported"):
        trip.load(tree, copies)


@pytest.mark.parametrize(
    "scalar",
    [
        np.float32(-0.0),
        np.float64(math.nan),
        np.float16(1.5),
        np.longdouble("1.1"),
        np.complex64(1 - 0j),
        np.int8(-1),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.str_("é\x00"),
        np.str_(""),
        np.bytes_(b"a\x00"),
        np.bytes_(b""),
        np.datetime64("NaT"),
        np.datetime64("2024-01-01T00:00", "m"),
        np.timedelta64(3, "s"),
        np.void(b"abc"),
    ],
    ids=lambda scalar: f"{type(scalar).__name__}-{scalar.dtype}",
)
def test_a_numpy_scalar_keeps_its_type_and_bits(trip, scalar):
    back = trip([scalar])[0]
    assert type(back) is type(scalar)
    assert back.dtype == scalar.dtype
    assert back.tobytes() == scalar.tobytes()


def test_a_structured_scalar_comes_back(trip):
    scalar = np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")])[0]
    assert trip(scalar) == scalar


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([object()]), "is an array of Python objects"),
        (np.zeros(1, [("a", "O")]), "is an array of Python objects"),
        (np.ma.masked_array([1, 2], [True, False]), "is a numpy.ma.*MaskedArray"),
        pytest.param(
            np.asarray([[1]]).view(np.matrix),
            "is a numpy.*matrix",
            marks=pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
        ),
        (np.rec.array([(1,)], dtype=[("a", "i4")]), "is a numpy.*recarray"),
    ],
)
def test_an_array_that_would_not_come_back_is_refused_by_path(trip, array, reason):
    with pytest.raises(UnsupportedLeafError, match=rf"^state\.w {reason}"):
        trip({"state": {"w": array}})


def test_a_string_dtype_is_refused_with_advice(trip):
    strings = getattr(np.dtypes, "StringDType", None)
    if strings is None:
        pytest.skip("this numpy has no StringDType")
    with pytest.raises(UnsupportedLeafError, match="astype"):
        trip(np.array(["a"], strings()))


@pytest.mark.parametrize("name", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_numpy_generators_continue_and_spawn_on(trip, name):
    generator = np.random.Generator(getattr(np.random, name)(5))
    generator.spawn(2)
    generator.integers(0, 9, 3, dtype=np.int32)
    twin = trip({"rng": generator})["rng"]
    assert twin.bit_generator.state["bit_generator"] == name
    assert twin.random(7).tolist() == generator.random(7).tolist()
    assert twin.spawn(1)[0].random() == generator.spawn(1)[0].random()


def test_a_live_generator_takes_the_state(trip):
    stored, live = np.random.default_rng(5), np.random.default_rng(6)
    stored.spawn(1)
    trip({"rng": stored}, into={"rng": live})
    assert live.random() == stored.random()
    assert live.spawn(1)[0].random() == stored.spawn(1)[0].random()


def test_bit_generators_and_old_random_states_continue(trip):
    bits, old = np.random.PCG64(1), np.random.RandomState(2)
    old.standard_normal()
    bits_twin, old_twin = trip((bits, old))
    assert bits_twin.random_raw() == bits.random_raw()
    assert old_twin.standard_normal(3).tolist() == old.standard_normal(3).tolist()


def test_a_live_array_keeps_its_memory(trip):
    live = {"w": np.zeros((2, 3), np.float32), "f": np.zeros((2, 3), order="F"), "s": np.zeros(6)[::2]}
    arrays = dict(live)
    base = live["s"].base
    stored = {"w": np.ones((2, 3), np.float32), "f": np.ones((2, 3), order="F"), "s": np.ones(3)}
    assert trip(stored, into=live) is live
    assert all(live[key] is arrays[key] for key in live)
    assert live["w"].sum() == live["f"].sum() == 6
    assert base.tolist() == [1, 0, 1, 0, 1, 0]


def test_the_destination_is_the_live_array_itself(trip, registry):
    live = [np.zeros(4, np.int32)]
    tree, _ = trip.save([np.arange(4, dtype=np.int32)])
    assembly = prepare(tree.node, [16], registry=registry, into=live)
    assert np.shares_memory(assembly.destinations[0], live[0])
    assert live[0].tolist() == [0, 0, 0, 0]


def test_orders_that_differ_are_copied_over(trip):
    live = {"a": np.zeros((2, 3))}
    inside = live["a"]
    trip({"a": np.asfortranarray(np.arange(6.0).reshape(2, 3))}, into=live)
    assert live["a"] is inside
    assert inside.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_read_only_array_is_replaced_in_its_container(trip):
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    live = {"a": frozen, "t": (frozen, 1)}
    trip({"a": np.ones(3), "t": (np.ones(3), 2)}, into=live)
    assert live["a"].tolist() == live["t"][0].tolist() == [1, 1, 1]
    assert frozen.tolist() == [0, 0, 0]


def test_one_live_array_in_two_places_never_mixes_two_leaves(trip):
    shared = np.zeros(2)
    live = {"a": shared, "b": shared}
    trip({"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}, into=live)
    assert live["a"].tolist() == [1, 2]
    assert live["b"].tolist() == [3, 4]


def test_one_live_array_in_two_places_stays_one_where_both_leaves_agree(trip):
    shared = np.zeros(2)
    live = {"a": shared, "b": shared}
    trip({"a": np.ones(2), "b": np.ones(2)}, into=live)
    assert live["a"] is live["b"] is shared


def test_overlapping_views_of_one_array_never_mix(trip):
    base = np.zeros(6)
    live = {"a": base[:4], "b": base[2:], "c": base[::2]}
    stored = {"a": np.full(4, 1.0), "b": np.full(4, 2.0), "c": np.full(3, 3.0)}
    trip(stored, into=live)
    assert all(np.array_equal(live[key], stored[key]) for key in stored)


def test_a_tuple_of_filled_arrays_stays_the_same_tuple(trip):
    live = (np.zeros(2), [np.zeros(1)])
    assert trip((np.ones(2), [np.ones(1)]), into=live) is live


@pytest.mark.parametrize(
    ("live", "words"),
    [
        (np.zeros((3, 2), np.float32), r"float32 \(2, 3\).*float32 \(3, 2\)"),
        (np.zeros((2, 3), np.float64), r"float32 \(2, 3\).*float64 \(2, 3\)"),
        (np.zeros((2, 3), ">f4"), r"float32 \(2, 3\).*>f4 \(2, 3\)"),
        ([1.0], r"float32 \(2, 3\).*list of 1"),
    ],
)
def test_a_mismatch_names_leaf_shapes_and_dtypes_and_changes_nothing(trip, live, words):
    target = {"ok": np.zeros(2), "bad": live}
    with pytest.raises(
        MismatchError, match=rf"^1 leaf differs from the checkpoint: bad: .*{words}.*Nothing was changed"
    ):
        trip({"ok": np.ones(2), "bad": np.ones((2, 3), np.float32)}, into=target)
    assert target["ok"].tolist() == [0, 0]


def test_buffers_give_views_without_copying():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    flat = Buffer(array, array.nbytes, False).flat()
    assert np.shares_memory(flat, array)
    assert flat.tobytes() == array.tobytes("A")
    assert Buffer(array[:, ::2], 32, False).flat() is None
    assert Buffer(b"", 0, True).flat().size == 0


def test_a_gathered_copy_keeps_the_padding_of_structures(trip):
    dtype = np.dtype({"names": ["a"], "formats": ["u1"], "offsets": [0], "itemsize": 4})
    array = np.frombuffer(bytes(range(16)), dtype)[::2]
    assert trip.save(array)[1][0] == bytes([0, 1, 2, 3, 8, 9, 10, 11])


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [("f4", "f4"), ("f2", "f2"), ("i8", "i8"), ("u1", "u1"), ("c8", "f4"), ("M8[s]", "i8"), (">f4", ""), ("U2", "")],
)
def test_buffers_tell_the_codec_what_they_hold(trip, dtype, hint):
    assert trip.save(np.zeros(2, dtype))[0].buffers[0].dtype == hint


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_big_new_array_begins_with_a_page_and_is_the_callers_like_any_other(trip, order):
    array = np.asarray(np.arange(3 << 20, dtype=np.float32).reshape(3, -1), order=order)
    back = trip({"a": array})["a"]
    assert same_array(back, array)
    assert back.ctypes.data % 4096 == 0
    assert (back.flags.writeable, back.flags.c_contiguous) == (True, order == "C")
    back += 1


def test_the_memory_of_a_big_new_array_goes_with_the_last_view_of_it(trip):
    back = trip(np.ones(2 << 20, np.float32))
    memory = weakref.ref(back.base)
    view = back[5:9]
    del back
    assert view.tolist() == [1.0] * 4
    del view
    assert memory() is None


def test_without_a_mapping_to_be_had_numpy_is_asked_for_a_new_array(trip, monkeypatch):
    array = np.ones(2 << 20, np.float32)

    def refused(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    back = trip(array)
    assert same_array(back, array)
    assert back.flags.owndata
