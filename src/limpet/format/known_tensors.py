"""The torch tensors of a state whose structure is known: looked at once more, and copied or turned into arrays.

A tensor that lies in C order on the host, alone on its storage, is compared with what it was, many in one native call.
A small one is copied at once, by its address: to make an array of it takes torch longer. The others, and those that
share storage, are encoded and settled again, which must give what it gave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add, attrgetter, le, mul
from typing import Any, Final

from limpet.format.addresses import SMALL_BYTES_MAX, blocks_of, bytes_at
from limpet.format.flattening import Flattening
from limpet.format.nodes import Node, Refused
from limpet.format.torch_leaves import encode_tensor, numpy_like, settle

__all__ = ["KnownTensors"]

_NUMPY_HAS: Final = frozenset(
    {"float16", "float32", "float64", "complex64", "complex128", "bool", "uint8", "int8", "int16", "int32", "int64"}
)
_INDEX: Final = 5
"""Where a tensor's node keeps the index of its buffer."""

_LIKENESS = attrgetter("layout", "is_nested", "is_cpu", "dtype", "shape", "requires_grad")
"""What decides how a tensor that lies in C order is stored."""


@dataclass(slots=True)
class _Block:
    """Some tensors that lie in C order on the host, each alone on its storage: columns of what is known of them."""

    positions: list[int]
    indices: list[int]
    """Of their buffers."""
    likeness: list[tuple[Any, ...]]
    item_sizes: list[int]
    nbytes: list[int]
    shown_as: list[Any] | None
    """For those that are too large to be copied at once: the dtype to show each to numpy as, if that lacks its own."""

    @classmethod
    def of(cls, tensors: Sequence[tuple[int, Any, list[Any]]], *, small: bool) -> _Block:
        """What is known of tensors, each with its position and node."""
        values = [tensor for _, tensor, _ in tensors]
        return cls(
            [position for position, _, _ in tensors],
            [node[_INDEX] for _, _, node in tensors],
            list(map(_LIKENESS, values)),
            [tensor.element_size() for tensor in values],
            [tensor.nbytes for tensor in values],
            None if small else [_shown_as(tensor, node) for _, tensor, node in tensors],
        )

    def take(self, leaves: Sequence[Any], data: list[Any], seen: set[int]) -> bool:
        """Put what holds the bytes of each in its place in ``data``; ``False`` if one is not what it was.

        Args:
            leaves: of the state.
            data: of the state's buffers.
            seen: addresses of storages; grows.
        """
        tensors = [leaves[position] for position in self.positions]
        try:
            if list(map(_LIKENESS, tensors)) != self.likeness or not _are_in_order(tensors):
                return False
            held = self._held(tensors, seen)
        except RuntimeError:  # of a tensor that has no sizes, no strides or no storage
            return False
        if held is None:
            return False
        for index, memory in zip(self.indices, held, strict=True):
            data[index] = memory
        return True

    def _held(self, tensors: list[Any], seen: set[int]) -> list[Any] | None:
        """What holds the bytes of each; ``None`` if two share a storage, or it holds less than they reach."""
        torch = sys.modules["torch"]
        storages = list(map(torch.Tensor.untyped_storage, tensors))
        starts: list[int] = list(map(torch.UntypedStorage.data_ptr, storages))
        expected = len(seen) + len(starts)
        seen.update(starts)
        # One that was freed or cut short is for the whole walk to refuse.
        if len(seen) != expected or not all(starts):
            return None
        reaches = self.nbytes
        offsets = list(map(torch.Tensor.storage_offset, tensors))
        if any(offsets):
            offsets = list(map(mul, offsets, self.item_sizes))
            starts, reaches = list(map(add, starts, offsets)), list(map(add, reaches, offsets))
        if not all(map(le, reaches, map(torch.UntypedStorage.nbytes, storages))):
            return None
        return bytes_at(starts, self.nbytes) if self.shown_as is None else list(map(_shown, tensors, self.shown_as))


def _are_in_order(tensors: list[Any]) -> bool:
    """Whether all lie in C order, and none shows its memory with the sign turned."""
    kind = sys.modules["torch"].Tensor
    return all(map(kind.is_contiguous, tensors)) and not any(map(kind.is_neg, tensors))


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor that was encoded can be compared with others like it; a complex one may be a mere conjugate."""
    return bool(tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_neg() or tensor.is_complex()))


def _shown_as(tensor: Any, node: list[Any]) -> Any:
    return None if node[1] in _NUMPY_HAS else numpy_like(tensor.element_size())


def _shown(tensor: Any, shown_as: Any) -> Any:
    """A tensor as an array over the same memory."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return tensor.numpy() if shown_as is None else tensor.view(shown_as).numpy()


