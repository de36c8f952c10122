"""The demo as a user runs it: a process of its own, on a real folder."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the extra 'cli'")
pytest.importorskip("rich", reason="the extra 'cli'")

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "limpet.cli", "demo"]


def environment(tmp_path):
    return {**os.environ, "TMPDIR": str(tmp_path)}


def demo(tmp_path, *arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path),
        timeout=240,
    )


@pytest.mark.slow
def test_the_demo_ends_with_the_same_bits_as_a_run_that_nobody_killed(tmp_path):
    ended = demo(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "EQUAL, bit for bit: after 5 kills" in ended.stdout
    assert "NOT EQUAL" not in ended.stdout
    assert ended.stdout.count("killed (SIGKILL) after step") == 5
    assert "\x1b" not in ended.stdout
    assert "pickle + fsync" in ended.stdout
    assert list(tmp_path.iterdir()) == [], "the temporary folder is removed"


def test_its_json_is_one_document_with_every_attempt(tmp_path):
    ended = demo(tmp_path, "--json", "--steps", 200, "--kills", 2)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["equal"] is True
    assert document["kills"] == 2
    assert [attempt["killed"] for attempt in document["interrupted"]["attempts"]] == [True, True, False]
    assert document["interrupted"]["attempts"][-1]["last_step"] == 199
    assert document["interrupted"]["state_sha256"] == document["uninterrupted"]["stored_sha256"]
    assert document["uninterrupted"]["committed"] >= 1
    assert document["pickle_fsync_seconds"]["count"] == 10


def test_on_a_url_the_runs_are_left_there_under_a_new_name_each_time(tmp_path):
    place = tmp_path / "place"
    for _ in range(2):
        ended = demo(tmp_path, "--url", place, "--steps", 60, "--kills", 1)
        assert ended.returncode == 0, ended.stderr
        assert "Both runs were left at" in ended.stdout
    assert len(list(place.iterdir())) == 2
    assert {path.name for demo_run in place.iterdir() for path in demo_run.iterdir()} == {"killed", "uninterrupted"}


@pytest.mark.server
@pytest.mark.slow
def test_the_demo_runs_on_a_bucket(tmp_path, s3_server):
    storage = [word for option in s3_server.storage.items() for word in ("--storage", "=".join(option))]
    ended = demo(tmp_path, "--json", "--url", s3_server.fresh_url(), "--steps", 300, "--kills", 2, *storage)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["equal"] is True
    assert document["kills"] == 2
    assert s3_server.storage["secret_access_key"] not in ended.stdout + ended.stderr


def test_ctrl_c_kills_the_child_removes_the_folder_and_exits_130(tmp_path):
    process = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
    )
    guard = threading.Timer(120, process.kill)
    guard.start()
    assert "started from nothing" in process.stdout.readline()
    folders = [path.name for path in tmp_path.iterdir()]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    guard.cancel()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert len(folders) == 1
    assert list(tmp_path.iterdir()) == []
    assert not children_that_write_to(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line_of_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ended = demo(tmp_path, "--url", tmp_path / "file", "--steps", 50)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


def children_that_write_to(folder):
    """Processes with a file open below ``folder``."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor).startswith(str(folder)):
                found.append(descriptor)
        except OSError:  # it ended, or is not ours
            continue
    return found
