from __future__ import annotations

import math
import re
import sys
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from limpet.errors import UsageError
from limpet.format.buffers import Buffer, bounds, flat_view, overlaps_itself, raw_view
from limpet.format.flattening import Flattening
from limpet.format.fresh import fresh_array
from limpet.format.leaves import decode_text, encode_text, hexadecimal
from limpet.format.nodes import MISSING, Node, Refused, corrupt, integer, items, shape_of
from limpet.format.plan import Build, Bytes, Plan, describe

__all__ = [
    "codec_hint",
    "decode_dtype",
    "decode_numpy_scalar",
    "encode_array",
    "encode_dtype",
    "encode_numpy_scalar",
    "plan_array",
]

Array: TypeAlias = np.ndarray[Any, Any]

_MAX_STRUCT_NESTING = 16
_SIMPLE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUV][0-9]{1,9}|[mM]8(?:\[[0-9]{0,9}[a-zA-Zμ]{1,2}\])?)"
)
_ML_NAME = re.compile(r"[a-z][a-z0-9_]{1,30}")


def encode_dtype(dtype: np.dtype[Any], depth: int = 0) -> Node:
    """A dtype as JSON: numpy's own string, ``ml_dtypes.NAME``, or the fields of a structure.

    Raises:
        Refused: its items are references into the interpreter, or it is none of numpy's and ml_dtypes'.
    """
    if dtype.names is None:
        return _simple_name(dtype)
    if depth == _MAX_STRUCT_NESTING:
        raise Refused(f"has a dtype nested deeper than {_MAX_STRUCT_NESTING} levels")
    fields = []
    layout: Any = dtype.fields
    for name in dtype.names:
        inner, offset, *title = layout[name]
        if title and type(title[0]) is not str:
            raise Refused("has a dtype whose field titles are not strings")
        base, shape = inner.subdtype or (inner, ())
        fields.append([encode_text(name), offset, encode_dtype(base, depth + 1), list(shape), *map(encode_text, title)])
    return ["struct", dtype.itemsize, dtype.isalignedstruct, fields]


