"""A disk that may lose power: which folders it may hold afterwards, after every prefix of a journal.

The model is weaker than any file system in use, on purpose (after ALICE, Pillai et al., OSDI 2014). What an fsync covered
is there. Of the rest, every change of a folder may have reached the disk or not, each by itself; data may be missing,
cut short, zeros or garbage. Only one thing is taken for granted: a rename never loses the file, so
its old name goes only if its new one is there.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.powerloss.journal import Op

__all__ = ["Disk", "Image", "images"]

TEMPORARY = "tmp"
TEMPORARY_CHANGES = 4
"""How many changes of a folder of temporary files are kept in mind: one leftover is as good as ten."""
Image = dict[str, bytes | None]
"""Path to content; ``None`` for a folder."""


def _is_temporary(path: str) -> bool:
    return f"/{TEMPORARY}/" in path


@dataclass(eq=False)
class File:
    """``synced`` bytes are durable; ``None`` before the first fsync."""

    data: bytes = b""
    synced: int | None = None

    @property
    def is_durable(self) -> bool:
        return self.synced == len(self.data)


@dataclass(eq=False)
class Change:
    """A name that a folder got, or (``node`` is ``None``) lost; a rename's loss ``needs`` its gain."""

    folder: Folder
    name: str
    node: File | Folder | None
    path: str
    needs: Change | None = None

    @property
    def is_temporary(self) -> bool:
        """Whether it is about the folder of temporary files, whose content means nothing after a crash."""
        return _is_temporary(self.path)


@dataclass(eq=False)
class Folder:
    """What it holds now, what it surely holds after a loss of power, and what may have changed since."""

    entries: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)


class Disk:
    """Applies a journal, op by op."""

    def __init__(self, start: Image | None = None) -> None:
        self.root = Folder()
        self.folders = [self.root]
        for path, data in sorted((start or {}).items()):
            above, name = self._place(path)
            node: File | Folder = self._new_folder() if data is None else File(data, len(data))
            above.entries[name] = above.durable[name] = node

    def apply(self, op: Op) -> None:
        """Change the disk as ``op`` did."""
        getattr(self, f"_{op.kind}", lambda op: None)(op)

    @property
    def pending(self) -> list[Change]:
        """All changes of folders that a loss of power may undo, in order within each folder."""
        return [change for folder in self.folders for change in folder.pending]

    def view(self) -> Image:
        """What a process sees now: nothing is lost when only processes die."""
        return self._image(lambda folder: folder.entries, lambda file, _: file.data)

    def image(self, kept: set[Change], bent: Callable[[File, str], bytes]) -> Image:
        """What is there if of the pending changes just the ``kept`` ones reached the disk; ``bent`` gives unsynced data."""

        def held(folder: Folder) -> dict[str, File | Folder]:
            entries = dict(folder.durable)
            for change in folder.pending:
                if change in kept:
                    _make(entries, change)
            return entries

        return self._image(held, lambda file, path: file.data if file.is_durable else bent(file, path))

    def _image(
        self, held: Callable[[Folder], dict[str, File | Folder]], content: Callable[[File, str], bytes]
    ) -> Image:
        found: Image = {}

        def walk(folder: Folder, at: str) -> None:
            for name, node in held(folder).items():
                if isinstance(node, Folder):
                    found[at + name] = None
                    walk(node, f"{at}{name}/")
                else:
                    found[at + name] = content(node, at + name)

        walk(self.root, "")
        return found

    def _new_folder(self) -> Folder:
        folder = Folder()
        self.folders.append(folder)
        return folder

    def _folder(self, path: str) -> Folder:
        folder = self.root
        for name in path.split("/") if path else ():
            below = folder.entries[name]
            assert isinstance(below, Folder)
            folder = below
        return folder

    def _place(self, path: str) -> tuple[Folder, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name

    def _file(self, path: str) -> File:
        above, name = self._place(path)
        node = above.entries[name]
        assert isinstance(node, File)
        return node

    def _change(self, path: str, node: File | Folder | None, needs: Change | None = None) -> Change:
        above, name = self._place(path)
        change = Change(above, name, node, path, needs)
        _make(above.entries, change)
        above.pending.append(change)
        if change.is_temporary:
            del above.pending[:-TEMPORARY_CHANGES]  # older ones: as if they had never reached the disk
        return change

    def _create(self, op: Op) -> None:
        self._change(op.path, File())

    def _mkdir(self, op: Op) -> None:
        self._change(op.path, self._new_folder())

    def _write(self, op: Op) -> None:
        self._file(op.path).data += op.data

    def _link(self, op: Op) -> None:
        self._change(op.target, self._file(op.path))

    def _rename(self, op: Op) -> None:
        gained = self._change(op.target, self._file(op.path))
        self._change(op.path, None, needs=gained)

    def _unlink(self, op: Op) -> None:
        self._change(op.path, None)

    _rmdir = _unlink

    def _fsync(self, op: Op) -> None:
        file = self._file(op.path)
        file.synced = len(file.data)

    def _fsync_dir(self, op: Op) -> None:
        folder = self._folder(op.path)
        for change in folder.pending:
            if change.needs is not None and change.needs in change.needs.folder.pending:
                _make(change.needs.folder.durable, change.needs)
        folder.durable = dict(folder.entries)
        folder.pending.clear()


def _make(entries: dict[str, File | Folder], change: Change) -> None:
    if change.node is None:
        entries.pop(change.name, None)
    else:
        entries[change.name] = change.node


def _tail(bend: Callable[[bytes], bytes]) -> Callable[[File], bytes]:
    return lambda file: file.data[: file.synced or 0] + bend(file.data[file.synced or 0 :])


_BENDS = {
    "absent": _tail(lambda tail: b""),
    "truncated": _tail(lambda tail: tail[: len(tail) // 2]),
    "zeros": _tail(lambda tail: bytes(len(tail))),
    "garbage": _tail(lambda tail: hashlib.shake_128(tail).digest(len(tail))),
    "written": _tail(lambda tail: tail),
}


def images(disk: Disk, dice: random.Random, samples: int = 4) -> Iterator[Image]:
    """What may be found after the power went now: the extremes, each change by itself, and ``samples`` at random."""
    bends = list(_BENDS.values())
    for kept in _choices(disk.pending, dice, samples):
        exposed: list[str] = []

        def empty(file: File, path: str, exposed: list[str] = exposed) -> bytes:
            if _is_temporary(path):  # it means nothing: one state is as good as the others
                return dice.choice(bends)(file)
            exposed.append(path)
            return _BENDS["absent"](file)

        yield disk.image(kept, empty)
        if exposed:  # what no fsync covered has its name already
            for bend in bends[1:]:
                yield disk.image(kept, lambda file, _, bend=bend: bend(file))
            yield disk.image(kept, lambda file, _: dice.choice(bends)(file))


def _choices(pending: Sequence[Change], dice: random.Random, samples: int) -> Iterator[set[Change]]:
    matter = [change for change in pending if not change.is_temporary]
    yield set()
    if pending:
        yield set(pending)
    for change in matter:
        yield _closed({change})
        yield {other for other in pending if change not in (other, other.needs)}
    for _ in range(samples if len(pending) > 1 else 0):
        yield _closed({change for change in pending if dice.random() < 0.5})


def _closed(kept: set[Change]) -> set[Change]:
    """With what the kept changes need."""
    return kept | {change.needs for change in kept if change.needs is not None}
