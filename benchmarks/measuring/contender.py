"""What every library is asked to do, and limpet as one of those that are asked."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from limpet import Checkpointer, Last, PendingWrite
from limpet import open as open_run

from measuring.running import Run, seconds
from measuring.states import Arrays, change


class Contender(ABC):
    """A library that saves ``state`` below ``folder``, again and again.

    ``save`` returns when the state may be changed again, ``wait`` when that save is written; both together are
    what its users go through. Only one save is in flight unless a question asks for more.

    Args:
        folder: a place of its own, which does not exist yet.
        state: the arrays that its users would have, changed in place between saves.
        flush: whether ``wait`` also flushes what was written, for libraries that leave that out.
    """

    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that must be there."""
    flushes: ClassVar[bool]
    """Whether what was written survives a power loss once ``wait`` has returned, without ``flush``."""
    durability: ClassVar[str] = ""
    """What a power loss may take all the same, if anything."""
    background: ClassVar[bool] = False
    """Whether it writes while its caller goes on."""

    def __init__(self, folder: Path, state: Arrays, *, flush: bool = False) -> None:
        self.folder = folder
        self.state = state
        self.flush = flush
        folder.mkdir()
        self.set_up()

    @property
    def name(self) -> str:
        return f"{self.title} + fsync" if self.flush else self.title

    @classmethod
    def missing(cls) -> str:
        """Why it cannot take part; empty if it can."""
        return missing_module(cls.needs)

    def set_up(self) -> None:  # noqa: B027 - most have nothing to do here
        """Import what is needed, and make what lives as long as the run."""

    def changed(self) -> None:  # noqa: B027 - most have nothing to do here
        """Take over the state's new values where its users' leaves cannot be changed in place."""

    @abstractmethod
    def save(self) -> None:
        """Save the state; it may be changed again afterwards."""

    def wait(self) -> None:
        """Return once the save is written: and flushed, if that was asked for."""
        if self.flush:
            flush_tree(self.folder)

    def save_and_wait(self) -> None:
        """Save the state, and return once it is written."""
        self.save()
        self.wait()

    def restore(self) -> Any:
        """The newest save, in memory of its own."""
        raise NotImplementedError

    def restore_into(self, target: Arrays) -> None:
        """The newest save, in arrays that are there."""
        copy_into(target, self.restore())

    def remove(self) -> None:
        """Remove what was written, so that no disk fills up and nobody pays for another's dirty pages."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:  # noqa: B027 - most have nothing to do here
        """End what ``set_up`` began."""

    def stall(self) -> Run:
        """How long a save holds up its caller; one in the background is waited for afterwards, so that contenders do not meet."""

        def run() -> float:
            change(self.state)
            self.changed()
            if self.background:
                took = seconds(self.save)
                self.wait()
            else:
                took = seconds(self.save_and_wait)
            self.remove()
            return took

        return run

    def until_written(self) -> Run:
        """How long from the call until everything is written."""

        def run() -> float:
            change(self.state)
            self.changed()
            took = seconds(self.save_and_wait)
            self.remove()
            return took

        return run


def missing_module(needs: Iterable[str]) -> str:
    """What to say of the first of these modules that is not there; empty if all are."""
    for module in needs:
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            return f"{module} is not installed; it comes with the extra 'peers'"
    return ""


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below: what makes names and bytes outlive a power loss."""
    for place, _, files in os.walk(folder, topdown=False):
        for path in (*(os.path.join(place, name) for name in files), place):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def copy_into(target: Arrays, restored: Any) -> None:
    """The last step of a restore into live arrays for libraries that have none."""
    for name, array in target.items():
        np.copyto(array, np.asarray(restored[name]))


class Limpet(Contender):
    """limpet, with any settings of its ``Checkpointer``.

    Args:
        folder: as for every contender.
        state: as for every contender.
        name: what tells these settings from others.
        lazy: return before the copy.
        settings: for the ``Checkpointer``.
    """

    title = "limpet"
    flushes = True
    background = True

    def __init__(self, folder: Path, state: Arrays, name: str = "", *, lazy: bool = False, **settings: Any) -> None:
        self._name = name
        self._lazy = lazy
        self._settings = {"retain": Last(1), "on_busy": "wait", **settings}
        super().__init__(folder, state)

    @property
    def name(self) -> str:
        return f"limpet, {self._name}" if self._name else "limpet"

    def set_up(self) -> None:
        self.cp = Checkpointer(self.folder / "run", **self._settings)
        self.cp.__enter__()
        self.pending: PendingWrite | None = None

    def save(self) -> None:
        self.pending = self.cp.write(self.state, lazy=self._lazy)

    def wait(self) -> None:
        assert self.pending is not None
        self.pending.result()

    def remove(self) -> None:
        """Nothing: its own retention does that, and is part of what is measured."""

    def restore(self) -> Any:
        with open_run(self.folder / "run") as run:
            return run.read()

    def restore_into(self, target: Arrays) -> None:
        with open_run(self.folder / "run") as run:
            run.read(into=target)

    def close(self) -> None:
        self.cp.close()


def setting_exists(name: str) -> bool:
    """Whether this version's ``Checkpointer`` takes the setting."""
    return name in inspect.signature(Checkpointer).parameters


def engines() -> dict[str, dict[str, str]]:
    """What to give a ``Checkpointer`` for each engine that this version has, by what it is called in tables."""
    if not setting_exists("engine"):
        return {"thread": {}}
    return {"thread": {"engine": "thread"}, "process": {"engine": "process"}}


def absent_engines() -> dict[str, str]:
    """The engine that this version lacks, if any: for the report."""
    return {} if setting_exists("engine") else {"limpet, engine=process": "this version has no such setting"}
