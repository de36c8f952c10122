"""One writer at a time: who replaces whom, and how the replaced one learns it."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.faulty import EVER, Faulty, Shelf, down, read_over, write_over
from tests.reads.states import big, same

import limpet
from limpet import Checkpointer, FencedError, HeldError, UsageError
from limpet.events import Event, Opened

pytestmark = pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")


def test_a_replaced_writer_is_fenced_and_its_commit_never_shows(url: str) -> None:
    """A1"""
    with Checkpointer(url) as old:
        old.write(big(0), step=0, durable=True)
        with Checkpointer(url, takeover=True) as new:
            assert new.resume().next_step == 1
            new.write(big(1), step=1, durable=True)
            pending = old.write(big(99), step=99)
            with pytest.raises(FencedError) as caught:
                pending.result(10)
            assert "Stop" in caught.value.hint
            assert same(new.read(), 1)
    with limpet.open(url) as run:
        assert [info.step for info in run.checkpoints()] == [0, 1]


def test_once_fenced_every_later_call_that_writes_is_refused(url: str) -> None:
    with Checkpointer(url) as old:
        old.write(0, step=0, durable=True)
        with Checkpointer(url, takeover=True):
            for _ in range(3):
                with pytest.raises(FencedError):
                    old.write(1, step=1, durable=True)
            for call in (lambda: old.pin(0), lambda: old.write(2)):
                with pytest.raises(FencedError):
                    call()


def test_every_save_that_was_pending_when_the_fence_was_met_is_refused(store: Faulty) -> None:
    old = write_over(store, buffers=4, on_busy="wait", takeover=True)
    with old:
        held = store.script("put", "data/", waits=True, times=EVER)
        pending = [old.write(big(step), step=step) for step in range(3)]
        held.wait_until_reached()
        with write_over(Faulty(store.store), takeover=True) as new:
            new.write(7, durable=True)
        held.release()
        for save in pending:
            with pytest.raises(FencedError):
                save.result(10)


def test_a_fenced_writer_s_packs_are_swept_by_its_successor(store: Faulty, shelf: Shelf) -> None:
    old = write_over(store, takeover=True)
    with old:
        with write_over(store, takeover=True) as new:
            with pytest.raises(FencedError):
                old.write(big(0), step=0, durable=True)
            new.write(big(1), step=1, durable=True)
            new.sweep()
            assert len(shelf.packs()) == 1
            assert same(new.read(), 1)


def test_two_that_race_for_one_record_have_exactly_one_winner(store: Faulty) -> None:
    """A2: a commit of the old and the open record of the new one meet at the same seq."""
    old = write_over(store, takeover=True)
    with old:
        old.write(0, step=0, durable=True)
        mine = store.script("create", "log/", waits=True)
        pending = old.write(1, step=1)
        mine.wait_until_reached()
        with write_over(Faulty(store.store), takeover=True) as new:
            assert new.read() == 0
            mine.release()
            with pytest.raises(FencedError):
                pending.result(10)
            new.write(2, step=2, durable=True)
            assert [info.step for info in new.checkpoints()] == [0, 2]


def test_a_commit_that_won_the_race_is_what_the_successor_reads(store: Faulty) -> None:
    old = write_over(store, takeover=True)
    with old:
        late = Faulty(store.store)
        held = late.script("create", "log/", waits=True)
        successors: list[Checkpointer] = []

        def take_over() -> None:
            successor = write_over(late, takeover=True)
            successor.__enter__()
            successors.append(successor)

        thread = threading.Thread(target=take_over)
        thread.start()
        held.wait_until_reached()
        old.write({"won": True}, step=5, durable=True)
        held.release()
        thread.join()
        with successors[0] as new:
            assert new.read() == {"won": True}


def test_of_many_that_write_at_once_nothing_acknowledged_is_lost_before_its_fence(store: Faulty) -> None:
    """Whatever the last legitimate writer acknowledged is what is read at the end."""
    acknowledged: list[tuple[int, int]] = []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        cp = write_over(Faulty(store.store), takeover=True)
        with cp:
            for step in range(6):
                try:
                    receipt = cp.write({"by": number, "step": step}, step=step).result(10)
                except FencedError:
                    return
                assert receipt.seq is not None
                acknowledged.append((receipt.seq, number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({seq for seq, _ in acknowledged}) == len(acknowledged)
    newest, winner = max(acknowledged)
    with read_over(store) as run:
        assert run.read()["by"] == winner
        assert run.latest is not None
        assert run.latest.seq == newest


# The lock of this host


def test_a_writer_that_is_alive_in_this_process_holds_the_run(url: str) -> None:
    with Checkpointer(url, owner="first") as cp:
        with pytest.raises(HeldError, match="first") as caught, Checkpointer(url):
            pass
        assert "takeover=True" in caught.value.hint
        cp.write(1, durable=True)  # it has not been fenced
    with Checkpointer(url) as again:
        assert again.read() == 1


def test_a_writer_that_is_alive_in_another_process_holds_the_run(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(HeldError, match=f"process {process.pid}"), Checkpointer(tmp_path):
            pass
        with limpet.open(tmp_path) as run:
            assert run.read() == "theirs"
        with Checkpointer(tmp_path, takeover=True) as cp:
            assert cp.read() == "theirs"
            cp.write("ours", durable=True)
            assert process.stdin is not None
            process.stdin.write("write\n")
            process.stdin.flush()
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "FencedError"
            assert cp.read() == "ours"


def test_a_writer_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        with Checkpointer(tmp_path) as cp:
            assert cp.read() == "theirs"


class holder:
    """A process that writes "theirs" to a run, and keeps it; it writes again when told."""

    CODE = """
