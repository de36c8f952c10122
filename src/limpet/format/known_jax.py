"""The jax arrays of a state whose structure is known: looked at once more, and copied or referred to.

A small one that lies in C order on the host is copied at once, by its address: a reference that outlives its deletion or
donation takes jax longer to make. Of the others, that reference is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from limpet.format.addresses import SMALL_BYTES_MAX, blocks_of, bytes_at

__all__ = ["KnownJaxArrays"]

_LIKENESS = attrgetter("aval", "sharding")
"""Dtype, shape and place of an array. jax makes one object of each for many arrays, so that they are soon compared."""
_LIKENESS_AND_LAYOUT = attrgetter("aval", "sharding", "_pjrt_layout")


@dataclass(slots=True)
class _Block:
    """Some arrays: columns of what is known of them."""

    positions: list[int]
    indices: list[int]
    """Of their buffers."""
    likeness: list[tuple[Any, ...]]
    details: list[Any]
    """Of small ones their sizes in bytes, of others the strides of their host's copy."""

    @classmethod
    def of(cls, arrays: Sequence[_Known]) -> _Block:
        columns = ([getattr(known, name) for known in arrays] for name in ("position", "index", "likeness", "detail"))
        return cls(*columns)


@dataclass(slots=True)
class _Known:
    position: int
    index: int
    likeness: tuple[Any, ...]
    detail: Any
    group: int


@dataclass(slots=True)
class KnownJaxArrays:
    """What ``learn`` found."""

    _flat: list[_Block]
    """Small ones whose items can lie in one order only."""
    _deep: list[_Block]
    """The other small ones."""
    _large: list[_Block]

    @classmethod
    def learn(cls, arrays: Sequence[tuple[int, Any, int]]) -> KnownJaxArrays:
        """What is to be known of arrays: position, array, and the index of its buffer."""
        groups: tuple[list[_Known], ...] = ([], [], [])
        for position, array, index in arrays:
            known = _known(position, array, index)
            groups[known.group].append(known)
        return cls(*([_Block.of(block) for block in blocks_of(group)] for group in groups))

    def take(self, leaves: Sequence[Any], data: list[Any]) -> bool:
        """Put what holds the bytes of each in its place in ``data``; ``False`` if one is not what it was."""
        try:
            return (
                all(_take_small(block, _LIKENESS, leaves, data) for block in self._flat)
                and all(_take_small(block, _LIKENESS_AND_LAYOUT, leaves, data) for block in self._deep)
                and all(_take_large(block, leaves, data) for block in self._large)
            )
        except RuntimeError:  # of one that was deleted, or whose computation failed: the whole walk says so
            return False


def _known(position: int, array: Any, index: int) -> _Known:
    host = np.asarray(array)
    if _is_copied(array, host):
        if sum(size > 1 for size in array.shape) <= 1:
            return _Known(position, index, _LIKENESS(array), host.nbytes, 0)
        if hasattr(array, "_pjrt_layout"):
            return _Known(position, index, _LIKENESS_AND_LAYOUT(array), host.nbytes, 1)
    return _Known(position, index, _LIKENESS(array), host.strides, 2)


def _is_copied(array: Any, host: np.ndarray[Any, Any]) -> bool:
    """Whether the bytes of arrays like this one are those at its address, as they are."""
    devices = array.sharding.device_set
    if not 0 < host.nbytes <= SMALL_BYTES_MAX or len(devices) != 1 or next(iter(devices)).platform != "cpu":
        return False
    address = array.unsafe_buffer_pointer()
    return bool(address and host.flags.c_contiguous and bytes_at([address], [host.nbytes])[0] == host.tobytes())


def _take_small(block: _Block, like: attrgetter[Any], leaves: Sequence[Any], data: list[Any]) -> bool:
    arrays: list[Any] = [leaves[position] for position in block.positions]
    if list(map(like, arrays)) != block.likeness:
        return False
    sys.modules["jax"].block_until_ready(arrays)
    kind = type(arrays[0])  # of all: jax has one class of arrays, and the leaves' types are compared
    addresses = list(map(kind.unsafe_buffer_pointer, arrays))
    if not all(addresses):
        return False
    for index, copied in zip(block.indices, bytes_at(addresses, block.details), strict=True):
        data[index] = copied
    # Last: another thread may have donated one meanwhile.
    return not any(map(kind.is_deleted, arrays))


def _take_large(block: _Block, leaves: Sequence[Any], data: list[Any]) -> bool:
    arrays = [leaves[position] for position in block.positions]
    if list(map(_LIKENESS, arrays)) != block.likeness:
        return False
    for index, strides, host in zip(block.indices, block.details, map(np.asarray, arrays), strict=True):
        if host.strides != strides:
            return False
        data[index] = host
    return True
