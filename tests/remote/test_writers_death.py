"""Whatever kills the writer's process, a new one goes on, and every save is committed exactly once."""

import gc
import os
import signal
import textwrap
import time
from pathlib import Path

import pytest
from tests.remote.deaths import equal, gone, is_alive
from tests.remote.trainer import STEPS, state_of

import limpet
from limpet import Checkpointer, Every, FencedError, Last, Restarted, StoreError, UntrustedError, UsageError
from limpet.remote import launch

pytestmark = [pytest.mark.crash, pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")]

ARMED = """
    import os, signal, sys
    from pathlib import Path

    HOW, AT, MARK = {how!r}, {at!r}, Path({mark!r})

    def arm():
        from limpet.remote import channel
        left = iter(range(1, AT))
        def count(_):
            if next(left, None) is None:
                MARK.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        setattr(channel, HOW, count)

    sys.path.extend(path for path in sys.argv[3].split(os.pathsep) if path not in sys.path)
    from limpet.remote.hosting import host
    if not MARK.exists():
        arm()
    host(int(sys.argv[1]), int(sys.argv[2]))
"""


def armed(monkeypatch, folder, how, at):
    """The first process dies at its ``at``-th message; returns whether it has."""
    mark = folder / f"killed-{how}-{at}"
    entry = folder / f"entry-{how}-{at}.py"
    entry.write_text(textwrap.dedent(ARMED.format(how=how, at=at, mark=str(mark))))
    monkeypatch.setattr(launch, "_ENTRY", str(entry))
    return mark.exists


def trained(folder, events):
    """A whole run: every save is committed, once, whole, in order; and no process is left."""
    with Checkpointer(folder / "run", engine="process", on_busy="wait", retain=Last(100), hooks=[events.append]) as cp:
        pending = [cp.write(state_of(step), step=step) for step in range(STEPS)]
        cp.pin(pending[1].result().step)
        assert [handle.result().step for handle in pending] == list(range(STEPS))
        infos = cp.checkpoints()
        assert [info.step for info in infos] == list(range(STEPS))
        assert [info.pinned for info in infos] == [step == 1 for step in range(STEPS)]
        assert [handle.result().seq for handle in pending] == [info.seq for info in infos]
        for step in range(STEPS):
            found = cp.read(at=step)
            assert all(equal(value, found[name]) for name, value in state_of(step).items())
        cp.sweep()
        pid = cp._open_session.threads.link.pid
    assert gone(pid)
    with limpet.open(folder / "run") as run:
        assert [info.step for info in run.checkpoints()] == list(range(STEPS))


@pytest.mark.parametrize(("how", "at"), [("sent", 2), ("sent", 8), ("sent", 12), ("received", 4), ("received", 6)])
def test_a_writer_that_is_killed_at_a_message_is_replaced_and_commits_once(tmp_path, monkeypatch, how, at):
    events = []
    dead = armed(monkeypatch, tmp_path, how, at)
    trained(tmp_path, events)
    assert dead()
    assert any(isinstance(event, Restarted) for event in events)


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["sent", "received"])
def test_a_writer_that_is_killed_at_any_message_is_replaced_and_commits_once(tmp_path, monkeypatch, how):
    for at in range(2 if how == "sent" else 1, 300):  # before its first word it has not begun: that is an error
        folder = tmp_path / str(at)
        folder.mkdir()
        with monkeypatch.context() as patch:
            dead = armed(patch, folder, how, at)
            trained(folder, [])
        if not dead():
            return
    pytest.fail("it never came to its end")


@pytest.fixture
def cp(tmp_path):
    with Checkpointer(tmp_path / "run", engine="process") as cp:
        yield cp


def writer_of(cp):
    return cp._open_session.threads.link.pid


def killed(cp):
    pid = writer_of(cp)
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_writer_that_dies_while_nothing_is_written_is_replaced(cp):
    cp.write(1, step=1, durable=True)
    dead = killed(cp)
    cp.write(2, step=2, durable=True)
    assert writer_of(cp) != dead
    assert not is_alive(dead)
    assert cp.read() == 2


def test_the_process_gets_no_signals_of_the_terminal_and_its_priorities_count_beside_ours(cp):
    cp.write(1, durable=True)
    assert os.getpgid(writer_of(cp)) != os.getpgid(0)
    assert os.getsid(writer_of(cp)) == os.getsid(0)  # the kernel weighs tasks of other sessions as a whole


def test_child_runs_go_on_too(cp):
    child = cp.child("eval")
    child.write(1, step=1, durable=True)
    killed(cp)
    child.write(2, step=2, durable=True)
    cp.write(3, step=3, durable=True)
    assert child.read() == 2
    assert cp.read() == 3


