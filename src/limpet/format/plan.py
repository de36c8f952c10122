from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from limpet.errors import MismatchError, UsageError
from limpet.format.leaves import SCALAR_TYPES
from limpet.format.nodes import MAX_DEPTH, MISSING, Node, corrupt, integer
from limpet.format.paths import Key, LeafPath, place
from limpet.format.registry import Registry, full_name
from limpet.types import Files

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Build", "Bytes", "Claims", "FilesRequest", "Plan", "Planner", "Target", "describe"]

Build: TypeAlias = Callable[[], Any]
"""Makes one object, or fills its live counterpart, once the destinations hold their bytes."""

Planner: TypeAlias = "Callable[[Plan, list[Any], Any], Build]"
"""Checks a tagged node against the schema and the live object (or ``MISSING``), and says how to build it."""

Bytes: TypeAlias = np.ndarray[Any, Any]
"""A 1-D uint8 array."""


@dataclass(frozen=True, slots=True)
class FilesRequest:
    """A file or directory in the tree.

    Attributes:
        payload: what was stored for it.
        target: where the content goes, if a live leaf says so.
        handle: the new leaf, if there is no live one.
    """

    payload: Any
    target: Path | None
    handle: Files | None


class Target(Protocol):
    """Something that takes one buffer's bytes."""

    def allocate(self, plan: Plan, /) -> Bytes | None:
        """Memory for the buffer, chosen once every mismatch is ruled out; ``None`` if it is empty."""

    def fresh_bytes(self, size: int, /) -> int:
        """How much of the buffer's ``size`` the live state has no room for: memory that reading takes anew."""


class Claims:
    """The spans of live memory that will be filled; no byte may be filled for two leaves."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def take(self, span: tuple[int, int]) -> bool:
        """Whether the span was free; it is taken now."""
        start, end = span
        at = bisect_right(self._starts, start)
        if (at > 0 and self._ends[at - 1] > start) or (at < len(self._starts) and self._starts[at] < end):
            return False
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        return True


class Plan:
    """One reading of a tree: what is needed, where it goes, and what differs from the live state.

    Args:
        sizes: bytes of each buffer; their sum was bounded by the caller.
        make_files: makes the handle for a files node without a live leaf.
        planners: tag to planner.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        registry: Registry,
        planners: Mapping[str, Planner],
        *,
        allow_pickle: bool,
        make_files: Callable[[Any], Files] | None,
    ) -> None:
        self.sizes = sizes
        self.registry = registry
        self.allow_pickle = allow_pickle
        self.make_files = make_files
        self.claims = Claims()
        self.files: list[FilesRequest] = []
        self.lenient = False
        """Below a stateful object: only arrays are compared, the rest is left to ``load_state_dict``."""
        self.targets: dict[int, Target] = {}
        self._planners = planners
        self._trail: list[Key] = []
        self._depth = 0
        self._differences: list[str] = []

    @property
    def path(self) -> LeafPath:
        """Where the node that is being planned stands."""
        return tuple(self._trail)

    def of(self, node: Node, live: object) -> Build:
        """How to build a node at the current depth."""
        if type(node) is not list:
            return self._scalar(node, live)
        planner = self._planners.get(node[0]) if node and type(node[0]) is str else None
        if planner is None:
            raise corrupt(f"{place(self.path)} is of an unknown kind")
        return planner(self, node, live)

    def child(self, node: Node, live: object, key: Key) -> Build:
        """How to build a container's member."""
        self._trail.append(key)
        build = self.inner(node, live)
        self._trail.pop()
        return build

    def inner(self, node: Node, live: object) -> Build:
        """How to build what stands for the object itself: a level deeper, at the same path."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise corrupt(f"it is deeper than {MAX_DEPTH} levels")
        build = self.of(node, live)
        self._depth -= 1
        return build

    def use(self, index: object, target: Target, size: int | None = None) -> int:
        """Give a buffer, checked to be unused and of ``size`` bytes if given, to a target; returns its size."""
        number = integer(index, 0, len(self.sizes) - 1)
        if number in self.targets:
            raise corrupt(f"{place(self.path)} uses a buffer that another leaf uses")
        if size is not None and self.sizes[number] != size:
            raise corrupt(f"{place(self.path)} needs {size} bytes but has {self.sizes[number]}")
        self.targets[number] = target
        return self.sizes[number]

    def live(self, live: object, types: tuple[type, ...], what: str | Callable[[], str]) -> Any:
        """The live object if it is exactly of one of the types, else ``MISSING``, noting the difference.

        A live ``None`` stands for anything: it is replaced. ``what`` says what the checkpoint has here.
        """
        if live is MISSING or live is None:
            return MISSING
        if type(live) in types:
            return live
        if not self.lenient:
            self.differs(what if isinstance(what, str) else what(), describe(live))
        return MISSING

    def differs(self, stored: str, found: str) -> None:
        """Note that checkpoint and state disagree here."""
        self._differences.append(f"{place(self.path)}: the checkpoint has {stored}, the state has {found}")

    def compare_keys(self, stored: Sequence[Key], found: Sequence[Key]) -> None:
        """Note each key that only one side has."""
        # 1, 1.0 and True are equal, and yet not the same key.
        ours, theirs = {(type(key), key) for key in stored}, {(type(key), key) for key in found}
        for side, keys in (("checkpoint", ours - theirs), ("state", theirs - ours)):
            where = (place((*self._trail, key)) for _, key in keys)
            self._differences.extend(f"{path}: only the {side} has it" for path in where)

    def reject_differences(self) -> None:
        """Raise ``MismatchError`` naming every leaf that differs, if any does."""
        if not self._differences:
            return
        found = self._differences
        count = "1 leaf differs" if len(found) == 1 else f"{len(found)} leaves differ"
        raise MismatchError(
            f"{count} from the checkpoint: {'; '.join(sorted(found))}.",
            hint="Nothing was changed. Make the state match, or read without into= and convert what was read.",
        )

    @contextmanager
    def leniently(self) -> Iterator[None]:
        """Within it, ``lenient`` holds."""
        before, self.lenient = self.lenient, True
        yield
        self.lenient = before

    def imported(self, module: str) -> Any:
        """A framework that the leaf needs, which only the caller may import.

        Raises:
            UsageError: it is not imported.
        """
        found = sys.modules.get(module)
        if found is None:
            raise UsageError(
                f"{place(self.path)} is stored as a {module} object, but {module} is not imported.",
                hint=f"Import {module} first, or use select= to read other leaves.",
                kind="not_imported",
            )
        return found

    def _scalar(self, node: Node, live: object) -> Build:
        if type(node) not in SCALAR_TYPES:
            raise corrupt(f"{place(self.path)} is neither a scalar nor a tagged list")
        self.live(live, (type(node),), lambda: describe(node))
        return lambda: node


def describe(value: object) -> str:
    """An object in the few words that a mismatch needs: shape and dtype, length, or type."""
    if value is None:
        return "None"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype} {tuple(shape)} ({full_name(type(value))})"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__ if type(value).__module__ == "builtins" else full_name(type(value))
