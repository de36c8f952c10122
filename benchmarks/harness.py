"""How limpet is measured: contenders take turns, samples are kept, ratios are paired.

``turns`` runs contenders A B, then B A, and so on, so that what drifts (a disk's cache, a neighbour's load, the clock
of a CPU) hits all of them; a ratio is taken within a round before the median over the rounds. Peak
memory is what the operating system counted, in a child process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
ABSENT_PEERS = {
    "torch DCP": "PyTorch's distributed checkpoint is not measured here yet",
    "orbax": "orbax-checkpoint is not measured here yet",
    "safetensors": "safetensors is not measured here yet",
}

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
Contender = Callable[[], float]
"""Prepares, does one run, cleans up, and returns what it measured, preparation and cleaning left out."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What one contender measured, a value a round."""

    values: list[float]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.values) < 2 or self.median == 0:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / 2 / abs(self.median)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two contenders, and the bound that the project holds itself to, if any."""

    name: str
    values: list[float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.at_most is not None:
            return f"at most {self.at_most:g}: {'met' if self.median <= self.at_most else 'MISSED'}"
        if self.at_least is not None:
            return f"at least {self.at_least:g}: {'met' if self.median >= self.at_least else 'MISSED'}"
        return ""


@dataclass(slots=True)
class Report:
    """Everything that one question gave: printed as tables, kept as JSON."""

    question: str
    settings: Mapping[str, Any]
    samples: dict[str, Samples] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def ratio(
        self, above: str, below: str, *, at_most: float | None = None, at_least: float | None = None, name: str = ""
    ) -> None:
        """Add the paired ratio of two contenders."""
        pairs = zip(self.samples[above].values, self.samples[below].values, strict=True)
        values = [one / other for one, other in pairs]
        self.ratios.append(Ratio(name or f"{above} / {below}", values, at_most, at_least))

    def finish(self) -> None:
        """Print the tables and write ``results/<script>.json``."""
        self._print()
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{Path(sys.argv[0]).stem}.json"
        path.write_text(json.dumps(self._plain(), indent=1) + "\n")
        print(f"\nevery sample: {os.path.relpath(path)}")

    def _plain(self) -> dict[str, Any]:
        samples = {
            name: {**asdict(each), "median": each.median, "spread": each.spread} for name, each in self.samples.items()
        }
        ratios = [{**asdict(each), "median": each.median, "verdict": each.verdict} for each in self.ratios]
        return {
            "question": self.question,
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "when": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "settings": dict(self.settings),
            "samples": samples,
            "ratios": ratios,
            "notes": self.notes,
            "absent": self.absent,
        }

    def _print(self) -> None:
        print(f"\n{self.question}")
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        print(", ".join(f"{name}={value}" for name, value in self.settings.items()), end="\n\n")
        rows: list[tuple[str, ...]] = [("", "median", "min", "max", "spread", "runs")]
        for name, each in self.samples.items():
            shown = [shorten(value, each.unit) for value in (each.median, min(each.values), max(each.values))]
            rows.append((name, *shown, f"{each.spread:.0%}", str(len(each.values))))
        print_table(rows)
        if self.ratios:
            print()
            rows = [("paired ratios and bounds", "median", "min", "max", "", "")]
            for ratio in self.ratios:
                numbers = [f"{value:.3g}" for value in (ratio.median, min(ratio.values), max(ratio.values))]
                rows.append((ratio.name, *numbers, ratio.verdict, ""))
            print_table(rows)
        for note in self.notes:
            print(f"note: {note}")
        for name, reason in self.absent.items():
            print(f"absent: {name} ({reason})")


def shorten(value: float, unit: str) -> str:
    """A number with its unit, three digits."""
    scales = {"s": [(1e-6, "us"), (1e-3, "ms"), (1.0, "s")], "B": [(1.0, "B"), (1 << 10, "KiB"), (MIB, "MiB")]}
    scale, name = 1.0, unit
    for candidate, candidate_name in scales.get(unit, []):
        if abs(value) >= candidate or scale == 1.0:
            scale, name = candidate, candidate_name
    return f"{value / scale:,.4g} {name}" if value / scale < 1e4 else f"{value / scale:,.0f} {name}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def turns(contenders: Mapping[str, Contender], rounds: int, *, warmups: int = 1) -> dict[str, list[float]]:
    """One value a round for each contender; the order is reversed from round to round.

    The first ``warmups`` rounds are thrown away: buffers are made there, and files and code loaded.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(-warmups, rounds):
        for name in order:
            value = contenders[name]()
            if number >= 0:
                values[name].append(value)
        order.reverse()
        print("." if number >= 0 else "w", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return values


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def arrays(mib: int, count: int = 64, *, seed: int = 0) -> Arrays:
    """``count`` fp32 arrays of ``mib`` MiB together, with the statistics of trained weights (normal, 0.02)."""
    random = np.random.default_rng(seed)
    size = mib * MIB // 4 // count
    return {
        f"layer{index:02d}": random.standard_normal(size, dtype=np.float32) * np.float32(0.02) for index in range(count)
    }


def change(state: Arrays) -> None:
    """Change every value, as an optimizer does: nothing is left for deduplication."""
    for array in state.values():
        np.multiply(array, np.float32(1.0009765625), out=array)


@contextmanager
def workplace(folder: str | None, need_bytes: int) -> Iterator[Path]:
    """A folder on the disk that is measured, removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="limpet-bench-", dir=folder))
    try:
        free = shutil.disk_usage(root).free
        if free < need_bytes:
            sys.exit(
                f"{root} has {free // MIB} MiB free and this run needs {need_bytes // MIB}: use --folder or a smaller --mib"
            )
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def options(question: str, *, mib: int | None = None, rounds: int = 7) -> argparse.ArgumentParser:
    """The options that all questions share."""
    parser = argparse.ArgumentParser(description=question)
    if mib is not None:
        parser.add_argument("--mib", type=int, default=mib, help="size of the state (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count (default: %(default)s)")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    return parser


def in_child(case: str, *arguments: object) -> Any:
    """Run this very script again as ``--child case arguments...``; what it prints last, read as JSON."""
    command = [sys.executable, sys.argv[0], "--child", case, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


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


def machine() -> dict[str, str]:
    """What a reader must know to compare: no names of hosts or people."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "obstore", "zstandard", "blake3")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cpu": _cpu_model(),
        "cores": str(cores),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "limpet": _version_of_limpet(),
        **versions,
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _version_of_limpet() -> str:
    try:
        return importlib.metadata.version("limpet")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
