from __future__ import annotations

import io
import random
import tempfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from limpet.format import blobs, containers, leaves
from limpet.format.arrays import encode_array, encode_numpy_scalar
from limpet.format.buffers import Buffer, FileSlice
from limpet.format.classes import is_dataclass, is_enum
from limpet.format.flattening import CaptureFiles, Encoder, Flattening, unsupported
from limpet.format.generators import encode_generator, generator_kind
from limpet.format.jax_leaves import encode_jax, is_jax_array
from limpet.format.nodes import LateNode, Node, Refused
from limpet.format.objects import encode_custom, encode_stateful, is_stateful
from limpet.format.registry import Registry, full_name, is_namedtuple
from limpet.format.structure import Structure, learn
from limpet.format.torch_leaves import encode_tensor, encode_torch_size, is_tensor, is_torch_size, settle
from limpet.types import Files

__all__ = ["Buffer", "FileSlice", "FlatTree", "Recall", "flatten"]


class FlatTree:
    """A state as plain JSON and the buffers that it names.

    Args:
        node: only what JSON can carry, see ``limpet.format.nodes``; or what makes it when it is asked for.
        buffers: in the order of their indices.
        structure: what is known of all states of this one's structure.
    """

    __slots__ = ("buffers", "late_node", "structure")

    def __init__(self, node: Node | LateNode, buffers: Sequence[Buffer], structure: Structure | None = None) -> None:
        self.late_node = node if isinstance(node, LateNode) else LateNode(node)
        self.buffers = buffers
        self.structure = structure

    @property
    def node(self) -> Node:
        """The state's structure, as JSON."""
        return self.late_node.get()


class Recall:
    """The structure of the last state, for the next one, which most often has the same. For use from several threads.

    A state whose structure changes every time is looked at more and more seldom: to learn costs as much as to flatten.
    """

    def __init__(self) -> None:
        self._last: tuple[Structure, Registry, int] | None = None
        self._misses = 0
        self._skip = 0

    def find(self, state: object, registry: Registry) -> FlatTree | None:
        """``state`` flattened, if it has the structure of the last one."""
        last = self._last
        if last is None or last[1] is not registry or last[2] != registry.version:
            return None
        found = last[0].flatten(state)
        if found is None:
            return None
        self._misses = 0
        return FlatTree(LateNode(make=found[0]), found[1], last[0])

    def learn(self, state: object, tree: FlatTree, flat: Flattening, fresh: Callable[[], Flattening]) -> None:
        """Remember the structure of ``state``, which was flattened to ``tree`` in the whole walk ``flat``."""
        if self._skip:
            self._skip -= 1
            return
        self._skip = min(1 << self._misses, _SKIPPED_MAX) - 1
        self._misses += 1
        version = flat.registry.version
        structure = learn(state, tree.node, tree.buffers, fresh)
        self._last = None if structure is None else (structure, flat.registry, version)


_SKIPPED_MAX = 64


def flatten(
    state: object,
    *,
    registry: Registry,
    allow_pickle: bool = False,
    files: CaptureFiles | None = None,
    recall: Recall | None = None,
) -> FlatTree:
    """A state's structure as JSON, and its bytes as buffers, of which none is copied yet.

    Args:
        state: the live tree.
        registry: user codecs.
        allow_pickle: pickle what nothing else can save.
        files: called as ``files(leaf, add_buffer)`` for each ``Files`` leaf, returns the JSON to store for it.
        recall: what remembers the structure from one call to the next; always with the same ``allow_pickle``.

    Raises:
        UnsupportedLeafError: something in the state cannot be saved, or it contains itself; names the path.
    """
    if recall is not None and (known := recall.find(state, registry)) is not None:
        return known

    flat = Flattening(registry, {} if allow_pickle else dict(_ENCODERS), _resolver(allow_pickle), files)
    try:
        node = flat.encode(state)
    except Refused as refused:
        raise unsupported(refused) from refused.__cause__
    if flat.tensors:
        settle(flat)
    tree = FlatTree(node, flat.buffers)
    if recall is not None and not flat.unfolded:  # objects are asked once: what they gave must not be thrown away
        recall.learn(
            state, tree, flat, lambda: Flattening(registry, dict(_ENCODERS), _resolver(False), None, asks=False)
        )
    return tree


