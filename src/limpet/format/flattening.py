from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from limpet.errors import LimpetError, UnsupportedLeafError
from limpet.format.buffers import Buffer
from limpet.format.nodes import MAX_DEPTH, Node, Refused
from limpet.format.paths import Key, format_path, place
from limpet.format.registry import Registry
from limpet.types import Files

__all__ = ["CaptureFiles", "Encoder", "Flattening", "Unfolded", "unsupported"]

CaptureFiles: TypeAlias = Callable[[Files, Callable[[Buffer], int]], Any]
Encoder: TypeAlias = "Callable[[Any, Flattening], Node]"
Unfolded: TypeAlias = dict[int, tuple[Any, Any, Callable[[Any], Any]]]
"""By the id of an object of a user's class: it, what it gave for itself, and the function that it was asked by."""


class Flattening:
    """One walk over a live tree: the buffers found so far, and the encoder for each type met.

    Args:
        registry: user codecs.
        encoders: exact type to encoder; grows by what ``resolve`` finds, so each type is looked at once.
        resolve: finds the encoder for an object whose type is new, or raises ``Refused``.
        capture_files: turns a ``Files`` leaf into its payload.
        asks: whether objects of users' classes may be asked for their state: once in a write, for some give what is new
            since they were asked last.
    """

    __slots__ = (
        "asks",
        "buffers",
        "capture_files",
        "depth",
        "encoders",
        "first",
        "registry",
        "resolve",
        "tensors",
        "unfolded",
    )

    def __init__(
        self,
        registry: Registry,
        encoders: dict[type, Encoder],
        resolve: Callable[[Any, Flattening], Encoder],
        capture_files: CaptureFiles | None,
        *,
        asks: bool = True,
    ) -> None:
        self.asks = asks
        self.registry = registry
        self.encoders = encoders
        self.resolve = resolve
        self.capture_files = capture_files
        self.buffers: list[Buffer] = []
        self.first = 0
        """Index of the first buffer."""
        self.depth = 0
        self.tensors: list[Any] = []
        """Tensors whose storage may be shared; their nodes are completed when all are known."""
        self.unfolded: Unfolded = {}

    def begin(self, first: int, depth: int) -> None:
        """Begin anew, in the middle of a tree: at that depth, and with that index for the next buffer."""
        self.buffers, self.tensors = [], []
        self.first, self.depth = first, depth

    def add(self, buffer: Buffer) -> int:
        """Take a buffer; returns its index."""
        self.buffers.append(buffer)
        return self.first + len(self.buffers) - 1

    def unfold(self, value: Any, function: Callable[[Any], Any]) -> Any:
        """What ``value``, of a user's class, gives for itself: ``function(value)``."""
        if not self.asks:
            raise Refused("gives its state by itself", "It is asked once in a write.", final=True)
        given = function(value)
        self.unfolded[id(value)] = (value, given, function)
        return given

    def encode(self, value: Any) -> Node:
        """The node of a value at the current depth."""
        encoder = self.encoders.get(type(value))
        return (encoder or self._learn(value))(value, self)

    def children(self, container: object, members: Iterable[tuple[Key, Any]]) -> list[Node]:
        """The nodes of a container's members, one level down.

        Raises:
            Refused: a member cannot be saved; this container's key was added to its trail.
        """
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Refused(f"lies deeper than {MAX_DEPTH} levels", "Keep large structures flat.", final=True)
        key: Key = None
        nodes: list[Node] = []
        encoders = self.encoders
        try:
            for key, value in members:  # noqa: B007  # read when a member is refused
                encoder = encoders.get(type(value)) or self._learn(value)
                nodes.append(encoder(value, self))
        except Refused as refused:
            refused.trail.append((key, id(container)))
            raise
        self.depth -= 1
        return nodes

    def inner(self, container: object, value: Any) -> Node:
        """The node of what stands for ``container`` itself: a level deeper, at the same path."""
        return self.children(container, [(_SAME_PLACE, value)])[0]

    def _learn(self, value: Any) -> Encoder:
        encoder = self.resolve(value, self)
        self.encoders[type(value)] = encoder
        return encoder


_SAME_PLACE = object()


def unsupported(refused: Refused) -> LimpetError:
    """The public error for a refused leaf: names its path, or both ends of a cycle."""
    trail = refused.trail[::-1]
    seen: dict[int, int] = {}
    for level, (_, container) in enumerate(trail):
        if container in seen:
            ends = (place(_path(trail[:end])) for end in (level, seen[container]))
            return UnsupportedLeafError(
                "{} is {} again: a state cannot contain itself.".format(*ends), hint="Break the cycle.", kind="cycle"
            )
        seen[container] = level
    path = _path(trail)
    is_long = len(path) > MAX_DEPTH // 2
    where = format_path(path[: MAX_DEPTH // 4]) + " ..." if is_long else place(path)
    return UnsupportedLeafError(f"{where} {refused.reason}.", hint=refused.hint)


def _path(trail: list[tuple[Key, int]]) -> tuple[Key, ...]:
    return tuple(key for key, _ in trail if key is not _SAME_PLACE)
