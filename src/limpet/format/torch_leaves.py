"""torch tensors. Those that share storage share one buffer, and share storage again when they come back.

``["torch", dtype, shape, strides, offset, buffer, flags]``: strides count items and are ``null`` in C order, the
offset counts bytes from the buffer's start, flags are 1 for ``requires_grad`` and 2 for ``nn.Parameter``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from limpet.format.buffers import Buffer, overlaps_itself
from limpet.format.flattening import Flattening
from limpet.format.fresh import fresh_tensor
from limpet.format.nodes import MISSING, Node, Refused, corrupt, integer, items, shape_of, text
from limpet.format.paths import place
from limpet.format.plan import Build, Bytes, Plan, describe
from limpet.format.torch_storage import check_storage, extent

__all__ = [
    "encode_tensor",
    "encode_torch_size",
    "is_tensor",
    "is_torch_size",
    "numpy_like",
    "plan_tensor",
    "plan_torch_size",
    "settle",
]

_HINTS: Final = {
    "float16": "f2",
    "bfloat16": "bf16",
    "float32": "f4",
    "float64": "f8",
    "complex32": "f2",
    "complex64": "f4",
    "complex128": "f8",
    "bool": "b1",
    **{f"int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "u1"),
    "float4_e2m1fn_x2": "u1",
}
"""Dtypes that can be saved, with the codec's hint for each."""

_REQUIRES_GRAD: Final = 1
_PARAMETER: Final = 2
_WASTE: Final = 2
"""Tensors on one storage become one buffer unless that holds more than this many times the bytes they use."""


def is_tensor(value: object) -> bool:
    """Whether torch is imported and this is one of its tensors, of whatever subclass."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)  # absent while torch is still being imported
    return kind is not None and isinstance(value, kind)


def is_torch_size(cls: type) -> bool:
    """Whether this is ``torch.Size``."""
    return cls is getattr(sys.modules.get("torch"), "Size", None)


def encode_torch_size(value: Any, _flat: Flattening) -> Node:
    """``["torchsize", sizes]``."""
    return ["torchsize", [int(size) for size in value]]


def plan_torch_size(plan: Plan, node: list[Any], live: object) -> Build:
    """A ``torch.Size``."""
    torch = plan.imported("torch")
    sizes = shape_of(items(node, 2, 2)[1])
    plan.live(live, (torch.Size,), "a torch.Size")
    return lambda: torch.Size(sizes)


@dataclass(slots=True)
class _Stored:
    """A tensor that waits until all that share its storage are known."""

    tensor: Any
    node: list[Any]
    start: int
    end: int
    contiguous: bool
    storage: tuple[int, int]
    """Device index and address of its storage."""


def encode_tensor(value: Any, flat: Flattening) -> Node:
    """The node of a dense tensor; buffer and offset are filled in by ``settle``."""
    torch = sys.modules["torch"]
    dtype = _checked_dtype(torch, value)
    flags = (_REQUIRES_GRAD if value.requires_grad else 0) | (_PARAMETER if type(value) is torch.nn.Parameter else 0)
    tensor = value.detach() if value.requires_grad else value
    check_storage(tensor)
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    shape, count = list(tensor.shape), tensor.numel()
    node = ["torch", dtype, shape, None, 0, 0, flags]
    if count == 0:
        node[5] = flat.add(Buffer(b"", 0, True))
        return node
    start, end = extent(tensor)
    key = (tensor.get_device(), tensor.untyped_storage().data_ptr())
    flat.tensors.append(_Stored(tensor, node, start, end, tensor.is_contiguous(), key))
    return node


def _checked_dtype(torch: Any, value: Any) -> str:
    """The name of the dtype of a tensor that can be saved."""
    if type(value) is not torch.Tensor and type(value) is not torch.nn.Parameter:
        raise Refused(
            f"is a {type(value).__module__}.{type(value).__qualname__}, a kind of tensor that is not plain",
            "Save its local part, or give limpet.register(...) a codec.",
        )
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise Refused(f"is a tensor of layout {value.layout}", "Save a dense tensor: to_dense(), or its parts.")
    if value.is_meta:
        raise Refused("is a meta tensor, which has no values", "Save it once it is materialized.", final=True)
    return _dtype_name(value.dtype)


@cache
def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _HINTS:
        raise Refused(f"is a tensor of {dtype}", "Convert it to another dtype.")
    return name


def settle(flat: Flattening) -> None:
    """Give every tensor its buffer: one for all that share a storage, one for each that shares with none."""
    groups: dict[tuple[int, int], list[_Stored]] = {}
    for stored in flat.tensors:
        groups.setdefault(stored.storage, []).append(stored)
    for members in groups.values():
        if len(members) == 1:
            _add_alone(members[0], flat)
            continue
        for run in _runs(members):
            _add_run(run, flat)


def _runs(members: list[_Stored]) -> list[list[_Stored]]:
    """Split tensors of one storage where a gap between them would waste too much."""
    ordered = sorted(members, key=lambda stored: stored.start)
    runs, end = [[ordered[0]]], ordered[0].end
    for stored in ordered[1:]:
        if stored.start > end:
            runs.append([])
        runs[-1].append(stored)
        end = max(end, stored.end)
    used = sum(max(stored.end for stored in run) - run[0].start for run in runs)
    span = end - ordered[0].start
    return [ordered] if span <= _WASTE * used else runs


def _add_alone(stored: _Stored, flat: Flattening) -> None:
    """A tensor that shares with none: as it lies in memory if it has no holes, else in C order."""
    size = stored.end - stored.start
    tensor = stored.tensor
    if not stored.contiguous and size == tensor.numel() * tensor.element_size():
        _add_run([stored], flat)
        return
    size = tensor.numel() * tensor.element_size()
    stored.node[5] = flat.add(Buffer(_as_numpy(tensor), size, False, _HINTS[stored.node[1]]))


def _add_run(members: list[_Stored], flat: Flattening) -> None:
    """Tensors on one run of a storage: the bytes that they span, holes included."""
    first = members[0]
    start, end = min(stored.start for stored in members), max(stored.end for stored in members)
    # A wider item later in the storage must still fall on a multiple of its size.
    start -= start % max(stored.tensor.element_size() for stored in members)
    run = _storage_bytes(first.tensor, start, end - start)
    buffer = flat.add(Buffer(run.cpu().numpy(), end - start, False, _HINTS[first.node[1]]))
    for stored in members:
        strides = None if stored.contiguous else list(stored.tensor.stride())
        stored.node[3:6] = [strides, stored.start - start, buffer]


def _as_numpy(tensor: Any) -> Any:
    """A tensor as a numpy array of its shape over the same memory, or a host copy's, whatever its dtype."""
    host = tensor if tensor.is_cpu else tensor.cpu()
    return host.view(numpy_like(tensor.element_size())).numpy()


