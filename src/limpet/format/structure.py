"""The structure of a state as it was last time, so that a state of the same one is flattened in a few native calls.

What is remembered is exact: types, keys and their order, layouts of arrays, sizes of bytes, which tensors share
memory. Whatever differs makes ``Structure.flatten`` give up, and the whole walk is done again. No leaf is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, eq, itemgetter
from typing import Any, TypeAlias, overload

from limpet.format.buffers import Buffer
from limpet.format.flattening import Flattening
from limpet.format.known_jax import KnownJaxArrays
from limpet.format.known_tensors import KnownTensors
from limpet.format.leaves import INLINE_CHARACTERS, encode_float, encode_int, encode_text
from limpet.format.members import Members, Unknown, members_of
from limpet.format.nodes import Node, Refused

__all__ = ["BufferKind", "Buffers", "Structure", "learn"]

BufferKind: TypeAlias = "tuple[int, bool, str]"
"""What does not change of a ``Buffer``: nbytes, immutable, dtype."""

Picker: TypeAlias = "Callable[[list[Any]], tuple[Any, ...]]"

_LAYOUT = attrgetter("dtype", "shape", "strides")
_SCALARS: dict[type, Callable[[Any], Node] | None] = {
    bool: None,
    int: encode_int,
    float: encode_float,
    str: encode_text,
}
"""Leaves that stand in the node themselves, with what encodes them."""


def _none(_: list[Any]) -> tuple[Any, ...]:
    return ()


class Buffers(Sequence[Buffer]):
    """The buffers of a state whose structure is known, each made when it is asked for."""

    __slots__ = ("data", "kinds")

    def __init__(self, data: Sequence[Any], kinds: Sequence[BufferKind]) -> None:
        self.data = data
        self.kinds = kinds

    @overload
    def __getitem__(self, index: int) -> Buffer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Buffer]: ...
    def __getitem__(self, index: int | slice) -> Buffer | list[Buffer]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Buffer(self.data[index], *self.kinds[index])

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[Buffer]:
        return (Buffer(data, *kind) for data, kind in zip(self.data, self.kinds, strict=True))


@dataclass(slots=True)
class _Branch:
    """A container: where it stands among the leaves, where its members begin, and where its node keeps theirs."""

    position: int
    members: Members
    start: int
    end: int
    listed: int
    """Index, in the node, of the list of the members' nodes."""
    single: int | None = None
    """Index, in the node, of the last member's node, where that one stands by itself."""
    changing: list[int] = field(default_factory=list)
    """Positions of members whose nodes are made anew each time."""


@dataclass(slots=True)
class _Whole:
    """A leaf that is encoded anew each time: where it stands, how deep, and its buffers."""

    position: int
    depth: int
    first: int
    joins: list[bool]
    """Of each buffer, whether it may be joined: the plan relies on that, and kind and node do not say it."""


