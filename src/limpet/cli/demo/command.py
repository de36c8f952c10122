"""``limpet demo``: two runs, one of them killed again and again, and a comparison of where they end."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from limpet.cli.demo.attempts import Attempt
from limpet.cli.demo.live import Bars, Lines, Silence
from limpet.cli.demo.messages import Settings
from limpet.cli.demo.report import Outcome, as_document, show
from limpet.cli.demo.supervisor import kill_steps, run_to_end
from limpet.cli.options import Json, Storage, parsed_storage
from limpet.cli.output import print_json
from limpet.errors import UsageError

__all__ = ["demo"]

SAVE_EVERY: Final = 5
PICKLE_EVERY: Final = 20
HIDDEN: Final = 512
SEED: Final = 7


def demo(
    url: Annotated[
        str | None,
        typer.Option(help="Where to keep the runs, below a new name; a temporary folder when left out."),
    ] = None,
    kills: Annotated[int, typer.Option(min=0, max=50, help="How often to kill the training.")] = 5,
    steps: Annotated[int, typer.Option(min=50, help="Training steps of each run.")] = 800,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary folder there.")] = False,
    json: Json = False,
    storage: Storage = None,
) -> None:
    """Train, be killed at random moments, resume, and end with the same bits as if nothing had happened.

    A small network learns handwritten digits in a child process that saves its state in the background every 5
    steps and is killed with SIGKILL, several times. Exit code 0 only if its weights equal, bit for bit, those of
    a run that nobody killed.
    """
    begun = time.monotonic()
    with _place(url, keep) as (root, scratch):
        settings = Settings(
            url="",
            steps=steps,
            save_every=SAVE_EVERY,
            pickle_every=0,
            scratch=str(scratch),
            hidden=HIDDEN,
            seed=SEED,
            storage=parsed_storage(storage) or {},
        )
        uninterrupted, interrupted = _both_runs(settings, root, kills, json)
    outcome = Outcome(root, keep or url is not None, steps, uninterrupted, interrupted, time.monotonic() - begun)
    if json:
        print_json(as_document(outcome))
    else:
        show(outcome)
    if not outcome.is_equal:
        raise typer.Exit(1)


def _both_runs(settings: Settings, root: str, kills: int, quiet: bool) -> tuple[list[Attempt], list[Attempt]]:
    chance = random.Random()
    runs: Mapping[str, tuple[Sequence[int], int]] = {
        "uninterrupted": ((), PICKLE_EVERY),
        "killed": (kill_steps(kills, settings.steps, chance), 0),
    }
    attempts = []
    for label, (when, pickle_every) in runs.items():
        run = dataclasses.replace(settings, url=f"{root}/{label}", pickle_every=pickle_every)
        with _watcher(label, settings.steps, quiet) as watcher:
            attempts.append(run_to_end(run, when, chance, watcher))
    return attempts[0], attempts[1]


@contextlib.contextmanager
def _watcher(label: str, steps: int, quiet: bool) -> Iterator[Bars | Lines | Silence]:
    if quiet:
        yield Silence()
    elif sys.stdout.isatty():
        with Bars(label, steps) as bars:
            yield bars
    else:
        yield Lines(label, steps)


@contextlib.contextmanager
def _place(url: str | None, keep: bool) -> Iterator[tuple[str, Path]]:
    """Give the URL below which both runs go, and a folder for pickles; remove what is temporary afterwards."""
    if url is not None and url.startswith("memory:"):
        raise UsageError(
            "memory:// lives in one process, and the demo kills its processes.", hint="Give a folder or a bucket."
        )
    scratch = Path(tempfile.mkdtemp(prefix="limpet-demo-"))
    try:
        yield (str(scratch) if url is None else _fresh_below(url)), scratch
    finally:
        if url is not None or not keep:
            shutil.rmtree(scratch, ignore_errors=True)


def _fresh_below(url: str) -> str:
    """Give a new name below ``url``: an earlier demo's runs must not be resumed."""
    return f"{url.rstrip('/')}/demo-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
