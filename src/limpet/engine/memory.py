"""How much memory this process may use, as the container or the machine says, and how staging shares it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from limpet.workers import refuse_reentry

__all__ = ["MemoryBudget", "available_bytes", "default_limit_bytes"]

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SHARE = 0.8
"""Part of the memory that staging may take by default; the state itself and the program need some too."""


class _Kept(NamedTuple):
    owner: object
    nbytes: int
    end: Callable[[], None]


class MemoryBudget:
    """What the leased slots of several pools may take together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._leased_bytes = 0
        self._lock = threading.RLock()
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._kept: dict[object, _Kept] = {}
        self.ever_kept = False

    def try_take(self, nbytes: int, giving_back: int = 0) -> bool:
        """Take ``nbytes`` if they fit beside what is taken already; the first one only has to fit alone.

        Args:
            nbytes: how many.
            giving_back: bytes that are given back in the same step, if they fit.
        """
        with self._lock:
            refuse_reentry(self._lock)
            others = self._leased_bytes - giving_back
            if others and others + nbytes > self.limit_bytes:
                return False
            self._leased_bytes = others + nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """Give ``nbytes`` back."""
        with self._lock:
            self._leased_bytes -= nbytes

    def keep(self, owner: object, lease: object, nbytes: int, end: Callable[[], None]) -> None:
        """``lease``, whose ``nbytes`` are taken already, is there only until ``reclaim`` ends it, by ``end``: idempotent."""
        with self._lock:
            self._kept[lease] = _Kept(owner, nbytes, end)
            self.ever_kept = True

    def kept_by(self, owner: object) -> list[object]:
        """The leases that ``owner`` keeps, the one that it keeps longest first."""
        with self._lock:
            return [lease for lease, one in self._kept.items() if one.owner is owner]

    def forget(self, lease: object) -> bool:
        """Give back what a kept lease takes; ``False`` if that was reclaimed already."""
        with self._lock:
            kept = self._kept.pop(lease, None)
            self._leased_bytes -= 0 if kept is None else kept.nbytes
            return kept is not None

    def reclaim(self) -> bool:
        """Give back what the lease takes that is kept longest, of all pools, and end it; without a pool's lock held.

        Returns:
            ``False`` if nothing was kept. Whoever looks again then has seen the bytes of all that was: he waits for
            others, and need not be told of this.
        """
        with self._lock:
            refuse_reentry(self._lock)
            lease = next(iter(self._kept), None)
            if lease is None:
                return False
            one = self._kept[lease]
            kept = {other: it for other, it in self._kept.items() if other is not lease}
            self._leased_bytes, self._kept = self._leased_bytes - one.nbytes, kept
        try:
            one.end()
        finally:  # also if an interrupt from the keyboard came: what counts no more may not go on
            one.end()
        return True

    def watch(self, freed: Callable[[], None]) -> None:
        """Call ``freed()`` whenever a pool has given memory back: another pool's callers may wait for it."""
        with self._lock:
            refuse_reentry(self._lock)
            self._watchers = (*self._watchers, freed)

    def unwatch(self, freed: Callable[[], None]) -> None:
        """Forget ``freed``, if it watches."""
        with self._lock:
            refuse_reentry(self._lock)
            self._watchers = tuple(watcher for watcher in self._watchers if watcher != freed)

    def tell(self) -> None:
        """Tell the watchers; without any lock held."""
        for watcher in self._watchers:
            watcher()


def default_limit_bytes() -> int:
    """The most that staging buffers may take together when no ``memory_limit`` is given."""
    return int(min(_cgroup_limit(), _physical()) * _SHARE)


def available_bytes() -> int:
    """About how much can still be allocated without swapping; physical memory where that is unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_limit())
    except (OSError, ValueError, IndexError):
        pass
    return _physical()


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_limit() -> int:
    for path in _CGROUP_LIMITS:
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # no such hierarchy, or "max"
            continue
    return 1 << 62
