"""Writes a state as plain files that any program reads: .npy, .bin and one state.json, never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from limpet.types import Files

__all__ = ["STATE_NAME", "export", "file_name"]

STATE_NAME = "state.json"
NAME_BYTES_MAX = 200


def export(leaves: Iterable[tuple[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Write ``leaves`` below ``folder``.

    Arrays and tensors become ``<quoted path>.npy``, bytes ``<quoted path>.bin``, saved files a folder
    ``<quoted path>``; ``state.json`` lists every leaf, with its value or the name of its file.

    Args:
        leaves: written path and value of each.
        folder: an existing directory.

    Returns:
        What ``state.json`` holds: an entry a leaf.
    """
    entries = [{"path": path} | _written(path, value, folder) for path, value in leaves]
    text = json.dumps(entries, indent=1, ensure_ascii=True, allow_nan=False)
    (folder / STATE_NAME).write_text(text + "\n", encoding="ascii")
    return entries


def file_name(path: str) -> str:
    """Give a leaf's written path as a name that every file system takes and that stays inside its folder."""
    name = quote(path, safe="") or "root"
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= NAME_BYTES_MAX:
        return name
    # Two long paths may begin alike: the digest keeps their names apart.
    return f"{name[:150]}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def _written(path: str, value: Any, folder: Path) -> dict[str, Any]:
    if isinstance(value, Files):
        name = file_name(path)
        value.restore(folder / name)
        return {"kind": "files", "file": name}
    if isinstance(value, bytes | bytearray | memoryview):
        name = file_name(path) + ".bin"
        (folder / name).write_bytes(value)
        return {"kind": type(value).__name__, "file": name}
    array = _as_array(value)
    if array is None:
        return _in_words(value)
    name = file_name(path) + ".npy"
    np.save(folder / name, _plain(array), allow_pickle=False)
    kind = type(value).__module__.partition(".")[0]
    return {"kind": kind, "dtype": _dtype_name(value), "shape": list(array.shape), "file": name}


def _in_words(value: Any) -> dict[str, Any]:
    kind = type(value).__name__
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return {"kind": kind, "value": value}
    if isinstance(value, float) and math.isfinite(value):
        return {"kind": kind, "value": value}
    return {"kind": kind, "value": str(value)}


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, value)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return np.asarray(value)
    return None


def _from_torch(torch: Any, tensor: Any) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().contiguous()
    try:
        array = tensor.numpy()
    except TypeError:
        # bfloat16, float8 and the like have no numpy dtype: give their bits.
        bits = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
        array = tensor.view(bits).numpy()
    return np.asarray(array)


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give an array whose dtype a .npy header can name: the bits, for dtypes that come from ml_dtypes."""
    if array.dtype.type.__module__.partition(".")[0] == "ml_dtypes":
        return array.view(f"u{array.dtype.itemsize}")
    return array


def _dtype_name(value: Any) -> str:
    return str(value.dtype)
