"""Runs the children, kills them at random moments, and starts the next one until the run is complete."""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Final, Protocol

from limpet.cli.demo.attempts import Attempt
from limpet.cli.demo.messages import Failed, Message, Settings, Stepped, parse
from limpet.cli.demo.training import SINGLE_THREADED
from limpet.errors import LimpetError

__all__ = ["CHILD", "ChildError", "Watcher", "kill_steps", "run_to_end"]

CHILD: Final = (sys.executable, "-m", "limpet.cli.demo.child")
SILENCE_SECONDS: Final = 120.0
"""A child that says nothing for so long is given up; opening a slow store takes a few seconds."""
LATEST_KILL: Final = 0.92
"""Share of the run after which no kill is planned, so that the child cannot finish before it."""
KILL_DELAY_SECONDS: Final = 0.05
"""A kill falls up to so long after the step that triggers it: some training steps, or half a background save."""


class ChildError(LimpetError):
    """A child of the demo ended, or fell silent, although nobody killed it."""

    default_kind = "demo_child"


class Watcher(Protocol):
    """Who is told how the attempts go, as they go."""

    def begun(self, number: int, attempt: Attempt) -> None:
        """Attempt ``number``, counted from 1, was started."""

    def told(self, attempt: Attempt, message: Message) -> None:
        """``attempt`` took in ``message``."""

    def ended(self, attempt: Attempt) -> None:
        """``attempt`` finished the run, or was killed."""


def kill_steps(kills: int, steps: int, chance: random.Random) -> list[int]:
    """Draw the steps after which to kill: one in each of ``kills`` equal parts of the run."""
    part = steps * LATEST_KILL / max(kills, 1)
    return [int((number + chance.uniform(0.1, 1.0)) * part) for number in range(kills)]


def run_to_end(
    settings: Settings,
    kills: Sequence[int],
    chance: random.Random,
    watcher: Watcher,
    command: Sequence[str] = CHILD,
) -> list[Attempt]:
    """Give the attempts that it took to complete the run.

    Args:
        settings: of every attempt alike.
        kills: the steps after which an attempt is killed, one for each attempt but the last.
        chance: draws how long after that step.
        watcher: is told how it goes.
        command: starts a child.

    Raises:
        ChildError: an attempt ended by itself before the run was complete.
    """
    attempts: list[Attempt] = []
    for kill_at in [*kills, None]:
        attempt = Attempt()
        watcher.begun(len(attempts) + 1, attempt)
        _run(attempt, settings, kill_at, chance, watcher, command)
        attempts.append(attempt)
        watcher.ended(attempt)
        if attempt.finished is not None:
            break
    return attempts


def _run(
    attempt: Attempt,
    settings: Settings,
    kill_at: int | None,
    chance: random.Random,
    watcher: Watcher,
    command: Sequence[str],
) -> None:
    begun = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        # A group of its own, so that Ctrl-C reaches the child through us only.
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **SINGLE_THREADED},
            process_group=0,
        )
        try:
            failure = _follow(child, attempt, settings, kill_at, chance, watcher)
        finally:
            child.kill()
            code = child.wait()
            _close(child.stdin, child.stdout)
            attempt.seconds = time.monotonic() - begun
        attempt.killed = attempt.killed and code == -signal.SIGKILL
        if attempt.finished is None and not attempt.killed:
            raise _child_error(failure, code, errors)


def _follow(
    child: subprocess.Popen[bytes],
    attempt: Attempt,
    settings: Settings,
    kill_at: int | None,
    chance: random.Random,
    watcher: Watcher,
) -> str:
    """Take in all that the child says, to its end; kill it when it is time. Return why it gave up, if it said so."""
    failure = ""
    for message in _messages(child, settings):
        attempt.take(message)
        watcher.told(attempt, message)
        if isinstance(message, Failed):
            failure = message.message
        is_due = kill_at is not None and isinstance(message, Stepped) and message.step >= kill_at
        if is_due and not attempt.killed:
            time.sleep(chance.uniform(0, KILL_DELAY_SECONDS))
            child.kill()
            attempt.killed = True
    if attempt.finished is not None:
        attempt.killed = False
    return failure


def _messages(child: subprocess.Popen[bytes], settings: Settings) -> Iterator[Message]:
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code and stderr say why
        child.stdin.write(settings.encode().encode() + b"\n")
        child.stdin.close()
    for line in _lines(child.stdout, SILENCE_SECONDS):
        message = parse(line)
        if message is not None:
            yield message


def _lines(stream: IO[bytes], silence_seconds: float) -> Iterator[bytes]:
    """Give whole lines until the stream ends; a torn last one is dropped.

    Raises:
        ChildError: nothing came for ``silence_seconds``.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(silence_seconds):
                raise ChildError(f"The child said nothing for {silence_seconds:.0f} s and was killed.")
            got = os.read(stream.fileno(), 1 << 16)
            if not got:
                return
            *whole, rest = (rest + got).split(b"\n")
            yield from whole


def _close(*streams: IO[bytes] | None) -> None:
    for stream in streams:
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # settings that a dead child never read
                stream.close()


def _child_error(failure: str, code: int, errors: IO[bytes]) -> ChildError:
    if failure:
        return ChildError(failure)
    errors.seek(0)
    last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    said = f": {last[0]}" if last else ", and wrote nothing to stderr"
    return ChildError(f"The child ended with exit code {code}{said}.")
