"""Holds what reads hostile bytes to its limits: time, memory, and nothing run, imported, opened or sent."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1.0
"""Of processor time: a busy machine must not fail a test."""
GROWTH_BYTES = 64 << 20
_RUN = (
    "import", "exec", "compile", "open", "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pickle.", "marshal.",
    "code.__new__", "function.__new__", "builtins.input", "webbrowser.",
)  # fmt: skip
_HARMLESS = frozenset({"os.putenv", "marshal.loads"})


class Watch:
    """Notes what the process does while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[object, ...]) -> None:
        if self.armed and event.startswith(_RUN) and event not in _HARMLESS:
            self.seen.append(f"{event} {str(args)[:200]}")


_watch: list[Watch] = []


@contextmanager
def nothing_runs(*, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Fail if the block imports, runs, opens or sends anything; audit hooks see all of that (PEP 578).

    Args:
        but: beginnings of events that are fine.
    """
    if not _watch:
        _watch.append(Watch())
    watch = _watch[0]
    watch.seen.clear()
    watch.armed = True
    try:
        yield
    finally:
        watch.armed = False
    seen = [event for event in watch.seen if not (but and event.startswith(but))]
    assert seen == [], seen


class Timer:
    """The slowest of many inputs.

    Attributes:
        count: of inputs.
        slowest: seconds of processor time, and what it was.
    """

    def __init__(self) -> None:
        self.count = 0
        self.slowest = (0.0, "")

    @contextmanager
    def time(self, what: object) -> Iterator[None]:
        self.count += 1
        begun = time.process_time()
        yield
        took = time.process_time() - begun
        if took > self.slowest[0]:
            self.slowest = (took, str(what)[:2000])
        assert took < SECONDS, f"{took:.1f} s for {str(what)[:2000]}"


@contextmanager
def memory_bounded(growth_bytes: int = GROWTH_BYTES) -> Iterator[None]:
    """Fail if the process's highest memory ever grows by more than that within the block."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < growth_bytes, f"memory grew by {grown >> 20} MiB"
