from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.faults.server import FaultyS3


@pytest.fixture
def s3() -> Iterator[FaultyS3]:
    """A bucket behind a server that goes wrong by script."""
    with FaultyS3().running() as server:
        yield server
