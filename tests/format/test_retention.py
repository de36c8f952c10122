import json
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.errors import CorruptError, FormatError, UsageError
from limpet.format import retention
from limpet.format.retention import AnyOf, Best, Last, Periodic, claims, decide, describe, from_json, narrows, to_json
from limpet.types import CheckpointInfo


def info(seq, *, step=None, time=0.0, pinned=False, **meta):
    return CheckpointInfo(
        seq=seq, step=step, time=time, raw_bytes=0, stored_bytes=0, new_bytes=0, meta=meta, pinned=pinned
    )


def kept(policy, live):
    return list(decide(policy, live).keep)


numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=2), st.just(10**400))
metas = st.dictionaries(st.sampled_from(["loss", "accuracy"]), numbers)
infos = st.builds(
    CheckpointInfo,
    seq=st.integers(1, 10**6),
    step=st.none() | st.integers(0, 100),
    time=st.floats(),
    raw_bytes=st.just(0),
    stored_bytes=st.just(0),
    new_bytes=st.just(0),
    meta=metas,
    pinned=st.booleans(),
)
lives = st.lists(infos, max_size=20, unique_by=lambda each: each.seq)
counts = st.integers(1, 8)
simple = st.one_of(
    st.builds(Last, counts),
    st.builds(Periodic, steps=st.integers(1, 50)),
    st.builds(Periodic, seconds=st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
    st.builds(Best, st.sampled_from(["loss", "accuracy"]), counts, largest=st.booleans()),
)
policies = st.one_of(simple, st.builds(AnyOf, st.lists(simple, min_size=1, max_size=4).map(tuple)))


@given(policies, lives)
def test_what_is_kept_and_what_is_removed_part_the_live_set_in_order(policy, live):
    decision = decide(policy, live)
    assert sorted([*decision.keep, *decision.remove]) == sorted(each.seq for each in live)
    assert list(decision.keep) == sorted(decision.keep)
    assert list(decision.remove) == sorted(decision.remove)
    assert all(decision.keep.values())


@given(policies, lives.filter(bool))
def test_the_newest_is_always_kept(policy, live):
    newest = max(each.seq for each in live)
    assert "newest" in decide(policy, live).keep[newest]


@given(policies, lives)
def test_pinned_ones_are_always_kept(policy, live):
    keep = decide(policy, live).keep
    assert {seq for seq, why in keep.items() if "pinned" in why} == {each.seq for each in live if each.pinned}


@given(policies, lives, st.randoms(use_true_random=False))
def test_the_order_of_the_input_is_irrelevant(policy, live, random_order):
    shuffled = list(live)
    random_order.shuffle(shuffled)
    assert decide(policy, live) == decide(policy, shuffled)


@given(policies, lives)
def test_what_was_kept_once_is_kept_again(policy, live):
    keep = decide(policy, live).keep
    assert decide(policy, [each for each in live if each.seq in keep]).remove == ()


@given(simple, simple, lives)
def test_a_union_keeps_exactly_what_either_keeps(one, other, live):
    assert kept(one | other, live) == sorted({*kept(one, live), *kept(other, live)})


@given(counts, lives)
def test_last_keeps_exactly_the_newest_n(n, live):
    unpinned = [info(each.seq) for each in live]
    assert sorted(each.seq for each in live)[-n:] == kept(Last(n), unpinned)


def test_nothing_live_is_no_error():
    assert decide(Last(1), []) == retention.Decision({}, ())


def test_order_is_that_of_commits_not_of_steps_or_clocks():
    live = [info(1, step=900, time=9e9), info(2, step=800, time=5.0), info(3, step=10, time=1.0)]
    assert kept(Last(1), live) == [3]


def test_all_reasons_are_given():
    live = [info(1, step=0, loss=0.5, pinned=True), info(2, step=1, loss=1.0)]
    decision = decide(Last(1) | Periodic(steps=10) | Best("loss"), live)
    assert decision.keep == {
        1: ("pinned", "one per 10 steps", "best 1 by smallest loss"),
        2: ("newest", "last 1"),
    }


def test_periodic_keeps_the_first_commit_of_each_period_of_steps():
    live = [info(seq, step=step) for seq, step in enumerate([5, 9, 10, 19, 20, 35, 36], start=1)]
    assert kept(Periodic(steps=10), live) == [1, 3, 5, 6, 7]


def test_periodic_keeps_one_of_a_period_that_was_gone_through_twice():
    live = [info(seq, step=step) for seq, step in enumerate([0, 10, 3, 12, 20], start=1)]
    assert kept(Periodic(steps=10), live) == [1, 2, 5]


def test_periodic_by_steps_gives_no_claim_to_a_checkpoint_without_one():
    assert kept(Periodic(steps=10), [info(1), info(2, step=0), info(3)]) == [2, 3]


def test_periodic_keeps_the_first_commit_of_each_period_of_seconds():
    live = [info(seq, time=time) for seq, time in enumerate([0.0, 59.9, 60.0, 61.0, 180.0, 185.0], start=1)]
    assert kept(Periodic(seconds=60), live) == [1, 3, 5, 6]


def test_best_keeps_the_smallest():
    live = [info(1, loss=3), info(2, loss=1.0), info(3, loss=2.0), info(4, loss=9)]
    assert kept(Best("loss", 2), live) == [2, 3, 4]


def test_best_keeps_the_largest_where_asked():
    live = [info(1, f1=0.9), info(2, f1=0.1), info(3, f1=0.2)]
    assert kept(Best("f1", largest=True), live) == [1, 3]


@pytest.mark.parametrize("largest", [False, True])
def test_of_equals_the_newer_is_best(largest):
    live = [info(1, loss=1.0), info(2, loss=1), info(3)]
    assert kept(Best("loss", largest=largest), live) == [2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, None, "0", [0], {}])
