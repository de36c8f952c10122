"""Lazy saves in a loop that trains: each is what a synchronous save in its place would have been."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support import HeldPieces, checkpointer_over

import limpet
from limpet import UsageError
from limpet.integrations.torch import LazyTraining
from limpet.stores.memory import MemoryStore

torch = pytest.importorskip("torch", reason="trains a torch model")
pytestmark = pytest.mark.torch

WIDTH = 300
"""A weight of 300 x 300 floats is above 256 KiB: large enough to be copied behind the caller's back."""


class Model(torch.nn.Module):
    """With statistics that each forward pass changes, one of them large."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.norm = torch.nn.BatchNorm1d(WIDTH)
        self.last = torch.nn.Linear(WIDTH, 1)
        self.register_buffer("seen", torch.zeros(WIDTH, WIDTH))

    def forward(self, inputs):
        hidden = self.first(inputs)
        self.seen += (hidden.T @ hidden).detach()
        return self.last(torch.relu(self.norm(hidden)))


def copied(value):
    """A deep copy of what a state holds, made at once."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [copied(member) for member in value]
    return copied(value.state_dict()) if hasattr(value, "state_dict") else value


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.fixture
def pieces(monkeypatch):
    held = HeldPieces(monkeypatch)
    yield held
    held.let_go()


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_under_lazy_saves_gives_the_snapshots_of_synchronous_ones(make, pieces):
    """The copy of what is lazy begins as late as it can: when the optimizer's hook waits for it."""
    torch.manual_seed(0)
    model = Model()
    optimizer = make(model.parameters())
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    state = {"model": model, "optimizer": optimizer, "ema": ema, "scaler": scaler}
    truth = {}
    optimizer.register_step_pre_hook(lambda *_: pieces.let_go())
    optimizer.register_step_post_hook(lambda *_: pieces.hold())
    with (
        checkpointer_over(MemoryStore(), on_busy="wait", retain=limpet.Last(9), check=True) as cp,
        LazyTraining(cp, optimizer, model, also=[ema]),
    ):
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(32, WIDTH)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            ema.update_parameters(model)
            pending = cp.write(state, step=step, lazy=True)
            truth[step] = copied(state)
            assert not pending.staged.done()
        pieces.let_go()
        cp.wait()
        for step, expected in truth.items():
            assert equal(expected, cp.read(at=step)), step


def test_a_closure_is_called_after_the_wait(pieces):
    weight = torch.nn.Parameter(torch.ones(WIDTH, WIDTH))
    optimizer = torch.optim.LBFGS([weight], max_iter=2)
    optimizer.register_step_pre_hook(lambda *_: pieces.let_go())
    with checkpointer_over(MemoryStore()) as cp, LazyTraining(cp, optimizer):
        pending = cp.write({"weight": weight}, lazy=True)

        def closure():
            assert pending.staged.done()
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert torch.equal(cp_read(cp, pending)["weight"], torch.ones(WIDTH, WIDTH))
        assert not torch.equal(weight, torch.ones(WIDTH, WIDTH))


def cp_read(cp, pending):
    pending.result()
    return cp.read()


def test_what_shares_memory_with_something_volatile_is_copied_in_the_call(pieces):
    storage = torch.ones(4, WIDTH, WIDTH)
    array = np.ones((WIDTH, WIDTH))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    with checkpointer_over(MemoryStore()) as cp, LazyTraining(cp, optimizer, also=[storage[3], {"array": [array[:2]]}]):
        child = cp.child("parts")
        pending = child.write({"part": storage[1], "array": array}, lazy=True)
        assert pending.staged.done()


def test_once_it_is_removed_nothing_waits_and_nothing_is_copied_in_the_call(pieces):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with checkpointer_over(MemoryStore()) as cp:
        with LazyTraining(cp, optimizer, model) as lazy:
            pass
        lazy.remove()
        pending = cp.write({"seen": model.seen}, lazy=True)
        optimizer.step()
        assert not pending.staged.done()
        pieces.let_go()


def test_a_loop_that_changes_a_weight_outside_of_the_step_is_found(pieces):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with checkpointer_over(MemoryStore(), check=True) as cp, LazyTraining(cp, optimizer, model):
        pending = cp.write({"model": model.state_dict()}, lazy=True)
        with torch.no_grad():
            model.first.weight.clamp_(-0.01, 0.01)
        pieces.let_go()
        with pytest.warns(RuntimeWarning, match="first"), pytest.raises(UsageError, match=r'model\."first\.weight"'):
            pending.result()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda cp, sgd: (None, sgd), "Checkpointer"),
        (lambda cp, sgd: (cp, []), "optimizer"),
        (lambda cp, sgd: (cp, [sgd, torch.nn.Linear(1, 1)]), "optimizer"),
        (lambda cp, sgd: (cp, sgd, sgd), "buffers"),
        (lambda cp, sgd: (cp, sgd, (), 3), "no tensors"),
    ],
)
def test_what_it_cannot_use_is_refused_before_anything_is_hooked(arguments, message):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    with checkpointer_over(MemoryStore()) as cp:
        cp_, optimizers, *rest = arguments(cp, sgd)
        with pytest.raises(UsageError, match=message):
            LazyTraining(cp_, optimizers, *rest[:1], also=rest[1] if rest[1:] else ())
        assert not sgd._optimizer_step_pre_hooks
