"""``meta`` comes back from the log as what the writer itself says of it."""

from __future__ import annotations

import uuid
from collections import UserDict
from enum import IntEnum
from types import MappingProxyType

import numpy as np
import pytest

import limpet
from limpet.settings import check_meta


class Level(IntEnum):
    HIGH = 1


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"loss": 0.5, "n": 1, "ok": True, "why": None, "name": "a"}, None),
        ({"nested": {"a": [1, {"b": [2]}]}}, None),
        ({"tuple": (1, 2)}, {"tuple": [1, 2]}),
        ({"loss": float("nan"), "bound": float("-inf")}, {"loss": None, "bound": None}),
        ({"loss": np.float32(0.5), "n": np.int64(3), "a": np.array(2.0), "s": np.str_("x")}, None),
        ({"loss": np.float64("nan"), "half": np.float16("inf")}, {"loss": None, "half": None}),
        (UserDict(a=1), {"a": 1}),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
    ],
)
def test_meta_is_what_the_log_gives_back(given, stored):
    expected = {**given} if stored is None else stored
    url = f"memory://{uuid.uuid4().hex}"
    with limpet.Checkpointer(url) as cp:
        cp.write(1, meta=given, durable=True)
        assert cp.latest.meta == expected
    with limpet.open(url) as run:
        [info] = run.checkpoints()
    assert info.meta == expected
    assert all(type(value).__module__ == "builtins" for value in info.meta.values())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1}, "a set"),
        (b"bytes", "a bytes"),
        (object(), "a object"),
        (np.zeros(2), "a ndarray"),
        ({1: 2}, "the key 1"),
        (1j, "a complex"),
        (Level.HIGH, "a Level"),
        (np.datetime64("2024-01-01"), "a date"),
    ],
)
def test_what_json_would_change_is_refused(value, named):
    with pytest.raises(limpet.UsageError, match=f"JSON cannot: {named}"):
        check_meta({"inside": [value]})


def test_keys_must_be_strings():
    with pytest.raises(limpet.UsageError, match="the key 1"):
        check_meta({1: 2})


def test_meta_must_be_a_mapping():
    with pytest.raises(limpet.UsageError, match="meta is a list"):
        check_meta([1])


def test_meta_that_contains_itself_is_refused():
    loop = {}
    loop["again"] = loop
    with pytest.raises(limpet.UsageError, match="JSON cannot"):
        check_meta(loop)


def test_meta_of_64_kib_is_taken_and_one_byte_more_is_not():
    around = len('{"x":""}')
    assert check_meta({"x": "y" * (65536 - around)})
    with pytest.raises(limpet.UsageError, match="65537 bytes; at most 65536"):
        check_meta({"x": "y" * (65537 - around)})


def test_a_structure_that_no_manifest_can_hold_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("limpet.format.manifest.MANIFEST_BYTES_MAX", 1000)
    with limpet.Checkpointer(f"memory://{uuid.uuid4().hex}") as cp:
        with pytest.raises(limpet.UsageError, match=r"structure takes .* at most 1000") as caught:
            cp.write(list(range(1000)), durable=True)
        assert caught.value.kind == "too_many_leaves"
        cp.write(1, durable=True)
        assert cp.read() == 1