@pytest.mark.parametrize("largest", [False, True])
def test_a_metric_that_is_no_finite_number_is_never_best(value, largest):
    live = [info(1, loss=value), info(2, loss=1.0), info(3)]
    assert kept(Best("loss", 3, largest=largest), live) == [2, 3]


def test_whole_numbers_beyond_any_float_are_ranked():
    assert kept(Best("score", largest=True), [info(1, score=10**400), info(2, score=1e308), info(3)]) == [1, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Last(0),
        lambda: Last(-1),
        lambda: Last(True),
        lambda: Last(2.0),
        lambda: Last(None),
        lambda: Periodic(),
        lambda: Periodic(steps=1, seconds=1),
        lambda: Periodic(steps=0),
        lambda: Periodic(seconds=0),
        lambda: Periodic(seconds=math.nan),
        lambda: Best(""),
        lambda: Best(3),
        lambda: Best("loss", 0),
        lambda: Best("loss", largest="yes"),
        lambda: AnyOf(()),
        lambda: AnyOf((Last(1), "last 2")),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make):
    with pytest.raises(UsageError):
        make()


def test_unions_are_flat_and_without_repeats():
    a, b, c = Last(1), Last(2), Best("loss")
    assert (a | b) | (c | a) == AnyOf((a, b, c))


def test_a_policy_combines_with_policies_only():
    with pytest.raises(TypeError):
        Last(1) | 3


def test_last_alone_claims_nothing():
    assert not claims(Last(3), info(1), [])


@given(st.integers(1, 5), lives)
def test_a_union_with_last_claims_what_the_rest_claims(n, live):
    candidate = info(0, step=7, loss=0.0)
    for policy in (Best("loss"), Periodic(steps=10)):
        assert claims(policy | Last(n), candidate, live) == claims(policy, candidate, live)


def test_a_better_candidate_is_claimed():
    assert claims(Best("loss"), info(0, loss=1.0), [info(8, loss=2.0)])


def test_a_worse_candidate_is_not_claimed():
    assert not claims(Best("loss"), info(0, loss=3.0), [info(8, loss=2.0)])


def test_the_first_candidate_of_a_period_is_claimed():
    assert claims(Periodic(steps=10), info(0, step=10), [info(8, step=9)])


def test_a_later_candidate_of_a_period_is_not_claimed_whatever_its_seq():
    assert not claims(Periodic(steps=10), info(0, step=9), [info(8, step=1)])


