"""Loops that a save may disturb: each step does the same work, so that a slow one was held up by somebody."""

from __future__ import annotations

import multiprocessing
import time
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from measuring.contender import missing_module

_STEP_SECONDS = 0.004


class Loop(ABC):
    """A loop of equal steps; entered, it is warm, and afterwards it leaves nothing behind."""

    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run; empty if it can."""
        return missing_module(cls.needs)

    @abstractmethod
    def step(self) -> None:
        """One step, of a few milliseconds."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what it started."""


class PythonLoop(Loop):
    """Bytecode only: it gives up the interpreter's lock when it is told to, and never else."""

    title = "pure Python, one core free"

    def __init__(self) -> None:
        self._count = 10_000
        start = time.perf_counter()
        for _ in range(5):
            self.step()
        self._count = max(1, int(self._count * _STEP_SECONDS * 5 / (time.perf_counter() - start)))

    def step(self) -> None:
        total = 0
        for number in range(self._count):
            total += number & 7


def spin() -> None:
    """Keep a core busy until the process is ended."""
    while True:
        pass


class CrowdedPythonLoop(PythonLoop):
    """The same while other processes keep every other core busy."""

    title = "pure Python, both cores busy"

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        count = max(1, multiprocessing.cpu_count() - 1)
        self._others = [context.Process(target=spin, daemon=True) for _ in range(count)]
        for other in self._others:
            other.start()
        super().__init__()

    def close(self) -> None:
        for other in self._others:
            other.terminate()
            other.join()


class NumpyLoop(Loop):
    """Matrix products on every core, as numpy's own threads do them, and some plain array work."""

    title = "numpy, both cores busy"

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        self._weights = random.standard_normal((768, 768), dtype=np.float32)
        self._batch = random.standard_normal((512, 768), dtype=np.float32)
        for _ in range(20):
            self.step()

    def step(self) -> None:
        hidden = np.maximum(self._batch @ self._weights, 0)
        np.tanh(hidden, out=hidden)
        hidden @ self._weights.T


class TorchLoop(Loop):
    """Training of a small network: forward, backward, optimizer, on every core."""

    title = "torch, both cores busy"
    needs = ("torch",)

    def __init__(self) -> None:
        torch: Any = import_module("torch")
        torch.manual_seed(1)
        layers = torch.nn
        self._model = layers.Sequential(layers.Linear(512, 512), layers.ReLU(), layers.Linear(512, 512))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3)
        self._batch = torch.randn(256, 512)
        for _ in range(20):
            self.step()

    def step(self) -> None:
        self._optimizer.zero_grad()
        loss = ((self._model(self._batch) - self._batch) ** 2).mean()
        loss.backward()
        self._optimizer.step()


LOOPS: tuple[type[Loop], ...] = (PythonLoop, CrowdedPythonLoop, NumpyLoop, TorchLoop)
