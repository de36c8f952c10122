"""The same engine, the same faces: tests of the thread engine, run again with a writer in a process of its own."""

import uuid

import pytest
from tests.attempts import test_start_from, test_takeover
from tests.core import test_faces, test_files_api, test_saves
from tests.support import run_async

from limpet import Checkpointer

__all__ = ["run_async"]

SAME = {
    test_faces: [
        "test_every_call_works_from_coroutines",
        "test_a_forked_child_is_refused_at_once_and_may_open_a_run_of_its_own",
        "test_a_child_is_a_run_of_its_own",
    ],
    test_files_api: [
        "test_a_directory_that_changes_after_save_is_saved_as_it_was",
        "test_files_and_state_commit_together",
        "test_copies_of_files_are_gone_when_the_save_has_ended",
    ],
    test_saves: [
        "test_a_state_that_changes_after_write_is_saved_as_it_was",
        "test_bytes_come_back_as_the_same_bytes",
        "test_everything_like_bytes_is_accepted",
        "test_the_receipt_says_what_became_of_the_save",
        "test_what_did_not_change_is_not_stored_again",
        "test_close_commits_what_was_accepted_and_may_be_called_again",
        "test_close_of_what_was_never_used_touches_nothing",
        "test_an_attempt_that_could_not_open_may_be_repeated",
    ],
    test_takeover: [
        "test_a_replaced_writer_is_fenced_and_its_commit_never_shows",
        "test_once_fenced_every_later_call_that_writes_is_refused",
        "test_a_writer_that_is_alive_in_this_process_holds_the_run",
        "test_the_owner_is_recorded_with_each_checkpoint",
    ],
    test_start_from: [
        "test_an_empty_run_starts_from_the_newest_state_of_another",
        "test_files_of_another_run_can_be_restored_lazily",
    ],
}
"""Tests that say what every engine promises, and reach their store by a url."""

pytestmark = pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")
globals().update({name: getattr(module, name) for module, names in SAME.items() for name in names})
parent = test_start_from.parent


@pytest.fixture(autouse=True)
def _a_process_writes(monkeypatch):
    monkeypatch.setitem(Checkpointer.__init__.__kwdefaults__, "engine", "process")


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / uuid.uuid4().hex)
