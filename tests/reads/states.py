"""States that are told apart by their step, and runs that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.faulty import Faulty, write_over


def big(step: int) -> dict[str, Any]:
    """A state that needs a pack of its own, with chunks that are read in different ways."""
    random = np.random.default_rng(step)
    return {
        "step": step,
        "weights": random.random(40_000, dtype=np.float32),
        "noise": random.integers(0, 255, 300_000, dtype=np.uint8),
        "name": f"step {step}",
    }


def same(found: Any, step: int) -> bool:
    """Whether ``found`` is, bit for bit, ``big(step)``."""
    wanted = big(step)
    return bool(
        found.keys() == wanted.keys()
        and found["step"] == step
        and found["name"] == wanted["name"]
        and found["weights"].dtype == np.float32
        and found["weights"].tobytes() == wanted["weights"].tobytes()
        and found["noise"].tobytes() == wanted["noise"].tobytes()
    )


def fill(store: Faulty, count: int = 3, **settings: Any) -> None:
    """Commit the states of steps 0 to ``count - 1``, and leave."""
    with write_over(store, **settings) as cp:
        for step in range(count):
            cp.write(big(step), step=step, meta={"loss": 10 - step}, durable=True)
