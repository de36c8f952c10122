"""Saved files and directories: what a ``Files`` leaf is in a manifest.

An entry names its directory by index and holds one path component. So a name that leaves the target
cannot be written down at all, and a parent is a listed directory by construction. A link may go up
only at the start of its target, through real directories, and never above the root: everything after
that leads down, also through other links, so none of them can be combined into a way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from limpet.errors import CorruptError

__all__ = [
    "DEPTH_MAX",
    "Directory",
    "File",
    "FileTree",
    "Link",
    "RawName",
    "Root",
    "decode_file_tree",
    "encode_file_tree",
    "entry_path",
    "is_inward",
    "name_bytes",
    "to_name",
]

DEPTH_MAX = 200
"""Directories below each other; PATH_MAX allows 2048, and an open walk holds a descriptor for each."""
_ENTRIES_MAX = 10_000_000
_NAME_BYTES_MAX = 255  # NAME_MAX of Linux and macOS
_TARGET_BYTES_MAX = 4095  # PATH_MAX, less its NUL


class RawName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name that is not valid UTF-8; in JSON its bytes are base64."""

    b: bytes


Name = str | RawName
Mode = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Root(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The saved directory itself: its permission bits, and when it was modified, in ns since 1970."""

    mode: Mode
    mtime_ns: Nanoseconds


class Directory(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A directory below the root. The root is parent 0, the first of the table is 1, and parents come first."""

    parent: Index
    name: Name
    mode: Mode
    mtime_ns: Nanoseconds


class File(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A regular file: ``size`` bytes in the manifest's buffer ``buffer``, which an empty one does not have."""

    parent: Index
    name: Name
    mode: Mode
    mtime_ns: Nanoseconds
    size: Index
    buffer: Index | None


class Link(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A symbolic link, whose target is relative and stays below the root."""

    parent: Index
    name: Name
    target: Name


class FileTree(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A saved directory; or a saved file, which has no root, parent 0, and stands alone.

    Attributes:
        root: the directory that was saved; ``None`` for a file.
        dirs: every directory below it, parents before children.
        files: every regular file.
        links: every symbolic link.
    """

    root: Root | None
    dirs: list[Directory]
    files: list[File]
    links: list[Link]


def encode_file_tree(tree: FileTree) -> Any:
    """The tree as plain JSON data."""
    return msgspec.to_builtins(tree)


def decode_file_tree(payload: Any, sizes: Sequence[int]) -> FileTree:
    """The tree, with every name, parent, link and size checked.

    Args:
        payload: what ``encode_file_tree`` gave.
        sizes: the manifest's buffers' sizes in bytes, by index.

    Raises:
        CorruptError: it could not have come from a save; nothing may be written because of it.
    """
    try:
        tree = msgspec.convert(payload, FileTree)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CorruptError(f"saved files do not follow the schema: {error}.") from error
    entries = len(tree.dirs) + len(tree.files) + len(tree.links)
    if entries > _ENTRIES_MAX:
        raise CorruptError(f"saved files have {entries} entries; at most {_ENTRIES_MAX} are allowed.")
    if tree.root is None and (tree.dirs or tree.links or len(tree.files) != 1):
        raise CorruptError("saved files contradict themselves: a single file has other entries beside it.")
    depths = _check_dirs(tree)
    _check_names(tree)
    _check_files(tree, sizes)
    _check_links(tree, depths)
    return tree


def to_name(raw: bytes) -> Name:
    """A name as JSON can hold it: text where the bytes are UTF-8, else the bytes themselves."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return RawName(raw)


def name_bytes(name: Name) -> bytes:
    """The name as the file system knows it.

    Raises:
        CorruptError: the text cannot be encoded (a lone surrogate).
    """
    if isinstance(name, RawName):
        return name.b
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise CorruptError(f"a saved file's name cannot be encoded: {name!a}.") from error


def entry_path(tree: FileTree, parent: int, name: Name) -> str:
    """The entry's path below the root, for messages that show its ``repr``."""
    parts = [name_bytes(name)]
    while parent:
        directory = tree.dirs[parent - 1]
        parts.append(name_bytes(directory.name))
        parent = directory.parent
    return b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")


def is_inward(target: bytes, depth: int) -> bool:
    """Whether a link cannot lead out of the root, whatever other inward links it passes through.

    ``..`` counts only at the start: there it goes through the real directories above the link. After a
    name it might go up from wherever a link of that name leads.

    Args:
        target: what the link says.
        depth: how many directories below the root the link's own directory is.
    """
    if not target or len(target) > _TARGET_BYTES_MAX or target.startswith(b"/") or b"\0" in target:
        return False
    parts = [part for part in target.split(b"/") if part not in {b"", b"."}]
    ups = next((index for index, part in enumerate(parts) if part != b".."), len(parts))
    return ups <= depth and b".." not in parts[ups:]


def _check_dirs(tree: FileTree) -> list[int]:
    """The depth of each directory, the root's first."""
    depths = [0]
    for index, directory in enumerate(tree.dirs, 1):
        if directory.parent >= index:
            raise CorruptError(f"saved files contradict themselves: directory {index} comes before its parent.")
        depth = depths[directory.parent] + 1
        if depth > DEPTH_MAX:
            raise CorruptError(f"saved files lie deeper than {DEPTH_MAX} directories.")
        depths.append(depth)
    return depths


def _check_names(tree: FileTree) -> None:
    seen: set[tuple[int, bytes]] = set()
    for table in (tree.dirs, tree.files, tree.links):
        for entry in table:
            raw = name_bytes(entry.name)
            fits = 0 < len(raw) <= _NAME_BYTES_MAX and raw not in {b".", b".."} and b"/" not in raw and b"\0" not in raw
            if not fits:
                raise CorruptError(f"a saved file has a name that no file can have: {raw[:300]!r}.")
            if entry.parent > len(tree.dirs):
                raise CorruptError(f"saved files contradict themselves: {raw!r} lies in a directory that is not there.")
            if (entry.parent, raw) in seen:
                raise CorruptError(f"saved files contradict themselves: {raw!r} stands twice in one directory.")
            seen.add((entry.parent, raw))


def _check_files(tree: FileTree, sizes: Sequence[int]) -> None:
    """Each file has a buffer of its own: restoring writes no more bytes than the checkpoint holds."""
    used: set[int] = set()
    for file in tree.files:
        if file.buffer is None:
            fits = file.size == 0
        else:
            fits = file.buffer < len(sizes) and sizes[file.buffer] == file.size > 0 and file.buffer not in used
            used.add(file.buffer)
        if not fits:
            path = entry_path(tree, file.parent, file.name)
            raise CorruptError(f"saved files contradict themselves: no {file.size} bytes are stored for {path!r}.")


def _check_links(tree: FileTree, depths: list[int]) -> None:
    for link in tree.links:
        if not is_inward(name_bytes(link.target), depths[link.parent]):
            path = entry_path(tree, link.parent, link.name)
            raise CorruptError(f"the saved link {path!r} leads out of its directory; it is not restored.")
