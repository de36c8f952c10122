"""Every interleaving of a small world, by the protocol and without each of its rules.

The invariants are numbered as on the protocol's page. A rule whose removal broke none of them would be no rule: each
test below names the invariant that falls, and prints a shortest way to it.
"""

from __future__ import annotations

from functools import cache

import pytest
from tests.model.search import Found, explore
from tests.model.world import RULES, Config

CONFIGS = {
    "two writers": Config(("s", "s"), (1, 1)),
    "two writers and a fault": Config(("s", "s"), (1, 1), faults=1),
    "a takeover of two saves in flight and a fault": Config(("ss", ""), (1, 1), faults=1),
    "three openings": Config(("s", "s", "s"), (0, 0, 1)),
    "three openings of a longer log": Config(("ss", "s", ""), (0, 0, 0)),
    "two saves in flight and a fault": Config(("ss",), (1,), faults=1),
    "three saves in flight": Config(("sss",), (1,)),
    "a read": Config(("sss",), (1,), reads=1, stale_lists=True),
    "a read and a takeover": Config(("s", "s"), (1, 1), reads=1),
    "a quick read and a grace": Config(("ss",), (1,), reads=1, grace=True),
    "pins": Config(("sps",), (1,)),
    "a copied process": Config(("ss", "ss"), (0, 0), clone=True),
    "a loss of power": Config(("ss", "s"), (0, 0), durable=True, faults=1),
    "a damaged head": Config(("ss", "", ""), (0, 0, 1), rot="record", retain=2),
    "a lost pack": Config(("s", "s"), (0, 0), rot="pack", retain=2),
}
LARGE = {
    "three writers, two of which sweep": Config(("s", "s", "s"), (0, 1, 1)),
    "saves in flight on both sides": Config(("ss", "s"), (1, 1)),
    "two faults": Config(("s", "s"), (1, 0), faults=2),
    "three saves, two checkpoints kept, and a fault": Config(("sss",), (2,), retain=2, faults=2),
    "a quick read, a grace and a takeover": Config(("s", "s"), (1, 1), reads=1, grace=True),
    "a read, a takeover and a fault": Config(("s", "s"), (1, 1), reads=1, faults=1),
    "a loss of power and three openings": Config(("ss", "s", "s"), (0, 0, 0), durable=True, faults=1),
    "a damaged head and a save after it": Config(("s", "", "s"), (0, 0, 1), rot="record", retain=2),
}
TOO_EARLY = "1: a record names a pack that is not there"
NOT_DURABLE = "1: a pack that a live checkpoint needs was not durable"
HOLE = "2: the log has a hole"
REPLACED = "2: a record is replaced"
NOT_ITS_OWN = "2: what is live is not what was live, plus or minus the record's own"
UNORDERED = "2: commits are not in the order of the calls"
LIE = "3: a save is acknowledged that is not in the log"
GONE = "3: an acknowledged checkpoint is gone"
FORGOTTEN = "3: a takeover resumes from less than what was acknowledged"
DROPPED = "3: a commit drops the newest checkpoint, or one that is pinned"
LATE = "4: a record of a replaced writer"
TWINS = "4: two processes commit under one epoch"
FALSE_FENCE = "4: a writer is fenced though nobody replaced it"
TWO_CONTENTS = "5: a name gets two contents"
LIVE_DELETED = "5: a pack that a live checkpoint needs is deleted"
FLYING_DELETED = "5: a pack that a save in flight needs is deleted"
DAMAGED_DELETED = "5: a pack is deleted that a damaged record may still lead to"
OLDER = "6: a read returns less than what was acknowledged before it began"
FALSE_DAMAGE = "6: a read finds damage where there is none"
DISTURBED = "grace: a read that was quick enough is disturbed"