@dataclass(slots=True)
class Structure:
    """What ``learn`` found; everything here is read only once it is made.

    Attributes:
        fresh: makes a ``Flattening`` for what is encoded anew each time.
        kinds: of each buffer.
        plan: for the engine: where each buffer goes, once that was worked out.
    """

    fresh: Callable[[], Flattening]
    kinds: list[BufferKind] = field(default_factory=list)
    plan: Any = None
    _types: list[type] = field(default_factory=list)
    _nodes: list[Node] = field(default_factory=list)
    _branches: list[_Branch] = field(default_factory=list)
    _walk: list[tuple[int, Members]] = field(default_factory=list)
    _rebuilt: list[_Branch] = field(default_factory=list)
    _scalars: list[int] = field(default_factory=list)
    _strings: list[int] = field(default_factory=list)
    _arrays: list[int] = field(default_factory=list)
    _layouts: list[tuple[Any, ...]] = field(default_factory=list)
    _sized: list[int] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _holders: list[int] = field(default_factory=list)
    """Position of the leaf that holds each buffer; 0 where it is made anew."""
    _pick_scalars: Picker = _none
    _pick_strings: Picker = _none
    _pick_arrays: Picker = _none
    _pick_sized: Picker = _none
    _pick_holders: Picker = _none
    _wholes: list[_Whole] = field(default_factory=list)
    _jax: KnownJaxArrays | None = None
    _tensors: KnownTensors | None = None

    def flatten(self, state: object) -> tuple[Callable[[], Node], Buffers] | None:
        """A state's node, made when it is asked for, and its buffers; ``None`` if it has another structure."""
        leaves = [state]
        for position, members in self._walk:
            found = members(leaves[position])
            if found is None:
                return None
            leaves += found
        if list(map(type, leaves)) != self._types or not self._fits(leaves):
            return None
        data: Sequence[Any] = self._pick_holders(leaves)
        nodes: dict[int, Node] = {}
        if self._wholes or self._jax is not None or self._tensors is not None:
            data = list(data)
            if not self._take_wholes(leaves, data, nodes):
                return None
            if self._jax is not None and not self._jax.take(leaves, data):
                return None
            if self._tensors is not None and not self._tensors.take(leaves, data):
                return None
        values = self._pick_scalars(leaves)
        return lambda: self._node(values, nodes), Buffers(data, self.kinds)

    def _fits(self, leaves: list[Any]) -> bool:
        if self._arrays and not all(map(eq, map(_LAYOUT, self._pick_arrays(leaves)), self._layouts)):
            return False
        if self._strings and max(map(len, self._pick_strings(leaves))) > INLINE_CHARACTERS:
            return False
        return list(map(len, self._pick_sized(leaves))) == self._sizes

    def _take_wholes(self, leaves: list[Any], data: list[Any], nodes: dict[int, Node]) -> bool:
        if not self._wholes:
            return True
        flat = self.fresh()
        for whole in self._wholes:
            flat.begin(whole.first, whole.depth)
            try:
                nodes[whole.position] = flat.encode(leaves[whole.position])
            except Refused:
                return False
            end = whole.first + len(whole.joins)
            if flat.tensors or [buffer.joins for buffer in flat.buffers] != whole.joins:
                return False
            if [_kind(buffer) for buffer in flat.buffers] != self.kinds[whole.first : end]:
                return False
            data[whole.first : end] = [buffer.data for buffer in flat.buffers]
        return True

    def _node(self, values: Sequence[Any], nodes: dict[int, Node]) -> Node:
        fresh = dict(nodes)
        for position, value in zip(self._scalars, values, strict=True):
            encode = _SCALARS[type(value)]
            fresh[position] = value if encode is None else encode(value)
        for branch in self._rebuilt:
            node = list(self._nodes[branch.position])
            changing = branch.changing
            if branch.single is not None and changing and changing[-1] == branch.end - 1:
                node[branch.single] = fresh[changing[-1]]
                changing = changing[:-1]
            members = node[branch.listed] = list(node[branch.listed])
            for position in changing:
                members[position - branch.start] = fresh[position]
            fresh[branch.position] = node
        return fresh.get(0, self._nodes[0])


def learn(state: object, node: Node, buffers: Sequence[Buffer], fresh: Callable[[], Flattening]) -> Structure | None:
    """The structure of a state that was flattened a moment ago; ``None`` if it cannot be remembered.

    Args:
        state: the live tree.
        node: what it was flattened to.
        buffers: likewise.
        fresh: makes a ``Flattening`` for what is encoded anew each time.
    """
    learner = _Learner(Structure(fresh), buffers)
    try:
        return learner.learn(state, node)
    except (Unknown, Refused, RuntimeError):  # the last: of a tensor that torch itself cannot look at
        return None


