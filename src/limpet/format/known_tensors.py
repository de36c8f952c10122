"""The torch tensors of a state whose structure is known: looked at once more, and turned into arrays.

A tensor that lies in C order on the host, alone on its storage, is compared with what it was. The others, and those
that share storage, are encoded and settled again, which must give what it gave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from limpet.format.flattening import Flattening
from limpet.format.nodes import Node, Refused
from limpet.format.torch_leaves import encode_tensor, numpy_like, settle

__all__ = ["KnownTensors"]

_NUMPY_HAS: Final = frozenset(
    {"float16", "float32", "float64", "complex64", "complex128", "bool", "uint8", "int8", "int16", "int32", "int64"}
)
_INDEX: Final = 5
"""Where a tensor's node keeps the index of its buffer."""


@dataclass(slots=True)
class KnownTensors:
    """What ``learn`` found.

    Attributes:
        buffer_count: of all tensors together.
    """

    buffer_count: int
    _plain: list[tuple[int, int, tuple[Any, ...], Any]]
    """Of each tensor that is alone: its position, its buffer, what it is like, and the dtype to show it to numpy as."""
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
        plain, others = [], []
        for position, tensor, node in tensors:
            alone = addresses[tensor.untyped_storage().data_ptr()] == 1
            if alone and tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_neg() or tensor.is_conj()):
                like = None if node[1] in _NUMPY_HAS else numpy_like(tensor.element_size())
                plain.append((position, node[_INDEX], _likeness(tensor), like))
            else:
                others.append((position, tensor, node))
        made = cls(len(sharing), plain, [position for position, _, _ in others], [], [], [], fresh)
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
        """Put every tensor's array in its place in ``data``; ``False`` if one is not what it was."""
        seen: set[int] = set()
        for position, index, known, like in self._plain:
            tensor = leaves[position]
            if _likeness(tensor) != known:
                return False
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            # A storage that was freed or cut short is for the whole walk to refuse.
            if address in seen or storage.nbytes() < _end(tensor):
                return False
            seen.add(address)
            if known[2]:
                tensor = tensor.detach()
            data[index] = tensor.numpy() if like is None else tensor.view(like).numpy()
        return not self._others or self._take_others(leaves, data, seen)

    def _take_others(self, leaves: Sequence[Any], data: list[Any], seen: set[int]) -> bool:
        tensors = [leaves[position] for position in self._others]
        if not all(map(_has_storage, tensors)):
            return False
        if any(tensor.untyped_storage().data_ptr() in seen for tensor in tensors):
            return False
        try:
            flat, nodes = self._encode(tensors)
        except Refused:
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


def _likeness(tensor: Any) -> tuple[Any, ...]:
    """What decides how a tensor that lies in C order on the host is stored; unlike any other where it does not."""
    if (
        not _has_storage(tensor)
        or tensor.is_nested
        or not tensor.is_cpu
        or not tensor.is_contiguous()
        or tensor.is_neg()
        or tensor.is_conj()
    ):
        return ()
    return tensor.dtype, tensor.shape, tensor.requires_grad, tensor.layout


def _end(tensor: Any) -> int:
    """The byte of its storage after the last that a tensor in C order reaches."""
    return int(tensor.storage_offset() * tensor.element_size() + tensor.nbytes)
