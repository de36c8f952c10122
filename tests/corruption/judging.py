"""What a reader makes of a damaged run, and whether that is what it must make of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.corruption.worlds import Objects, World, store_of
from tests.faulty import Faulty, Shelf, read_over, write_over

from limpet import CorruptError, DamagedCheckpointWarning, LimpetError, NotFoundError, Run

SOUND = "newest, and nothing said"
TOLD = "newest, and said that something newer is damaged"
OLDER = "older, and said so"
RAISED = "raised"


@dataclass(frozen=True)
class Case:
    """One damage.

    Attributes:
        name: what was done.
        changes: the objects that differ; ``None`` for one that is gone.
        expected: what the default read may make of it.
        names: what the error of a strict read must name: a key, a record; one of them.
        older: whether the older checkpoint is damaged too.
    """

    name: str
    changes: dict[str, bytes | None]
    expected: frozenset[str]
    names: tuple[str, ...] = ()
    older: bool = False


@dataclass
class Judge:
    """Reads one run again and again, each time with other damage in it.

    Attributes:
        counts: how often which outcome came.
    """

    world: World
    run: Run
    shelf: Shelf
    counts: dict[str, int] = field(default_factory=dict)

    def judge(self, case: Case) -> None:
        """Apply the damage, read in every way, and put the run right again."""
        self._place(dict(case.changes.items()))
        before = self.shelf.objects
        try:
            outcome = self._read()
            assert outcome in case.expected, f"{case.name}: {outcome}"
            self._read_strictly(case, outcome)
            self._read_older(case)
            assert self.shelf.objects == before, f"{case.name}: reading changed something"
            self.counts[outcome] = self.counts.get(outcome, 0) + 1
        finally:
            self._place({key: self.world.objects.get(key) for key in case.changes})

    def _place(self, objects: dict[str, bytes | None]) -> None:
        self.run._seen.clear()  # a reader that begins has seen nothing
        for key, data in objects.items():
            if data is not None:
                self.shelf.replace(key, data)
            elif key in self.shelf.objects:
                self.shelf.remove(key)

    def _read(self) -> str:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = self.run.read()
            except LimpetError:
                return RAISED
        return outcome_of(self.world, found, _said(told))

    def _read_strictly(self, case: Case, outcome: str) -> None:
        """Whoever asks for the newest gets that, or an error that says what is damaged, and where."""
        try:
            found = self.run.read(strict=True)
        except CorruptError as error:
            assert outcome != SOUND, f"{case.name}: only strict reads find it"
            _check_named(case, error)
        except LimpetError:
            assert outcome == RAISED, case.name  # a marker that is none
        else:
            assert outcome == SOUND, f"{case.name}: strict reads miss it"
            assert self.world.holds(found, 1), f"{case.name}: UNDETECTED"

    def _read_older(self, case: Case) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedCheckpointWarning)
            try:
                found = self.run.read(at=0)
            except (CorruptError, NotFoundError):
                assert case.older, f"{case.name}: the older checkpoint is sound"
            except LimpetError:
                assert RAISED in case.expected, case.name
            else:
                assert self.world.holds(found, 0), f"{case.name}: UNDETECTED in the older one"
                assert not case.older, f"{case.name}: the older one is damaged, and was read"


def _check_named(case: Case, error: CorruptError) -> None:
    assert any(name in str(error) for name in case.names), f"{case.name}: {error}"
    if error.pack is not None:
        assert re.search(r"byte \d+|is missing", str(error)), f"{case.name}: no offset: {error}"


def outcome_of(world: World, found: Any, told: list[str]) -> str:
    """Which of the outcomes it is; anything else is a defect."""
    if world.holds(found, 1):
        assert len(told) <= 1
        return TOLD if told else SOUND
    assert world.holds(found, 0), "UNDETECTED: neither of the two states that were saved"
    assert any("Using checkpoint 2 (step 0) instead" in text for text in told), f"fell back silently: {told}"
    return OLDER


@contextmanager
def judging(world: World) -> Iterator[Judge]:
    """A judge of one run."""
    store = store_of(world.objects)
    with read_over(store, deadline_seconds=0.0) as run:
        yield Judge(world, run, Shelf(store.store))


def take_over(case: Case, world: World) -> None:
    """A writer opens the damaged run: it resumes as a reader would, saves, and deletes nothing that was there."""
    store: Faulty = store_of(world.objects)
    shelf = Shelf(store.store)
    for key, data in case.changes.items():
        shelf.remove(key) if data is None else shelf.replace(key, data)
    before: Objects = shelf.objects
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with write_over(store) as cp:
                outcome = outcome_of(world, cp.resume().state, _said(told))
                assert outcome in case.expected, f"{case.name}: {outcome} to a writer"
                cp.write({"new": case.name}, step=2, durable=True)
                cp.sweep()
                assert cp.read(strict=True) == {"new": case.name}
        except LimpetError:
            assert RAISED in case.expected, f"{case.name}: a writer cannot go on"
    after = shelf.objects
    assert {key: after.get(key) for key in before} == before, f"{case.name}: a writer deleted or changed something"


def _said(told: list[warnings.WarningMessage]) -> list[str]:
    """What was said of damaged checkpoints."""
    return [str(each.message) for each in told if issubclass(each.category, DamagedCheckpointWarning)]