def _without_context(encode: Callable[[Any], Node]) -> Encoder:
    return lambda value, _flat: encode(value)


_ENCODERS: dict[type, Encoder] = {
    **{cls: _without_context(encode) for cls, encode in leaves.ENCODERS.items()},
    str: blobs.encode_string,
    bytes: blobs.encode_bytes,
    bytearray: blobs.encode_bytearray,
    memoryview: blobs.encode_memoryview,
    io.BytesIO: blobs.encode_bytesio,
    Files: blobs.encode_files,
    np.ndarray: encode_array,
    np.memmap: encode_array,
    dict: containers.encode_dict,
    OrderedDict: containers.encode_ordered,
    defaultdict: containers.encode_defaultdict,
    Counter: containers.encode_counter,
    list: containers.encode_list,
    tuple: containers.encode_tuple,
    deque: containers.encode_deque,
    set: containers.encode_set,
    frozenset: containers.encode_set,
    random.Random: encode_generator,
}
"""Exact type to encoder."""


def _resolver(allow_pickle: bool) -> Callable[[Any, Flattening], Encoder]:
    return _resolve_or_pickle if allow_pickle else _resolve


def _resolve(value: Any, flat: Flattening) -> Encoder:
    """The encoder for a type that was not met before."""
    cls = type(value)
    if (known := _ENCODERS.get(cls)) is not None:
        return known
    if flat.registry.codec_for(cls) is not None:
        return encode_custom
    found = _framework_encoder(value, cls) or _class_encoder(value, cls)
    if found is None:
        raise _refusal(value)
    return found


def _framework_encoder(value: Any, cls: type) -> Encoder | None:
    """For what array libraries and random generators make."""
    if issubclass(cls, np.generic):
        return _without_context(encode_numpy_scalar)
    if issubclass(cls, np.ndarray):
        raise Refused(f"is a {full_name(cls)}", "Save plain arrays: view(numpy.ndarray), or data and mask apart.")
    if is_tensor(value):
        return encode_tensor
    if is_torch_size(cls):
        return encode_torch_size
    if is_jax_array(value):
        return encode_jax
    return encode_generator if generator_kind(value) is not None else None


def _class_encoder(value: Any, cls: type) -> Encoder | None:
    """For what users' classes make."""
    if is_enum(cls):
        return containers.encode_enum_leaf
    if is_stateful(cls):
        return encode_stateful
    if is_namedtuple(cls):
        return containers.encode_namedtuple
    if is_dataclass(cls):
        return containers.encode_dataclass
    if isinstance(value, io.BufferedIOBase | io.RawIOBase):
        return blobs.encode_file
    if isinstance(value, tempfile._TemporaryFileWrapper) and "b" in value.file.mode:
        return blobs.encode_file
    return None


def _refusal(value: object) -> Refused:
    cls = type(value)
    if isinstance(value, io.TextIOBase):
        return Refused("is a file opened as text", 'Open it in binary mode ("rb").')
    advice = f"Give limpet.register({cls.__qualname__}, encode, decode) a codec, or pass allow_pickle=True."
    base = next((base for base in cls.__mro__[1:-1] if base in _ENCODERS), None)
    if base is not None:
        return Refused(f"is a {full_name(cls)}, a subclass of {base.__name__} that cannot be rebuilt", advice)
    return Refused(f"is a {full_name(cls)}, which cannot be saved", advice)


def _resolve_or_pickle(value: Any, flat: Flattening) -> Encoder:
    try:
        encode = _resolve(value, flat)
    except Refused as refused:
        if refused.final:
            raise
        return blobs.encode_pickle

    def encode_or_pickle(value: Any, flat: Flattening) -> Node:
        try:
            return encode(value, flat)
        except Refused as refused:
            if refused.trail or refused.final:
                raise
            return blobs.encode_pickle(value, flat)

    return encode_or_pickle
