"""A small life of a run, in one process that is there to be struck; and what of it must be there afterwards.

It reports the begin and the end of each of its acts, with ``write(2)``: what the process was told before it died
is then known exactly. The states, and what is live after each act, follow from the script alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tests.kills.points import Strike, StruckFiles, StruckStore

import limpet
from limpet import Checkpointer, Files, Last
from limpet.engine import encode, upload
from limpet.stores import objects
from limpet.stores.base import Store
from limpet.stores.local import LocalStore
from limpet.stores.retry import Retrying
from limpet.stores.urls import open_store
from limpet.writing import Writing

__all__ = [
    "LIFE",
    "SESSIONS",
    "Act",
    "Live",
    "Place",
    "Report",
    "live_after",
    "open_place",
    "run_life",
    "state_of",
    "write_files",
]

KEEP = 2


class Act(NamedTuple):
    """One thing that the process does: a method of ``_Liver``, and the step that it is about."""

    name: str
    step: int | None = None


LIFE = tuple(
    Act(*act)
    for act in [
        *[("open",), ("resume",), ("write", 1), ("write", 2), ("write", 3), ("write", 4), ("read", 4), ("sweep",)],
        *[("write_pinned", 5), ("write", 6), ("write_later", 7), ("write_later", 8), ("wait",), ("close",)],
        *[("open",), ("resume",), ("write", 9), ("save", 10), ("unpin", 5), ("write", 11), ("delete", 10), ("sweep",)],
        *[("write_later", 12), ("close",), ("look", 11), ("restore", 11)],
    ]
)
"""States by step: in the record (1, 5, 12), in a pack of one part (2, 6, 7), in several packs of several parts that share
a frozen base (3, 4, 8, 9), a directory (10), files as a leaf (11)."""
_INLINE, _SMALL, _LARGE, _DIRECTORY, _LEAF = {1, 5, 12}, {2, 6, 7}, {3, 4, 8, 9}, {10}, {11}


class Live(NamedTuple):
    """The live checkpoints by step, oldest first, and those of them that are pinned."""

    steps: tuple[int, ...] = ()
    pinned: frozenset[int] = frozenset()

    def committed(self, step: int, *, pinned: bool = False) -> Live:
        """After one more commit."""
        steps = (*self.steps, step)
        pins = self.pinned | ({step} if pinned else set())
        kept = set(steps[-KEEP:]) | pins
        return Live(tuple(each for each in steps if each in kept), pins)


NOTHING = Live()


def live_after(acts: Sequence[Act], before: Live = NOTHING) -> list[Live]:
    """What is live before the first act, after it, after the second ..."""
    found = [before]
    for name, step in acts:
        live = found[-1]
        if step is not None:
            if name in ("write", "write_pinned", "write_later", "save"):
                live = live.committed(step, pinned=name == "write_pinned")
            elif name == "unpin":
                live = live._replace(pinned=live.pinned - {step})
            elif name == "delete":
                live = Live(tuple(each for each in live.steps if each != step), live.pinned - {step})
        found.append(live)
    return found


SESSIONS = ((0, 14), (14, 24), (24, 26))
"""The acts of the first writer of the script, of the second, and of readers."""


def state_of(step: int, files: Path) -> Any:
    """The state of ``step``, the same in every process; ``files`` is what ``write_files`` made."""
    random = np.random.default_rng(step)
    state: dict[str, Any] = {"step": step, "tiny": random.bytes(20)}
    if step not in _INLINE:
        state["some"] = random.random(2_000)
    if step in _LARGE:
        state["frozen"] = np.random.default_rng(0).random(66_000)
        state["own"] = [random.random(40_000) for _ in range(4)]
    if step in _LEAF:
        state["files"] = Files(files)
    return state


def write_files(folder: Path) -> None:
    """A directory of a small file, one that is too large to be held in memory, an empty one and a link."""
    (folder / "deep").mkdir(parents=True)
    (folder / "small").write_bytes(b"few bytes")
    (folder / "deep" / "large").write_bytes(np.random.default_rng(1).bytes((1 << 20) + 77))
    (folder / "deep" / "empty").touch()
    (folder / "link").symlink_to("small")


@dataclass(frozen=True)
class Place:
    """Where a run lies, and what it needs from outside.

    Attributes:
        url: its root.
        files: what the script saves as files.
        scratch: for temporary files.
        storage: options of the store.
    """

    url: str
    files: str
    scratch: str
    storage: dict[str, Any] | None = None

    @property
    def target(self) -> Path:
        """Where the script restores files to."""
        return Path(self.scratch) / f"restored-{self.url.rpartition('/')[2]}"


def open_place(place: Place, **settings: Any) -> Checkpointer:
    """A writer as a successor opens it."""
    return Checkpointer(place.url, storage=place.storage, retain=Last(KEEP), on_busy="wait", **settings)


class Report:
    """Lines that survive this process, each written at once."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, *words: object) -> None:
        """Write a line."""
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def make_small_pieces() -> None:
    """States of a megabyte then have several packs, each of several parts."""
    encode.BATCH_BYTES = 300_000
    upload._PACK_BYTES = 900_000
    objects._PART_BYTES = 5 << 20


