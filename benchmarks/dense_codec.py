"""How small does the codec make dense weights, and how fast, on one core: alone, and beside a loop of pure Python?"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import blake3
import numpy as np
import zstandard

from limpet.format import codec

from measuring.loops import PythonLoop
from measuring.plots import Plot
from measuring.report import Report
from measuring.running import Run, child_arguments, options, turns
from measuring.states import MIB, arrays, bf16, missing_bf16

CHUNK_BYTES = 4 * MIB
ALONE, BESIDE, PROCESS = "alone", "a thread beside a Python loop", "a process beside a Python loop"
RAW = "raw, hashing only"
_ENTROPY_LEVEL = 1

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Coder = Callable[[Bytes], int]
"""Hashes and codes a chunk; how many bytes came of it."""


def limpet_coder(name: str) -> Coder:
    """What the engine does to a new chunk: its id, its coding, the digest of what is stored; into reused memory."""
    reused: dict[str, Any] = {}
    if "out" in inspect.signature(codec.encode).parameters:
        reused["out"] = np.ones(CHUNK_BYTES + (1 << 12), np.uint8)

    def code(raw: Bytes) -> int:
        blake3.blake3(raw.data).digest()
        used, stored = codec.encode(raw, codec=name, level=_ENTROPY_LEVEL, **reused)
        if used != "raw":
            blake3.blake3(stored).digest()
        return len(stored)

    return code


def zstd_coder(level: int) -> Coder:
    """The usual way, with the same hashes."""
    compressor = zstandard.ZstdCompressor(level=level)

    def code(raw: Bytes) -> int:
        blake3.blake3(raw.data).digest()
        stored = compressor.compress(raw.data)
        blake3.blake3(stored).digest()
        return len(stored)

    return code


def hash_only(raw: Bytes) -> int:
    """What is left of the work where nothing is coded."""
    blake3.blake3(raw.data).digest()
    return raw.size


def chunks_of(kind: str, mib: int) -> list[Bytes]:
    """Dense weights in chunks, or bytes that nothing can shrink."""
    if kind == "random":
        data = np.random.default_rng(1).integers(0, 256, mib * MIB, dtype=np.uint8)
    else:
        weights = arrays(mib * (2 if kind == "bf16" else 1), 1)["layer00"]
        data = (bf16(weights) if kind == "bf16" else weights).view(np.uint8)
    return [data[start : start + CHUNK_BYTES] for start in range(0, data.size, CHUNK_BYTES)]


def coders(kind: str) -> dict[str, Coder]:
    name = {"fp32": "planes4", "bf16": "planes2", "random": "planes4"}[kind]
    return {"limpet": limpet_coder(name), "zstd -1": zstd_coder(1), RAW: hash_only}


def rate(code: Coder, chunks: list[Bytes]) -> float:
    """Raw GB/s of one pass."""
    start = time.perf_counter()
    for chunk in chunks:
        code(chunk)
    return sum(chunk.size for chunk in chunks) / (time.perf_counter() - start) / 1e9


def beside_a_loop(code: Coder, chunks: list[Bytes], loop: PythonLoop) -> float:
    """The same in a thread of this process, while the main thread runs bytecode."""
    rates: list[float] = []
    worker = threading.Thread(target=lambda: rates.append(rate(code, chunks)))
    worker.start()
    while worker.is_alive():
        loop.step()
    return rates[0]


class Servant:
    """A process that codes when it is told to."""

    def __init__(self, kind: str, name: str, mib: int) -> None:
        command = [sys.executable, sys.argv[0], "--child", kind, name, str(mib)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, loop: PythonLoop) -> float:
        """One pass of its own while this process runs bytecode."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer: list[str] = []
        reader = threading.Thread(target=lambda: answer.append(self._process.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        while reader.is_alive():
            loop.step()
        return float(json.loads(answer[0]))

    def close(self) -> None:
        self._process.communicate()


def child(kind: str, name: str, mib: int) -> None:
    chunks, code = chunks_of(kind, mib), coders(kind)[name]
    rate(code, chunks[:1])
    for _ in sys.stdin:
        print(json.dumps(rate(code, chunks)), flush=True)


def measure(kind: str, settings: Any, loop: PythonLoop, report: Report) -> None:
    """One table of one kind of bytes: the ratio, and the rate in each surrounding."""
    chunks = chunks_of(kind, settings.mib)
    made = coders(kind)
    servants = {name: Servant(kind, name, settings.mib) for name in made}
    runs: dict[str, Run] = {}
    for name, code in made.items():
        runs |= {
            f"{ALONE} {name}": partial(rate, code, chunks),
            f"{BESIDE} {name}": partial(beside_a_loop, code, chunks, loop),
            f"{PROCESS} {name}": partial(servants[name].run, loop),
        }
    try:
        values = turns(runs, settings.rounds)
    finally:
        for servant in servants.values():
            servant.close()
    table = report.table(f"{settings.mib} MiB of {kind}: raw / stored bytes, and raw GB/s with BLAKE3")
    raw_bytes = sum(chunk.size for chunk in chunks)
    for name, code in made.items():
        table.put(name, "ratio", [raw_bytes / sum(map(code, chunks))], "x")
        for column in (ALONE, BESIDE, PROCESS):
            table.put(name, column, values[f"{column} {name}"], "GB/s")
    hold_to_bounds(report, kind)


def hold_to_bounds(report: Report, kind: str) -> None:
    ours, zstd = (report.tables[-1].rows[name] for name in ("limpet", "zstd -1"))
    if kind == "random":
        report.bound("random: raw / stored bytes", ours["ratio"], row=5, least=1 / 1.001)
        return
    ratio, speed = {"fp32": (1.19, 0.8), "bf16": (1.46, 0.65)}[kind]
    report.bound(f"{kind}: raw / stored bytes", ours["ratio"], row=5, least=ratio)
    report.bound(f"{kind}: with hashing, {ALONE}", ours[ALONE], row=5, least=speed)
    report.bound(f"{kind}: with hashing, {PROCESS}", ours[PROCESS], row=5, least=speed)
    report.bound(f"{kind}: with hashing, {BESIDE}", ours[BESIDE])
    report.bound(f"{kind}: ratio / that of zstd -1", ours["ratio"].over(zstd["ratio"]), row=5, least=1.0)
    report.bound(f"{kind}: rate / that of zstd -1, {ALONE}", ours[ALONE].over(zstd[ALONE]), row=5, least=1.0)


def main() -> None:
    settings = options(__doc__ or "", mib=256).parse_args()
    report = Report(__doc__ or "", settings, absent=missing_bf16())
    loop = PythonLoop()
    for kind in ("fp32", "bf16", "random"):
        if kind != "bf16" or not missing_bf16():
            measure(kind, settings, loop, report)
    report.plots = [
        Plot(table.title.split()[3][:-1], at, "bars", "GB/s", (ALONE,)) for at, table in enumerate(report.tables)
    ]
    report.notes.append(
        f"one thread, chunks of {CHUNK_BYTES // MIB} MiB; a thread beside a loop must win the interpreter's lock"
    )
    report.finish()


if __name__ == "__main__":
    if (given := child_arguments()) is not None:
        child(given[0], given[1], int(given[2]))
    else:
        main()
