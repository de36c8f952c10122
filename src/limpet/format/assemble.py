"""Rebuilding a state: everything is checked first, then memory is chosen, then bytes arrive, then objects are made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from limpet.errors import NotFoundError, UsageError
from limpet.format import blobs, containers
from limpet.format.arrays import decode_numpy_scalar, plan_array
from limpet.format.generators import plan_generator
from limpet.format.jax_leaves import plan_jax, plan_jax_key
from limpet.format.leaves import DECODERS
from limpet.format.nodes import MISSING, Node, integer
from limpet.format.objects import plan_custom, plan_stateful
from limpet.format.paths import LeafPath, format_path, parse_path
from limpet.format.plan import Build, Bytes, FilesRequest, Plan, Planner
from limpet.format.registry import Registry
from limpet.format.summary import LeafSummary, children_of, walk
from limpet.format.torch_leaves import plan_tensor, plan_torch_size
from limpet.types import Files

__all__ = ["MISSING", "Assembly", "FilesRequest", "LeafSummary", "prepare", "walk"]

_NEAR_LEAVES = 10_000
"""Leaves that are looked at for a path like the one that was asked for."""


class Assembly:
    """A state that waits for its bytes.

    Attributes:
        destinations: buffer index to writable, contiguous 1-D uint8 memory of exactly that buffer's size, to be
            filled before ``finish``. Empty buffers are left out. Some alias live arrays.
        files: the file leaves, in the order of the tree; their buffers are not among ``destinations``.
    """

    def __init__(self, build: Build, destinations: dict[int, Bytes], files: list[FilesRequest]) -> None:
        self._build = build
        self.destinations = destinations
        self.files = files

    def finish(self) -> Any:
        """The state; the same object as ``into`` if that is a mutable container.

        Raises:
            CorruptError: bytes that no writer of this format produces.
            MismatchError: a ``load_state_dict``, a codec or a pickle did not take what was saved.
        """
        return self._build()


def prepare(
    node: Node,
    sizes: Sequence[int],
    *,
    registry: Registry,
    into: object = MISSING,
    select: str | None = None,
    allow_pickle: bool = False,
    files: Callable[[Any], Files] | None = None,
    reserve: Callable[[int], None] | None = None,
) -> Assembly:
    """Check a tree, which is not trusted, and choose the memory for its bytes. No byte of ``into`` is changed yet.

    Args:
        node: what ``flatten`` made, after its travel as JSON.
        sizes: bytes of each buffer; the caller bounded their sum.
        registry: user codecs and classes.
        into: a live state (with ``select``, its counterpart of the subtree) to fill.
        select: the path of the subtree to read; only its buffers are needed.
        allow_pickle: load pickled leaves, which can run any code.
        files: makes the handle for a file leaf that has no live counterpart.
        reserve: told how many bytes of new memory are needed, before any is taken; raises if that is too much.

    Raises:
        CorruptError: the node or the sizes do not fit the schema.
        MismatchError: the live state differs; names every leaf that does.
        NotFoundError: ``select`` names nothing.
        UsageError: a class, codec or framework is missing, or a pickle was not allowed.
    """
    for size in sizes:
        integer(size)
    plan = Plan(sizes, registry, _PLANNERS, allow_pickle=allow_pickle, make_files=files)
    build = plan.of(node if select is None else _selected(node, parse_path(select)), into)
    plan.reject_differences()
    if reserve is not None:
        reserve(sum(target.fresh_bytes(sizes[index]) for index, target in plan.targets.items()))
    destinations = {}
    for index, target in plan.targets.items():
        try:
            memory = target.allocate(plan)
        except MemoryError:
            raise _no_memory(sizes[index]) from None
        if memory is not None:
            destinations[index] = memory
    return Assembly(build, destinations, plan.files)


def _no_memory(needed: int) -> UsageError:
    return UsageError(
        f"there is no memory for a leaf of {needed} bytes.", hint="Read a part with select=.", kind="memory"
    )


def _selected(node: Node, path: LeafPath) -> Node:
    """The subtree at a path."""
    found = node
    for key in path:
        for name, child in children_of(found):
            if type(name) is type(key) and name == key:
                found = child
                break
        else:
            raise _not_found(node, format_path(path))
    return found


def _not_found(node: Node, wanted: str) -> NotFoundError:
    paths = [format_path(path) for path, _ in islice(walk(node), _NEAR_LEAVES)]
    near = difflib.get_close_matches(wanted, paths, n=3, cutoff=0.4) or paths[:3]
    return NotFoundError(f"the checkpoint has no leaf {wanted}.", hint=f"It has, for example: {', '.join(near)}.")


def _value_planner(decode: Callable[[list[Any]], Any]) -> Planner:
    """For leaves that stand in the node whole."""

    def plan_value(plan: Plan, node: list[Any], live: object) -> Build:
        value = decode(node)
        plan.live(live, (type(value),), f"a {type(value).__name__}")
        return lambda: value

    return plan_value


_PLANNERS: Mapping[str, Planner] = {
    **{tag: _value_planner(decode) for tag, decode in DECODERS.items() if tag != "hex"},
    **dict.fromkeys(("npscalar", "npstr", "npbytes"), _value_planner(decode_numpy_scalar)),
    "str": blobs.plan_string,
    "bytes": blobs.plan_bytes,
    "bytearray": blobs.plan_bytearray,
    "files": blobs.plan_files,
    "pickle": blobs.plan_pickle,
    "nd": plan_array,
    "jax": plan_jax,
    "jaxkey": plan_jax_key,
    "torch": plan_tensor,
    "torchsize": plan_torch_size,
    "rng": plan_generator,
    **dict.fromkeys(("dict", "odict", "ddict", "counter"), containers.plan_mapping),
    "list": containers.plan_list,
    "tuple": containers.plan_tuple,
    "deque": containers.plan_deque,
    **dict.fromkeys(("set", "frozenset"), containers.plan_set),
    "namedtuple": containers.plan_namedtuple,
    "dataclass": containers.plan_dataclass,
    "enum": containers.plan_enum,
    "stateful": plan_stateful,
    "custom": plan_custom,
}
"""Tag to planner."""
