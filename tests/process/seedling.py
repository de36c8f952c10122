"""A process that has its imports behind it and forks programs: each is a process of its own, with an ordinary end.

A fresh interpreter needs most of a second for its imports; a fork of one that has them needs some milliseconds. The
program runs at the top of the main script, so that exceptions, exits, exit hooks and the end of the interpreter are
what they are for any script. With ``--cold`` the program runs in this fresh interpreter itself.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from tests.process import programs  # noqa: E402 - the path comes first

from limpet import Checkpointer  # noqa: E402


def warm_up() -> None:
    """Import what the first save and read import; all threads have ended when this returns."""
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as cp:
        cp.write(programs.state_of(0), step=0, durable=True)
        cp.read()
    assert threading.active_count() == 1


def serve(channel: socket.socket) -> list[str] | None:
    """Fork a program for each message, tell its id and then its status; returns what a fork has to do."""
    warm_up()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        if not message:
            return None
        pid = os.fork()
        if pid == 0:
            channel.close()
            os.setpgid(0, 0)
            for target, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, target)
                os.close(descriptor)
            return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    task = sys.argv[2:] if sys.argv[1] == "--cold" else serve(socket.socket(fileno=int(sys.argv[1])))
    if task is not None:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        getattr(programs, task[0])(*task[1:])