import sys, warnings
warnings.simplefilter("ignore")
from limpet import Checkpointer, LimpetError
cp = Checkpointer(sys.argv[1], owner="other process")
cp.write("theirs", durable=True)
print("ready", flush=True)
for line in sys.stdin:
    try:
        cp.write("theirs again", durable=True)
        print("written", flush=True)
    except LimpetError as error:
        print(type(error).__name__, flush=True)
"""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"
        return self.process

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.communicate()


# What is said


def test_a_takeover_from_a_writer_that_did_not_close_names_it(store: Faulty) -> None:
    events: list[Event] = []
    with write_over(store, owner="job 41", takeover=True):
        new = write_over(store, owner="job 42", takeover=True, hooks=[events.append])
        with pytest.warns(RuntimeWarning, match="from job 41, which did not close it"):
            new.__enter__()
        new.close()
    opened = [event for event in events if isinstance(event, Opened)]
    assert [(event.epoch, event.replaced) for event in opened] == [(2, "job 41")]


def test_a_takeover_from_a_writer_that_closed_says_nothing(store: Faulty) -> None:
    with write_over(store, owner="job 41"):
        pass
    # Recorded, not made errors: the engine's thread only logs a warning that is an error.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with write_over(store, owner="job 42"):
            pass
    assert [str(warning.message) for warning in caught] == []


def test_the_owner_is_recorded_with_each_checkpoint(url: str) -> None:
    with Checkpointer(url, owner="job 41") as cp:
        cp.write(1, step=1, durable=True)
    with Checkpointer(url, owner="job 42") as cp:
        cp.write(2, step=2, durable=True)
        assert [info.owner for info in cp.checkpoints()] == ["job 41", "job 42"]


def test_a_rank_above_zero_may_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="RANK"):
        Checkpointer(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setenv("RANK", "0")
    with Checkpointer(f"memory://{uuid.uuid4().hex}") as cp:
        cp.write(1, durable=True)


def test_a_fenced_writer_closes_without_an_error_when_nothing_is_pending(store: Faulty) -> None:
    old = write_over(store, takeover=True)
    with old:
        old.write(1, durable=True)
        with write_over(store, takeover=True):
            pass


def test_the_successor_reads_after_it_has_fenced(store: Faulty) -> None:
    """Step 3 of opening: state is read from the record before ours, so nothing of the replaced one is missed."""
    old = write_over(store, takeover=True)
    with old:
        store.script("create", "log/", after=down("timeout"))
        blind = store.script("get", "log/", before=down(), times=EVER)
        with pytest.raises(limpet.CommitUnknownError):
            old.write("landed", durable=True)
        blind.times = 0
        with write_over(Faulty(store.store), takeover=True) as new:
            assert new.read() == "landed"
