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
    """The most memory that was resident since ``__init__``, as the operating system counted it."""

    def __init__(self) -> None:
        self.resettable = True
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to what is resident now
        except OSError:
            self.resettable = False
        self.before_bytes = _status_bytes("VmRSS") or _max_rss_bytes()

    def added_bytes(self) -> int:
        """Peak minus what was resident at the start."""
        peak = (_status_bytes("VmHWM") if self.resettable else None) or _max_rss_bytes()
        return peak - self.before_bytes


def _status_bytes(name: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
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
