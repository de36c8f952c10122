"""What every test may rely on: it starts clean, and a test that leaves something behind fails.

Fixtures here are few on purpose. Hypothesis profiles: ``HYPOTHESIS_PROFILE=thorough`` looks longer.
"""

from __future__ import annotations

import gc
import mmap
import os
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_GRACE_SECONDS = 5.0
_DESCRIPTORS = Path("/proc/self/fd")
# Sockets and pipes belong to pools that are closed when they are collected, and a pipe that is leaked is a
# ResourceWarning already. An event loop that was left open shows by its eventpoll; devices and libraries are
# opened once for a process, by whoever comes first.
_FOREIGN = ("socket:", "pipe:", "/dev/", "/proc/", "/sys/", "/usr/", "/lib", sys.prefix, sys.base_prefix)

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=60,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: no collection, and no look for leaks, needs to go through it again."""
    gc.collect()
    gc.freeze()


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("limpet")}


def _descriptors() -> Counter[str]:
    targets: Counter[str] = Counter()
    if not _DESCRIPTORS.is_dir():
        return targets
    for entry in list(_DESCRIPTORS.iterdir()):
        try:
            target = str(entry.readlink())
        except OSError:  # the descriptor of the listing itself
            continue
        if not target.startswith(_FOREIGN):
            targets[target] += 1
    return targets


class _Mappings:
    """Which anonymous mappings are open.

    To look for them takes as long as a collection, so only tests that made one pay for it: an audit hook counts.
    """

    def __init__(self) -> None:
        self._made = self._accounted = 0
        self._known: WeakSet[mmap.mmap] = WeakSet()
        sys.addaudithook(self._count)

    def _count(self, event: str, _: object) -> None:
        self._made += event == "mmap.__new__"

    def new(self) -> int:
        """How many are open that were not known before."""
        return len(self._open() - set(self._known)) if self._made != self._accounted else 0

    def accept(self) -> None:
        """Whatever is open now belongs to somebody else: a fixture with a longer life, or a test that was told."""
        if self._made != self._accounted:
            self._known.update(self._open())
            self._accounted = self._made

    @staticmethod
    def _open() -> set[mmap.mmap]:
        return {thing for thing in gc.get_objects() if type(thing) is mmap.mmap and not thing.closed}


_mappings = _Mappings()


class _Leftovers:
    """What of limpet's kind is alive now, and what has been added since."""

    def __init__(self) -> None:
        self._threads = _threads()
        self._descriptors = _descriptors()
        _mappings.accept()

    def since(self) -> list[str]:
        found = [f"thread {thread.name!r} runs" for thread in _threads() - self._threads]
        found += [f"{count} x {target} open" for target, count in (_descriptors() - self._descriptors).items()]
        if held := _mappings.new():
            found.append(f"{held} mappings held")
        return found

    def settled(self) -> list[str]:
        """``since`` after a grace: threads that are ending are joined, cycles are collected."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while (found := self.since()) and time.monotonic() < deadline:
            gc.collect()
            for thread in _threads() - self._threads:
                thread.join(0.2)
            time.sleep(0.01)
        return found


@pytest.fixture(scope="session", autouse=True)
def _lazy_globals_exist() -> None:
    """Whatever a library makes once for the process exists before the first test counts."""
    obstore = pytest.importorskip("obstore", reason="a dependency of limpet")
    from obstore.store import MemoryStore

    obstore.put(MemoryStore(), "warm", b"")


@pytest.fixture(scope="session", autouse=True)
def _this_user_remembers_nothing_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What signed runs leave in the user's state folder goes with the test's other files, in children too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaks a limpet thread, a descriptor or a slot's mapping fails."""
    before = _Leftovers()
    yield
    if request.node.get_closest_marker("leaks") is None and (found := before.settled()):
        pytest.fail("left behind: " + "; ".join(sorted(found)), pytrace=False)


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a run that does not exist yet, once as a folder and once in memory."""
    return str(tmp_path / "run") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
