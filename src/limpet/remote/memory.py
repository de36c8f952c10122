"""Slots that two processes see.

A slot is a ``memfd``: memory without a name, which goes when the last process that has it does, whatever kills
them. Files in /dev/shm would stay, and containers give that 64 MB. Behind the content lies one number: of the save
whose content it is, zero while it is anybody's guess. So the memory itself says whether it may be believed, also when
its owner was killed in the middle of a copy, with whatever it had to say still unsaid.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from limpet.engine.slots import Bytes8, Lease

__all__ = ["KeptSlot", "SharedMemory", "ViewedMemory", "forget_after_fork"]

_NAME = "limpet-slot"
_DESCRIPTORS = Path("/proc/self/fd")
_numbers = itertools.count(1)


class SharedMemory(mmap.mmap):
    """A slot's mapping in the process that fills it.

    Args:
        nbytes: of the content.
        forgotten: told the slot's number when nobody here has it any more.

    Attributes:
        number: names the slot in messages.
        fd: to be passed on.
        content_bytes: how many there are before the marker.
    """

    number: int
    fd: int
    content_bytes: int

    def __new__(cls, nbytes: int, forgotten: Callable[[int], object]) -> Self:
        """Map new memory."""
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, nbytes + mmap.PAGESIZE)
            self = super().__new__(cls, fd, nbytes + mmap.PAGESIZE)
        except BaseException:
            os.close(fd)
            raise
        self.number, self.fd, self.content_bytes = next(_numbers), fd, nbytes
        weakref.finalize(self, _end, fd, forgotten, self.number).atexit = False
        return self

    def hold(self, lease: Lease, save: int) -> None:
        """The content is that of ``save`` from now on, until ``lease`` ends."""
        marker = _marker(self, self.content_bytes)
        lease.on_end = partial(marker.__setitem__, 0, 0)
        marker[0] = save


class ViewedMemory:
    """A slot's mapping in the process that reads it.

    Args:
        fd: of the memory; it may be closed afterwards.
        content_bytes: how many there are before the marker.
    """

    def __init__(self, fd: int, content_bytes: int) -> None:
        mapping = mmap.mmap(fd, content_bytes + mmap.PAGESIZE, prot=mmap.PROT_READ)
        self.array: Bytes8 = np.frombuffer(mapping, dtype=np.uint8, count=content_bytes)
        self._marker = _marker(mapping, content_bytes)

    @property
    def save(self) -> int:
        """Number of the save whose content it holds; 0 for none."""
        return int(self._marker[0])


class KeptSlot:
    """The content of one save in a slot, in the process that reads it, for as long as its trainer leaves it there.

    The trainer takes it back without a word, and clears the mark before anything is written there: so what was read is
    the save's if the mark is there still afterwards. The slot itself is forgotten when the trainer says so.

    Args:
        memory: of the slot.
        save: its number.
    """

    def __init__(self, memory: weakref.ref[ViewedMemory], save: int) -> None:
        self._memory = memory
        self._save = save
        self._released = False

    @property
    def is_held(self) -> bool:
        """See ``KeptMemory``."""
        memory = self._memory()
        return not self._released and memory is not None and memory.save == self._save

    def copy_if_held(self, offset: int, out: Bytes8) -> bool:
        """See ``KeptMemory``."""
        memory = self._memory()
        if memory is None or not self.is_held:
            return False
        np.copyto(out, memory.array[offset : offset + out.size])
        return self.is_held

    def release(self) -> None:
        """See ``KeptMemory``: the memory is the trainer's, and only not looked at any more."""
        self._released = True


def _marker(mapping: mmap.mmap, content_bytes: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(mapping, dtype=np.uint64, count=1, offset=content_bytes)


def _end(fd: int, forgotten: Callable[[int], object], number: int) -> None:
    os.close(fd)
    forgotten(number)


def forget_after_fork() -> None:
    """In a forked child: let go of every slot, or memory would stay for as long as a data loader lives.

    The mappings were not inherited. The descriptors are replaced, not closed: the objects that own them will do that.
    """
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for entry in list(_DESCRIPTORS.iterdir()):
        with suppress(OSError, ValueError):
            if entry.readlink().name.startswith(_NAME) or "/memfd:" + _NAME in str(entry.readlink()):
                os.dup2(null, int(entry.name), inheritable=False)
    os.close(null)
