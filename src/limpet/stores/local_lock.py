"""The advisory lock that tells people that a run's writer is alive on this host.

A POSIX record lock belongs to a process, not to a descriptor: a forked child does not have it, a second attempt
of the same process would be granted it, and closing *any* descriptor of the file gives it up (fcntl(2)). So
what this process holds is kept in a table, which is asked before the file is opened, and nothing else
of the library opens that file. ``flock`` would be simpler and wrong: forked data loaders would keep it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass

from limpet.errors import HeldError
from limpet.stores.base import ORPHANED

__all__ = ["WriterLock", "work_for"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_TAKEN = {errno.EACCES, errno.EAGAIN}
_LONGEST_NOTE_BYTES = 4096
_log = logging.getLogger("limpet.stores")


class _Held:
    """What this process holds: device and inode of each lock file, and its owner. Per process, as the locks are."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.owners: dict[tuple[int, int], str] = {}
        self.trainer: tuple[int, str] | None = None


_held = _Held()
os.register_at_fork(after_in_child=_held.__init__)  # type: ignore[misc]  # the child holds nothing, the guard included


def work_for(trainer_pid: int) -> None:
    """This process writes for another one: while that one lives, whoever finds the lock taken is told so."""
    _held.trainer = trainer_pid, _started(trainer_pid)


@dataclass(frozen=True, slots=True)
class WriterLock:
    """A lock that is held, until ``release``, by the process that acquired it.

    ``fd`` is ``None`` where the file system has no locks: then nothing is held.
    """

    fd: int | None
    identity: tuple[int, int]
    pid: int

    @classmethod
    def acquire(cls, folder_fd: int, name: str, owner: str, url: str) -> WriterLock:
        """Lock the file ``name`` of a folder.

        Raises:
            HeldError: another writer of this host, or of this process, holds it.
            OSError: the file cannot be opened.
        """
        with _held.guard:
            with suppress(FileNotFoundError):
                identity = _identity(os.stat(name, dir_fd=folder_fd, follow_symlinks=False))
                if identity in _held.owners:
                    raise _held_error(url, {"pid": os.getpid(), "owner": _held.owners[identity]})
            fd = os.open(name, _FLAGS, 0o600, dir_fd=folder_fd)
            try:
                return cls._lock(fd, owner, url)
            except BaseException:
                os.close(fd)
                raise

    @classmethod
    def _lock(cls, fd: int, owner: str, url: str) -> WriterLock:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ENOTDIR, "the lock is not a regular file")
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise _held_error(url, _read_note(fd)) from None
            _log.warning("%s has no file locks (%s): two writers on this host would not be told", url, error.strerror)
            os.close(fd)
            return cls(None, _identity(found), os.getpid())
        if found.st_nlink == 1:  # else it has another name, perhaps outside of the run: its content is not ours
            _write_note(fd, owner)
        _held.owners[_identity(found)] = owner
        return cls(fd, _identity(found), os.getpid())

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock; never true in a forked child."""
        return self.fd is not None and self.pid == os.getpid()

    def release(self) -> None:
        """Give the lock up; in a forked child, which never had it, do nothing. Call it once."""
        if not self.is_held:
            return
        with _held.guard:
            _held.owners.pop(self.identity, None)
            if self.fd is not None:
                os.close(self.fd)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _write_note(fd: int, owner: str) -> None:
    words: dict[str, object] = {"pid": os.getpid(), "host": socket.gethostname(), "owner": owner}
    if _held.trainer is not None:
        words["trainer"] = _held.trainer
    note = json.dumps(words).encode()
    with suppress(OSError):  # only words for people: a full disk must not stop anyone here
        os.ftruncate(fd, 0)
        os.pwrite(fd, note, 0)


def _read_note(fd: int) -> dict[str, object]:
    try:
        note = json.loads(os.pread(fd, _LONGEST_NOTE_BYTES, 0))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _is_orphan(trainer: object) -> bool:
    """Whether the note of a writer in a process of its own names a trainer that is dead."""
    if not isinstance(trainer, list) or len(trainer) != 2 or not isinstance(trainer[0], int):
        return False
    return not trainer[1] or _started(trainer[0]) != trainer[1]


def _started(pid: int) -> str:
    """When a process began, in the kernel's words (proc(5), field 22 of stat); empty if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _held_error(url: str, note: dict[str, object]) -> HeldError:
    host = note.get("host")
    if host == socket.gethostname() and _is_orphan(note.get("trainer")):
        return HeldError(
            f"process {note.get('pid', 'unknown')} still commits to {url} what its trainer, which is dead, had staged.",
            hint="Wait until it has ended, or take over with takeover=True.",
            kind=ORPHANED,
        )
    elsewhere = f" on {host}" if host and host != socket.gethostname() else ""
    return HeldError(
        f"another writer of {url} is alive: process {note.get('pid', 'unknown')}{elsewhere},"
        f" owner {str(note.get('owner', 'unknown'))[:200]!r}.",
        hint="Wait until it has ended, or take over with takeover=True.",
    )
