"""Memory that batches are encoded into, used again and again.

Fresh memory costs a page fault every few KiB: writing to it is three times slower. But whoever was handed a view may
keep it as long as he likes (an upload that was cancelled, say), so memory comes back when the garbage collector says
that nobody refers to it, and not before.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress

import numpy as np

from limpet.engine.slots import Bytes8
from limpet.pages import KEPT_TO_OURSELVES, private_pages

__all__ = ["Outputs"]

_POOLED_FROM = 4 << 20


class Outputs:
    """Reused memory for one save, for any thread. What it holds is freed with it."""

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque()
        self._lent: dict[int, weakref.ref[Bytes8]] = {}

    def take(self, nbytes: int) -> Bytes8:
        """``nbytes`` of memory; it may be handed out again once neither the array nor a view of it is referred to."""
        if nbytes < _POOLED_FROM:
            return np.empty(nbytes, np.uint8)
        try:
            mapping = self._reused(nbytes) or private_pages(nbytes, *KEPT_TO_OURSELVES)
        except OSError:  # ENOMEM: the heap may do, or it says so as the heap does
            return np.empty(nbytes, np.uint8)
        # A view of an array refers to the array that owns the memory. As this one does not own the mapping's, views of
        # it, of whatever order, refer to it: it lives as long as the last of them.
        array: Bytes8 = np.frombuffer(mapping, np.uint8, nbytes)
        free, lent, key = self._free, self._lent, id(array)

        def returned(_: object) -> None:
            free.append(mapping)  # from any thread, in the middle of anything: no lock, one step
            lent.pop(key, None)

        lent[key] = weakref.ref(array, returned)
        return array

    def _reused(self, nbytes: int) -> mmap.mmap | None:
        for _ in range(len(self._free)):
            with suppress(IndexError):
                mapping = self._free.popleft()
                if len(mapping) >= nbytes:
                    return mapping
        return None
