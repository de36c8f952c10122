"""The same code on a bucket: only the URL and, for stores other than AWS, ``storage=`` differ.

    LIMPET_S3_URL=s3://bucket/run-42 python examples/s3.py

Credentials come from where AWS tools look for them (environment, profile, instance role). For another server give
LIMPET_S3_ENDPOINT (http://127.0.0.1:8333), and LIMPET_S3_ACCESS_KEY with LIMPET_S3_SECRET_KEY if it has its own.
"""

import os
import sys

import numpy as np

from limpet import Checkpointer

STEPS = 20
OPTIONS = {
    "endpoint": "LIMPET_S3_ENDPOINT",
    "access_key_id": "LIMPET_S3_ACCESS_KEY",
    "secret_access_key": "LIMPET_S3_SECRET_KEY",
    "region": "LIMPET_S3_REGION",
}


def storage_options() -> dict[str, str]:
    return {option: os.environ[name] for option, name in OPTIONS.items() if name in os.environ}


def train(url: str, until: int) -> None:
    with Checkpointer(url, storage=storage_options() or None) as cp:
        run = cp.resume(initial={"position": np.zeros(1000), "generator": np.random.default_rng(0).bit_generator.state})
        state = run.state
        print(f"step {run.next_step} to {until}")
        generator = np.random.default_rng()
        generator.bit_generator.state = state["generator"]
        for step in range(run.next_step, until):
            state["position"] += generator.standard_normal(1000)
            state["generator"] = generator.bit_generator.state
            cp.write(state, step=step, meta={"spread": float(state["position"].std())})


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("LIMPET_S3_URL")
    if not url:
        sys.exit("set LIMPET_S3_URL to s3://bucket/folder")
    train(url, until=STEPS // 2)
    train(url, until=STEPS)  # as the next attempt would: it goes on with step 10
    with Checkpointer(url, storage=storage_options() or None) as cp:
        newest = cp.checkpoints()[-1]
        print(f"step {newest.step} is durable, spread {newest.meta['spread']:.3f}")


if __name__ == "__main__":
    main()
