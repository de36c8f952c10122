"""Leaves that are bytes: long strings, bytes-like objects, open files, pickles and ``Files``."""

from __future__ import annotations

import io
import pickle
from typing import Any, cast

import numpy as np

from limpet.errors import MismatchError, UsageError
from limpet.format.buffers import Buffer
from limpet.format.flattening import Flattening
from limpet.format.leaves import INLINE_CHARACTERS, decode_text, encode_text
from limpet.format.nodes import MISSING, Node, Refused, corrupt, items
from limpet.format.paths import place
from limpet.format.plan import Build, Bytes, FilesRequest, Plan
from limpet.format.registry import full_name
from limpet.types import Files

__all__ = [
    "encode_bytearray",
    "encode_bytes",
    "encode_bytesio",
    "encode_file",
    "encode_files",
    "encode_memoryview",
    "encode_pickle",
    "encode_string",
    "plan_bytearray",
    "plan_bytes",
    "plan_files",
    "plan_pickle",
    "plan_string",
]


def encode_string(value: str, flat: Flattening) -> Node:
    """A short string as itself, a long one as ``["str", buffer]``."""
    if len(value) <= INLINE_CHARACTERS:
        return encode_text(value)
    return ["str", _kept(value.encode("utf-8", "surrogatepass"), flat)]


def _kept(value: bytes, flat: Flattening) -> int:
    return flat.add(Buffer(value, len(value), True))


def encode_bytes(value: bytes, flat: Flattening) -> Node:
    """``["bytes", buffer]``, by reference."""
    return ["bytes", _kept(value, flat)]


def encode_bytearray(value: bytearray, flat: Flattening) -> Node:
    """``["bytearray", buffer]``."""
    return ["bytearray", flat.add(Buffer(memoryview(value), len(value), False))]


def encode_memoryview(value: memoryview, flat: Flattening) -> Node:
    """``["bytes", buffer]``: what the view shows, in C order; it comes back as ``bytes``."""
    if not value.c_contiguous:
        return ["bytes", _kept(value.tobytes(), flat)]
    view = value.cast("B") if value.nbytes else memoryview(b"")
    return ["bytes", flat.add(Buffer(view, view.nbytes, type(value.obj) is bytes))]


def encode_bytesio(value: io.BytesIO, flat: Flattening) -> Node:
    """``["bytes", buffer]``: from the position, which stays; it comes back as ``bytes``."""
    # getvalue() shares its memory until the next write, which then moves away from it.
    return encode_memoryview(memoryview(value.getvalue())[value.tell() :], flat)


def encode_file(value: Any, flat: Flattening) -> Node:
    """``["bytes", buffer]``: what an open binary file holds from its position on, read now; the position stays."""
    try:
        if not value.seekable():
            raise Refused("is an open file that cannot be read twice (a pipe or socket)", "Save what you read from it.")
        position = value.tell()
        content = value.read()
        value.seek(position)
    except (OSError, ValueError) as error:
        raise Refused(f"is an open file that cannot be read: {error}", "Open it for reading.") from error
    return ["bytes", _kept(bytes(content), flat)]


def encode_files(value: Files, flat: Flattening) -> Node:
    """``["files", payload]``, by the engine's capture of the content as it is now."""
    if flat.capture_files is None:
        raise Refused("is a Files leaf, which this call cannot take", "Save it with Checkpointer.write().", final=True)
    return ["files", flat.capture_files(value, flat.add)]


def encode_pickle(value: Any, flat: Flattening) -> Node:
    """``["pickle", class, buffer]``, where the caller allowed it."""
    name = full_name(type(value))
    try:
        # Protocol 5 is what every Python from 3.8 on reads (PEP 574).
        pickled = pickle.dumps(value, protocol=5)
    except Exception as error:  # whatever the object's own __reduce__ raises
        raise Refused(f"is a {name}, which cannot be pickled: {error}", final=True) from error
    return ["pickle", encode_text(name), _kept(pickled, flat)]


class _BytesTarget:
    """One buffer's bytes in fresh memory."""

    __slots__ = ("memory", "size")

    def __init__(self) -> None:
        self.size = 0
        self.memory: Bytes

    def allocate(self, _plan: Plan, /) -> Bytes | None:
        self.memory = np.empty(self.size, np.uint8)
        return self.memory if self.size else None

    def fresh_bytes(self, size: int, /) -> int:
        return size


def _bytes_target(plan: Plan, buffer: object) -> _BytesTarget:
    target = _BytesTarget()
    target.size = plan.use(buffer, target)
    return target


def plan_string(plan: Plan, node: list[Any], live: object) -> Build:
    """A long string."""
    plan.live(live, (str,), "a str")
    target = _bytes_target(plan, items(node, 2, 2)[1])

    def build() -> str:
        try:
            return str(target.memory.data, "utf-8", "surrogatepass") if target.size else ""
        except UnicodeDecodeError:
            raise corrupt("a string is not UTF-8") from None

    return build


def plan_bytes(plan: Plan, node: list[Any], live: object) -> Build:
    """Bytes; whatever bytes-like leaf or open file the live state has there is replaced by them."""
    if not isinstance(live, memoryview | io.IOBase):
        plan.live(live, (bytes,), "bytes")
    target = _bytes_target(plan, items(node, 2, 2)[1])
    return lambda: target.memory.tobytes()  # noqa: PLW0108  # the memory is chosen later


def plan_bytearray(plan: Plan, node: list[Any], live: object) -> Build:
    """A bytearray; a live one takes the content, whatever its length."""
    found = plan.live(live, (bytearray,), "a bytearray")
    target = _bytes_target(plan, items(node, 2, 2)[1])
    in_place = found is not MISSING and not plan.lenient

    def build() -> bytearray:
        if not in_place:
            return bytearray(target.memory.data)
        found[:] = target.memory.data
        return cast("bytearray", found)

    return build


def plan_files(plan: Plan, node: list[Any], live: object) -> Build:
    """A file or directory: to the live leaf's path, or as a new handle."""
    payload = items(node, 2, 2)[1]
    found = plan.live(live, (Files,), "Files")
    if found is not MISSING and found.path is not None:
        plan.files.append(FilesRequest(payload, found.path, None))
        return lambda: found
    if plan.make_files is None:
        raise UsageError(
            f"{place(plan.path)} is a Files leaf, which this call cannot restore.", hint="Read it with a Checkpointer."
        )
    handle = plan.make_files(payload)
    plan.files.append(FilesRequest(payload, None, handle))
    return lambda: handle


def plan_pickle(plan: Plan, node: list[Any], _live: object) -> Build:
    """A pickled object, only where the caller allowed it; it replaces the live one."""
    _, name, buffer = items(node, 3, 3)
    name, where = decode_text(name), place(plan.path)
    if not plan.allow_pickle:
        raise UsageError(
            f"{where} is a pickled {name}, and unpickling can run any code.",
            hint="If you trust whoever wrote this checkpoint, open it with allow_pickle=True.",
            kind="pickle",
        )
    target = _bytes_target(plan, buffer)

    def build() -> Any:
        try:
            return pickle.loads(target.memory.data)  # noqa: S301  # the caller said allow_pickle=True
        except Exception as error:  # pickles raise whatever the classes in them raise
            raise MismatchError(
                f"{where}, a pickled {name}, could not be loaded: {error!r}.", hint="Run the code that wrote it."
            ) from error

    return build
