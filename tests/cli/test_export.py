import json
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest

from limpet.cli.export import export, file_name
from limpet.types import Files


def exported(folder, **leaves):
    return {entry["path"]: entry for entry in export(leaves.items(), folder)}


def test_an_array_becomes_an_npy_file(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    entry = exported(tmp_path, **{"model.w": array})["model.w"]
    assert entry == {"path": "model.w", "kind": "numpy", "dtype": ">f4", "shape": [2, 3], "file": "model.w.npy"}
    loaded = np.load(tmp_path / entry["file"], allow_pickle=False)
    assert loaded.dtype == array.dtype
    assert np.array_equal(loaded, array)


def test_a_numpy_scalar_becomes_an_array_without_dimensions(tmp_path):
    entry = exported(tmp_path, x=np.float64(0.1))["x"]
    assert np.load(tmp_path / entry["file"])[()] == np.float64(0.1)


def test_bytes_become_a_file_with_just_those_bytes(tmp_path):
    entry = exported(tmp_path, **{"": b"\x00\xff"})[""]
    assert entry["file"] == "root.bin"
    assert (tmp_path / "root.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("value", [None, True, 3, 2**200, 0.1, "text", "\ud800 alone"])
def test_what_json_can_hold_is_held_as_it_is(tmp_path, value):
    export([("x", value)], tmp_path)
    assert json.loads((tmp_path / "state.json").read_text()) == [
        {"path": "x", "kind": type(value).__name__, "value": value}
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "nan"),
        (1 + 2j, "(1+2j)"),
        (Decimal("1.10"), "1.10"),
        (datetime(2025, 1, 2, tzinfo=UTC), "2025-01-02 00:00:00+00:00"),
    ],
)
def test_anything_else_is_told_in_words(tmp_path, value, words):
    assert exported(tmp_path, x=value)["x"]["value"] == words


def test_a_dtype_that_npy_cannot_name_is_written_as_its_bits(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays")
    array = np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16)
    entry = exported(tmp_path, x=array)["x"]
    assert entry["dtype"] == "bfloat16"
    loaded = np.load(tmp_path / entry["file"], allow_pickle=False)
    assert loaded.dtype == np.uint16
    assert np.array_equal(loaded.view(ml_dtypes.bfloat16), array)


@pytest.mark.torch
def test_a_tensor_that_numpy_knows_and_one_that_it_does_not(tmp_path):
    torch = pytest.importorskip("torch", reason="tensors")
    entries = exported(tmp_path, a=torch.ones(2, requires_grad=True), b=torch.ones(2, dtype=torch.bfloat16))
    assert np.load(tmp_path / entries["a"]["file"]).tolist() == [1.0, 1.0]
    assert np.load(tmp_path / entries["b"]["file"]).tolist() == [0x3F80, 0x3F80]
    assert entries["b"]["dtype"] == "torch.bfloat16"


async def never(_path):
    raise AssertionError("the command line restores synchronously")


def test_saved_files_go_into_a_folder_of_their_own(tmp_path):
    asked = []
    entry = exported(tmp_path, logs=Files._from_checkpoint(lambda path: asked.append(path) or path, never))["logs"]
    assert entry == {"path": "logs", "kind": "files", "file": "logs"}
    assert asked == [tmp_path / "logs"]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", ".", "..", 'a."b/c"', "a\x00b", "é" * 300, ""])
def test_a_file_name_stays_in_its_folder(tmp_path, path):
    name = file_name(path)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert len(name) < 200
    (tmp_path / (name + ".npy")).touch()


def test_long_paths_that_begin_alike_get_different_names():
    assert file_name("a" * 400 + "1") != file_name("a" * 400 + "2")
