"""Named points between the steps of a save, a sweep and a read, where a test can stop, fail or kill the process.

Nobody watches in production: a point then costs one comparison. It is armed by a call, never by the
environment, so that nothing outside of the program can reach it.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["POINTS", "reach", "watch"]

POINTS = (
    "open.locked",
    "open.claimed",
    "open.created",
    "open.loaded",
    "save.captured",
    "save.staged",
    "save.begun",
    "save.part_sent",
    "save.manifest_sent",
    "save.pack_done",
    "save.uploaded",
    "create.before",
    "create.after",
    "save.committed",
    "sweep.listed",
    "delete.before",
    "delete.after",
    "read.listed",
    "read.manifest",
    "read.run",
    "restore.staged",
    "restore.placed",
    "close.drained",
    "close.recorded",
)
"""Every point, in the order in which a run passes them."""

_watcher: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """The program is at ``point``."""
    if _watcher is not None:
        _watcher(point)


def watch(watcher: Callable[[str], None] | None) -> None:
    """Call ``watcher(point)`` at every point from now on, on whatever thread gets there; ``None`` ends that."""
    global _watcher  # noqa: PLW0603 - one process, one watcher: a test's own
    _watcher = watcher
