import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.errors import UsageError
from limpet.format.interval import Due, Every, due

steps = st.integers(0, 10**9)
lengths = st.integers(1, 10**6)


def by_steps(every, step, last_step):
    return due(every, step=step, now=0.0, last_step=last_step, last_time=None).due


def by_seconds(every, now, last_time):
    return due(every, step=None, now=now, last_step=None, last_time=last_time).due


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"steps": 1, "seconds": 1},
        {"steps": 0},
        {"steps": -1},
        {"steps": 1.0},
        {"steps": True},
        {"steps": "100"},
        {"seconds": 0},
        {"seconds": -0.5},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": 10**400},
        {"seconds": True},
        {"seconds": "30"},
    ],
)
def test_an_interval_that_is_none_is_refused(arguments):
    with pytest.raises(UsageError):
        Every(**arguments)


def test_the_first_step_is_due():
    assert by_steps(Every(steps=100), 7, None)


@given(lengths, steps, steps)
def test_a_step_is_due_exactly_in_another_interval_than_the_last_one(length, step, last_step):
    same = any(start <= step < start + length for start in (last_step - last_step % length,))
    assert by_steps(Every(steps=length), step, last_step) is not same


@given(lengths, st.lists(steps, min_size=1, max_size=50))
def test_steps_that_grow_are_saved_once_an_interval(length, called):
    last, saved = None, []
    for step in sorted(called):
        if by_steps(Every(steps=length), step, last):
            last = step
            saved.append(step)
    intervals = [step // length for step in saved]
    assert sorted({step // length for step in called}) == intervals


def test_a_step_that_went_back_to_an_earlier_interval_is_due():
    assert by_steps(Every(steps=100), 99, 100)


def test_a_step_that_went_back_within_its_interval_is_not_due():
    assert not by_steps(Every(steps=100), 150, 199)


def test_an_interval_of_steps_refuses_a_write_without_a_step():
    with pytest.raises(UsageError, match="step="):
        by_steps(Every(steps=100), None, 1)


def test_the_first_write_is_due_whatever_the_clock_says():
    assert by_seconds(Every(seconds=30), -1e9, None)


def test_a_write_is_due_when_the_interval_has_just_passed():
    assert by_seconds(Every(seconds=30), 130.0, 100.0)


def test_a_write_is_not_due_just_before_the_interval_has_passed():
    assert not by_seconds(Every(seconds=30), 129.999, 100.0)


def test_an_interval_of_seconds_needs_no_step_and_ignores_it():
    every = Every(seconds=30)
    answers = {due(every, step=step, now=110.0, last_step=0, last_time=100.0).due for step in (None, 0, 10**6)}
    assert answers == {False}


@pytest.mark.parametrize(
    ("every", "now", "last_step", "last_time", "expected"),
    [
        (Every(steps=100), 0.0, None, None, Due(True, "no step was saved yet")),
        (Every(steps=100), 0.0, 110, 0.0, Due(False, "step 110 was saved; the next is due at step 200")),
        (Every(steps=100), 0.0, 99, 0.0, Due(True, "step 120 is in another interval of 100 steps than step 99")),
        (Every(seconds=30), 0.0, None, None, Due(True, "nothing was saved yet")),
        (Every(seconds=30), 40.0, None, 0.0, Due(True, "the last save is 40 s ago")),
        (Every(seconds=30), 10.0, None, 0.0, Due(False, "the next save is due in 20 s")),
    ],
)
def test_a_decision_gives_its_reason(every, now, last_step, last_time, expected):
    assert due(every, step=120, now=now, last_step=last_step, last_time=last_time) == expected
