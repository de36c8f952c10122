from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from limpet import CorruptError, MismatchError, UnsupportedLeafError, UsageError
from limpet.format.assemble import prepare, walk
from limpet.format.registry import Registry

torch: Any = pytest.importorskip("torch", reason="the leaves are torch's")
pytestmark = pytest.mark.torch

DTYPES = [
    "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128", "bool",
    "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
]  # fmt: skip


def bits(tensor: Any) -> bytes:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(one: Any, other: Any) -> bool:
    return (
        type(one) is type(other)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.requires_grad == other.requires_grad
        and bits(one) == bits(other)
    )


def storage(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dense_dtype_comes_back_bit_for_bit(trip, name):
    dtype = getattr(torch, name)
    raw = torch.arange(48, dtype=torch.uint8)
    whole = raw.view(dtype).clone() if name != "bool" else raw % 2 == 0
    state = {
        "whole": whole,
        "part": whole.clone()[::2],
        "empty": torch.empty(0, 3, dtype=dtype),
        "0d": whole[0].clone(),
    }
    back = trip(state)
    assert all(same(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(24).view(2, 3, 4).permute(2, 0, 1),
    ],
)
def test_strides_of_dense_layouts_are_kept(trip, tensor):
    back = trip([tensor])[0]
    assert same(back, tensor)
    assert back.stride() == tensor.stride()


@pytest.mark.parametrize(
    "tensor", [torch.arange(12).view(3, 4)[:, 1:3], torch.ones(1).expand(4, 5), torch.arange(9)[2::3]]
)
def test_layouts_with_holes_or_repeats_come_back_contiguous(trip, tensor):
    tree, copies = trip.save(tensor)
    assert len(copies[0]) == tensor.numel() * tensor.element_size()
    back = trip.load(tree, copies)
    assert same(back, tensor)
    assert back.is_contiguous()


def test_conjugate_and_negative_views_are_resolved(trip):
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert trip(tensor.conj()).tolist() == [1 - 2j, 3 + 4j]
    assert trip(tensor.conj().imag).tolist() == [-2, 4]


def test_parameters_and_gradients_are_kept(trip):
    state = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    state.append(torch.ones(2, requires_grad=True))
    back = trip(state)
    assert all(map(same, back, state))
    back[0].sum().backward()
    assert back[0].grad.tolist() == [1, 1]


def test_a_result_of_a_computation_is_saved_by_value(trip):
    back = trip(torch.ones(2, requires_grad=True) * 3)
    assert back.tolist() == [3, 3]
    assert back.is_leaf


def test_tied_tensors_are_saved_once_and_come_back_tied(trip):
    weight = torch.arange(6.0).view(2, 3)
    state = {"embed": weight, "head": weight, "view": weight.t(), "row": weight[1]}
    tree, copies = trip.save(state)
    assert [len(copy) for copy in copies] == [24]
    back = trip.load(tree, copies)
    assert all(same(back[key], state[key]) for key in state)
    assert len({storage(tensor) for tensor in back.values()}) == 1
    back["embed"][1, 0] = 9
    assert back["row"][0] == back["view"][0, 1] == back["head"][1, 0] == 9


def test_views_of_other_dtypes_share_too(trip):
    base = torch.arange(16, dtype=torch.uint8)
    back = trip({"bytes": base[1:8], "words": base.view(torch.int32)[1:], "doubles": base.view(torch.float64)[1:]})
    assert back["bytes"].tolist() == list(range(1, 8))
    assert storage(back["bytes"]) == storage(back["words"]) == storage(back["doubles"])


def test_distant_slices_of_one_storage_do_not_save_what_lies_between(trip):
    base = torch.zeros(100_000)
    _, copies = trip.save([base[:10], base[-10:], base[5:10]])
    assert sorted(map(len, copies)) == [40, 40]


def test_a_slice_alone_saves_only_itself(trip):
    _, copies = trip.save(torch.zeros(1000)[10:20])
    assert list(map(len, copies)) == [40]


def test_sizes_come_back_as_sizes(trip):
    back = trip({"s": torch.Size([1, 2])})["s"]
    assert type(back) is torch.Size
    assert back == (1, 2)


def test_a_torch_generator_continues_and_a_live_one_takes_the_state(trip):
    generator = torch.Generator().manual_seed(3)
    torch.rand(2, generator=generator)
    live = torch.Generator()
    fresh = trip([generator])[0]
    assert trip([generator], into=[live])[0] is live
    expected = torch.rand(3, generator=generator).tolist()
    assert torch.rand(3, generator=fresh).tolist() == torch.rand(3, generator=live).tolist() == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.eye(2).to_sparse(), "is a tensor of layout torch.sparse_coo"),
        (lambda: torch.ones(2, device="meta"), "is a meta tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "is a"),
        (lambda: torch.nn.parameter.UninitializedParameter(), "a kind of tensor that is not plain"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is a tensor of"),
    ],
)
def test_a_tensor_without_plain_values_is_refused_by_path(trip, make, reason):
    with pytest.raises(UnsupportedLeafError, match=rf"^m\.w {reason}|^m\.w .*{reason}"):
        trip({"m": {"w": make()}})


