"""For each rule of the protocol the shortest run in which it matters: with the rule all is well, without it not."""

from __future__ import annotations

import sys

import pytest
from tests.simulation.mutations import MUTATIONS, NEEDS_AN_OLDER_PYTHON
from tests.simulation.plan import Action, Actor, Fault, Outage, Plan
from tests.simulation.simulate import simulate

TINY, OWN, SHARED, BOTH = 4, 1, 2, 3
FORBIDDEN = Fault("forbid")
FIRST_COMMIT = 3
"""Creates of a writer: the marker, its probe, the open record, and then the commits."""


def writer(*script: Action, start: float = 0.0, keep: int = 1, **more: object) -> Actor:
    return Actor(True, start, list(script), keep=keep, buffers=3, on_busy="wait", **more)  # type: ignore[arg-type]


def reader(start: float, **faults: dict[int, Fault]) -> Actor:
    spread = {(operation, number): fault for operation, some in faults.items() for number, fault in some.items()}
    return Actor(False, start, [Action("read")], faults=spread)


def durable(choice: int, pause: float = 0.0) -> Action:
    return Action("durable", pause, choice)


def plan(*actors: Actor, seed: int = 1, **more: object) -> Plan:
    return Plan(seed, list(actors), interval=0.0, **more)  # type: ignore[arg-type]


SWEEP = Action("sweep")
LATER = Action("wait", 4000.0)
CASES: dict[str, Plan] = {
    "acknowledged_before_the_create": plan(writer(durable(TINY))),
    "key_exists_is_success": plan(writer(durable(TINY), durable(TINY, 20.0)), writer(durable(TINY), start=10.0)),
    "key_exists_is_a_conflict": plan(
        writer(durable(TINY), faults={("create", FIRST_COMMIT): Fault("twice_seen")}),
    ),
    "no_read_back": plan(writer(durable(TINY), faults={("create", FIRST_COMMIT): Fault("lose")}), commit_deadline=60.0),
    "a_fenced_writer_goes_on_after_its_successor": plan(
        writer(durable(TINY), durable(TINY, 20.0)), writer(durable(TINY), start=10.0)
    ),
    "an_adopted_try_changes_nothing": plan(
        writer(durable(TINY), durable(TINY, 1.0), durable(TINY, 200.0), keep=3),
        outages=[Outage(1.0, 15.0, 0, "late", "create")],
        commit_deadline=0.6,
    ),
    "the_newest_is_that_of_the_highest_step": plan(writer(*[durable(TINY)] * 7, durable(20), keep=3), reader(10.0)),
    "the_head_is_what_the_listing_shows": plan(
        writer(durable(TINY)), reader(5.0, list={0: Fault("stale"), 1: Fault("stale")})
    ),
    "a_503_is_a_reason_to_fall_back": plan(
        writer(durable(OWN), durable(OWN), keep=3),
        reader(5.0, get_range=dict.fromkeys(range(2), FORBIDDEN)),
    ),
    "a_sweep_forgets_saves_in_flight": plan(
        writer(
            durable(TINY),
            Action("write", choice=OWN),
            Action("sweep", 1.0),
            LATER,
            faults={("create", FIRST_COMMIT + 1): Fault("stall", 3.0)},
        )
    ),
    "a_sweep_forgets_the_bases_of_saves_in_flight": plan(
        writer(
            durable(SHARED),
            Action("write", choice=OWN),
            Action("write", choice=BOTH),
            Action("sweep", 1.0),
            LATER,
            faults={("create", FIRST_COMMIT + 2): Fault("stall", 3.0)},
        )
    ),
    "an_unknown_commit_counts_as_failed": plan(
        writer(durable(TINY), durable(OWN, 1.0), SWEEP, LATER),
        outages=[Outage(1.0, 15.0, 0, "late", "create")],
        commit_deadline=0.6,
    ),
    "a_sweep_looks_at_the_newest_checkpoint_only": plan(writer(durable(OWN), durable(OWN), SWEEP, keep=3)),
    "a_sweep_takes_objects_of_newer_epochs": plan(
        writer(durable(OWN), Action("sweep", 20.0)), writer(durable(OWN), LATER, start=10.0)
    ),
    "a_sweep_goes_on_beside_damaged_records": plan(
        writer(durable(OWN), durable(OWN), keep=3), writer(SWEEP, start=10.0), rots=[(5.0, 4)]
    ),
    "packs_are_removed_before_the_record_that_drops_them": plan(writer(durable(OWN), durable(OWN))),
    "chunks_of_what_left_the_live_set_are_offered": plan(writer(durable(SHARED), durable(OWN), SWEEP, durable(SHARED))),
    "pins_are_forgotten_by_the_next_commit": plan(writer(Action("pinned", choice=OWN), durable(OWN), durable(OWN))),
    "a_digest_is_not_looked_at": plan(
        writer(durable(BOTH)), reader(5.0, read_into={0: Fault("flip"), 1: Fault("flip")}, get_range={2: Fault("flip")})
    ),
    "an_error_takes_the_frames_of_others_along": plan(
        writer(
            durable(TINY),
            durable(TINY),
            Action("write", 15.0, OWN),
            Action("delete"),
            LATER,
            keep=3,
            faults={("put", 0): Fault("stall", 3.0)},
        ),
        writer(durable(TINY), start=10.0),
    ),
    "a_run_that_has_just_begun_looks_damaged": plan(writer(durable(OWN)), reader(0.0, list={1: Fault("stall", 3.0)})),
}
"""By the name of the mutation that each is for."""


@pytest.mark.parametrize("name", CASES)
def test_nothing_breaks(name: str) -> None:
    assert simulate(CASES[name]).violation is None


@pytest.mark.parametrize("name", CASES)
def test_without_the_rule_it_breaks(name: str) -> None:
    if name in NEEDS_AN_OLDER_PYTHON and sys.version_info >= (3, 13):
        pytest.skip("this Python refuses to clear the frame of a coroutine that waits")
    with MUTATIONS[name]():
        assert simulate(CASES[name]).violation is not None


def test_there_is_a_case_for_every_rule_but_one() -> None:
    # Names that repeat give two contents only where a second try differs from the first, which only seeds meet.
    assert MUTATIONS.keys() - CASES.keys() == {"names_of_packs_repeat"}