class _Learner:
    """One walk over a state and its node, side by side."""

    def __init__(self, structure: Structure, buffers: Sequence[Buffer]) -> None:
        self._made = structure
        self._leaves: list[Any] = []
        self._buffers = buffers
        self._count = 0
        self._jax: list[tuple[int, Any, int]] = []
        self._tensors: list[int] = []
        made = structure
        made.kinds = [_kind(buffer) for buffer in buffers]
        made._holders = [0] * len(buffers)

    def learn(self, state: object, node: Node) -> Structure:
        made = self._made
        self._leaves.append(state)
        made._nodes.append(node)
        self._visit(0, 0)
        made._types = [type(leaf) for leaf in self._leaves]
        if self._jax:
            made._jax = KnownJaxArrays.learn(self._jax)
        if self._tensors:
            tensors = [(at, self._leaves[at], made._nodes[at]) for at in self._tensors]
            made._tensors = KnownTensors.learn(tensors, made.fresh)
            if made._tensors is None:
                raise Unknown
            self._count += made._tensors.buffer_count
        if self._count != len(made.kinds):
            raise Unknown
        self._settle()
        return made

    def _settle(self) -> None:
        """Find the containers whose nodes change, from the innermost outwards."""
        made = self._made
        changing = {*made._scalars, *(whole.position for whole in made._wholes)}
        for branch in reversed(made._branches):
            branch.changing = [position for position in range(branch.start, branch.end) if position in changing]
            if branch.changing:
                changing.add(branch.position)
                made._rebuilt.append(branch)
        made._pick_scalars, made._pick_strings = _picking(made._scalars), _picking(made._strings)
        made._pick_arrays, made._pick_sized = _picking(made._arrays), _picking(made._sized)
        made._pick_holders = _picking(made._holders)
        made._walk = [(branch.position, branch.members) for branch in made._branches]

    def _visit(self, position: int, depth: int) -> None:
        made, value, node = self._made, self._leaves[position], self._made._nodes[position]
        found = members_of(value, node)
        if found is None:
            self._leaf(position, depth, value, node)
            return
        members, listed, single = found
        values: Any = members(value)
        nodes = list(node[listed])
        if single is not None:
            nodes.append(node[single])
        if values is None or len(values := list(values)) != len(nodes):
            raise Unknown
        start = len(self._leaves)
        made._branches.append(_Branch(position, members, start, start + len(nodes), listed, single))
        self._leaves += values
        made._nodes += nodes
        for child in range(start, start + len(nodes)):
            self._visit(child, depth + 1)

    def _leaf(self, position: int, depth: int, value: Any, node: Node) -> None:
        made, cls = self._made, type(value)
        tag = node[0] if type(node) is list else None
        if tag == "str":  # a long one, which is made bytes of
            self._whole(position, depth, value, node)
        elif cls in _SCALARS:
            made._scalars.append(position)
            if cls is str:
                made._strings.append(position)
        elif value is None:
            pass
        elif tag == "nd" and value.dtype.names is None:
            made._arrays.append(position)
            made._layouts.append(_LAYOUT(value))
            self._hold(position, node[3])
        elif (tag == "bytes" and cls is bytes) or tag == "bytearray":
            made._sized.append(position)
            made._sizes.append(len(value))
            self._hold(position, node[1])
        elif tag == "jax":
            self._jax.append((position, value, self._count))
            self._hold(0, node[3])
        elif tag == "torch" and value.numel():
            self._tensors.append(position)
        else:
            self._whole(position, depth, value, node)

    def _hold(self, position: int, index: object) -> None:
        if index != self._count:
            raise Unknown
        self._made._holders[self._count] = position
        self._count += 1

    def _whole(self, position: int, depth: int, value: Any, node: Node) -> None:
        """Anything else: encoded as a whole each time, by the encoder that did it now."""
        if type(node) is list and node[0] in ("custom", "stateful", "files", "pickle"):
            raise Unknown
        flat = self._made.fresh()
        flat.begin(self._count, depth)
        if flat.encode(value) != node or flat.tensors:
            raise Unknown
        self._made._wholes.append(_Whole(position, depth, self._count, [buffer.joins for buffer in flat.buffers]))
        self._count += len(flat.buffers)


def _kind(buffer: Buffer) -> BufferKind:
    return buffer.nbytes, buffer.immutable, buffer.dtype


def _picking(positions: Sequence[int]) -> Picker:
    """What gives the leaves at these positions, in one native call where there are several."""
    if len(positions) > 1:
        return itemgetter(*positions)
    if positions:
        only = positions[0]
        return lambda leaves: (leaves[only],)
    return _none
