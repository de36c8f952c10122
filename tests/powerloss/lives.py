"""Lives of runs, recorded: what they wrote, in which order, and when somebody was told that it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faulty import write_over
from tests.powerloss.disk import Disk, Image
from tests.powerloss.journal import Journal, Op, Site
from tests.support import noise

from limpet import Checkpointer, FencedError, Last
from limpet.format.layout import child_prefix
from limpet.stores.local import LocalStore

__all__ = ["CHILD", "RUN", "Story", "lay_out", "main_life", "next_life", "same", "state_of"]

RUN = "above/run"
CHILD = "worker"


def state_of(step: int) -> dict[str, Any]:
    """The one state that a step ever has: tiny, or in part the same as its neighbours', with a small or large rest."""
    if step % 4 == 1:
        return {"step": step, "x": np.arange(16) + step}
    return {"step": step, "shared": noise(1000 + step // 8, 5000), "own": noise(step, 500 if step % 4 == 3 else 5000)}


def same(found: Any, step: int) -> bool:
    """Whether ``found`` is, bit for bit, the state of ``step``."""
    wanted = state_of(step)
    return (
        isinstance(found, dict)
        and found.keys() == wanted.keys()
        and all(type(found[name]) is type(wanted[name]) for name in wanted)
        and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    )


@dataclass(frozen=True)
class Story:
    """A journal, and the image that it starts from; only prefixes from ``begin`` on are of interest."""

    ops: list[Op]
    start: Image = field(default_factory=dict)
    begin: int = 0

    def without(self, site: Site) -> Story:
        """The same story, told by a store that leaves one fsync out."""
        ops = [op for op in self.ops if op.site != site]
        begin = sum(op.site != site for op in self.ops[: self.begin])
        return Story(ops, self.start, begin)

    def until(self, count: int) -> tuple[list[Op], Disk]:
        """The first ``count`` ops, and the disk after them."""
        disk = Disk(self.start)
        for op in self.ops[:count]:
            disk.apply(op)
        return self.ops[:count], disk

    def acked(self) -> dict[str, int]:
        """The newest record of each run that somebody was told of before the story ends."""
        return last_acked(self.ops)


def last_acked(ops: Iterable[Op]) -> dict[str, int]:
    """The newest acknowledged record of each run."""
    newest: dict[str, int] = {}
    for op in ops:
        if op.kind == "acked":
            newest[op.path] = max(op.seq, newest.get(op.path, 0))
    return newest


def lay_out(image: Image, folder: Path) -> None:
    """Make the image real below ``folder``."""
    for path, data in sorted(image.items()):
        if data is None:
            (folder / path).mkdir(mode=0o700)
        else:
            (folder / path).write_bytes(data)


class Writer:
    """A checkpointer whose every acknowledgement is written down."""

    def __init__(self, journal: Journal, base: Path, owner: str, **settings: Any) -> None:
        self._journal = journal
        self._children: dict[str, Checkpointer] = {}
        settings = {"retain": Last(2), "on_busy": "wait", **settings}
        self.run = write_over(LocalStore(base / RUN, files=journal), owner=owner, **settings)

    def write(self, *steps: int, child: str = "", pin: bool = False) -> None:
        run = self._run(child)
        for step in steps:
            handle = run.write(state_of(step), step=step, pin=pin)
            handle._completion.add_callback(partial(self._told, child, handle))
            handle.result()

    def tell(self, call: Callable[[Checkpointer], object], child: str = "") -> None:
        """Make a call that writes a record and returns when it is there."""
        run = self._run(child)
        call(run)
        self._journal.acked(place_of(child), run._open_session.writer.log.head.seq)

    def close(self) -> None:
        self.run.close()

    def _told(self, child: str, handle: Any) -> None:
        if handle._completion.error is None:
            self._journal.acked(place_of(child), handle._completion._result.seq)

    def _run(self, child: str) -> Checkpointer:
        if not child:
            return self.run
        if child not in self._children:
            self._children[child] = self.run.child(child)
            self._children[child]._timing = self.run._timing
        return self._children[child]


def place_of(child: str) -> str:
    """The folder of the run, or of its child, relative to the base."""
    return f"{RUN}/{child_prefix(child)}".rstrip("/") if child else RUN


def main_life(base: Path) -> Story:
    """Saves of all kinds, retention, pins, drops, a child run, a close, a second attempt and one that takes over."""
    journal = Journal(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it took over is said, as it should be
        first = Writer(journal, base, "first")
        first.write(1, 2, 3)
        first.write(4, pin=True)
        first.write(5, 6, 7)
        first.run.sweep()
        first.write(2, 3, child=CHILD)
        first.tell(lambda run: run.delete(4))
        first.run.sweep()
        first.write(10)
        first.close()
        second = Writer(journal, base, "second")
        assert same(second.run.read(), 10)
        second.write(11, 12)
        third = Writer(journal, base, "third", takeover=True)
        third.write(13, 14)
        with pytest.raises(FencedError):
            second.write(99)
        third.write(18, child=CHILD)
        third.tell(lambda run: run.pin(14))
        third.write(15, 16)
        second.close()
        third.close()
    return Story(journal.ops)


def next_life(before: Sequence[Op], disk: Disk, base: Path, start: Image | None = None) -> Story:
    """The process died after ``before``, the disk went on: another attempt takes over and is recorded too."""
    lay_out(disk.view(), base)
    journal = Journal(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        heir = Writer(journal, base, "heir", takeover=True)
        heir.write(102, 103)
        heir.write(105, child=CHILD)
        heir.close()
    return Story([*before, *journal.ops], start or {}, len(before))
