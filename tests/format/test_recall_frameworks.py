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
            "slice": torch.arange(12, dtype=torch.int16)[4:8],
            "octets": torch.arange(8.0).to(torch.float8_e4m3fn),
            "pairs": torch.arange(4.0) + 1j,
            "flags": torch.ones(5, dtype=torch.bool),
            "large": torch.arange(2048.0).reshape(2, 1024),
            "large p": torch.nn.Parameter(torch.ones(1025)),
            "large b": torch.ones(3000, dtype=torch.bfloat16)[100:],
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
        state["slice"] = self.torch.arange(12, dtype=self.torch.int16)[6:10]
        state["pairs"].mul_(2j)
        state["large"].add_(1)
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
            lambda state, torch: setattr(state["w"], "data", torch.ones(3, 2).T),
            lambda state, torch: setattr(state["w"], "data", state["large"].flatten()[:6].reshape(2, 3)),
            lambda state, torch: state["w"].unsqueeze_(0),
            lambda state, torch: state.update(octets=state["octets"].view(torch.uint8).clone()),
            lambda state, torch: state.update(octets=state["octets"].view(torch.float8_e5m2).clone()),
            lambda state, torch: state.update({"large p": torch.nn.Parameter(torch.ones(1025), requires_grad=False)}),
            lambda state, torch: state.update({"large b": state["large"].view(torch.bfloat16).flatten()[:2900]}),
            lambda state, torch: state.update(large=torch.ones(1024, 2).T),
        ],
    )
    def test_whatever_changes_gives_what_the_whole_walk_gives(self, twice, change):
        state = self.state()
        twice(state)
        assert twice(state)
        change(state, self.torch)
        assert not twice(state)
        assert twice(state)

    @pytest.mark.parametrize("name", ["w", "large"])
    def test_a_tensor_that_shows_its_memory_with_the_sign_turned_is_saved_as_what_it_shows(self, twice, name):
        state = self.state()
        twice(state)
        assert twice(state)
        state[name] = state[name].clone()._neg_view()
        twice(state)

    def test_a_complex_tensor_that_is_a_conjugate_is_saved_as_what_it_shows(self, twice):
        state = self.state()
        twice(state)
        assert twice(state)
        state["pairs"] = state["pairs"].clone().conj()
        twice(state)

    def test_of_many_tensors_any_two_that_come_to_share_memory_are_seen(self, twice):
        state = [self.torch.full((3,), float(number)) for number in range(1500)]
        twice(state)
        assert twice(state)
        state[1400] = state[7].view(3)
        assert not twice(state)

    def test_a_small_tensor_is_taken_when_the_call_is_made(self, twice):
        state = [self.torch.zeros(3), self.torch.nn.Parameter(self.torch.zeros(2))]
        twice(state)
        tree = flatten(state, registry=twice.registry, recall=twice.recall)
        with self.torch.no_grad():
            for tensor in state:
                tensor.add_(1)
        assert [made for made, *_ in contents(tree)[1]] == [bytes(12), bytes(8)]

    @pytest.mark.parametrize("name", ["w", "large"])
    @pytest.mark.parametrize(
        "replace",
        [
            lambda tensor, torch: tensor.to("meta"),
            lambda tensor, torch: torch.nested.nested_tensor([tensor.flatten()]),
            lambda tensor, torch: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        ],
    )
    def test_a_tensor_of_a_kind_that_cannot_be_saved_is_refused_in_its_place(self, twice, replace, name):
        state = self.state()
        twice(state)
        assert twice(state)
        state[name] = replace(state[name], self.torch)
        with pytest.raises(UnsupportedLeafError, match=f"^{name} "):
            flatten(state, registry=twice.registry, recall=twice.recall)

    @pytest.mark.parametrize(("name", "nbytes"), [("w", 4), ("w", 0), ("large", 8188), ("large", 0)])
    def test_a_storage_that_was_freed_meanwhile_is_refused(self, twice, name, nbytes):
        state = self.state()
        twice(state)
        assert twice(state)
        state[name] = state[name].clone()
        state[name].untyped_storage().resize_(nbytes)
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

    def state(self) -> dict[str, Any]:
        numpy = self.jax.numpy
        return {
            "w": numpy.arange(6.0).reshape(2, 3),
            "b": numpy.ones(3, numpy.bfloat16),
            "n": numpy.zeros(()),
            "octets": numpy.arange(8.0).astype(numpy.float8_e4m3fn),
            "nibbles": numpy.arange(6).astype(numpy.int4),
            "flags": numpy.ones((2, 2), bool),
            "pairs": numpy.arange(3) + 1j,
            "empty": numpy.ones((0, 3)),
            "large": numpy.arange(2048.0).reshape(2, 1024),
            "large b": numpy.ones(3000, numpy.bfloat16),
        }

    def test_new_values_are_taken_in(self, twice):
        state = self.state()
        assert not twice(state)
        assert twice(state)
        assert twice({name: -array if array.dtype != bool else ~array for name, array in state.items()})

    @pytest.mark.parametrize("name", ["w", "n", "large"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda array, numpy: array.astype(numpy.float16),
            lambda array, numpy: array.reshape(1, *array.shape),
            lambda array, numpy: array.reshape(-1),
            lambda array, numpy: np.asarray(array),
        ],
    )
    def test_whatever_changes_is_noticed(self, twice, name, change):
        state = self.state()
        twice(state)
        assert twice(state)
        state[name] = change(state[name], self.jax.numpy)
        assert not twice(state)
        assert twice(state)

    @pytest.mark.parametrize("name", ["w", "large"])
    def test_an_array_that_lies_in_another_order_is_saved_as_it_is(self, twice, name):
        layout = pytest.importorskip("jax.experimental.layout")
        if not hasattr(layout, "Format"):
            pytest.skip("this jax names layouts in another way")
        state = self.state()
        twice(state)
        assert twice(state)
        place = layout.Format(layout.Layout(major_to_minor=(1, 0)), state[name].sharding)
        state[name] = self.jax.device_put(state[name], place)
        assert not twice(state)
        assert twice(state)

    def test_a_small_array_may_be_donated_when_the_call_is_over(self, twice):
        state = [self.jax.numpy.arange(3.0), self.jax.numpy.ones((2, 2))]
        twice(state)
        tree = flatten(state, registry=twice.registry, recall=twice.recall)
        expected = [np.asarray(array).tobytes() for array in [array + 0 for array in state]]
        for array in state:
            array.delete()
        assert [made for made, *_ in contents(tree)[1]] == expected

    def test_a_large_known_array_is_referred_to(self, twice):
        state = [self.jax.numpy.arange(2048.0), self.jax.numpy.ones(3000, self.jax.numpy.bfloat16)]
        twice(state)
        state = [array + 1 for array in state]
        assert twice(state)
        tree = flatten(state, registry=twice.registry, recall=twice.recall)
        for buffer, leaf in zip(tree.buffers, state, strict=True):
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

    @pytest.mark.parametrize("size", [3, 3000])
    def test_a_deleted_array_is_refused(self, twice, size):
        array = self.jax.numpy.ones(size)
        twice([array])
        assert twice([array])
        array.delete()
        with pytest.raises(UnsupportedLeafError, match="deleted"):
            flatten([array], registry=twice.registry, recall=twice.recall)
