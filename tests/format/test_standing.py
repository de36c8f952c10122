"""What is kept up from commit to commit is what a look at everything would give."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from limpet import AnyOf, Best, CheckpointInfo, Last, Periodic
from limpet.format.retention import claims, decide
from limpet.format.standing import Standing

policies = st.lists(
    st.one_of(
        st.builds(Last, st.integers(1, 4)),
        st.builds(lambda steps: Periodic(steps=steps), st.integers(1, 4)),
        st.builds(lambda seconds: Periodic(seconds=seconds), st.sampled_from([0.5, 3])),
        st.builds(Best, st.just("loss"), st.integers(1, 3), st.booleans()),
    ),
    min_size=1,
    max_size=3,
).map(lambda parts: AnyOf(tuple(parts)) if len(parts) > 1 else parts[0])

metrics = st.one_of(st.just({}), st.builds(lambda loss: {"loss": loss}, st.sampled_from([0, 1, 2.0, -1, float("nan")])))


@given(
    policy=policies,
    commits=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), metrics), max_size=25),
    seed=st.integers(0, 99),
)
def test_what_stays_and_what_is_claimed_are_as_the_policy_decides(policy, commits, seed):
    chance = random.Random(seed)
    live: dict[int, CheckpointInfo] = {}
    standing = Standing(policy)
    for seq, (step, time, meta) in enumerate(commits, 1):
        candidate = CheckpointInfo(seq, step, time, 0, 0, 0, meta)
        assert standing.claims(candidate) == claims(policy, candidate, live.values())
        kept = set(decide(policy, [*live.values(), candidate]).keep)
        assert standing.kept_with(candidate) == kept
        keep_all = chance.random() < 0.2  # as if the others were pinned
        live[seq] = candidate
        standing.add(candidate)
        for gone in [] if keep_all else sorted(live.keys() - kept):
            standing.remove(live.pop(gone))
        if len(live) > 1 and chance.random() < 0.2:  # deleted by hand
            standing.remove(live.pop(chance.choice(sorted(live)[:-1])))


def test_a_standing_may_begin_with_what_is_there():
    policy = Last(1) | Best("loss")
    infos = [CheckpointInfo(seq, seq, 0.0, 0, 0, 0, {"loss": loss}) for seq, loss in enumerate([3, 1, 2], 1)]
    assert Standing(policy, infos[:2]).kept_with(infos[2]) == {2, 3}


def test_what_somebody_wrote_into_meta_since_does_not_change_what_stands():
    info = CheckpointInfo(1, 1, 0.0, 0, 0, 0, {"loss": 1.0})
    standing = Standing(Best("loss", 1, False))
    standing.add(info)
    info.meta.clear()
    standing.remove(info)
    assert standing.kept_with(CheckpointInfo(2, 2, 0.0, 0, 0, 0, {"loss": 2.0})) == {2}
