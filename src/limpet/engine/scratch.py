"""Private temporary folders that go when their owner does, also when it is killed.

A folder is locked for as long as its owner lives. ``flock`` and not a process id: a lock says the truth
across containers that share a folder but not their process ids. And ``flock`` not ``lockf``: the
latter's locks do not hold within one process. (A forked child keeps the lock: that only delays the cleaning.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import time

from limpet.errors import StoreError

__all__ = ["Scratch", "clear_stale"]

_LOCK = "lock"
_TRIES = 8
# An owner that was killed between mkdir and lock leaves a folder without one; a living one needs microseconds.
_UNLOCKED_SECONDS = 3600.0


class Scratch:
    """A new folder below the directory ``parent_fd``, readable by this user only.

    Args:
        parent_fd: descriptor of an open directory, which stays the caller's.
        prefix: of the folder's name; a random part follows.

    Attributes:
        name: of the folder, below the parent.
        fd: descriptor of the folder, valid until ``remove``.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, parent_fd: int, prefix: str) -> None:
        self._fds: tuple[int, ...] = ()
        self._parent_fd = os.dup(parent_fd)
        try:
            for _ in range(_TRIES):
                self.name = f"{prefix}{secrets.token_hex(8)}"
                os.mkdir(self.name, 0o700, dir_fd=self._parent_fd)
                if self._claim():
                    return
        except BaseException:
            os.close(self._parent_fd)
            raise
        os.close(self._parent_fd)
        raise StoreError("a temporary folder was removed as soon as it was made, again and again.", transient=True)

    @property
    def lock_fd(self) -> int:
        """Whoever gets a duplicate of this descriptor keeps the folder from being taken for an orphan."""
        return self._fds[-1]

    def remove(self) -> None:
        """Remove the folder and all in it; what cannot be removed is left to ``clear_stale``. Idempotent."""
        fds, self._fds, self.fd = self._fds, (), -1  # a late user gets EBADF, not another folder
        if not fds:
            return
        # The lock is given up last: until then nobody else takes the folder for an orphan.
        shutil.rmtree(self.name, ignore_errors=True, dir_fd=self._parent_fd)
        for fd in (*fds, self._parent_fd):
            os.close(fd)

    def _claim(self) -> bool:
        """Open and lock the new folder; ``False`` if someone took it for an orphan before the lock stood."""
        try:
            self.fd = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._parent_fd)
        except FileNotFoundError:
            return False
        lock_fd = -1
        try:
            lock_fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.fd)
            locked = _lock(lock_fd) is not False and os.fstat(lock_fd).st_nlink > 0
        except FileNotFoundError:
            locked = False
        except BaseException:
            self._close(lock_fd)
            shutil.rmtree(self.name, ignore_errors=True, dir_fd=self._parent_fd)
            raise
        if locked:
            self._fds = (self.fd, lock_fd)
        else:
            self._close(lock_fd)
        return locked

    def _close(self, lock_fd: int) -> None:
        os.close(self.fd)
        if lock_fd >= 0:
            os.close(lock_fd)


def clear_stale(parent_fd: int, prefix: str) -> int:
    """Remove the folders of owners that are gone.

    Args:
        parent_fd: descriptor of the directory in which they lie.
        prefix: that their names begin with.

    Returns:
        How many were removed. One that cannot be judged or removed is left alone.
    """
    removed = 0
    with os.scandir(parent_fd) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    for name in names:
        with contextlib.suppress(OSError):
            removed += _clear(parent_fd, name)
    return removed


def _clear(parent_fd: int, name: str) -> bool:
    folder_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        found = os.fstat(folder_fd)
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            return False
        try:
            lock_fd = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_fd)
        except FileNotFoundError:
            stale = time.time() - found.st_mtime > _UNLOCKED_SECONDS
            return stale and _remove(parent_fd, name)
        try:
            return _lock(lock_fd) is True and _remove(parent_fd, name)
        finally:
            os.close(lock_fd)
    finally:
        os.close(folder_fd)


def _remove(parent_fd: int, name: str) -> bool:
    shutil.rmtree(name, dir_fd=parent_fd)
    return True


def _lock(fd: int) -> bool | None:
    """Whether the lock is now held here; ``None`` where the file system has none."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
