from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from limpet import CorruptError, MismatchError, UnsupportedLeafError, UsageError
from limpet.format.assemble import prepare
from limpet.format.registry import Registry

jax: Any = pytest.importorskip("jax", reason="the leaves are jax's")
pytestmark = pytest.mark.jax


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "complex64", "float8_e4m3fn"]
)
def test_every_dtype_comes_back_as_a_jax_array(trip, dtype):
    array = jax.numpy.arange(6).reshape(2, 3).astype(dtype)
    back = trip({"w": array, "0d": array[0, 0], "empty": array[:0]})
    assert isinstance(back["w"], jax.Array)
    assert back["w"].dtype == array.dtype
    assert np.asarray(back["w"]).tobytes() == np.asarray(array).tobytes()
    assert (back["0d"].shape, back["empty"].shape) == ((), (0, 3))


def test_the_host_buffer_is_referenced_and_not_copied(trip):
    array = jax.numpy.ones(1000)
    [buffer] = trip.save(array)[0].buffers
    assert buffer.immutable
    assert np.shares_memory(buffer.data, np.asarray(array))


def test_typed_random_keys_go_on(trip):
    keys = jax.random.split(jax.random.key(3), 2)
    back = trip({"k": keys})["k"]
    assert back.dtype == keys.dtype
    assert jax.random.uniform(back[1]) == jax.random.uniform(keys[1])
    assert trip({"k": keys}, into={"k": jax.random.split(jax.random.key(0), 2)})["k"][0] == keys[0]


def test_into_gives_a_new_array_where_the_live_one_is(trip):
    live = {"w": jax.device_put(jax.numpy.zeros(3), jax.devices()[0])}
    trip({"w": jax.numpy.ones(3)}, into=live)
    assert live["w"].tolist() == [1, 1, 1]
    assert live["w"].committed


@pytest.mark.parametrize("live", [np.zeros(2, np.float32), 1.0])
def test_a_jax_array_that_differs_is_named_with_both_sides(trip, live):
    with pytest.raises(MismatchError, match="w: the checkpoint has a jax array, the state has "):
        trip({"w": jax.numpy.ones(2)}, into={"w": live})
    with pytest.raises(MismatchError, match=r"w: the checkpoint has float32 \(2,\), the state has float32 \(3,\)"):
        trip({"w": jax.numpy.ones(2)}, into={"w": jax.numpy.ones(3)})
    with pytest.raises(MismatchError, match="w: the checkpoint has jax random keys"):
        trip({"w": jax.random.key(1)}, into={"w": live})


def test_a_deleted_array_is_refused(trip):
    array = jax.numpy.ones(2)
    array.delete()
    with pytest.raises(UnsupportedLeafError, match=r"^w is a jax array that was deleted or donated"):
        trip({"w": array})


def test_a_tracer_is_refused(trip):
    with pytest.raises(UnsupportedLeafError, match="is a jax tracer"):
        jax.jit(lambda x: trip(x))(1.0)


def test_a_wide_array_is_never_cut_silently(trip):
    tree, copies = trip.save(jax.numpy.ones(2))
    tree.node[1:3] = ["<f8", [1]]
    with pytest.raises(UsageError, match=r"holds float64, which jax would cut to float32.*jax_enable_x64"):
        trip.load(tree, copies)


def test_reading_jax_arrays_without_jax_says_what_to_do(trip, monkeypatch):
    tree, copies = trip.save({"w": jax.numpy.ones(2), "k": jax.random.key(0)})
    monkeypatch.delitem(sys.modules, "jax")
    with pytest.raises(UsageError, match=r"^w is stored as a jax object, but jax is not imported"):
        trip.load(tree, copies)


@pytest.mark.parametrize(
    "node",
    [
        ["jaxkey", "os.system", ["jax", "<u4", [2], 0]],
        ["jaxkey", "threefry2x32", 5],
        ["jaxkey", "threefry2x32", ["jax", "|u1", [8], 0]],
        ["jax", "|S8", [1], 0],
    ],
)
def test_what_jax_cannot_hold_is_an_error_of_ours(node):
    with pytest.raises((CorruptError, UsageError)):
        prepare(node, [8], registry=Registry()).finish()