@dataclass(slots=True)
class KnownTensors:
    """What ``learn`` found.

    Attributes:
        buffer_count: of all tensors together.
    """

    buffer_count: int
    _blocks: list[_Block]
    _others: list[int]
    _nodes: list[Node]
    _indices: list[int]
    _kinds: list[tuple[int, bool, str, bool]]
    """Of each buffer of the others: its index, its kind, and whether it may be joined, which the plan relies on."""
    _fresh: Callable[[], Flattening]

    @classmethod
    def learn(
        cls, tensors: Sequence[tuple[int, Any, list[Any]]], fresh: Callable[[], Flattening]
    ) -> KnownTensors | None:
        """What is to be known of tensors that hold something.

        Args:
            tensors: position, tensor, and the node that it was encoded to.
            fresh: makes a ``Flattening``.
        """
        sharing: dict[int, int] = {}
        for _, _, node in tensors:
            sharing[node[_INDEX]] = sharing.get(node[_INDEX], 0) + 1
        addresses: dict[int, int] = {}
        for _, tensor, _ in tensors:
            address = tensor.untyped_storage().data_ptr()
            addresses[address] = addresses.get(address, 0) + 1
        small: list[tuple[int, Any, list[Any]]] = []
        large: list[tuple[int, Any, list[Any]]] = []
        others: list[tuple[int, Any, list[Any]]] = []
        for entry in tensors:
            tensor = entry[1]
            if addresses[tensor.untyped_storage().data_ptr()] > 1 or not _is_plain(tensor):
                others.append(entry)
            else:
                (small if tensor.nbytes <= SMALL_BYTES_MAX else large).append(entry)
        blocks = [
            *(_Block.of(block, small=True) for block in blocks_of(small)),
            *(_Block.of(block, small=False) for block in blocks_of(large)),
        ]
        made = cls(len(sharing), blocks, [position for position, _, _ in others], [], [], [], fresh)
        flat, nodes = made._encode([tensor for _, tensor, _ in others])
        indices = {again[_INDEX]: node[_INDEX] for again, (_, _, node) in zip(nodes, others, strict=True)}
        for again, (_, _, node) in zip(nodes, others, strict=True):
            if [*again[:_INDEX], indices[again[_INDEX]], *again[_INDEX + 1 :]] != node:
                return None
        made._nodes = nodes
        made._indices = [indices[at] for at in range(len(flat.buffers))]
        made._kinds = _kinds(flat)
        return made

    def take(self, leaves: Sequence[Any], data: list[Any]) -> bool:
        """Put what holds the bytes of every buffer of tensors in its place in ``data``; ``False`` if one is not what it was."""
        seen: set[int] = set()
        if not all(block.take(leaves, data, seen) for block in self._blocks):
            return False
        return not self._others or self._take_others(leaves, data, seen)

    def _take_others(self, leaves: Sequence[Any], data: list[Any], seen: set[int]) -> bool:
        tensors = [leaves[position] for position in self._others]
        if not all(map(_has_storage, tensors)):
            return False
        try:
            if any(tensor.untyped_storage().data_ptr() in seen for tensor in tensors):
                return False
            flat, nodes = self._encode(tensors)
        except (Refused, RuntimeError):  # torch's own: the whole walk says what it is
            return False
        if nodes != self._nodes or _kinds(flat) != self._kinds:
            return False
        for buffer, index in zip(flat.buffers, self._indices, strict=True):
            data[index] = buffer.data
        return True

    def _encode(self, tensors: Sequence[Any]) -> tuple[Flattening, list[Node]]:
        flat = self._fresh()
        nodes = [encode_tensor(tensor, flat) for tensor in tensors]
        settle(flat)
        return flat, nodes


def _kinds(flat: Flattening) -> list[tuple[int, bool, str, bool]]:
    return [(buffer.nbytes, buffer.immutable, buffer.dtype, buffer.joins) for buffer in flat.buffers]


def _has_storage(tensor: Any) -> bool:
    """Whether it is neither sparse nor in a layout of some library's own."""
    return tensor.layout is sys.modules["torch"].strided
