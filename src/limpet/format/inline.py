"""Hashable values that stand in a node without buffers: dictionary keys and the elements of sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from limpet.format.arrays import decode_numpy_scalar, encode_numpy_scalar
from limpet.format.classes import decode_enum, encode_enum, is_enum
from limpet.format.leaves import DECODERS, ENCODERS
from limpet.format.nodes import MAX_DEPTH, Node, Refused, brief, check_spread, corrupt, items
from limpet.format.registry import Registry

__all__ = ["decode_elements", "decode_key", "encode_elements", "encode_key"]

_KEY_TYPES = frozenset({type(None), bool, int, float, str, bytes})
_KEY_TAGS = frozenset({"int", "float", "utf8", "hex", "tuple"})


def encode_key(key: object, depth: int = 0) -> Node:
    """A dictionary key.

    Raises:
        Refused: its type is none of those that a leaf path can name.
    """
    kind = type(key)
    if kind in _KEY_TYPES:
        return ENCODERS[kind](key)
    if isinstance(key, tuple) and kind is tuple and depth < MAX_DEPTH:
        return ["tuple", [encode_key(item, depth + 1) for item in key]]
    raise Refused(
        f"has the key {brief(key)} of type {kind.__name__}",
        "Keys may be str, int, bool, float, bytes, None, or tuples of these.",
    )


def decode_key(node: Node, depth: int = 0) -> Any:
    """The key that ``encode_key`` was given."""
    if type(node) is not list:
        return _scalar(node)
    tag = node[0] if node else None
    if type(tag) is not str or tag not in _KEY_TAGS or depth >= MAX_DEPTH:
        raise corrupt("a key is damaged")
    if tag == "tuple":
        return tuple(decode_key(item, depth + 1) for item in items(items(node, 2, 2)[1]))
    return DECODERS[tag](node)


def encode_elements(elements: Iterable[object], depth: int = 0) -> list[Node]:
    """The elements of a set, in an order that only they decide."""
    return sorted((_encode_element(element, depth) for element in elements), key=repr)


def _encode_element(element: object, depth: int) -> Node:
    kind = type(element)
    if (encode := ENCODERS.get(kind)) is not None:
        return encode(element)
    if depth < MAX_DEPTH:
        if isinstance(element, frozenset) and kind is frozenset:
            return ["frozenset", encode_elements(element, depth + 1)]
        if isinstance(element, tuple) and kind is tuple:
            return ["tuple", [_encode_element(item, depth + 1) for item in element]]
    if is_enum(kind):
        return encode_enum(element)
    if isinstance(element, np.generic):
        return encode_numpy_scalar(element)
    raise Refused(
        f"is a set with the element {brief(element)} of type {kind.__name__}",
        "Sets may hold scalars, tuples, frozensets and enum members; keep other objects in a list or dict.",
    )


def decode_elements(node: Node, registry: Registry, depth: int = 0) -> frozenset[Any]:
    """The elements that ``encode_elements`` was given."""
    listed = [_decode_element(element, registry, depth) for element in items(node)]
    try:
        check_spread(listed)
        found = frozenset(listed)
    except TypeError:
        raise corrupt("an element of a set is not hashable") from None
    if len(found) != len(listed):
        raise corrupt("a set holds an element twice")
    return found


def _decode_element(node: Node, registry: Registry, depth: int) -> Any:
    if type(node) is not list:
        return _scalar(node)
    tag = node[0] if node else None
    if type(tag) is not str or depth >= MAX_DEPTH:
        raise corrupt("an element of a set is damaged")
    if tag == "tuple":
        return tuple(_decode_element(item, registry, depth + 1) for item in items(items(node, 2, 2)[1]))
    if tag == "frozenset":
        return decode_elements(items(node, 2, 2)[1], registry, depth + 1)
    if tag == "enum":
        return decode_enum(node, registry)
    decode: Callable[[list[Any]], Any] | None = _ELEMENT_DECODERS.get(tag)
    if decode is None:
        raise corrupt("an element of a set is of an unknown kind")
    return decode(node)


def _scalar(node: Node) -> Any:
    if node is not None and type(node) not in (bool, int, float, str):
        raise corrupt("a scalar is missing")
    return node


_ELEMENT_DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    **DECODERS,
    **dict.fromkeys(("npscalar", "npstr", "npbytes"), decode_numpy_scalar),
}
