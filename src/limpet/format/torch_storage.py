"""Where the values of a torch tensor lie in its storage."""

from __future__ import annotations

from typing import Any

from limpet.format.nodes import Refused

__all__ = ["check_storage", "extent"]


def extent(tensor: Any) -> tuple[int, int]:
    """The bytes of its storage that a tensor of some values reaches: from, and up to."""
    spans = zip(tensor.shape, tensor.stride(), strict=True)
    reach = tensor.numel() if tensor.is_contiguous() else 1 + sum((d - 1) * s for d, s in spans)
    start = tensor.storage_offset()
    return start * tensor.element_size(), (start + reach) * tensor.element_size()


def check_storage(tensor: Any) -> None:
    """To be asked before anything is computed from it: torch reads what is not there.

    Raises:
        Refused: its storage holds less than it reaches.
    """
    if tensor.numel() and tensor.untyped_storage().nbytes() < extent(tensor)[1]:
        raise Refused("is a tensor whose storage was freed", "Save it while its parameters are gathered.", final=True)
