"""Showing what is read to whoever checks it, while it is in the processor's caches.

Piece by piece it is read to its place and shown there. Where the place lies so that the processor copies to it at a quarter
of the rate, as numpy's own big arrays do, a piece is read into a little memory that stays in the cache, shown there, and
copied to its place from there. Both take many short calls. Each of them must win the interpreter lock back, which a busy
thread of pure Python gives away every 5 ms only: beside one, large pieces are read to their places and shown there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from limpet.stores.base import Seen

__all__ = ["clear_place", "show_and_fill"]

_Memory: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]

_CACHED_BYTES = 256 << 10
"""Half of the second-level cache of the smallest processors that matter; a quarter of those of today."""
_PAGE_BYTES = 4096
_ALIAS_BYTES = 64
"""A copy to an address that lies less than so much behind its source's, both taken modulo 4096, runs at a quarter of the
rate: the processor takes each load for one of the bytes that it has just stored ("4K aliasing", Intel's optimization manual,
B.4.4; measured on AMD Zen 3 too, for 1 to 31 bytes: 2 GB/s for 6 to 8). Files begin with a page, numpy's big arrays 16 bytes
behind one."""
_STRETCH_BYTES = 4 << 20
"""After so many bytes it is looked at anew whether short calls are worth it."""
_PATIENCE = 8
"""Times the processor's. Beside a thread of pure Python it is about 100; where other programs want the processor, 2."""


def show_and_fill(
    read: Callable[[memoryview, int], None], targets: Sequence[memoryview], seen: Seen, *, offset: int = 0
) -> None:
    """Fill ``targets`` one after the other, and show all of it to ``seen``.

    Args:
        read: fills memory from a position.
        targets: writable bytes.
        seen: as for ``Store.read_into``.
        offset: in the file, where the targets begin.
    """
    memory = np.empty(_CACHED_BYTES + 2 * _PAGE_BYTES, np.uint8)
    position = 0
    alone = True
    for target in targets:
        done = 0
        cached = _clear_of_both(memory, target, offset + position)
        while done < len(target):
            stretch = target[done : done + _STRETCH_BYTES] if alone else target[done:]
            wall, busy = time.monotonic(), time.thread_time()
            if alone:
                _by_pieces(read, stretch, position, seen, cached)
            else:
                read(stretch, position)
                seen(position, stretch)
            # Who waits nearly all of the time waits for the lock, or for the disk: few calls suit both.
            alone = time.monotonic() - wall < _PATIENCE * (time.thread_time() - busy) + 0.001
            done += len(stretch)
            position += len(stretch)


def clear_place(source: int, target: int) -> int:
    """Where in a page memory should begin that is filled from ``source`` on, and then copied to ``target``.

    Args:
        source: address or offset, of which its place in a page counts.
        target: likewise.

    Returns:
        A multiple of 64 below 4096, more or less half a page away from ``target``: neither copy is slow (see above).
    """
    place = (target + _PAGE_BYTES // 2) % _PAGE_BYTES // _ALIAS_BYTES * _ALIAS_BYTES
    if (place - source) % _PAGE_BYTES <= _ALIAS_BYTES:
        place = (place + _PAGE_BYTES // 4) % _PAGE_BYTES
    return place


def _clear_of_both(memory: _Memory, target: memoryview, offset: int) -> _Memory | None:
    """The part of ``memory`` that pieces of ``target`` go through; ``None`` if they need not."""
    address = np.frombuffer(target, np.uint8).ctypes.data if target else 0
    if not 0 < (address - offset) % _PAGE_BYTES < _ALIAS_BYTES:
        return None
    place = clear_place(offset, address)
    start = (place - memory.ctypes.data) % _PAGE_BYTES
    return memory[start : start + _CACHED_BYTES]


def _by_pieces(
    read: Callable[[memoryview, int], None],
    stretch: memoryview,
    position: int,
    seen: Seen,
    cached: _Memory | None,
) -> None:
    if cached is None:
        for start in range(0, len(stretch), _CACHED_BYTES):
            part = stretch[start : start + _CACHED_BYTES]
            read(part, position + start)
            seen(position + start, part)
        return
    target = np.frombuffer(stretch, np.uint8)
    for start in range(0, len(target), _CACHED_BYTES):
        place = target[start : start + _CACHED_BYTES]
        piece = cached[: len(place)]
        read(piece.data, position + start)
        seen(position + start, piece.data)
        np.copyto(place, piece)
