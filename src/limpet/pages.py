"""Memory of whole pages, of huge ones where the kernel has them.

Python's ``mmap`` maps anonymous memory shared by default. That is shared memory to the kernel (shmem), which gets huge pages
only if ``shmem_enabled`` says so, which it does on hardly any machine. Private memory gets them on request.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress

__all__ = ["HUGE_PAGE_BYTES", "KEPT_TO_OURSELVES", "advise", "ask_for_huge_pages", "private_pages"]

HUGE_PAGE_BYTES = 2 << 20
"""Of x86-64, and of ARM with pages of 4 KiB."""
KEPT_TO_OURSELVES = ("MADV_DONTFORK", "MADV_DONTDUMP")
"""A fork has no use for it, and neither has whoever looks at a core dump."""


def private_pages(nbytes: int, *advice: str) -> mmap.mmap:
    """New memory of this process alone, all zeros, at least ``nbytes`` of it; it is taken when it is first touched.

    It begins with a huge page, and all of them that lie within ``nbytes`` are asked for. What is behind the last whole
    one is taken by small pages.

    Args:
        nbytes: above 0.
        advice: names of the ``mmap`` module, for all of it.

    Raises:
        OSError: there is no memory, or no mapping more for this process.
    """
    # Linux lays mappings of whole huge pages out by them (since 6.7); of others it does not.
    mapping = mmap.mmap(-1, -(-nbytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE)
    whole = nbytes - nbytes % HUGE_PAGE_BYTES
    if whole:
        advise(mapping, "MADV_HUGEPAGE", whole)
    for name in advice:
        advise(mapping, name, len(mapping))
    return mapping


def advise(mapping: mmap.mmap, name: str, nbytes: int) -> None:
    """Give the kernel advice on the first ``nbytes``. One that does not know it is slower, not wrong."""
    value = getattr(mmap, name, None)
    if value is not None:
        with suppress(OSError):
            mapping.madvise(value, 0, nbytes)


def ask_for_huge_pages(address: int, nbytes: int) -> None:
    """The same for memory that somebody else mapped, before it is touched: for the huge pages that lie in it whole."""
    first = -(-address // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    whole = (address + nbytes - first) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    if sys.platform == "linux" and whole > 0:
        call = ctypes.CDLL(None).madvise
        call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        call(first, whole, mmap.MADV_HUGEPAGE)  # what it answers changes nothing
