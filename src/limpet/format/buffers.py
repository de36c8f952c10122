from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Buffer", "FileSlice", "bounds", "flat_view", "overlaps_itself", "raw_view"]


@dataclass(frozen=True, slots=True)
class FileSlice:
    """The content of a spooled file, produced when a file is captured.

    Attributes:
        path: the spooled file.
        size: its bytes.
    """

    path: str
    size: int


@dataclass(slots=True)
class Buffer:
    """One run of bytes that a leaf needs.

    Attributes:
        data: what holds the bytes.
        nbytes: how many there are.
        immutable: nobody can change them, so that a reference may be kept in place of a copy. numpy arrays never
            are, read-only ones included: an earlier view may still write.
        dtype: a hint for the codec, kind and item size such as ``f4``, ``bf16`` or ``u1``; empty if unknown.
    """

    data: np.ndarray[Any, Any] | bytes | memoryview | FileSlice
    nbytes: int
    immutable: bool
    dtype: str = ""

    def flat(self) -> np.ndarray[Any, Any] | None:
        """A 1-D uint8 view of the memory, without a copy; ``None`` for a file and where bytes must be gathered."""
        if isinstance(self.data, FileSlice):
            return None
        if isinstance(self.data, np.ndarray):
            return flat_view(self.data)
        return np.frombuffer(self.data, np.uint8) if self.nbytes else np.empty(0, np.uint8)

    @property
    def joins(self) -> bool:
        """Whether ``bytes.join`` takes the memory as it is: contiguous, in C order, and no dtype that it cannot show."""
        data = self.data
        if isinstance(data, np.ndarray):
            return bool(data.flags.c_contiguous and data.dtype.isbuiltin == 1 and data.dtype.kind in "biufc")
        return not isinstance(data, FileSlice)

    def copy_into(self, target: np.ndarray[Any, Any]) -> None:
        """Copy the bytes into ``target``, a 1-D uint8 array of ``nbytes``; big copies release the interpreter lock.

        A non-contiguous array is gathered straight into ``target``, in C order.

        Raises:
            TypeError: the buffer is a file, which is streamed and not copied.
        """
        source = self.flat()
        if source is not None:
            np.copyto(target, source)
        elif isinstance(self.data, np.ndarray):
            raw = raw_view(self.data)
            np.copyto(target.view(raw.dtype).reshape(raw.shape), raw)
        else:
            raise TypeError("a FileSlice is streamed, not copied")


def flat_view(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The memory of a contiguous array, in either order, as 1-D uint8 and without a copy; else ``None``."""
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    if array.flags.c_contiguous:
        return array.reshape(-1).view(np.uint8)
    if array.flags.f_contiguous:
        return array.T.reshape(-1).view(np.uint8)
    return None


def raw_view(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same items as plain bits: copying them keeps padding and NaN payloads, and never calls into a dtype."""
    size = array.dtype.itemsize
    return array.view(f"u{size}" if size in (1, 2, 4, 8) else f"V{size}")


def bounds(address: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """First byte, and the byte after the last, that items at these byte strides can touch."""
    if math.prod(shape) == 0:
        return address, address
    reach = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    return address + sum(min(step, 0) for step in reach), address + sum(max(step, 0) for step in reach) + itemsize


def overlaps_itself(shape: Sequence[int], strides: Sequence[int], itemsize: int = 1) -> bool:
    """Whether two indices may reach the same byte, as in an expanded tensor.

    Errs on the side of yes: sorted by stride, each dimension must step over everything below it.
    """
    reach = itemsize - 1
    for stride, size in sorted((abs(stride), size) for size, stride in zip(shape, strides, strict=True) if size > 1):
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False
