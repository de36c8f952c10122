"""A small classifier in plain numpy, whose whole state is one tree of leaves.

The same state and the same data give the same next state, bit for bit: everything that is random comes from
the generator in the state, and one thread of BLAS fixes the order of every sum (``SINGLE_THREADED``).
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from limpet.cli.demo.digits import CLASSES, PIXELS, Digits

__all__ = ["SINGLE_THREADED", "accuracy", "fingerprint", "new_state", "train_step", "weights_fingerprint"]

Array = npt.NDArray[np.float32]
Layers = dict[str, Array]
State = dict[str, Any]

SINGLE_THREADED: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Environment of a process whose matrix products are to be equal from run to run."""

BATCH: Final = 128
NOISE: Final = np.float32(0.3)
# Adam, with the constants of Kingma and Ba (2015), https://arxiv.org/abs/1412.6980
LEARNING_RATE: Final = np.float32(3e-4)
BETA1: Final = np.float32(0.9)
BETA2: Final = np.float32(0.999)
EPSILON: Final = np.float32(1e-8)


def new_state(seed: int, hidden: int) -> State:
    """Give the state of a network that has learned nothing.

    Args:
        seed: of the generator that draws the weights and shuffles the images.
        hidden: neurons in each of the two hidden layers; 512 makes a state of 3.6 MB.

    Returns:
        Weights and Adam's two moments (dicts of float32 arrays), the generator's own state, the order of the
        images in the current epoch and the place reached in it.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = _draw_weights(generator, hidden)
    return {
        "weights": weights,
        "first_moments": {name: np.zeros_like(value) for name, value in weights.items()},
        "second_moments": {name: np.zeros_like(value) for name, value in weights.items()},
        "updates": 0,
        "generator": generator.bit_generator.state,
        "order": np.empty(0, np.int64),
        "place": 0,
    }


def train_step(state: State, digits: Digits) -> float:
    """Learn from one batch of noisy images, changing ``state`` in place.

    Returns:
        The mean cross-entropy of the batch before the update, in nats.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    generator.bit_generator.state = state["generator"]
    batch = _next_batch(state, generator, len(digits.labels))
    images = digits.images[batch]
    images = images + NOISE * generator.standard_normal(images.shape, np.float32)
    state["generator"] = generator.bit_generator.state
    loss, gradients = _backward(state["weights"], images, digits.labels[batch])
    _adam(state, gradients)
    return loss


def accuracy(state: State, digits: Digits) -> float:
    """Give the share of the held-out digits that are recognised, from 0 to 1."""
    _, _, logits = _forward(state["weights"], digits.held_out_images)
    return float(np.mean(logits.argmax(axis=1) == digits.held_out_labels))


def weights_fingerprint(state: State) -> str:
    """Give the SHA-256 of all weights: equal if and only if they are equal bit for bit."""
    return _digest(state["weights"])


def fingerprint(state: State) -> str:
    """Give the SHA-256 of the whole state: weights, moments, generator, order and place."""
    return _digest(state)


def _draw_weights(generator: np.random.Generator, hidden: int) -> Layers:
    """He et al. (2015), https://arxiv.org/abs/1502.01852: variance 2 / inputs before a ReLU."""
    sizes = (PIXELS, hidden, hidden, CLASSES)
    weights: Layers = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        scale = np.float32(np.sqrt(2 / inputs))
        weights[f"w{number}"] = generator.standard_normal((inputs, outputs), np.float32) * scale
        weights[f"b{number}"] = np.zeros(outputs, np.float32)
    return weights


def _next_batch(state: State, generator: np.random.Generator, images: int) -> npt.NDArray[np.int64]:
    if state["place"] + BATCH > len(state["order"]):
        state["order"] = generator.permutation(images)
        state["place"] = 0
    start = state["place"]
    state["place"] = start + BATCH
    batch: npt.NDArray[np.int64] = state["order"][start : start + BATCH]
    return batch


def _forward(weights: Layers, images: Array) -> tuple[Array, Array, Array]:
    first = np.maximum(images @ weights["w1"] + weights["b1"], 0)
    second = np.maximum(first @ weights["w2"] + weights["b2"], 0)
    return first, second, second @ weights["w3"] + weights["b3"]


def _backward(weights: Layers, images: Array, labels: npt.NDArray[np.int64]) -> tuple[float, Layers]:
    first, second, logits = _forward(weights, images)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    loss = float(np.mean(log_sum[:, 0] - shifted[rows, labels]))

    d_logits = np.exp(shifted - log_sum)
    d_logits[rows, labels] -= 1
    d_logits /= np.float32(len(labels))
    d_second = (d_logits @ weights["w3"].T) * (second > 0)
    d_first = (d_second @ weights["w2"].T) * (first > 0)
    gradients = {"w1": images.T @ d_first, "w2": first.T @ d_second, "w3": second.T @ d_logits}
    gradients |= {"b1": d_first.sum(axis=0), "b2": d_second.sum(axis=0), "b3": d_logits.sum(axis=0)}
    return loss, gradients


def _adam(state: State, gradients: Layers) -> None:
    state["updates"] += 1
    # Both corrections of the start-up bias in one factor, as the paper proposes at the end of its section 2.
    rate = LEARNING_RATE * np.sqrt(1 - BETA2 ** state["updates"]) / (1 - BETA1 ** state["updates"])
    for name, gradient in gradients.items():
        weight, first, second = (state[part][name] for part in ("weights", "first_moments", "second_moments"))
        first *= BETA1
        first += (1 - BETA1) * gradient
        second *= BETA2
        second += (1 - BETA2) * gradient * gradient
        weight -= (rate * first / (np.sqrt(second) + EPSILON)).astype(np.float32, copy=False)


def _digest(tree: Any) -> str:
    found = hashlib.sha256()
    _feed(found, tree)
    return found.hexdigest()


def _feed(found: hashlib._Hash, tree: Any) -> None:
    if isinstance(tree, dict):
        for key in sorted(tree):
            found.update(f"{key}:".encode())
            _feed(found, tree[key])
    elif isinstance(tree, np.ndarray):
        found.update(f"{tree.dtype.str}{tree.shape}".encode())
        found.update(np.ascontiguousarray(tree).data)
    else:
        found.update(json.dumps(tree).encode())
