"""What this machine knows of the newest record of each signed run, so that an older copy is not taken for the run.

A signature proves who wrote a record, not that it is the newest one. This is the memory that tells: one small file a
run, of this user on this machine. Losing it costs the protection until the next opening, and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from limpet.events import warn_gently

__all__ = ["HeadMemory", "Remembered"]

_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Remembered(NamedTuple):
    """A record that was seen: its seq and the digest that it carries."""

    seq: int
    digest: str


class HeadMemory:
    """The memory of one run. Its calls block: they are for a thread of their own.

    Args:
        run: its id, which is random: a run that was begun anew in the same place is another one.
        seal_id: of the key.
        url: where it was seen, for people.
    """

    def __init__(self, run: str, seal_id: str, url: str) -> None:
        folder = _folder()
        name = hashlib.sha256(f"{seal_id} {run}".encode()).hexdigest()[:32]
        self.path = None if folder is None else os.path.join(folder, f"{name}.json")
        self._url = url

    def recall(self) -> Remembered | None:
        """What was noted last; ``None`` if nothing, or if it cannot be read."""
        if self.path is None:
            return None
        try:
            with open(self.path, "rb") as file:
                found: Any = msgspec.json.decode(file.read(4096))
            return Remembered(int(found["seq"]), str(found["digest"]))
        except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError):
            return None

    def note(self, seen: Remembered) -> None:
        """Remember ``seen``, unless something newer is. A machine that cannot is told once; the run goes on."""
        try:
            self._note(seen)
        except OSError as error:
            warn_gently(
                f"limpet cannot remember the newest record of {self._url}, so a rollback would not show: {error}"
            )

    def _note(self, seen: Remembered) -> None:
        if self.path is None:
            raise FileNotFoundError("this user has no home folder, and XDG_STATE_HOME names none")
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        lock = os.open(f"{self.path}.lock", _CREATE, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, none may put back what is older
            before = self.recall()
            if before is None or before.seq < seen.seq:
                self._replace(msgspec.json.encode({"url": self._url, "seq": seen.seq, "digest": seen.digest}))
        finally:
            os.close(lock)

    def _replace(self, data: bytes) -> None:
        temporary = f"{self.path}.{secrets.token_hex(8)}"
        try:
            with open(os.open(temporary, _CREATE | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            os.replace(temporary, str(self.path))
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def _folder() -> str | None:
    """Per user, as the XDG base directory specification has it for state that persists; relative paths count as unset."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "limpet", "heads") if os.path.isabs(state) else None
