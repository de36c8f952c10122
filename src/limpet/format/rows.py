"""The leaves of a checkpoint as rows to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from limpet.errors import CorruptError
from limpet.format.filetree import decode_file_tree
from limpet.format.paths import format_path
from limpet.format.summary import walk
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
    for path, leaf in walk(tree):
        if any(not 0 <= index < len(sizes) for index in leaf.buffers):
            raise CorruptError(f"the leaf {format_path(path)} names a buffer that does not exist.")
        nbytes = sum(sizes[index] for index in leaf.buffers)
        rows.append(LeafRow(format_path(path), leaf.kind, _dtype_name(leaf.dtype), leaf.shape, nbytes, leaf.value))
    return rows


def _dtype_name(dtype: str) -> str:
    """``float32`` for ``<f4``; what has no plain name, such as another byte order, stays as it is stored."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        return dtype
    return found.name if found.isnative and found.names is None and found.kind in "biufc" else dtype


def files_payload(tree: Any, sizes: Sequence[int]) -> Any:
    """The payload of a state that is one ``Files`` leaf; ``None`` for any other state."""
    if not (isinstance(tree, list) and len(tree) == 2 and tree[0] == "files"):
        return None
    decode_file_tree(tree[1], sizes)
    return tree[1]
