"""Nodes: a state's tree as plain JSON, and the checks that reading one needs.

``null``, booleans, strings, integers within 2**53 and finite floats stand for themselves; anything else is a
list whose first item is a tag, such as ``["tuple", [...]]`` or ``["nd", "<f4", [2, 3], 0]``. Bytes are not in
the tree: a node names a buffer by its index. A node that is read is hostile until checked.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from limpet.errors import CorruptError

__all__ = [
    "MAX_DEPTH",
    "MISSING",
    "LateNode",
    "Missing",
    "Node",
    "Refused",
    "brief",
    "check_spread",
    "corrupt",
    "integer",
    "items",
    "shape_of",
    "text",
]

Node: TypeAlias = Any

MAX_DEPTH: Final = 64
"""Containers may stand this deep in each other, on both sides."""

_MAX_DIMENSIONS: Final = 64  # numpy 2's own limit
_MAX_OF_ONE_HASH: Final = 64


class Missing(Enum):
    """The type of ``MISSING``: no object was given, which ``None`` cannot say."""

    MISSING = "missing"


class LateNode:
    """A node that is made when it is first asked for, or is there already.

    Args:
        node: it.
        make: makes it, instead; holds nothing that the caller may change.
    """

    __slots__ = ("_make", "_node")

    def __init__(self, node: Node = None, *, make: Callable[[], Node] | None = None) -> None:
        self._node = node
        self._make = make

    def get(self) -> Node:
        """The node; on any thread."""
        make = self._make
        if make is not None:
            self._node = make()
            self._make = None
        return self._node


MISSING: Final[Literal[Missing.MISSING]] = Missing.MISSING


class Refused(Exception):  # noqa: N818  # never leaves the package
    """A leaf cannot be saved. Unwinding containers add their keys; ``flatten`` turns it into the public error.

    Args:
        reason: the rest of a sentence that begins with the leaf's path.
        hint: what to do about it.
        final: whether pickling this leaf would not help.
    """

    def __init__(self, reason: str, hint: str = "", *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.final = final
        self.trail: list[tuple[Any, int]] = []
        """Keys on the way out, innermost first, each with the id of its container."""


def brief(value: object) -> str:
    """An object for an error message: short, whatever its own ``repr`` does."""
    try:
        return reprlib.repr(value)
    except Exception:  # a user's __repr__, or an int with too many digits
        return f"<{type(value).__name__}>"


def corrupt(what: str) -> CorruptError:
    """The error for a tree that does not fit the schema."""
    return CorruptError(f"the checkpoint's tree is malformed: {what}.", hint="Read an older checkpoint.")


def integer(value: object, low: int = 0, high: int = 2**63 - 1) -> int:
    """``value``, once it is known to be an int from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise corrupt("a number is out of range")
    return value


def text(value: object) -> str:
    """``value``, once it is known to be a string."""
    if type(value) is not str:
        raise corrupt("a string is missing")
    return value


def items(value: object, least: int = 0, most: int | None = None) -> list[Any]:
    """``value``, once it is known to be a list of ``least`` to ``most`` items (``most=None``: no limit)."""
    if type(value) is not list or len(value) < least or (most is not None and len(value) > most):
        raise corrupt("a list is missing or has the wrong length")
    return value


def check_spread(values: Sequence[Hashable]) -> None:
    """Refuse values chosen to share a hash, which a dict or set would take quadratic time for.

    Only strings and bytes hash by a secret; every multiple of 2**61 - 1 hashes to 0 (CPython's ``pyhash.c``).

    Raises:
        TypeError: a value has no hash.
    """
    if len(values) > _MAX_OF_ONE_HASH and max(Counter(map(hash, values)).values()) > _MAX_OF_ONE_HASH:
        raise corrupt("too many keys or elements have one hash")


def shape_of(value: object) -> tuple[int, ...]:
    """A shape, once it is known to be a list of at most 64 non-negative ints."""
    return tuple(integer(size) for size in items(value, 0, _MAX_DIMENSIONS))
