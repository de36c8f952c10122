"""Starting the writer's process, and seeing it end."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from limpet.errors import StoreError

__all__ = ["Launched"]

_ENTRY = str(Path(__file__).with_name("entry.py"))
_NEEDED = (
    "limpet",
    "aiofiles",
    "anyio",
    "blake3",
    "idna",
    "msgspec",
    "numpy",
    "obstore",
    "sniffio",
    "typing_extensions",
    "zstandard",
)
"""Whose folders the process gets to see: limpet's dependencies, and theirs."""
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Nothing is computed there, and a pool of threads takes a while to start."""
_WORDS_BYTES_MAX = 4000
_GONE_SECONDS = 5.0


class Launched:
    """A writer's process, from its start on.

    It is started without a fork of this interpreter (``vfork`` and ``exec``), in a process group of its own: the
    terminal's signals are the trainer's. But in the same session: where Linux groups tasks by session (autogroup, see
    sched(7)), the priorities of its threads count beside the trainer's within one session only. It gets no stream of ours, or whoever reads our output to its end would wait for it too;
    what it prints lands in memory, for the message of its death.

    Raises:
        StoreError: it could not be started.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._printed = os.memfd_create("limpet-printed", os.MFD_CLOEXEC)
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours = (str(theirs.fileno()), str(self._pid), os.pathsep.join(_folders()))
            command = [sys.executable, *_ISOLATED, _ENTRY, *ours]
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                env={**os.environ, **_ONE_THREAD},
            )
        except (OSError, ValueError, RuntimeError) as error:
            os.close(self._printed)
            self.sock.close()
            raise StoreError(
                f"the writer's process could not be started: {error}.",
                hint='Use engine="thread", or look at what this process may start.',
                kind="engine",
            ) from error
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._lock = threading.Lock()
        self._closed = False
        _all.add(self)

    def __del__(self) -> None:
        # Of a Checkpointer that was never used, nor closed: the process has nothing to do.
        if hasattr(self, "_closed") and not self._closed:
            with suppress(Exception):
                self.end(0.0)

    def end(self, patience_seconds: float) -> None:
        """Wait for its end; after that long, enforce it. Idempotent."""
        if self._pid != os.getpid():
            return
        try:
            self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            with suppress(subprocess.TimeoutExpired):  # in the middle of a system call that hangs
                self._process.wait(_GONE_SECONDS)
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self.sock.close()
            os.close(self.pidfd)
            os.close(self._printed)

    def kill(self) -> None:
        """End it at once."""
        with suppress(OSError):
            self._process.kill()

    def describe_end(self) -> str:
        """How it ended, and what it printed last."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GONE_SECONDS)
        code = self._process.returncode
        how = f"with status {code}" if code is None or code >= 0 else f"by signal {_signal_name(-code)}"
        words = self._words()
        return f"{how}; it printed: {words}" if words else how

    def forget(self) -> None:
        """In a forked child: it is not ours."""
        self._closed = True
        self._process.returncode = 0
        for fd in (self.pidfd, self._printed):
            with suppress(OSError):
                os.close(fd)
        self.sock.close()

    def _words(self) -> str:
        with suppress(OSError):
            size = os.fstat(self._printed).st_size
            data = os.pread(self._printed, _WORDS_BYTES_MAX, max(0, size - _WORDS_BYTES_MAX))
            return data.decode(errors="replace").strip()
        return ""


_ISOLATED = ("-I", "-S", "-X", "faulthandler")
"""No user's folder, no PYTHON* variables, and no site-packages but those that we name."""


_all: WeakSet[Launched] = WeakSet()


def _after_fork() -> None:
    launched = list(_all)
    _all.clear()
    for one in launched:
        one.forget()


os.register_at_fork(after_in_child=_after_fork)


def _folders() -> Sequence[str]:
    folders: dict[str, None] = {}
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin).parent
            folders[str(place.parent if spec.submodule_search_locations is not None else place)] = None
    return list(folders)


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return str(number)
