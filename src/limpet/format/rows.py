"""The leaves of a checkpoint as rows to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from limpet.errors import CorruptError, LimpetError
from limpet.format.arrays import decode_dtype
from limpet.format.filetree import decode_file_tree
from limpet.format.paths import LeafPath, format_path
from limpet.format.summary import children_of, walk
from limpet.types import LeafRow

__all__ = ["describe_leaves", "files_payload"]


def describe_leaves(tree: Any, sizes: Sequence[int]) -> list[LeafRow]:
    """One row a leaf, in the order of the tree.

    Args:
        tree: of the manifest.
        sizes: bytes of each buffer.

    Raises:
        CorruptError: the tree does not fit the schema.
    """
    rows: list[LeafRow] = []
    leaves = list(walk(tree))
    payloads = dict(_payloads(tree, ()))  # after the walk, which has checked the depth
    for path, leaf in leaves:
        if any(not 0 <= index < len(sizes) for index in leaf.buffers):
            raise CorruptError(f"the leaf {format_path(path)} names a buffer that does not exist.")
        nbytes = sum(sizes[index] for index in leaf.buffers)
        if path in payloads:
            files = decode_file_tree(payloads[path], sizes).files
            nbytes = sum(sizes[file.buffer] for file in files if file.buffer is not None)
        rows.append(LeafRow(format_path(path), leaf.kind, _dtype_name(leaf.dtype), leaf.shape, nbytes, leaf.value))
    return rows


def _payloads(node: Any, path: LeafPath) -> Iterator[tuple[LeafPath, Any]]:
    """The payload of each ``Files`` leaf, which alone knows its buffers."""
    while type(node) is list and len(node) == 3 and node[0] in ("stateful", "custom"):
        node = node[2]
    if type(node) is list and len(node) == 2 and node[0] == "files":
        yield path, node[1]
        return
    for key, child in children_of(node):
        yield from _payloads(child, (*path, key))


def _dtype_name(dtype: str) -> str:
    """``float32`` for ``<f4``; what has no plain name, such as another byte order, stays as it is stored."""
    try:
        found = decode_dtype(dtype)  # numpy's own parser takes whole expressions
    except LimpetError:  # torch's names, and what nobody has
        return dtype
    return found.name if found.isnative and found.names is None and found.kind in "biufc" else dtype


def files_payload(tree: Any, sizes: Sequence[int]) -> Any:
    """The payload of a state that is one ``Files`` leaf; ``None`` for any other state."""
    if not (isinstance(tree, list) and len(tree) == 2 and tree[0] == "files"):
        return None
    decode_file_tree(tree[1], sizes)
    return tree[1]
