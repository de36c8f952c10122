"""What this machine knows of the newest record of each signed run, so that an older copy is not taken for the run.

A signature proves who wrote a record, not that it is the newest one. This is the memory that tells: one small file a
run, of this user on this machine. Losing it costs the protection until the next opening, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from limpet.events import warn_gently

__all__ = ["HeadMemory", "Remembered"]


class Remembered(NamedTuple):
    """A record that was seen: its seq and the digest that it carries."""

    seq: int
    digest: str


class HeadMemory:
    """The memory of one run.

    Args:
        url: where the run is.
        seal_id: of the key.
    """

    def __init__(self, url: str, seal_id: str) -> None:
        name = hashlib.sha256(f"{seal_id} {url}".encode()).hexdigest()[:32]
        self.path = os.path.join(_folder(), f"{name}.json")
        self._url = url

    def recall(self) -> Remembered | None:
        """What was noted last; ``None`` if nothing, or if it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                found: Any = msgspec.json.decode(file.read(4096))
            return Remembered(int(found["seq"]), str(found["digest"]))
        except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError):
            return None

    def note(self, seen: Remembered) -> None:
        """Remember ``seen``. A machine that cannot is told once; the run goes on."""
        data = msgspec.json.encode({"url": self._url, "seq": seen.seq, "digest": seen.digest})
        temporary = f"{self.path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, self.path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            warn_gently(
                f"limpet cannot remember the newest record of {self._url}, so a rollback would not show: {error}"
            )


def _folder() -> str:
    """Per user, as the XDG base directory specification has it for state that should persist."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "limpet", "heads")
