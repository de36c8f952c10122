"""The members of containers of a known structure: a function for each, which also says if the container changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast

from limpet.format.classes import dataclass_values, namedtuple_values
from limpet.format.nodes import Node, Refused

__all__ = ["Members", "Unknown", "members_of"]

Members: TypeAlias = "Callable[[Any], Iterable[Any] | None]"
"""A container's members in order; ``None`` if the container itself is not what it was."""

_SAFE_KEYS = frozenset({str, int, bool, bytes, type(None)})
"""Keys of these types are the same if type and value are: zeros and NaNs of floats are not that simple."""
_METADATA = frozenset({"_metadata"})


class Unknown(Exception):  # noqa: N818  # never leaves the package
    """The state holds something whose structure cannot be remembered."""


def members_of(value: Any, node: Node) -> tuple[Members, int, int | None] | None:
    """How to get at a container's members, and where its node keeps theirs; ``None`` for a leaf."""
    cls = type(value)
    tag = node[0] if type(node) is list else None
    if cls is dict and tag == "dict":
        return _mapping(dict, value), 2, None
    if cls is OrderedDict and tag == "odict":
        return _ordered(value), 2, 3
    if (cls is list and tag == "list") or (cls is tuple and tag == "tuple"):
        return _sequence(cls, len(value)), 1, None
    if tag == "namedtuple":
        return _fields(cls, namedtuple_values, namedtuple_values(value)), 4, None
    if tag == "dataclass":
        return _fields(cls, dataclass_values, dataclass_values(value)), 4, None
    return None


def _mapping(cls: type[Any], value: dict[Any, Any]) -> Members:
    keys, types = list(value), [type(key) for key in value]
    if not _SAFE_KEYS.issuperset(types):
        raise Unknown

    def members(value: Any) -> Iterable[Any] | None:
        if type(value) is not cls or list(value) != keys or [type(key) for key in value] != types:
            return None
        return cast("Iterable[Any]", value.values())

    return members


def _ordered(value: OrderedDict[Any, Any]) -> Members:
    inner = _mapping(OrderedDict, value)

    def members(value: Any) -> Iterable[Any] | None:
        found = inner(value)
        if found is None or not vars(value).keys() <= _METADATA:
            return None
        return [*found, getattr(value, "_metadata", None)]

    return members


def _sequence(cls: type[Any], length: int) -> Members:
    def members(value: Any) -> Iterable[Any] | None:
        return cast("Iterable[Any]", value) if type(value) is cls and len(value) == length else None

    return members


def _fields(cls: type[Any], pairs_of: Callable[[Any], list[tuple[str, Any]]], pairs: list[tuple[str, Any]]) -> Members:
    names = [name for name, _ in pairs]

    def members(value: Any) -> Iterable[Any] | None:
        if type(value) is not cls:
            return None
        try:
            found = pairs_of(value)
        except Refused:
            return None
        return [inner for _, inner in found] if [name for name, _ in found] == names else None

    return members