@pytest.mark.parametrize("shown", ["as it is", "conjugated", "negated"])
def test_a_freed_storage_is_refused(trip, shown):
    tensor = torch.ones(3_000_000, dtype=torch.complex64)
    tensor = {"as it is": tensor, "conjugated": tensor.conj(), "negated": torch._neg_view(tensor.real)}[shown]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(UnsupportedLeafError, match="storage was freed"):
        trip([tensor])


def test_tensors_come_back_to_the_cpu_whatever_the_default_device_is(trip):
    with torch.device("meta"):
        found = trip({"w": torch.ones(2, device="cpu"), "one": torch.tensor(1.0, device="cpu")})
    assert {name: tensor.device.type for name, tensor in found.items()} == {"w": "cpu", "one": "cpu"}


def test_reading_tensors_without_torch_says_what_to_do(trip, monkeypatch):
    tree, copies = trip.save({"w": torch.ones(2), "n": 1})
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(UsageError, match=r"^w is stored as a torch object, but torch is not imported.*select="):
        trip.load(tree, copies)
    assert trip.load(tree, copies, select="n") == 1
    assert [leaf.kind for _, leaf in walk(tree.node)] == ["tensor", "int"]


# Live tensors


def test_a_live_tensor_receives_the_bytes_itself(trip, registry):
    live = {"w": torch.zeros(3, requires_grad=True), "c": torch.zeros(1, 2, 3, 3).to(memory_format=torch.channels_last)}
    before = dict(live)
    tree, copies = trip.save({"w": torch.ones(3), "c": torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last)})
    assembly = prepare(tree.node, list(map(len, copies)), registry=registry, into=live)
    addresses = {memory.__array_interface__["data"][0] for memory in assembly.destinations.values()}
    assert addresses == {tensor.data_ptr() for tensor in live.values()}
    trip.fill(assembly, copies)
    assert assembly.finish() is live
    assert all(live[key] is before[key] and bool((live[key] == 1).all()) for key in live)
    assert live["w"].requires_grad


