"""Every point of ``limpet.failpoints`` lies on the way of an ordinary run, so a sweep over them sweeps over the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import noise

import limpet
from limpet import Checkpointer, Last
from limpet.failpoints import POINTS, watch


@pytest.fixture
def passed() -> Iterator[Counter[str]]:
    """How often each point was passed."""
    points: Counter[str] = Counter()
    watch(lambda point: points.update([point]))
    yield points
    watch(None)


def test_an_ordinary_run_passes_every_point(tmp_path: Path, passed: Counter[str]) -> None:
    with Checkpointer(tmp_path / "run", retain=Last(1)) as cp:
        for step in range(3):
            cp.write({"weights": noise(step, 200_000)}, step=step, durable=True)
        (tmp_path / "file").write_bytes(noise(9, 2 << 20).tobytes())
        cp.save(tmp_path / "file", durable=True)
        cp.sweep()
    with limpet.open(tmp_path / "run") as run:
        assert run.restore(tmp_path / "restored") is not None
    assert sorted(passed) == sorted(POINTS)


def test_nobody_watches_by_default() -> None:
    from limpet import failpoints

    assert failpoints._watcher is None
