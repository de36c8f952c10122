"""Runs in the bucket of a faulty server, written and read by the real thing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tests.faults.server import FaultyS3, url
from tests.faulty import read_over, write_over

from limpet import Checkpointer, Run
from limpet.engine.timing import Timing
from limpet.stores.base import Store
from limpet.stores.urls import open_store

PATIENT = Timing(commit_deadline=30.0, open_deadline=30.0, upload_deadline=30.0, grace=0.0)
"""Deadlines that no test reaches unless something is wrong."""


def unpaced(s3: FaultyS3, name: str = "run", **storage: Any) -> Store:
    """A store at the server, whose commits are not paced."""
    store = open_store(url(name), s3.storage(**storage))
    store.commit_interval_seconds = 0.0
    return store


def write_at(
    s3: FaultyS3,
    *,
    name: str = "run",
    timing: Timing = PATIENT,
    reads_for: float = 10.0,
    storage: dict[str, Any] | None = None,
    **settings: Any,
) -> Checkpointer:
    """A ``Checkpointer`` whose run lies at the server."""
    store = unpaced(s3, name, **(storage or {}))
    return write_over(store, timing=timing, deadline_seconds=reads_for, **settings)


def read_at(s3: FaultyS3, *, name: str = "run", reads_for: float = 10.0, **storage: Any) -> Run:
    """A ``Run`` that lies at the server."""
    return read_over(unpaced(s3, name, **storage), deadline_seconds=reads_for)


def state(step: int, size: int = 60_000) -> dict[str, Any]:
    """Too much for a record, and different at every step."""
    return {"step": step, "weights": np.random.default_rng(step).random(size // 8)}


def same(found: Any, step: int, size: int = 60_000) -> bool:
    """Whether ``found`` is ``state(step)``, bit for bit."""
    wanted = state(step, size)
    return (
        found is not None
        and found["step"] == step
        and found["weights"].dtype == wanted["weights"].dtype
        and found["weights"].tobytes() == wanted["weights"].tobytes()
    )


def newest(s3: FaultyS3) -> Any:
    """The newest state at a server that is well again."""
    s3.heal()
    with read_at(s3) as run:
        return run.read(strict=True)


@contextmanager
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uploads of more than 64 KiB are sent in parts."""
    monkeypatch.setattr("limpet.stores.objects._PART_BYTES", 1 << 16)
    monkeypatch.setattr("limpet.stores.objects._IN_FLIGHT_BYTES", 1 << 18)
    yield


def heavy_but(default: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """All of ``cases``; those that are not among ``default`` belong to the heavy run."""
    chosen = list(default)
    return [case if case in chosen else _heavy(case) for case in cases]


def _heavy(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.heavy)
