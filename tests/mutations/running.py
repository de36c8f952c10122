"""Applying mutations to a copy of the source, and running the tests that must notice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mutations.listed import Mutation

ROOT = Path(__file__).parents[2]
AT_ONCE = 2
_SECONDS = 100
_PASSED, _FAILED = 0, 1


class Outdated(Exception):
    """An edit does not apply: its text does not stand in the source exactly once."""


class Outcome(NamedTuple):
    """What the tests made of a mutation; ``caught_by`` is empty if it survived."""

    name: str
    caught_by: str
    seconds: float
    problem: str = ""

    @property
    def good(self) -> bool:
        """Whether a test failed because of the mutation."""
        return bool(self.caught_by) and not self.problem


def mutated(mutation: Mutation, source: Path = ROOT / "src" / "limpet") -> dict[str, str]:
    """The files that the mutation changes, as they are then.

    Raises:
        Outdated: the source has changed and the mutation has not followed.
    """
    texts: dict[str, str] = {}
    for edit in mutation.edits:
        text = texts.get(edit.file) or (source / edit.file).read_text()
        if (count := text.count(edit.old)) != 1:
            raise Outdated(f"{mutation.name}: {edit.file} holds {count} times:\n{edit.old}")
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


@contextmanager
def copied() -> Iterator[Path]:
    """A folder with a copy of the package, to be put on the path."""
    with tempfile.TemporaryDirectory(prefix="limpet-mutation-") as folder:
        shutil.copytree(ROOT / "src" / "limpet", Path(folder, "limpet"), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def run_pytest(source: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """Run tests against the package below ``source``; the exit status and what was printed."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return _FAILED, "FAILED nothing ended: a hang"
    return done.returncode, done.stdout + done.stderr


def imported_from(source: Path) -> Path:
    """Where Python finds the package when ``source`` is on the path first."""
    code = "import limpet; print(limpet.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return Path(done.stdout.strip())


def try_mutation(mutation: Mutation) -> Outcome:
    """Break a copy, run the tests, and say which one noticed."""
    started = time.monotonic()
    try:
        texts = mutated(mutation)
    except Outdated as error:
        return Outcome(mutation.name, "", 0.0, str(error))
    with copied() as source:
        for file, text in texts.items():
            (source / "limpet" / file).write_text(text)
        status, shown = run_pytest(source, mutation.tests)
    seconds = time.monotonic() - started
    if status == _FAILED:
        found = re.search(r"^(?:FAILED|ERROR) (?:[^\s:]*/)?(\S+)", shown, re.MULTILINE)
        return Outcome(mutation.name, found[1] if found else "a failure", seconds)
    if status == _PASSED:
        return Outcome(mutation.name, "", seconds, "SURVIVED")
    return Outcome(mutation.name, "", seconds, f"pytest ended with {status}:\n{shown[-2000:]}")


def try_all(mutations: Sequence[Mutation]) -> Iterator[Outcome]:
    """Try each mutation, a few at a time, in order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(try_mutation, mutations)


def baseline(mutations: Sequence[Mutation]) -> list[str]:
    """Selections that fail on a copy that nothing was done to: they would prove nothing."""
    selections = list(dict.fromkeys(mutation.tests for mutation in mutations))
    with copied() as source, ThreadPoolExecutor(AT_ONCE) as pool:
        if source not in imported_from(source).parents:
            return ["the copy is not what is imported"]
        results = pool.map(lambda tests: run_pytest(source, tests), selections)
        return [
            f"{' '.join(tests)}: status {status}\n{shown[-2000:]}"
            for tests, (status, shown) in zip(selections, results, strict=True)
            if status != _PASSED
        ]