def test_a_writer_that_keeps_dying_is_given_up_and_says_why(tmp_path, monkeypatch):
    dies = textwrap.dedent(ARMED.format(how="received", at=3, mark="/nowhere/at/all")).replace("MARK.touch()", "pass")
    entry = tmp_path / "entry.py"
    entry.write_text(dies)
    monkeypatch.setattr(launch, "_ENTRY", str(entry))
    with pytest.raises(StoreError, match=r"died 4 times in a row.*SIGKILL") as raised:
        with Checkpointer(tmp_path / "run", engine="process") as cp:
            cp.write(1, durable=True)
    assert raised.value.kind == "engine"


def test_a_process_that_cannot_begin_is_an_error_with_what_it_printed(tmp_path, monkeypatch):
    entry = tmp_path / "entry.py"
    entry.write_text("raise SystemExit('no such thing here')")
    monkeypatch.setattr(launch, "_ENTRY", str(entry))
    with pytest.raises(StoreError, match=r"before it could begin.*status 1.*no such thing here"):
        Checkpointer(tmp_path / "run", engine="process").write(1)


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(StoreError, match="could not be started"):
        Checkpointer(tmp_path / "run", engine="process").write(1)


def test_a_run_that_was_taken_over_while_the_writer_was_dead_is_not_taken_back(cp, tmp_path):
    cp.write(1, step=1, durable=True)
    os.kill(writer_of(cp), signal.SIGSTOP)
    with Checkpointer(tmp_path / "run", takeover=True) as other:
        other.write(2, step=2, durable=True)
        killed(cp)
        with pytest.raises(FencedError):
            cp.write(3, step=3, durable=True)
    with limpet.open(tmp_path / "run") as run:
        assert run.read() == 2


def test_close_beside_a_writer_that_does_not_answer_ends_at_its_deadline(tmp_path):
    cp = Checkpointer(tmp_path / "run", engine="process")
    cp.write(1, step=1, durable=True)
    pid = writer_of(cp)
    os.kill(pid, signal.SIGSTOP)
    pending = cp.write(2, step=2)
    started = time.monotonic()
    with pytest.raises(StoreError) as raised:
        cp.close(timeout=0.2)
    assert raised.value.kind == "late"
    assert time.monotonic() - started < 10
    assert not is_alive(pid)
    with pytest.raises(StoreError):
        pending.result()


def test_saves_that_gave_way_before_the_process_heard_of_them_take_no_memory(tmp_path):
    cp = Checkpointer(tmp_path / "run", engine="process")
    cp.write(0, step=0, durable=True)
    pid = writer_of(cp)
    os.kill(pid, signal.SIGSTOP)
    for step in range(1, 3000):  # each of them 40 KB, far more than the socket takes
        cp.write(os.urandom(64) * 625, step=step)
    channel = cp._open_session.threads.link._channel
    assert sum(len(packet.body) for packet in channel._outbox) < 1 << 20
    os.kill(pid, signal.SIGCONT)
    cp.close()
    with limpet.open(tmp_path / "run") as run:
        assert run.checkpoints()[-1].step == 2999


@pytest.mark.parametrize(
    ("url", "settings"),
    [("memory://here", {}), ("s3://bucket/run", {"storage": {"credential_provider": lambda: None}})],
)
def test_what_another_process_cannot_reach_is_refused_at_once(url, settings):
    with pytest.raises(UsageError) as raised:
        Checkpointer(url, engine="process", **settings)
    assert raised.value.kind == "engine"


def test_an_engine_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="engine"):
        Checkpointer(tmp_path, engine="coroutine")


def test_a_signed_run_is_written_and_read(tmp_path):
    key = b"0123456789abcdef"
    with Checkpointer(tmp_path / "run", engine="process", key=key) as cp:
        cp.write(1, step=1, durable=True)
        assert cp.read() == 1
        key_text = key.decode()
        shown = Path(f"/proc/{writer_of(cp)}")
        assert key_text not in (shown / "cmdline").read_text()
        assert key_text not in (shown / "environ").read_text()
    with pytest.raises(UntrustedError), limpet.open(tmp_path / "run") as run:
        run.read()


def test_hooks_are_told_and_deletes_are_done(tmp_path):
    events = []
    with Checkpointer(tmp_path / "run", engine="process", hooks=[events.append], retain=Last(5)) as cp:
        cp.write(1, step=1, durable=True)
        cp.write(2, step=2, durable=True)
        cp.delete(1)
        assert [info.step for info in cp.checkpoints()] == [2]
        assert cp.sweep().objects == 0
    kinds = [type(event).__name__ for event in events]
    assert kinds.count("Opened") == 1
    assert kinds.count("Staged") == kinds.count("Committed") == 2


def test_one_that_is_never_used_leaves_no_process(tmp_path):
    cp = Checkpointer(tmp_path / "run", engine="process")
    pid = cp._early.pid
    del cp
    gc.collect()
    assert not is_alive(pid)


def test_what_was_throttled_is_committed_at_close(tmp_path):
    with Checkpointer(tmp_path / "run", engine="process", every=Every(steps=10)) as cp:
        for step in range(5):
            cp.write({"step": step}, step=step)
    with limpet.open(tmp_path / "run") as run:
        assert run.read() == {"step": 4}