def run_life(
    *,
    url: str,
    files: str,
    scratch: str,
    report: str,
    kind: str,
    at: int,
    signal: int = 9,
    storage: dict[str, Any] | None = None,
    first: int = 0,
    last: int = len(LIFE),
    one_thread: bool = False,
) -> None:
    """Do the acts ``first`` to ``last``, and be struck on the way."""
    make_small_pieces()
    tempfile.tempdir = scratch
    if one_thread:
        write_on_one_thread()
    told = Report(report)
    liver = _Liver(Place(url, files, scratch, storage), Strike(kind, at, signal), told)
    for index, act in enumerate(LIFE[first:last], first):
        told.tell("begin", index)
        try:
            getattr(liver, act.name)(*([] if act.step is None else [act.step]))
        except limpet.LimpetError as error:
            told.tell("refused", index, type(error).__name__)
            if isinstance(error, limpet.FencedError | limpet.HeldError):
                liver.stop()
                break
        else:
            if act.name != "write_later":
                told.tell("done", index)
    told.tell("end", len(liver.strike.passed))


def write_on_one_thread() -> None:
    """A folder's lanes as one: whoever counts system calls by thread then counts them all."""
    from limpet.stores import local
    from limpet.workers import Workers

    made = local._Lanes.__init__

    def one(lanes: Any, *args: Any) -> None:
        made(lanes, *args)
        lanes.control = lanes.data = lanes.reads = Workers(1, "limpet-files")

    local._Lanes.__init__ = one  # type: ignore[method-assign]


class _Liver:
    """What the acts do."""

    def __init__(self, place: Place, strike: Strike, report: Report) -> None:
        self.strike = strike
        self._place = place
        self._report = report
        self._files = Path(place.files)
        self._cp: Checkpointer

    def _store(self) -> Retrying:
        place = self._place
        local = "://" not in place.url
        files = StruckFiles(self.strike)
        store: Store = LocalStore(place.url, files=files) if local else open_store(place.url, place.storage)
        return Retrying(StruckStore(store, self.strike))

    def open(self) -> None:
        self._cp = Checkpointer("memory://only-for-its-settings", retain=Last(KEEP), on_busy="wait")
        Writing.__init__(self._cp, self._store(), self._cp._settings, reopen=self._store)
        self._cp.__enter__()

    def resume(self) -> None:
        self._report.tell("resumed", self._cp.resume({"step": 0}).state["step"])

    def write(self, step: int) -> None:
        receipt = self._cp.write(state_of(step, self._files), step=step, durable=True).result()
        self._report.tell("committed", step, receipt.seq)

    def stop(self) -> None:
        """What a task does that learns that another has its run."""
        try:
            self._cp.close()
        except limpet.FencedError:
            return  # what was pending is refused too

    def write_pinned(self, step: int) -> None:
        self._cp.write(state_of(step, self._files), step=step, pin=True, durable=True)

    def write_later(self, step: int) -> None:
        self._cp.write(state_of(step, self._files), step=step)

    def wait(self) -> None:
        self._cp.wait()

    def save(self, step: int) -> None:
        self._cp.save(self._files, step=step, durable=True)

    def read(self, step: int) -> None:
        found = self._cp.read(at=step)
        assert found["tiny"] == state_of(step, self._files)["tiny"]

    def unpin(self, step: int) -> None:
        self._cp.pin(step, pinned=False)

    def delete(self, step: int) -> None:
        self._cp.delete(step)

    def sweep(self) -> None:
        self._cp.sweep()

    def close(self) -> None:
        self._cp.close()

    def look(self, step: int) -> None:
        with limpet.Run(self._store()) as run:
            assert run.read(at=step)["step"] == step
            assert run.verify() is not None

    def restore(self, step: int) -> None:
        with limpet.Run(self._store()) as run:
            run.read(at=step)["files"].restore(self._place.target)
