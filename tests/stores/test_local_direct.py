"""Files that go past the page cache hold the same bytes, and every write keeps the rules of O_DIRECT."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stores.contract import PACK, parts_of

from limpet.stores import local_direct
from limpet.stores.base import Bytes
from limpet.stores.local import LocalStore
from limpet.stores.local_direct import DIRECT_FROM_BYTES, Gathering, Output
from limpet.stores.local_files import FileOps

BLOCK = 4096
GATHER_BYTES = 4 * BLOCK


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_direct, "_GATHER_BYTES", GATHER_BYTES)


class StrictDisk(FileOps):
    """Takes direct writes of whole blocks only.

    Args:
        can: whether it goes past the page cache at all.
        takes_bytes: of one write, at most.
        refuses: the number of the write that it refuses as misaligned, though it is not.
    """

    def __init__(self, *, can: bool = True, takes_bytes: int = 1 << 30, refuses: int = -1) -> None:
        self.data = bytearray()
        self.direct_bytes = 0
        self.misaligned = 0
        self._can = can
        self._takes_bytes = takes_bytes
        self._refuses = refuses
        self._writes = 0
        self._direct = False

    def set_direct(self, fd: int, direct: bool) -> bool:
        self._direct = direct and self._can
        return self._can

    def writev(self, fd: int, buffers: Sequence[Bytes]) -> int:
        self._writes += 1
        if self._direct:
            self.misaligned += sum(address_of(each) % BLOCK + len(each) % BLOCK for each in buffers)
            self.misaligned += len(self.data) % BLOCK
            if self._writes == self._refuses:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        taken = b"".join(buffers)[: self._takes_bytes]
        self.data += taken
        self.direct_bytes += len(taken) * self._direct
        return len(taken)


def address_of(buffer: Bytes) -> int:
    return np.frombuffer(buffer, np.uint8).ctypes.data


def pages(size: int, offset: int = 0) -> memoryview:
    """``size`` bytes that begin ``offset`` bytes after a page's start."""
    memory = np.frombuffer(mmap.mmap(-1, offset + size + 1), np.uint8)
    memory[:] = np.random.default_rng(size).integers(0, 256, memory.size, dtype=np.uint8)
    return memory[offset : offset + size].data


sizes = st.one_of(st.integers(0, 3 * GATHER_BYTES), st.integers(0, 8).map(lambda count: count * BLOCK))
buffers = st.builds(pages, sizes, st.sampled_from([0, 0, 1, 512]))
batches = st.lists(st.lists(buffers, max_size=4), max_size=4)
disks = st.builds(
    StrictDisk,
    can=st.booleans(),
    takes_bytes=st.sampled_from([1 << 30, 3 * BLOCK, 3 * BLOCK + 7]),
    refuses=st.integers(-1, 4),
)


def write(disk: StrictDisk, parts: list[list[memoryview]]) -> Output:
    gathering = Gathering()
    output = Output(disk, 0, gathering)
    for part in parts:
        output.write(part)
    output.finish()
    gathering.close()
    return output


@given(disks, batches)
def test_whatever_is_written_arrives_and_keeps_the_rules(disk: StrictDisk, parts: list[list[memoryview]]) -> None:
    output = write(disk, parts)
    expected = b"".join(buffer for part in parts for buffer in part)
    assert disk.data == expected
    assert output.size == len(expected)
    assert disk.misaligned == 0


def test_whole_blocks_go_straight_from_the_writers_memory() -> None:
    disk = StrictDisk()
    gathering = Gathering()
    output = Output(disk, 0, gathering)
    output.write([pages(2 * BLOCK), pages(3 * BLOCK)])
    assert disk.direct_bytes == 5 * BLOCK
    assert gathering._spare == []
    output.finish()


def test_only_the_end_of_a_file_of_odd_pieces_takes_the_ordinary_way() -> None:
    disk = StrictDisk()
    write(disk, [[pages(100)], [pages(9 * BLOCK)], [pages(5, 1)]])
    assert disk.direct_bytes == 9 * BLOCK


def test_a_buffer_may_change_once_it_was_written() -> None:
    disk = StrictDisk()
    gathering = Gathering()
    output = Output(disk, 0, gathering)
    data = np.full(100, 7, np.uint8)
    output.write([data.data])
    data[:] = 0
    output.finish()
    assert disk.data == b"\x07" * 100


def test_without_memory_to_gather_in_the_ordinary_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    parts = [[pages(2 * BLOCK), pages(100)], [pages(3 * BLOCK)]]
    monkeypatch.setattr(mmap, "mmap", refuse)
    disk = StrictDisk()
    write(disk, parts)
    assert disk.data == b"".join(buffer for part in parts for buffer in part)
    assert (disk.direct_bytes, disk.misaligned) == (2 * BLOCK, 0)


def test_the_memory_of_one_file_serves_the_next() -> None:
    gathering = Gathering()
    for _ in range(3):
        output = Output(StrictDisk(), 0, gathering)
        output.write([b"odd"])
        (memory, output_memory) = (gathering._spare, output._memory)
        assert memory == []
        output.finish()
        assert gathering._spare[0] is output_memory
    gathering.close()


class Asked(FileOps):
    def __init__(self) -> None:
        self.asked: list[bool] = []

    def set_direct(self, fd: int, direct: bool) -> bool:
        self.asked.append(direct)
        return super().set_direct(fd, direct)


@pytest.mark.parametrize(("size", "asks"), [(DIRECT_FROM_BYTES - 1, False), (DIRECT_FROM_BYTES, True)])
async def test_a_large_pack_asks_to_go_past_the_page_cache(tmp_path: Path, size: int, asks: bool) -> None:
    files = Asked()
    store = LocalStore(tmp_path, files=files)
    data = [pages(size), pages(777, 1), pages(5 * BLOCK)]
    assert await store.put(PACK, parts_of(data[:1], data[1:])) == size + 777 + 5 * BLOCK
    await store.create("log/0000000000000/0000000000000001.json", bytes(2 * DIRECT_FROM_BYTES))
    assert await store.get(PACK, limit=1 << 30) == b"".join(data)
    await store.close()
    assert (True in files.asked) == asks