def test_a_live_tensor_of_another_layout_is_copied_over(trip):
    base = torch.zeros(4, 4)
    live = {"w": base[::2, ::2], "t": torch.zeros(3, 2).t()}
    before = dict(live)
    trip({"w": torch.ones(2, 2), "t": torch.arange(6.0).view(2, 3)}, into=live)
    assert live["w"] is before["w"]
    assert base.sum() == 4
    assert live["t"] is before["t"]
    assert live["t"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_expanded_live_tensor_is_replaced(trip):
    live = {"w": torch.zeros(1).expand(3)}
    trip({"w": torch.arange(3.0)}, into=live)
    assert live["w"].tolist() == [0, 1, 2]


def test_tied_live_tensors_take_tied_values_in_place(trip):
    weight, stored = torch.zeros(2, 2), torch.ones(2, 2)
    live = {"a": weight, "b": weight, "row": weight[0]}
    before = dict(live)
    trip({"a": stored, "b": stored, "row": stored[0]}, into=live)
    assert all(live[key] is before[key] for key in live)
    assert weight.sum() == 4


def test_tied_live_tensors_never_mix_values_that_were_not_tied(trip):
    weight = torch.zeros(2)
    live = {"a": weight, "b": weight}
    trip({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, into=live)
    assert (live["a"].tolist(), live["b"].tolist()) == ([1, 2], [3, 4])


def test_live_tensors_that_are_not_tied_take_tied_values(trip):
    stored = torch.ones(2)
    live = {"a": torch.zeros(2), "b": torch.zeros(2)}
    before = dict(live)
    trip({"a": stored, "b": stored}, into=live)
    assert all(live[key] is before[key] and live[key].tolist() == [1, 1] for key in live)


@pytest.mark.parametrize("live", [torch.zeros(3), torch.zeros(2, dtype=torch.float64), np.zeros(2, np.float32), None])
def test_a_tensor_that_differs_is_named_with_both_sides(trip, live):
    target = {"ok": torch.zeros(1), "w": live}
    state = {"ok": torch.ones(1), "w": torch.ones(2)}
    if live is None:
        assert trip(state, into=target)["w"].tolist() == [1, 1]
        return
    with pytest.raises(MismatchError, match=r"w: the checkpoint has torch\.float32 \(2,\), the state has .*float"):
        trip(state, into=target)
    assert target["ok"].item() == 0


def test_a_model_and_its_optimizer_go_on_where_they_were(trip):
    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.arange(6.0).view(2, 3)).square().sum().backward()
        optimizer.step()

    def make(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters())
        return {"model": model, "optimizer": optimizer, "plan": torch.optim.lr_scheduler.StepLR(optimizer, 2)}

    saved, live = make(1), make(2)
    for _ in range(3):
        step(saved["model"], saved["optimizer"])
        saved["plan"].step()
    step(live["model"], live["optimizer"])
    addresses = [parameter.data_ptr() for parameter in live["model"].parameters()]
    assert trip(saved, into=live) is live
    assert addresses == [parameter.data_ptr() for parameter in live["model"].parameters()]
    assert live["plan"].state_dict() == saved["plan"].state_dict()
    for state in (saved, live):
        step(state["model"], state["optimizer"])
    assert all(map(torch.equal, saved["model"].state_dict().values(), live["model"].state_dict().values()))


def test_a_model_of_another_shape_is_not_touched(trip):
    live = torch.nn.Linear(3, 5)
    before = live.weight.clone()
    with pytest.raises(
        MismatchError, match=r"m\.weight: the checkpoint has torch\.float32 \(4, 3\), the state has .*\(5, 3\)"
    ):
        trip({"m": torch.nn.Linear(3, 4)}, into={"m": live})
    assert torch.equal(live.weight, before)


def test_a_state_dict_keeps_the_versions_of_its_modules(trip):
    model = torch.nn.BatchNorm1d(2)
    assert trip(model.state_dict())._metadata == model.state_dict()._metadata


@pytest.mark.parametrize(
    ("node", "size"),
    [
        (["torch", "float32", [4], None, 4, 0, 0], 16),
        (["torch", "float32", [4], None, 2, 0, 0], 32),
        (["torch", "float32", [4], [2], 0, 0, 0], 16),
        (["torch", "float32", [2**62, 4], [0, 1], 0, 0, 0], 16),
        (["torch", "float32", [2**61], [2**61], 0, 0, 0], 16),
        (["torch", "float32", [4], [-1], 0, 0, 0], 16),
        (["torch", "float32", [4], [1, 1], 0, 0, 0], 16),
        (["torch", "load", [4], None, 0, 0, 0], 16),
        (["torch", "qint8", [4], None, 0, 0, 0], 16),
        (["torch", "int32", [4], None, 0, 0, 1], 16),
        (["torch", "float32", [4], None, 0, 0, 4], 16),
        (["torch", "float32", [4], None, -4, 0, 0], 16),
        (["list", [["torch", "uint8", [4], None, 0, 0, 0], ["bytes", 0]]], 4),
        (["list", [["bytes", 0], ["torch", "uint8", [4], None, 0, 0, 0]]], 4),
        (["torchsize", [-1]], 0),
    ],
)
def test_a_tensor_that_does_not_fit_its_buffer_is_corrupt(node, size):
    with pytest.raises(CorruptError):
        prepare(node, [size], registry=Registry())


def test_a_state_of_a_torch_generator_that_is_none_is_corrupt(trip):
    tree, copies = trip.save(torch.Generator())
    with pytest.raises(CorruptError, match=r"state is damaged|no state of a torch.Generator"):
        trip.load(tree, [b"\xff" * len(copies[0])])
