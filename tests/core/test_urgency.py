from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from limpet.engine.urgency import MAX_LAG_SECONDS, Urgency, urgency

shares = st.floats(0, 1)
seconds = st.floats(0, 10 * MAX_LAG_SECONDS)


@given(shares)
def test_a_save_that_has_just_begun_takes_what_is_left_over(share):
    assert urgency(MAX_LAG_SECONDS / 20, share) is Urgency.BACKGROUND


@given(shares)
def test_a_save_that_is_late_takes_what_it_needs(share):
    assert urgency(MAX_LAG_SECONDS, share) is Urgency.URGENT


def test_a_save_that_stands_still_takes_more_long_before_it_is_late():
    assert urgency(MAX_LAG_SECONDS / 4, 0.0) is Urgency.STEADY


def test_a_save_that_will_be_in_time_goes_on_in_the_background():
    assert urgency(MAX_LAG_SECONDS / 4, 0.5) is Urgency.BACKGROUND


def test_a_save_that_caught_up_gives_way_again():
    assert [urgency(MAX_LAG_SECONDS / 2, share) for share in (0.5, 0.9)] == [Urgency.STEADY, Urgency.BACKGROUND]


@given(seconds, shares, shares)
def test_more_progress_never_means_more_pressure(elapsed, one, other):
    least, most = sorted((one, other))
    assert urgency(elapsed, most) <= urgency(elapsed, least)


@given(seconds, shares, st.floats(0, MAX_LAG_SECONDS))
def test_a_save_that_stands_still_never_presses_less_as_time_goes_by(elapsed, share, more):
    if elapsed >= MAX_LAG_SECONDS / 10:
        assert urgency(elapsed + more, share) >= urgency(elapsed, share)
