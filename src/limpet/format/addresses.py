"""Copies of memory by its address: for small leaves whose libraries take long to show theirs in any other way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import PYFUNCTYPE, c_ssize_t, c_void_p, py_object, pythonapi
from typing import Final, TypeVar

__all__ = ["SMALL_BYTES_MAX", "blocks_of", "bytes_at"]

T = TypeVar("T")

SMALL_BYTES_MAX: Final = 4 << 10
"""Larger leaves are shown as arrays: to copy them twice would take longer than that."""
_BLOCK: Final = 512

_copy: Callable[[int, int], bytes] = PYFUNCTYPE(py_object, c_void_p, c_ssize_t)(
    ("PyBytes_FromStringAndSize", pythonapi)
)


def bytes_at(addresses: Iterable[int], sizes: Iterable[int]) -> list[bytes]:
    """Copies of runs of memory.

    Args:
        addresses: where each begins; none is 0. It is the caller's to know that the memory is there, and stays.
        sizes: in bytes, as many as there are addresses.
    """
    return list(map(_copy, addresses, sizes))


def blocks_of(leaves: Sequence[T]) -> Iterator[Sequence[T]]:
    """The leaves, so many at a time that what one look at them read is still in the core's cache for the next.

    It is also less than sets the garbage collector off, which looks at every object that there is (700, in CPython).
    """
    for start in range(0, len(leaves), _BLOCK):
        yield leaves[start : start + _BLOCK]
