"""States like those that people save, made from seeds."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

MIB = 1 << 20

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def arrays(mib: int, count: int = 64, *, seed: int = 0) -> Arrays:
    """``count`` fp32 arrays of ``mib`` MiB together, with the statistics of trained weights (normal, 0.02)."""
    random = np.random.default_rng(seed)
    size = mib * MIB // 4 // count
    return {
        f"layer{index:02d}": random.standard_normal(size, dtype=np.float32) * np.float32(0.02) for index in range(count)
    }


def change(state: Arrays) -> None:
    """Change every value, as an optimizer does: nothing is left for deduplication."""
    for array in state.values():
        np.multiply(array, np.float32(1.0009765625), out=array)


def equal(one: Arrays, other: Any) -> bool:
    """Whether two states hold the same bits, whatever their leaves are."""
    return set(one) == set(other) and all(
        array.tobytes() == np.asarray(other[name]).tobytes() for name, array in one.items()
    )


def bf16(array: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
    """The same values as bfloat16, to nearest even: a numpy type of the package ml_dtypes."""
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16)


def missing_bf16() -> dict[str, str]:
    """What cannot be measured without ml_dtypes: for the report."""
    if importlib.util.find_spec("ml_dtypes") is not None:
        return {}
    return {"bf16": "ml_dtypes is not installed; it comes with the extra 'bench'"}
