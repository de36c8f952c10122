"""Reading has three answers: found, provably none, could not tell; and the last is never taken for the second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faulty import EVER, Faulty, Shelf, down, forbidden, read_over, write_over
from tests.reads.states import big, fill, same

import limpet
from limpet import Checkpointer, CorruptError, NotFoundError, Run, StoreError, UsageError
from limpet.format.layout import log_key

CALLS: dict[str, Callable[[Run | Checkpointer], Any]] = {
    "read": lambda run: run.read(),
    "resume": lambda run: run.resume(),
    "restore": lambda run: run.restore(),
    "checkpoints": lambda run: run.checkpoints(),
    "best": lambda run: run.best("loss"),
    "verify": lambda run: run.verify(),
    "describe": lambda run: run.describe(),
}
FAILURES = {
    "403": forbidden(),
    "timeout": down("operation timed out"),
    "503": down(),
    "dns": StoreError("dns error: no such host", transient=True),
    "no bucket": StoreError("the bucket does not exist", kind="no_bucket"),
}


def test_a_run_that_was_never_written_is_none_and_stays_untouched(store: Faulty, shelf: Shelf) -> None:
    with read_over(store) as run:
        assert run.read() is None
        assert run.restore() is None
        assert run.checkpoints() == []
        assert run.best("loss") is None
        assert run.verify() is None
        assert run.latest is None
        assert run.restored is None
    assert shelf.objects == {}


def test_a_folder_that_is_not_there_is_none_and_is_not_made(tmp_path: Path) -> None:
    with limpet.open(tmp_path / "no" / "such" / "run") as run:
        assert run.read() is None
    assert list(tmp_path.iterdir()) == []


def test_the_initial_state_is_for_a_run_that_starts(store: Faulty) -> None:
    with write_over(store) as cp:
        run = cp.resume(initial={"fresh": True})
        assert (run.state, run.next_step, run.info, dict(run.meta)) == ({"fresh": True}, 0, None, {})


def test_a_run_that_was_opened_and_never_committed_is_none(store: Faulty) -> None:
    with write_over(store):
        pass
    with read_over(store) as run:
        assert run.read() is None


def test_a_step_of_a_run_that_holds_nothing_is_not_found(store: Faulty) -> None:
    with read_over(store) as run, pytest.raises(NotFoundError, match="no checkpoint"):
        run.read(at=3)


def test_a_step_that_is_not_live_is_not_found_and_says_which_are(store: Faulty) -> None:
    fill(store, 3)
    with read_over(store) as run:
        with pytest.raises(NotFoundError, match="step 7") as caught:
            run.read(at=7)
        assert "0, 1, 2" in caught.value.hint


@pytest.mark.parametrize("at", ["3", 2.0, True, object()])
def test_what_names_no_checkpoint_is_a_mistake(store: Faulty, at: Any) -> None:
    fill(store, 1)
    with read_over(store) as run, pytest.raises(UsageError, match="neither a step"):
        run.read(at=at)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("operation", ["get", "list"])
def test_what_the_store_cannot_tell_is_an_error_and_never_none(
    store: Faulty, call: str, failure: str, operation: str
) -> None:
    fill(store, 2)
    store.script(operation, before=FAILURES[failure], times=EVER)
    with read_over(store) as run, pytest.raises(StoreError, match="could not tell") as caught:
        CALLS[call](run)
    assert FAILURES[failure].message in caught.value.message
    assert caught.value.kind == FAILURES[failure].kind


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("operation", ["get", "list"])
def test_a_writer_that_cannot_tell_does_not_start_afresh(store: Faulty, failure: str, operation: str) -> None:
    fill(store, 2)
    store.script(operation, before=FAILURES[failure], times=EVER)
    with pytest.raises(StoreError), write_over(store) as cp:
        cp.resume(initial=0)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("operation", ["get_range", "read_into"])
@pytest.mark.filterwarnings("error::limpet.DamagedCheckpointWarning")
def test_data_that_cannot_be_fetched_is_an_error_and_never_an_older_checkpoint(
    store: Faulty, failure: str, operation: str
) -> None:
    with write_over(store, compression="off") as cp:
        for step in range(2):
            cp.write(np.full(1 << 20, step), step=step, durable=True)  # one buffer: read straight into place
    store.script(operation, before=FAILURES[failure], times=EVER)
    with read_over(store) as run, pytest.raises(StoreError, match="could not tell"):
        run.read()
    with write_over(store) as cp, pytest.raises(StoreError):
        cp.resume(initial=0)


def test_one_record_of_several_that_cannot_be_fetched_is_a_store_error(store: Faulty) -> None:
    fill(store, 3)
    store.script("get", log_key(3), before=forbidden(), times=EVER)
    with read_over(store) as run, pytest.raises(StoreError, match="403"):
        run.read()


def test_what_fails_for_a_moment_is_tried_again(store: Faulty) -> None:
    fill(store, 2)
    for operation in ("get", "list", "get_range", "read_into"):
        store.script(operation, before=down(), times=2)
    with read_over(store, deadline_seconds=5.0) as run:
        assert same(run.read(), 1)


def test_retries_end_at_the_deadline(store: Faulty) -> None:
    store.script("list", before=down(), times=EVER)
    with read_over(store, deadline_seconds=0.1) as run, pytest.raises(StoreError, match="503"):
        run.read()
    assert 3 < store.count("list") < 100


def test_a_refusal_is_not_tried_again(store: Faulty) -> None:
    store.script("list", before=forbidden(), times=EVER)
    with read_over(store) as run, pytest.raises(StoreError, match="403"):
        run.read()
    assert store.count("list") == 1


def test_a_load_that_failed_finds_what_appears_later(store: Faulty) -> None:
    """R7: no answer is remembered."""
    with read_over(store) as run:
        assert run.read() is None
        store.script("list", before=forbidden())
        with pytest.raises(StoreError):
            run.read()
        fill(store, 1)
        assert same(run.read(), 0)


def test_a_writer_whose_opening_failed_may_try_again(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as first:
        first.write(big(0), step=0, durable=True)
        second = Checkpointer(tmp_path)
        with pytest.raises(limpet.HeldError):
            second.read()
    assert same(second.read(), 0)
    second.close()


def test_a_missing_object_that_appears_again_is_found(store: Faulty, shelf: Shelf) -> None:
    fill(store, 1)
    [pack] = shelf.packs()
    data = shelf.objects[pack]
    shelf.remove(pack)
    with read_over(store) as run:
        with pytest.raises(CorruptError, match="missing"):
            run.read()
        shelf.replace(pack, data)
        assert same(run.read(), 0)


def test_a_reader_sees_what_a_writer_commits_meanwhile(store: Faulty) -> None:
    with write_over(store) as cp, read_over(store) as run:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
            assert same(run.read(), step)
            assert run.latest is not None
            assert run.latest.step == step


def test_a_dead_attempt_without_a_save_does_not_break_the_chain(store: Faulty) -> None:
    """R5: attempt 0 commits step 10, attempt 1 dies before its first save, attempt 2 resumes at 10."""
    with write_over(store) as cp:
        cp.write(big(10), step=10, durable=True)
    with write_over(store) as cp:
        assert cp.resume().next_step == 11
    with write_over(store) as cp:
        run = cp.resume()
        assert run.next_step == 11
        assert same(run.state, 10)


def test_a_run_that_was_started_afresh_under_an_open_reader_is_read_anew(store: Faulty, shelf: Shelf) -> None:
    """No record of the run before is remembered by its number."""
    fill(store, 2)
    with read_over(store) as run:
        assert same(run.read(), 1)
        for key in shelf.objects:
            shelf.remove(key)
        assert run.read() is None
        with write_over(store) as cp:
            cp.write(big(7), step=7, durable=True)
            cp.write(big(8), step=8, durable=True)
        assert same(run.read(), 8)
        assert [info.step for info in run.checkpoints()] == [7, 8]
