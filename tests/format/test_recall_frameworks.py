"""Tensors and jax arrays of a known structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limpet import UnsupportedLeafError
from limpet.format.registry import Registry
from limpet.format.tree import FlatTree, Recall, flatten


class Twice:
    """Flattens each state with a memory and without; both must agree, and it says whether the state was known."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.recall = Recall()

    def __call__(self, state: Any) -> bool:
        known = self.recall.find(state, self.registry)
        again = flatten(state, registry=self.registry, recall=self.recall)
        whole = flatten(state, registry=self.registry)
        self.recall._skip = 0
        for tree in (again, *([known] if known else [])):
            assert contents(tree) == contents(whole)
        return known is not None


def contents(tree: FlatTree) -> Any:
    made = []
    for buffer in tree.buffers:
        copy = np.empty(buffer.nbytes, np.uint8)
        buffer.copy_into(copy)
        made.append((copy.tobytes(), buffer.nbytes, buffer.immutable, buffer.dtype))
    return tree.node, made


@pytest.fixture
def twice() -> Twice:
    return Twice()


@pytest.mark.torch
class TestTensors:
    torch: Any = pytest.importorskip("torch")

    def state(self) -> dict[str, Any]:
        torch = self.torch
        tied = torch.arange(12.0)
        return {
            "w": torch.arange(6.0).reshape(2, 3),
            "b": torch.ones(3, dtype=torch.bfloat16),
            "p": torch.nn.Parameter(torch.ones(2)),
            "step": torch.tensor(3.0),
            "tied": [tied, tied[2:5], tied.reshape(3, 4).T],
            "dense": torch.ones(3, 4).T,
            "holes": torch.arange(12.0)[::2],
            "empty": torch.ones(0, 3),
            "n": 1,
        }

    def test_new_values_are_taken_in(self, twice):
        state = self.state()
        assert not twice(state)
        assert twice(state)
        state["w"].add_(1)
        state["tied"][0].mul_(3)
        state["step"] = self.torch.tensor(4.0)
        state["n"] = 2
        assert twice(state)

    @pytest.mark.parametrize(
        "change",
        [
            lambda state, torch: state.update(w=torch.ones(3, 2)),
            lambda state, torch: state.update(w=torch.ones(2, 3, dtype=torch.int32)),
            lambda state, torch: state.update(w=torch.ones(3, 2).T),
            lambda state, torch: state.update(w=torch.nn.Parameter(torch.ones(2, 3))),
            lambda state, torch: state.update(b=state["p"].detach().view(torch.bfloat16)[:3]),
            lambda state, torch: state.update(step=state["w"][0, 0]),
            lambda state, torch: state["p"].requires_grad_(False),
            lambda state, torch: state["tied"].__setitem__(1, state["tied"][0][3:6]),
            lambda state, torch: state["tied"].__setitem__(1, torch.ones(3)),
            lambda state, torch: state.update(w=state["tied"][0][:6].reshape(2, 3)),
            lambda state, torch: state.update(holes=torch.arange(12.0)[::3]),
            lambda state, torch: state.update(holes=torch.ones(6, 2)[:, 1].clone()),
            lambda state, torch: state.update(dense=torch.ones(4, 3)),
            lambda state, torch: state.update(empty=torch.ones(1, 3)),
            lambda state, torch: state.update(w=torch.ones(2, 3, 2)[..., 0]),
            lambda state, torch: state.update(w=torch.ones(2, 3).to_sparse().to_dense()._neg_view()),
            lambda state, torch: state["w"].t_(),
            lambda state, torch: setattr(state["w"], "data", torch.ones(2, 3, dtype=torch.float64)),
        ],
    )
    def test_whatever_changes_gives_what_the_whole_walk_gives(self, twice, change):
        state = self.state()
        twice(state)
        assert twice(state)
        change(state, self.torch)
        assert not twice(state)
        assert twice(state)

    def test_a_storage_that_was_freed_meanwhile_is_refused(self, twice):
        state = self.state()
        twice(state)
        assert twice(state)
        state["w"] = self.torch.ones(2, 3)
        state["w"].untyped_storage().resize_(4)
        with pytest.raises(UnsupportedLeafError, match="freed"):
            flatten(state, registry=twice.registry, recall=twice.recall)

    @pytest.mark.parametrize("convert", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
    def test_a_tensor_that_has_no_storage_any_more_is_refused_by_name(self, twice, convert):
        state = {"w": self.torch.ones(2, 3)}
        twice(state)
        assert twice(state)
        state["w"] = getattr(state["w"], convert)()
        with pytest.raises(UnsupportedLeafError, match=r"^w "):
            flatten(state, registry=twice.registry, recall=twice.recall)

    def test_the_state_dicts_of_a_model_and_its_optimizer_are_known(self, twice):
        torch = self.torch
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters())
        for expected in (False, False, True, True):
            known = twice({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            assert known is expected
            optimizer.zero_grad()
            model(torch.ones(5, 3)).sum().backward()
            optimizer.step()


@pytest.mark.jax
class TestJaxArrays:
    jax: Any = pytest.importorskip("jax")

    def test_a_known_state_refers_to_the_arrays_own_memory(self, twice):
        numpy = self.jax.numpy
        state = {"w": numpy.arange(6.0).reshape(2, 3), "b": numpy.ones(3, numpy.bfloat16), "n": [numpy.zeros(())]}
        twice(state)
        state = {"w": state["w"] + 1, "b": state["b"] + 1, "n": [state["n"][0] + 1]}
        assert twice(state)
        tree = flatten(state, registry=twice.registry, recall=twice.recall)
        leaves = [state["w"], state["b"], state["n"][0]]
        for buffer, leaf in zip(tree.buffers, leaves, strict=True):
            assert buffer.data.__array_interface__["data"][0] == leaf.unsafe_buffer_pointer()

    @pytest.mark.parametrize(
        "make",
        [
            lambda numpy: numpy.ones(4),
            lambda numpy: numpy.ones(3, numpy.int32),
            lambda numpy: np.ones(3, np.float32),
        ],
    )
    def test_another_structure_is_noticed(self, twice, make):
        numpy = self.jax.numpy
        twice([numpy.ones(3)])
        assert twice([numpy.zeros(3)])
        assert not twice([make(numpy)])

    def test_a_deleted_array_is_refused(self, twice):
        array = self.jax.numpy.ones(3)
        twice([array])
        assert twice([array])
        array.delete()
        with pytest.raises(UnsupportedLeafError, match="deleted"):
            flatten([array], registry=twice.registry, recall=twice.recall)
