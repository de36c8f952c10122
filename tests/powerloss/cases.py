"""Every moment of a story at which the power may go, with what may then be found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tests.powerloss.disk import TEMPORARY, Disk, Image, images
from tests.powerloss.lives import Story
from tests.powerloss.recovery import Violation, recover

__all__ = ["Case", "Seen", "cases", "first_violation", "judge", "sharpest"]

_VARIANTS = 2
"""How many images are tried that differ in temporary files only."""


@dataclass(frozen=True)
class Case:
    """The power goes after op ``at``; ``image`` is found; the records in ``acked`` had been acknowledged."""

    at: int
    image: Image
    acked: dict[str, int]


@dataclass
class Seen:
    """Images that were tried already, over many stories."""

    images: set[Hashable] = field(default_factory=set)
    _tries: Counter[Hashable] = field(default_factory=Counter)

    def is_new(self, image: Image, acked: dict[str, int]) -> bool:
        """Whether it is worth a try; it counts as tried from now on."""
        told = tuple(sorted(acked.items()))
        lasting = frozenset(each for each in image.items() if f"/{TEMPORARY}/" not in each[0])
        key = (frozenset(image.items()), told)
        if key in self.images or self._tries[lasting, told] >= _VARIANTS:
            return False
        self.images.add(key)
        self._tries[lasting, told] += 1
        return True


def cases(story: Story, seed: int = 0, seen: Seen | None = None, *, every: int | None = 1) -> Iterator[Case]:
    """All distinct ones, in the order of the story: right after each acknowledgement, and after every so many ops."""
    seen = Seen() if seen is None else seen
    dice = random.Random(seed)
    disk = Disk(story.start)
    acked: dict[str, int] = {}
    for at, op in enumerate(story.ops):
        disk.apply(op)
        if op.kind == "acked":
            acked = {**acked, op.path: max(op.seq, acked.get(op.path, 0))}
        if at + 1 >= story.begin and (op.kind == "acked" or (every and (at + seed) % every == 0)):
            for image in images(disk, dice):
                if seen.is_new(image, acked):
                    yield Case(at, image, acked)


def judge(case: Case, story: Story, base: Path) -> None:
    """Recover from it.

    Raises:
        Violation: with the moment at which the power went.
    """
    folder = base / "crashed"
    folder.mkdir()
    try:
        recover(case.image, case.acked, folder)
    except Violation as violation:
        op = story.ops[case.at]
        violation.add_note(f"The power went after op {case.at}: {op.kind} {op.path} {op.target}")
        raise


def sharpest(story: Story, count: int, seed: int = 0, seen: Seen | None = None, *, every: int = 4) -> list[Case]:
    """``count`` of a story's cases: those right after an acknowledgement first, the others evenly."""
    found = list(cases(story, seed, seen, every=every))
    told = [case for case in found if story.ops[case.at].kind == "acked"]
    others = [case for case in found if story.ops[case.at].kind != "acked"]
    return [*_evenly(told, count // 2), *_evenly(others, count - count // 2)]


def _evenly(found: list[Case], count: int) -> list[Case]:
    return found[:: max(1, -(-len(found) // max(1, count)))]


def first_violation(story: Story, base: Path, count: int = 80) -> Violation | None:
    """What goes wrong first, if anything does, when the power goes right after something was acknowledged."""
    for case in islice(cases(story, every=None), count):
        try:
            judge(case, story, base)
        except Violation as violation:
            return violation
    return None
