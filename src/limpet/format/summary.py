"""Looking at a tree without building anything: what ``limpet show`` prints and ``select=`` descends through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from limpet.format.containers import mapping_keys
from limpet.format.leaves import decode_text
from limpet.format.nodes import MAX_DEPTH, Node, corrupt, integer, items, shape_of
from limpet.format.paths import Key, LeafPath

__all__ = ["LeafSummary", "children_of", "walk"]

_KINDS = {"nd": "ndarray", "torch": "tensor", "jax": "jax array", "utf8": "str", "npscalar": "numpy scalar"}
_BUFFER_AT = {"nd": 3, "jax": 3, "torch": 5, "str": 1, "bytes": 1, "bytearray": 1, "pickle": 2}
_MAPPINGS = ("dict", "odict", "ddict", "counter")
_SEQUENCES = ("list", "tuple", "deque")
_OBJECTS = ("namedtuple", "dataclass")
_WRAPPERS = ("stateful", "custom")


@dataclass(frozen=True, slots=True)
class LeafSummary:
    """One leaf, or one empty container.

    Attributes:
        kind: such as ``ndarray``, ``tensor``, ``int``, ``bytes``, ``files``.
        dtype: of arrays; the class of pickles.
        shape: of arrays.
        buffers: indices of the buffers that hold its bytes; those of files are known from their payload only.
        value: of a short scalar, as it is.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()
    value: Any = None


def walk(node: Node) -> Iterator[tuple[LeafPath, LeafSummary]]:
    """Every leaf with its path, in the order of the tree; no object is built.

    Raises:
        CorruptError: the node does not fit the schema.
    """
    yield from _walk(node, (), 0)


def _walk(node: Node, path: LeafPath, depth: int) -> Iterator[tuple[LeafPath, LeafSummary]]:
    if depth > MAX_DEPTH:
        raise corrupt(f"it is deeper than {MAX_DEPTH} levels")
    if type(node) is list and node and node[0] in _WRAPPERS:
        yield from _walk(_wrapped(node), path, depth + 1)
        return
    children = children_of(node)
    for key, child in children:
        yield from _walk(child, (*path, key), depth + 1)
    if not children:
        yield path, _summary(node)


def children_of(node: Node) -> list[tuple[Key, Node]]:
    """The members of a container's node with their keys, through stateful objects and codecs; none for a leaf."""
    for _ in range(MAX_DEPTH):
        if type(node) is not list or not node or node[0] not in _WRAPPERS:
            break
        node = _wrapped(node)
    if type(node) is not list:
        return []
    tag = items(node, 1)[0]
    if tag in _MAPPINGS:
        return list(zip(mapping_keys(node), node[2], strict=True))
    if tag in _SEQUENCES:
        return list(enumerate(items(items(node, 2)[1])))
    if tag in _OBJECTS:
        names, members = items(node, 5, 5)[3:]
        if len(items(names)) != len(items(members)):
            raise corrupt("an object's fields are damaged")
        return [(decode_text(name), member) for name, member in zip(names, members, strict=True)]
    return []


def _wrapped(node: list[Any]) -> Node:
    return items(node, 3, 3)[2]


def _summary(node: Node) -> LeafSummary:
    if type(node) is not list:
        return LeafSummary("None" if node is None else type(node).__name__, value=node)
    tag = items(node, 1)[0]
    if type(tag) is not str:
        raise corrupt("a node has no tag")
    at = _BUFFER_AT.get(tag)
    buffers = () if at is None else (integer(items(node, at + 1)[at]),)
    kind = _KINDS.get(tag, tag)
    if tag in ("nd", "jax", "torch"):
        dtype = node[1] if type(node[1]) is str else "struct"
        return LeafSummary(kind, dtype, shape_of(node[2]), buffers)
    if tag == "pickle":
        return LeafSummary(kind, decode_text(node[1]), (), buffers)
    if tag == "rng":
        return LeafSummary(str(items(node, 3, 3)[1]), buffers=_inner_buffers(node[2]))
    if tag == "jaxkey":
        return LeafSummary("jax keys", decode_text(items(node, 3, 3)[1]), (), _inner_buffers(node[2]))
    return LeafSummary(kind, "", (), buffers)


def _inner_buffers(node: Node) -> tuple[int, ...]:
    return tuple(index for _, leaf in _walk(node, (), 1) for index in leaf.buffers)
