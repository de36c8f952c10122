"""How much memory this process may use, as the container or the machine says."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_bytes", "default_limit_bytes"]

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SHARE = 0.8
"""Part of the memory that staging may take by default; the state itself and the program need some too."""


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
