"""What a reader must know to compare, and memory as the operating system counts it. No names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

import limpet

_PACKAGES = (
    "numpy",
    "obstore",
    "zstandard",
    "blake3",
    "torch",
    "jax",
    "orbax-checkpoint",
    "tensorstore",
    "flytekit",
    "safetensors",
)


def machine() -> dict[str, str]:
    """The processor, the memory and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cpu": _cpu_model(),
        "cores": str(cores),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def versions() -> dict[str, str]:
    """Of Python and of every package that a figure may depend on; one that is not installed is left out."""
    found = {"python": platform.python_version(), "limpet": limpet.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class PeakMemory:
    """The most memory that was resident since ``__init__``, as the operating system counted it.

    Processes that were started since then count with what is theirs alone: memory that they share with this one is
    counted here.
    """

    def __init__(self) -> None:
        self.resettable = True
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to what is resident now
        except OSError:
            self.resettable = False
        self.before_bytes = _status_bytes("VmRSS") or _max_rss_bytes()
        self._others = _descendants()

    def added_bytes(self) -> int:
        """Peak minus what was resident at the start; to be asked before what was started ends."""
        peak = (_status_bytes("VmHWM") if self.resettable else None) or _max_rss_bytes()
        own = (
            (_status_bytes("VmHWM", pid) or 0) - (_status_bytes("RssShmem", pid) or 0)
            for pid in _descendants() - self._others
        )
        return peak - self.before_bytes + sum(own)


def _descendants() -> set[str]:
    """Every process below this one; none where the system does not say."""
    parents: dict[str, str] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # proc(5): "pid (name) state ppid"; the name may hold anything
            parents[path.parent.name] = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
    found, wave = set[str](), {str(os.getpid())}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave}
        found |= wave
    return found


def _status_bytes(name: str, pid: str = "self") -> int | None:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _max_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