@given(policies, infos, lives)
def test_what_is_claimed_stays_when_another_commit_follows(policy, candidate, live):
    newest = max((each.seq for each in live), default=0)
    committed = info(newest + 1, step=candidate.step, time=candidate.time, **candidate.meta)
    unranked = info(newest + 2, step=candidate.step, time=candidate.time)
    if claims(policy, candidate, live):
        assert newest + 1 in decide(policy, [*live, committed, unranked]).keep


@given(policies, policies, lives)
def test_narrowing_reports_exactly_what_goes_and_would_have_stayed(old, new, live):
    assert set(narrows(old, new, live)) == set(kept(old, live)) - set(kept(new, live))


def test_a_wider_policy_narrows_nothing():
    assert narrows(Last(1), Last(2), [info(1), info(2), info(3)]) == ()


def test_a_narrower_policy_reports_what_goes():
    assert narrows(Last(3), Last(1), [info(1), info(2), info(3)]) == (1, 2)


def test_a_policy_of_steps_refuses_a_write_without_one():
    with pytest.raises(UsageError, match="step="):
        retention.check(Last(1) | Periodic(steps=10), None)


def test_other_policies_need_no_step():
    retention.check(Last(1) | Periodic(seconds=10) | Best("loss"), None)


def test_a_policy_of_steps_takes_any_step():
    retention.check(Periodic(steps=10), 0)


@given(policies)
def test_a_policy_comes_back_from_json(policy):
    assert from_json(json.loads(json.dumps(to_json(policy)))) == policy


def test_the_recorded_form_is_stable():
    assert to_json(Last(3) | Periodic(steps=1000) | Best("loss", 2)) == {
        "kind": "any",
        "of": [
            {"kind": "last", "n": 3},
            {"kind": "periodic", "steps": 1000, "seconds": None},
            {"kind": "best", "metric": "loss", "n": 2, "largest": False},
        ],
    }


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "last",
        {},
        {"kind": 3},
        {"kind": "last"},
        {"kind": "last", "n": 0},
        {"kind": "last", "n": "3"},
        {"kind": "last", "n": 3, "more": 1},
        {"kind": "periodic", "steps": 3},
        {"kind": "periodic", "steps": None, "seconds": None},
        {"kind": "best", "metric": 3, "n": 1, "largest": False},
        {"kind": "best", "metric": "loss", "n": 1, "largest": 0},
        {"kind": "any"},
        {"kind": "any", "of": []},
        {"kind": "any", "of": {"kind": "last", "n": 1}},
        {"kind": "any", "of": [None]},
        {"kind": "any", "of": [{"kind": "any", "of": [{"kind": "last", "n": 1}]}]},
    ],
)
def test_a_malformed_record_is_corrupt(value):
    with pytest.raises(CorruptError):
        from_json(value)


@pytest.mark.parametrize("wrap", [lambda kind: kind, lambda kind: {"kind": "any", "of": [kind]}])
def test_an_unknown_kind_was_written_by_a_newer_version(wrap):
    with pytest.raises(FormatError, match="'fibonacci'"):
        from_json(wrap({"kind": "fibonacci", "n": 3}))


def test_a_policy_describes_itself():
    policy = Last(3) | Periodic(steps=1000) | Periodic(seconds=60) | Best("loss", 2) | Best("f1", largest=True)
    expected = "last 3, one per 1000 steps, one per 60 s, best 2 by smallest loss, best 1 by largest f1"
    assert describe(policy) == expected


def test_thousands_of_live_checkpoints_are_decided_by_each_commit_without_surprises():
    generator = random.Random(0)
    live = []
    policy = Last(3) | Periodic(steps=100) | Best("loss", 2)
    losses = {}
    for seq in range(1, 2001):
        losses[seq] = generator.random()
        live.append(info(seq, step=seq, loss=losses[seq]))
        keep = decide(policy, live).keep
        live = [each for each in live if each.seq in keep]
    best = sorted(losses, key=losses.__getitem__)[:2]
    assert sorted({1, *range(100, 2001, 100), *best, 1998, 1999, 2000}) == [each.seq for each in live]


def test_importing_it_loads_no_third_party_package():
    code = "import sys, limpet.format.retention; print({'numpy', 'msgspec', 'zstandard'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
