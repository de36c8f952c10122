import pytest

from limpet.cli.demo.attempts import Attempt, Spread, replayed_steps, totals
from limpet.cli.demo.messages import Finished, Pickled, Resumed, Saved, Settled, Stepped


def attempt(*messages, killed=False):
    made = Attempt(killed=killed)
    for message in messages:
        made.take(message)
    return made


def fresh(next_step=0, seq=0, nbytes=0):
    return Resumed(next_step, seq, nbytes, nbytes, nbytes)


def test_the_99th_percentile_of_a_hundred_is_the_last_but_one():
    spread = Spread.of([float(number) for number in range(100, 0, -1)])
    assert spread == Spread(100, 50.0, 99.0)


def test_one_duration_is_its_own_spread():
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0)


def test_no_durations_have_no_spread():
    assert Spread.of([]) is None


def test_steps_done_before_and_again_are_replayed():
    attempts = [
        attempt(fresh(), Stepped(0, 1.0), Stepped(9, 1.0), killed=True),
        attempt(fresh(5, seq=2), Stepped(5, 1.0), Stepped(7, 1.0), killed=True),
        attempt(fresh(5, seq=2), Stepped(5, 1.0), Stepped(19, 1.0)),
    ]
    assert replayed_steps(attempts) == [0, 5, 5]


def test_an_attempt_that_goes_on_at_the_very_spot_replays_nothing():
    attempts = [attempt(fresh(), Stepped(4, 1.0), killed=True), attempt(fresh(5, seq=1))]
    assert replayed_steps(attempts) == [0, 0]


def test_an_attempt_killed_before_it_resumed_replays_nothing():
    attempts = [attempt(fresh(), Stepped(4, 1.0)), attempt(killed=True), attempt(fresh(3, seq=1))]
    assert replayed_steps(attempts) == [0, 0, 2]


def test_each_commit_counts_once_also_if_its_writer_did_not_live_to_report_it():
    attempts = [
        attempt(fresh(), Saved(4, 0.1), Settled(4, "committed", 2, 100, 50, 50), Saved(9, 0.3), killed=True),
        attempt(fresh(10, seq=3, nbytes=40), Saved(14, 0.2), Settled(14, "committed", 5, 100, 80, 10)),
    ]
    done = totals(attempts)
    assert (done.saves, done.committed, done.superseded, done.lost_with_writer) == (3, 3, 0, 0)
    assert done.new_bytes == 50 + 40 + 10
    assert done.ratio == pytest.approx(100 / 80)
    assert done.stall == Spread(3, 0.2, 0.3)


def test_a_checkpoint_that_was_reported_and_resumed_from_counts_once():
    attempts = [
        attempt(fresh(), Saved(4, 0.1), Settled(4, "committed", 2, 100, 50, 50), killed=True),
        attempt(fresh(5, seq=2, nbytes=50)),
    ]
    done = totals(attempts)
    assert (done.committed, done.new_bytes) == (1, 50)


def test_superseded_and_lost_saves_are_told_apart():
    attempts = [attempt(fresh(), *(Saved(step, 0.1) for step in range(3)), Settled(0, "superseded", 2, 0, 0, 0))]
    done = totals(attempts)
    assert (done.committed, done.superseded, done.lost_with_writer) == (0, 1, 2)
    assert done.ratio is None


def test_pickles_and_the_end_are_noted():
    end = Finished("w", "s", "s", 0.9)
    made = attempt(fresh(), Pickled(0.5, 10), end)
    assert made.pickles_seconds == [0.5]
    assert made.finished == end
