"""Damage at rest, over whole runs: all of it is found, and what is read is bit for bit what was saved (rows 11, 15)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from tests.corruption import rot
from tests.corruption.judging import OLDER, SOUND, Case, Judge, judging, take_over
from tests.corruption.worlds import STATES, Objects, World, make

SEED = 20260
FULL_PACK_BITS = 2000
Damage = Callable[[World, Objects, Objects, random.Random], Iterator[Case]]

KINDS: dict[str, Damage] = {
    "records": lambda world, _fork, _other, rng: rot.record_flips(world, rng),
    "markers": lambda world, _fork, _other, rng: rot.marker_flips(world, rng),
    "manifests": lambda world, _fork, _other, rng: rot.manifest_flips(world, rng),
    "packs": lambda world, _fork, _other, rng: rot.pack_flips(world, rng, FULL_PACK_BITS),
    "lengths": lambda world, _fork, _other, rng: rot.lengths(world, rng),
    "strangers": lambda world, fork, other, _rng: rot.strangers(world, fork, other),
}


def judge_some(name: str, kind: str, every: int, often: int = 6) -> Judge:
    """Judge one case in ``every``, from a place that the name decides; a writer takes over one in ``often`` of those."""
    rng = random.Random(f"{SEED} {name} {kind}")
    world, fork, other = make(name)
    with judging(world) as judge:
        for number, case in enumerate(islice(KINDS[kind](world, fork, other, rng), rng.randrange(every), None, every)):
            judge.judge(case)
            if number % often == 0:
                take_over(case, world)
    return judge


@pytest.mark.parametrize("kind", ["records", "manifests", "packs"])
@pytest.mark.parametrize("name", STATES)
def test_one_flipped_bit_is_found_wherever_it_is(name: str, kind: str) -> None:
    judge = judge_some(name, kind, every=89 if kind != "manifests" else 23)
    if name != "body" or kind == "records":
        assert sum(judge.counts.values()) >= 15, judge.counts
        assert judge.counts.get(OLDER, 0) > 0, judge.counts


@pytest.mark.parametrize("name", ["raw", "body"])
def test_a_flipped_bit_of_a_marker_never_reads_as_no_run_or_an_older_one(name: str) -> None:
    assert sum(judge_some(name, "markers", every=5).counts.values()) >= 15


@pytest.mark.parametrize("name", ["planes4", "body", "shared"])
def test_what_is_cut_short_or_missing_is_found(name: str) -> None:
    judge = judge_some(name, "lengths", every=3)
    assert judge.counts.get(OLDER, 0) > 0


@pytest.mark.parametrize("name", ["zstd", "body", "shared"])
def test_what_verifies_and_belongs_elsewhere_is_found(name: str) -> None:
    judge = judge_some(name, "strangers", every=1)
    assert judge.counts[OLDER] > 5
    assert judge.counts[SOUND] > 5


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STATES)
def test_nothing_of_all_damage_is_read(name: str) -> None:
    """More than 35,000 cases over all parameters: every byte of records, manifests and markers, 12,000 bits in packs."""
    judged = sum(sum(judge_some(name, kind, every=1, often=40).counts.values()) for kind in KINDS)
    print(f"{name}: {judged} cases, 0 undetected")
    assert judged > 4000