@cache
def numpy_like(size: int) -> Any:
    """A dtype of this item size that numpy has too."""
    torch = sys.modules["torch"]
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[size]


def _storage_bytes(tensor: Any, start: int, size: int) -> Any:
    """``size`` bytes of a tensor's storage, from ``start`` on, as a uint8 tensor over the same memory."""
    torch = sys.modules["torch"]
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), start, (size,), (1,))


@dataclass(slots=True)
class _Member:
    """One tensor of a buffer that is being read."""

    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    flags: int
    live: Any
    fill: bool = False

    def end(self) -> int:
        """The byte of the buffer after the last that the tensor reaches."""
        if math.prod(self.shape) == 0:
            return self.offset
        reach = sum((d - 1) * s for d, s in zip(self.shape, self.strides, strict=True))
        return self.offset + int((1 + reach) * self.dtype.itemsize)

    def is_whole(self, size: int) -> bool:
        """Whether the tensor is a run of ``size`` bytes without holes, which starts the buffer."""
        return self.offset == 0 and self.end() == size == math.prod(self.shape) * self.dtype.itemsize


def plan_tensor(plan: Plan, node: list[Any], live: object) -> Build:
    """How to build a tensor: in the live one's memory where it allows, on its device, or on the CPU."""
    torch = plan.imported("torch")
    _, name, shape_node, strides_node, offset, buffer, flags = items(node, 7, 7)
    dtype = vars(torch).get(name) if text(name) in _HINTS else None
    if dtype is None:
        raise corrupt(f"{place(plan.path)} has a dtype that this torch does not know")
    shape = shape_of(shape_node)
    strides = _c_strides(shape) if strides_node is None else shape_of(strides_node)
    member = _Member(dtype, shape, strides, integer(offset), integer(flags, 0, 3), _live(plan, live, dtype, shape))
    if (
        len(strides) != len(shape)
        or member.offset % dtype.itemsize
        or max(map(int, (*shape, *strides)), default=0) >> 62
    ):
        raise corrupt(f"{place(plan.path)} has an impossible layout")
    if flags & _REQUIRES_GRAD and not (dtype.is_floating_point or dtype.is_complex):
        raise corrupt(f"{place(plan.path)} cannot require a gradient")
    target = _join(plan, buffer)
    if member.end() > target.size or math.prod(shape) >> 62:
        raise corrupt(f"{place(plan.path)} reaches past its buffer")
    target.members.append(member)
    return lambda: target.build(member)