CAUGHT = {
    "data_before_create": ("two writers", TOO_EARLY),
    "acknowledge_last": ("two writers", LIE),
    "read_back": ("two writers", LIE),
    "own_create_is_no_conflict": ("two writers", FALSE_FENCE),
    "nonce": ("a takeover of two saves in flight and a fault", LIE),
    "same_bytes": ("two writers", FALSE_FENCE),
    "adopt": ("a takeover of two saves in flight and a fault", LIVE_DELETED),
    "one_process": ("a copied process", TWINS),
    "fence_is_final": ("two writers", LATE),
    "same_seq": ("a takeover of two saves in flight and a fault", HOLE),
    "keep_unknown": ("two saves in flight and a fault", FLYING_DELETED),
    "call_order": ("three saves in flight", UNORDERED),
    "atomic_create": ("two writers", REPLACED),
    "open_record": ("two writers", TOO_EARLY),
    "winners_record": ("two writers", NOT_ITS_OWN),
    "read_after_open": ("two writers", FORGOTTEN),
    "live_in_record": ("three openings of a longer log", NOT_ITS_OWN),
    "index_listed": ("a lost pack", TOO_EARLY),
    "settle_head": ("a loss of power", HOLE),
    "settle_read_back": ("a loss of power", HOLE),
    "sync_record": ("a loss of power", GONE),
    "sync_data": ("a loss of power", NOT_DURABLE),
    "note_damage": ("a damaged head", DAMAGED_DELETED),
    "carry_quarantine": ("a damaged head", DAMAGED_DELETED),
    "retain_in_commit": ("three saves in flight", LIVE_DELETED),
    "newest_by_seq": ("three saves in flight", DROPPED),
    "pins": ("pins", DROPPED),
    "owner_deletes": ("two writers", FLYING_DELETED),
    "list_first": ("two writers", FLYING_DELETED),
    "keep_base": ("three saves in flight", FLYING_DELETED),
    "keep_in_flight": ("two writers", FLYING_DELETED),
    "epoch_check": ("two writers", FLYING_DELETED),
    "quarantine_blocks": ("a damaged head", DAMAGED_DELETED),
    "grace": ("a quick read and a grace", DISTURBED),
    "share_live_only": ("two writers", FLYING_DELETED),
    "fresh_names": ("two writers and a fault", TWO_CONTENTS),
    "prove_head": ("a read", OLDER),
    "tell_apart": ("a read", FALSE_DAMAGE),
    "start_again": ("a read", FALSE_DAMAGE),
}
KINDS = {
    "a grace of writer # is over",
    "a read finds head #",
    "record # is damaged",
    "record # lands",
    "the delete of # lands",
    "the power fails: records # and packs # are gone",
    "the read misses #",
    "the read reads #",
    "the read returns checkpoint #",
    "writer # begins pin #",
    "writer # begins save #",
    "writer # begins save #, sharing #",
    "writer # cannot tell about record #: unknown",
    "writer # decides what may go",
    "writer # finds that record # is an earlier try of its own",
    "writer # finds that record # is another's: it is fenced",
    "writer # finds that record # is its own",
    "writer # is a copy of writer #'s process",
    "writer # is told that putting # failed",
    "writer # lists",
    "writer # lost the race for record # and goes on from it",
    "writer # opens",
    "writer # owns epoch #",
    "writer # puts #",
    "writer # sends record # for pin #",
    "writer # sends record # for save #",
    "# is lost",
    "# lands",
}


@cache
def searched(name: str) -> Found:
    """All of one small world, once for all tests."""
    return explore(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_protocol_breaks_no_invariant(name: str) -> None:
    found = searched(name)
    assert not found.broken, str(found)


def test_all_that_the_model_can_do_happens() -> None:
    """A step that no configuration takes would be checked by nobody."""
    assert frozenset().union(*(searched(name).kinds for name in CONFIGS)) == KINDS


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LARGE)
def test_the_protocol_breaks_no_invariant_in_a_larger_world(name: str) -> None:
    found = explore(LARGE[name], limit=700_000)
    assert not found.broken, str(found)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_something_breaks(rule: str) -> None:
    name, broken = CAUGHT[rule]
    found = explore(CONFIGS[name], frozenset({rule}))
    print(f"without {rule} ({RULES[rule]}): {found}")
    assert found.broken == broken, str(found)
