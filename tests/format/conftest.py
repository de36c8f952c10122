from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from limpet.format.assemble import MISSING, Assembly, prepare
from limpet.format.buffers import FileSlice
from limpet.format.registry import Registry
from limpet.format.tree import FlatTree, flatten


class Trip:
    """A state's way through flatten, JSON, copied buffers, prepare and finish."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def save(self, state: object, **options: Any) -> tuple[FlatTree, list[bytes]]:
        flat = flatten(state, registry=self.registry, **options)
        copies = []
        for buffer in flat.buffers:
            assert not isinstance(buffer.data, FileSlice)
            copy = np.full(buffer.nbytes, 0xAA, np.uint8)
            buffer.copy_into(copy)
            copies.append(copy.tobytes())
        return FlatTree(msgspec.json.decode(msgspec.json.encode(flat.node)), flat.buffers), copies

    def load(self, tree: FlatTree, copies: list[bytes], **options: Any) -> Any:
        assembly = prepare(tree.node, [len(copy) for copy in copies], registry=self.registry, **options)
        self.fill(assembly, copies)
        return assembly.finish()

    @staticmethod
    def fill(assembly: Assembly, copies: list[bytes]) -> None:
        for index, target in assembly.destinations.items():
            assert target.dtype == np.uint8
            assert target.ndim == 1
            target[:] = np.frombuffer(copies[index], np.uint8)

    def __call__(self, state: object, *, into: object = MISSING, select: str | None = None, **options: Any) -> Any:
        return self.load(*self.save(state, **options), into=into, select=select, **options)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def trip(registry: Registry) -> Trip:
    return Trip(registry)


@pytest.fixture(scope="session")
def fresh_trip() -> Callable[[], Trip]:
    """For hypothesis, which runs one test many times."""
    return lambda: Trip(Registry())


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO(b"0123456789")
