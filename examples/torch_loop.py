"""A PyTorch loop: model, optimizer and torch's random state in one tree, restored in place with ``into=``.

It stops in the middle the first time and ends the second time; both together give the very weights of one
uninterrupted run.

    python examples/torch_loop.py [folder]
"""

import sys
import tempfile
from typing import Any

from limpet import Checkpointer

try:
    import torch
except ImportError:
    sys.exit("this example needs PyTorch: pip install torch")

STEPS = 40


def new_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return {"model": model, "optimizer": optimizer, "random": torch.get_rng_state()}


def train(folder: str, until: int) -> dict[str, Any]:
    state = new_state()
    model, optimizer = state["model"], state["optimizer"]
    with Checkpointer(folder) as cp:
        run = cp.resume(into=state)  # fills the live model and optimizer; nothing changes in a new run
        torch.set_rng_state(state["random"])
        print(f"step {run.next_step} to {until}")
        for step in range(run.next_step, until):
            inputs = torch.randn(64, 8)
            loss = torch.nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["random"] = torch.get_rng_state()
            cp.write(state, step=step)
    return state


def main(folder: str) -> None:
    train(f"{folder}/interrupted", until=STEPS // 2)
    resumed = train(f"{folder}/interrupted", until=STEPS)
    straight = train(f"{folder}/straight", until=STEPS)
    pairs = zip(resumed["model"].parameters(), straight["model"].parameters(), strict=True)
    are_equal = all(torch.equal(ours, theirs) for ours, theirs in pairs)
    print(f"weights equal, bit for bit: {are_equal}")
    sys.exit(0 if are_equal else 1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="limpet-torch-"))