def _c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def _live(plan: Plan, live: object, dtype: Any, shape: tuple[int, ...]) -> Any:
    if live is MISSING or live is None:
        return MISSING
    if not is_tensor(live):
        if not plan.lenient:
            plan.differs(f"{dtype} {shape}", describe(live))
        return MISSING
    found: Any = live
    if found.dtype != dtype or tuple(found.shape) != shape:
        plan.differs(f"{dtype} {shape}", describe(found))
    return found


def _join(plan: Plan, buffer: object) -> _StorageTarget:
    """The storage that this buffer becomes, shared with the tensors that named it before."""
    known = plan.targets.get(buffer) if type(buffer) is int else None
    if isinstance(known, _StorageTarget):
        return known
    target = _StorageTarget()
    target.size = plan.use(buffer, target)
    return target


@dataclass(slots=True)
class _StorageTarget:
    """One buffer's bytes as a torch storage: a live tensor's own, if one fits the whole, else a new one."""

    size: int = 0
    members: list[_Member] = field(default_factory=list)
    run: Any = None

    def allocate(self, plan: Plan) -> Bytes | None:
        for member in self.members:
            if self.size and _aliases(member, self.size) and plan.claims.take(_span(member.live)):
                live = member.live
                start = live.storage_offset() * live.element_size()
                self.run = _storage_bytes(live.detach(), start, self.size)
                break
        else:
            self.run = fresh_tensor(self.size)
        for member in self.members:
            if member.live is not MISSING and not self._holds(member):
                member.fill = _may_fill(member.live) and plan.claims.take(_span(member.live))
        memory: Bytes | None = self.run.numpy() if self.size else None
        return memory

    def fresh_bytes(self, size: int) -> int:
        held = sum(member.live.nbytes for member in self.members if member.live is not MISSING)
        return max(0, size - int(held))

    def build(self, member: _Member) -> Any:
        torch = sys.modules["torch"]
        live = member.live
        if live is not MISSING and self._holds(member):
            return live
        made = self._view(member)
        if live is not MISSING and member.fill:
            with torch.no_grad():
                live.copy_(made)
            return live
        if live is not MISSING and _same_bits(live, made):
            return live
        if member.flags & _PARAMETER:
            return torch.nn.Parameter(made, requires_grad=bool(member.flags & _REQUIRES_GRAD))
        return made.requires_grad_(bool(member.flags & _REQUIRES_GRAD))

    def _view(self, member: _Member) -> Any:
        torch = sys.modules["torch"]
        offset = member.offset // member.dtype.itemsize
        if math.prod(member.shape) == 0:
            return torch.empty(member.shape, dtype=member.dtype, device="cpu")
        return torch.empty(0, dtype=member.dtype, device="cpu").set_(
            self.run.untyped_storage(),
            self.run.storage_offset() // member.dtype.itemsize + offset,
            member.shape,
            member.strides,
        )

    def _holds(self, member: _Member) -> bool:
        """Whether the live tensor is exactly this view of the storage."""
        live = member.live
        if live.device.type != "cpu" or live.layout != self.run.layout or not self.size:
            return False
        same_place = live.data_ptr() == self.run.data_ptr() + member.offset
        return bool(same_place and _layout(live) == _canonical(member.shape, member.strides))


def _canonical(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Strides that matter: where an axis has one item, any stride will do."""
    return [(size, stride if size > 1 else 0) for size, stride in zip(shape, strides, strict=True)]


def _layout(tensor: Any) -> list[tuple[int, int]]:
    return _canonical(tensor.shape, tensor.stride())


def _aliases(member: _Member, size: int) -> bool:
    """Whether the bytes of the whole buffer can be read straight into the live tensor."""
    live = member.live
    return (
        live is not MISSING
        and member.is_whole(size)
        and _may_fill(live)
        and live.device.type == "cpu"
        and not (live.is_conj() or live.is_neg())
        and _layout(live) == _canonical(member.shape, member.strides)
    )


def _may_fill(live: Any) -> bool:
    """Whether the live tensor is dense memory that can be written."""
    torch = sys.modules["torch"]
    if live.layout != torch.strided or live.device.type == "meta" or live.is_quantized or live.numel() == 0:
        return False
    return live.data_ptr() != 0 and not overlaps_itself(live.shape, live.stride())


def _span(live: Any) -> tuple[int, int]:
    reach = sum((d - 1) * s for d, s in zip(live.shape, live.stride(), strict=True))
    return live.data_ptr(), live.data_ptr() + (1 + reach) * live.element_size()


def _same_bits(live: Any, made: Any) -> bool:
    if live.device.type == "meta" or live.layout != made.layout:
        return False
    if live.numel() == 0:
        return True
    one, other = (tensor.detach().cpu().contiguous().view(-1) for tensor in (live, made))
    torch = sys.modules["torch"]
    return bool(torch.equal(one.view(torch.uint8), other.view(torch.uint8)))
