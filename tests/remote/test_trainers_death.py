"""Whatever kills the trainer, what was staged is committed, in order, and nothing is left behind."""

import pytest
from tests.remote.deaths import check_run, end, gone, train
from tests.remote.trainer import STEPS

pytestmark = pytest.mark.crash


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "expected").mkdir()
    return tmp_path


@pytest.mark.parametrize("how", ["killed", "segfault", "exit", "exec"])
def test_what_was_staged_outlives_the_trainer(folder, how):
    trained = train(folder, how)
    assert trained.pushed == list(range(STEPS))
    check_run(folder, trained.pushed, exactly=True)
    assert gone(trained.writer)


def test_a_forked_child_that_lives_on_does_not_hide_the_trainers_death(folder):
    trained = train(folder, "forked")
    try:
        check_run(folder, trained.pushed, exactly=True, locked=True)
        assert gone(trained.writer)
    finally:
        end(trained.children)
    assert all(gone(child) for child in trained.children)
    check_run(folder, trained.pushed, exactly=True)


@pytest.mark.parametrize("how", ["close", "left open"])
def test_a_trainer_that_ends_well_leaves_no_process(folder, how):
    trained = train(folder, how)
    assert trained.code == 0, trained.stderr
    assert gone(trained.writer)
    check_run(folder, trained.pushed, exactly=True)


SAMPLE = [("sent", 3), ("sent", 6), ("sent", 9), ("received", 3), ("received", 8)]


def killed_at(folder, direction, at):
    trained = train(folder, direction, at)
    check_run(folder, trained.pushed)
    if trained.writer is not None:
        assert gone(trained.writer)
    return trained


@pytest.mark.parametrize(("direction", "at"), SAMPLE)
def test_a_trainer_that_is_killed_at_a_message_loses_nothing_staged(folder, direction, at):
    assert not killed_at(folder, direction, at).closed


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("direction", ["sent", "received"])
def test_a_trainer_that_is_killed_at_any_message_loses_nothing_staged(tmp_path, direction):
    for at in range(1, 200):
        folder = tmp_path / str(at)
        (folder / "expected").mkdir(parents=True)
        if killed_at(folder, direction, at).closed:
            return
    pytest.fail("it never came to its end")
