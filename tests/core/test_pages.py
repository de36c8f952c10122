"""Memory that Python's ``mmap`` would map shared, and the kernel then by small pages only."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from limpet.engine.outputs import Outputs
from limpet.engine.slots import MemoryBudget, SlotPool
from limpet.pages import HUGE_PAGE_BYTES, KEPT_TO_OURSELVES, ask_for_huge_pages, private_pages
from limpet.stores.local_direct import Gathering

MIB = 1 << 20

only_linux = pytest.mark.skipif(
    sys.platform != "linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="looks into /proc/self/smaps for what a kernel with huge pages says there",
)


def flags_at(address: int) -> set[str]:
    """What the kernel says of the mapping at ``address``: proc_pid_smaps(5), VmFlags."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            begin, _, end = first.partition("-")
            inside = int(begin, 16) <= address < int(end, 16)
        elif inside and first == "VmFlags:":
            return set(rest.split())
    raise AssertionError(f"nothing is mapped at {address:x}")


def address_of(memory: mmap.mmap | np.ndarray) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


@pytest.mark.parametrize("nbytes", [1, 4096, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 1])
def test_there_is_as_much_as_was_asked_for_and_it_is_empty(nbytes: int) -> None:
    memory = private_pages(nbytes)
    assert len(memory) >= nbytes
    assert not np.frombuffer(memory, np.uint8).any()


@only_linux
def test_slots_outputs_and_what_is_gathered_are_private_and_want_huge_pages() -> None:
    pool = SlotPool(1, MemoryBudget(100 * MIB))
    lease = pool.try_lease(8 * MIB)
    assert lease is not None
    gathered = Gathering().take()
    assert gathered is not None
    for memory in (lease.memory, Outputs().take(8 * MIB), gathered):
        flags = flags_at(address_of(memory))
        assert "sh" not in flags
        assert {"hg", "dc", "dd"} <= flags
    lease.release()


@only_linux
def test_the_last_part_of_a_huge_page_is_taken_by_small_ones() -> None:
    memory = private_pages(HUGE_PAGE_BYTES + 1)
    assert "hg" in flags_at(address_of(memory))
    assert "hg" not in flags_at(address_of(memory) + HUGE_PAGE_BYTES)


def test_a_kernel_that_takes_no_advice_gives_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MADV_HUGEPAGE", *KEPT_TO_OURSELVES):
        monkeypatch.setattr(mmap, name, 12345, raising=False)  # EINVAL
    assert len(private_pages(HUGE_PAGE_BYTES, *KEPT_TO_OURSELVES)) == HUGE_PAGE_BYTES
    for name in ("MADV_HUGEPAGE", *KEPT_TO_OURSELVES):
        monkeypatch.delattr(mmap, name)
    assert len(private_pages(HUGE_PAGE_BYTES, *KEPT_TO_OURSELVES)) == HUGE_PAGE_BYTES


@only_linux
def test_huge_pages_are_asked_for_only_where_they_lie_in_the_memory_whole() -> None:
    memory = mmap.mmap(-1, 4 * HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE)
    first = address_of(memory)
    ask_for_huge_pages(first + 1, 3 * HUGE_PAGE_BYTES)
    wanted = ["hg" in flags_at(first + index * HUGE_PAGE_BYTES) for index in range(4)]
    assert wanted == [False, True, True, False]


def test_nothing_is_asked_for_where_no_huge_page_fits() -> None:
    ask_for_huge_pages(HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES)  # nothing is mapped there
