from __future__ import annotations

import pytest
from tests.faulty import Faulty, Shelf

from limpet.stores.memory import MemoryStore


@pytest.fixture
def store() -> Faulty:
    """An empty store that goes wrong by script."""
    return Faulty(MemoryStore())


@pytest.fixture
def shelf(store: Faulty) -> Shelf:
    """What lies in ``store``."""
    return Shelf(store.store)
