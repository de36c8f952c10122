from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.faults.server import FaultyS3
from tests.process.children import Nursery
from tests.support import run_async

__all__ = ["nursery", "run_async", "s3"]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where children come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def s3() -> Iterator[FaultyS3]:
    """A bucket behind a server that goes wrong by script."""
    with FaultyS3().running() as server:
        yield server
