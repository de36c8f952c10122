"""A process that has imported everything and done nothing: its forks are alive after a few milliseconds.

It reads one request a line and answers each with a line. Forking is safe, since it has no thread and no store.
When its input ends it kills what it forked and goes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

import numpy as np  # noqa: F401 - what a life needs is imported once, here
import obstore.store  # noqa: F401
from tests.kills.life import run_life

import limpet.stores.local
import limpet.stores.objects  # noqa: F401

JOBS = {"life": run_life}


def main() -> None:
    """Serve requests until there are no more."""
    alive: set[int] = set()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "fork":
            pid = fork(request)
            alive.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = wait(request["pid"])
            if "stopped" not in answer:
                alive.discard(request["pid"])
        print(json.dumps(answer), flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def fork(request: dict[str, Any]) -> int:
    """Start a job in a process of its own; its standard error goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(source, target)
        if request.get("wait"):
            os.kill(os.getpid(), signal.SIGSTOP)
        JOBS[request["job"]](**request["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int) -> dict[str, Any]:
    """Wait until a fork has ended or was stopped."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"stopped": os.WSTOPSIG(status)}
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit": os.WEXITSTATUS(status)}


if __name__ == "__main__":
    main()
