"""New memory for what is read, where the processor and the kernel are quick to fill it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from limpet.pages import ask_for_huge_pages, private_pages

__all__ = ["fresh_array", "fresh_tensor"]

_BIG_BYTES = 4 << 20


def fresh_array(shape: Sequence[int], dtype: np.dtype[Any], order: Literal["C", "F"]) -> np.ndarray[Any, Any]:
    """A new array, whose values are anything.

    A big one begins with a page. numpy would put it 16 bytes behind one, where the processor copies to it from
    a file at a quarter of the rate (see ``stores/showing.py``), and with half as many page faults again. It refers to
    its memory, which goes with the last array over it, and does not own it: ``ndarray.resize`` refuses it.

    Raises:
        ValueError: the shape is impossible.
        MemoryError: there is no memory.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes >= _BIG_BYTES:
        with suppress(OSError, OverflowError):  # no mapping more, or no memory: numpy says so as it does
            return np.ndarray(shape, dtype, buffer=private_pages(nbytes), order=order)
    return np.ndarray(shape, dtype, order=order)


def fresh_tensor(nbytes: int) -> Any:
    """A new tensor of bytes on the CPU, in torch's own memory, for only that can be resized.

    Raises:
        MemoryError: there is no memory.
    """
    torch = sys.modules["torch"]
    try:
        tensor = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:  # torch's own allocator, where there is no memory
        raise MemoryError from error
    if nbytes >= _BIG_BYTES:
        ask_for_huge_pages(tensor.data_ptr(), nbytes)
    return tensor