def _simple_name(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "T":
        raise Refused("is an array of numpy's StringDType", 'Convert it with .astype("U").')
    if dtype.hasobject:
        raise Refused("is an array of Python objects", "Use a list, or a dtype other than object.")
    if dtype.isbuiltin != 2:  # 2: added to numpy by another library
        return dtype.str
    library = sys.modules.get("ml_dtypes")
    if library is None or vars(library).get(dtype.name) is not dtype.type:
        raise Refused(f"has the dtype {dtype}, which is neither numpy's nor ml_dtypes'")
    return f"ml_dtypes.{dtype.name}"


def decode_dtype(node: Node, depth: int = 0) -> np.dtype[Any]:
    """The dtype that ``encode_dtype`` was given.

    Raises:
        CorruptError: the node describes none.
        UsageError: it needs ml_dtypes, which is not imported.
    """
    if type(node) is str:
        return _ml_dtype(node[10:]) if node.startswith("ml_dtypes.") else _numpy_dtype(node)
    tag, itemsize, aligned, fields = items(node, 4, 4)
    if tag != "struct" or type(aligned) is not bool or depth == _MAX_STRUCT_NESTING:
        raise corrupt("a dtype is damaged")
    names, formats, offsets, titles = [], [], [], []
    for field in items(fields):
        name, offset, base, shape, *title = items(field, 4, 5)
        names.append(decode_text(name))
        offsets.append(integer(offset, 0, 2**31 - 1))
        formats.append((decode_dtype(base, depth + 1), shape_of(shape)))
        titles.append(decode_text(title[0]) if title else None)
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": integer(itemsize, 0, 2**31 - 1)}
    try:
        return np.dtype({**layout, "titles": titles} if any(titles) else layout, align=aligned)  # type: ignore[call-overload,no-any-return]  # dict form
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise corrupt("a structured dtype is impossible") from error


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if _SIMPLE.fullmatch(name) is None:
        raise corrupt("a dtype is unknown")
    try:
        return np.dtype(name)
    except (ValueError, TypeError) as error:
        raise corrupt(f"the dtype {name} does not exist on this machine") from error


def _ml_dtype(name: str) -> np.dtype[Any]:
    library = sys.modules.get("ml_dtypes")
    if library is None:
        raise UsageError(
            f"the checkpoint holds {name!r} arrays, but ml_dtypes is not imported.",
            hint="Import ml_dtypes first, or use select= to read other leaves.",
            kind="not_imported",
        )
    kind = vars(library).get(name) if _ML_NAME.fullmatch(name) else None
    if not (isinstance(kind, type) and issubclass(kind, np.generic)):
        raise corrupt("a dtype is unknown")
    return np.dtype(kind)


def codec_hint(dtype: np.dtype[Any]) -> str:
    """The kind and item size that the codec splits into planes; complex numbers are pairs of floats."""
    if dtype.isbuiltin == 2:
        return "bf16" if dtype.name == "bfloat16" else f"u{dtype.itemsize}"
    if not dtype.isnative or dtype.kind not in "biufcmM":
        return ""
    if dtype.kind == "c":
        return f"f{dtype.itemsize // 2}"
    return f"{'i' if dtype.kind in 'mM' else dtype.kind}{dtype.itemsize}"


def encode_array(array: Array, flat: Flattening) -> Node:
    """``["nd", dtype, shape, buffer]``, with ``"F"`` at the end where the bytes are in Fortran order."""
    dtype = array.dtype
    described, hint = _name_and_hint(dtype) if dtype.names is None else (encode_dtype(dtype), "")
    buffer = flat.add(Buffer(array, array.nbytes, False, hint))
    if array.ndim > 1 and array.flags.fnc:
        return ["nd", described, list(array.shape), buffer, "F"]
    return ["nd", described, list(array.shape), buffer]


@lru_cache(maxsize=1024)
def _name_and_hint(dtype: np.dtype[Any]) -> tuple[str, str]:
    return _simple_name(dtype), codec_hint(dtype)


def encode_numpy_scalar(value: Any) -> Node:
    """A numpy scalar with its exact type; strings by their text, which numpy's own bytes may cut short."""
    if type(value) is np.str_:
        return ["npstr", encode_text("".join(value))]
    if type(value) is np.bytes_:
        return ["npbytes", bytes.hex(value)]
    return ["npscalar", encode_dtype(value.dtype), value.tobytes().hex()]


def decode_numpy_scalar(node: list[Any]) -> np.generic:
    """The scalar that ``encode_numpy_scalar`` was given."""
    if node[0] == "npstr":
        return np.str_(decode_text(items(node, 2, 2)[1]))
    if node[0] == "npbytes":
        return np.bytes_(hexadecimal(items(node, 2, 2)[1]))
    _, described, digits = items(node, 3, 3)
    dtype = decode_dtype(described)
    if dtype.kind in "SU":  # what numpy makes a string of may be none
        raise corrupt("a numpy string is stored as something else")
    raw = hexadecimal(digits, dtype.itemsize)
    scalar: Any = np.ndarray((), dtype, buffer=bytearray(raw) if raw else None)[()]
    if not isinstance(scalar, np.generic):
        raise corrupt("a numpy scalar is damaged")
    return scalar


def plan_array(plan: Plan, node: list[Any], live: object) -> Build:
    """How to build an array, in place where the live one allows it."""
    _, described, shape_node, buffer, *order = items(node, 4, 5)
    if order not in ([], ["F"]):
        raise corrupt("an array's order is unknown")
    dtype, shape = decode_dtype(described), shape_of(shape_node)
    found = plan.live(live, (np.ndarray, np.memmap), lambda: f"{dtype} {shape}")
    if found is not MISSING and (found.dtype != dtype or found.shape != shape):
        plan.differs(f"{dtype} {shape}", describe(found))
    target = _ArrayTarget(dtype, shape, "F" if order else "C", found)
    plan.use(buffer, target, math.prod(shape) * dtype.itemsize)
    return target.build


class _ArrayTarget:
    """One array's bytes: live memory if it may be written and has the stored order, else fresh memory."""

    __slots__ = ("array", "dtype", "live", "order", "shape", "write_back")

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, live: Any) -> None:
        self.dtype = dtype
        self.shape = shape
        self.order = order
        self.live: Any = live
        self.write_back = False
        self.array: Array

    def allocate(self, plan: Plan) -> Bytes | None:
        if self.live is not MISSING and self._may_fill(plan):
            if self._contiguous(self.live) and self.live.nbytes:
                self.array = self.live
                return flat_view(np.asarray(self.live))
            self.write_back = True
        try:
            self.array = fresh_array(self.shape, self.dtype, "F" if self.order == "F" else "C")
        except ValueError as error:
            raise corrupt(f"an array's shape {self.shape} is impossible") from error
        return flat_view(self.array) if self.array.nbytes else None

    def fresh_bytes(self, size: int) -> int:
        return size if self.live is MISSING else 0

    def build(self) -> Any:
        if self.live is MISSING or self.array is self.live:
            return self.array
        if self.write_back:
            np.copyto(raw_view(self.live), raw_view(self.array)) if self.array.nbytes else None
            return self.live
        return self.live if _same_bits(self.live, self.array) else self.array

    def _contiguous(self, array: Array) -> bool:
        return bool(array.flags.f_contiguous if self.order == "F" else array.flags.c_contiguous)

    def _may_fill(self, plan: Plan) -> bool:
        """Whether the live array can take the bytes without touching another leaf's."""
        live = self.live
        flags = live.flags
        if not flags.writeable:
            return False
        address = live.__array_interface__["data"][0]
        if flags.forc:
            return live.nbytes == 0 or plan.claims.take((address, address + live.nbytes))
        if overlaps_itself(live.shape, live.strides, live.itemsize):
            return False
        return plan.claims.take(bounds(address, live.shape, live.strides, live.itemsize))


def _same_bits(one: Array, other: Array) -> bool:
    return one.nbytes == 0 or bool(np.array_equal(raw_view(one), raw_view(other)))
