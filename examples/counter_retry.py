"""A task that fails every few iterations and still ends: each attempt goes on where the last one was.

The seed is Flyte's checkpoint example (https://docs.flyte.org, "Intratask checkpoints"): read the previous
checkpoint, count on from it, write after each iteration.

    python examples/counter_retry.py [folder]
"""

import sys
import tempfile

from limpet import Checkpointer

N_ITERATIONS = 10
FAILURE_INTERVAL = 3
RETRIES = 5


def use_checkpoint(cp: Checkpointer, n_iterations: int) -> int:
    prev = cp.read()
    start = int(prev.decode()) if prev else 0
    print(f"starting at {start}")

    for i in range(start, n_iterations):
        if i > start and i % FAILURE_INTERVAL == 0:
            raise RuntimeError(f"failed at iteration {i}, simulating failure")
        cp.write(f"{i + 1}".encode())
    return n_iterations


def main(folder: str) -> None:
    for attempt in range(RETRIES + 1):
        try:
            with Checkpointer(folder) as cp:
                result = use_checkpoint(cp, N_ITERATIONS)
        except RuntimeError as error:
            print(f"attempt {attempt}: {error}")
        else:
            print(f"attempt {attempt}: done, {result} iterations")
            return
    sys.exit("out of retries")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="limpet-counter-"))
