from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

__all__ = ["Daemon", "Server", "free_ports"]

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Server:
    """A running server with one bucket.

    Attributes:
        url: of the bucket.
        storage: what ``open_store`` and ``Checkpointer`` need to reach it.
    """

    url: str
    storage: dict[str, Any]

    def fresh_url(self) -> str:
        """A root that nobody has used."""
        return f"{self.url}/{uuid.uuid4().hex}"


class Daemon:
    """A server as a process of its own, which keeps what it stores in a folder, and so can be started again.

    Args:
        folder: for its data and its output.
    """

    server: Server

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What to run."""
        raise NotImplementedError

    async def make_bucket(self) -> None:
        """Make the bucket, if the server did not; called again and again until the server answers."""

    def start(self) -> None:
        """Run it, and return once it has taken a conditional put."""
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        try:
            self._wait_until_usable()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, with everything that it started. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if how != signal.SIGKILL:
                process.send_signal(how)
                process.wait(_STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):  # the group may outlive its first process, and need not
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_usable(self) -> None:
        from limpet.errors import StoreError

        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return asyncio.run(self._try_once())
            except (StoreError, OSError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = (self.folder / "output").read_bytes()[-2000:].decode(errors="replace")
                    raise RuntimeError(f"{self.command()[0]} did not start:\n{tail}") from error
                time.sleep(0.1)

    async def _try_once(self) -> None:
        from limpet.stores.urls import open_store

        await self.make_bucket()
        # Long waits between tries within the client would only make the start look slower than it is.
        store = open_store(self.server.fresh_url(), {**self.server.storage, "retry_config": {"max_retries": 0}})
        try:
            await store.create("probe", b"")
        finally:
            await store.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on: all held at once, so that none comes twice."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _die_with_parent() -> None:
    """A test run that is killed outright leaves no server behind (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
