"""Every example runs as it is typed: a script, a folder, a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers import s3_server  # noqa: F401

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=100,
    )


def test_every_example_has_a_test():
    tests = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tests] == []


def test_the_counter_ends_although_it_fails_every_few_iterations(tmp_path):
    ended = run_example("counter_retry.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stdout.splitlines() if line.startswith("starting at")] == [
        "starting at 0",
        "starting at 3",
        "starting at 6",
        "starting at 9",
    ]
    assert "done, 10 iterations" in ended.stdout


def test_the_coroutines_go_on_where_they_were(tmp_path):
    first = run_example("asyncio_tasks.py", tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("starts at item 0") == 4
    second = run_example("asyncio_tasks.py", tmp_path)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("starts at item 20") == 4
    assert "totals: [190, 190, 190, 190]" in first.stdout
    assert "totals: [190, 190, 190, 190]" in second.stdout


@pytest.mark.torch
def test_the_torch_loop_ends_with_the_weights_of_an_uninterrupted_run(tmp_path):
    pytest.importorskip("torch", reason="the example trains a torch model")
    ended = run_example("torch_loop.py", tmp_path)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "step 20 to 40" in ended.stdout
    assert "weights equal, bit for bit: True" in ended.stdout


def test_the_directory_comes_back_after_the_disk_is_gone(tmp_path):
    ended = run_example("save_directory.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "restored ['part-0.txt', 'part-1.txt', 'part-2.txt']" in ended.stdout
    assert "goes on with part 3" in ended.stdout


def test_the_s3_example_runs_on_a_folder_too(tmp_path):
    ended = run_example("s3.py", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert "step 10 to 20" in ended.stdout
    assert "step 19 is durable" in ended.stdout


@pytest.mark.server
def test_the_s3_example_runs_on_a_server(s3_server):  # noqa: F811
    url = s3_server.fresh_url()
    ended = run_example(
        "s3.py",
        LIMPET_S3_URL=url,
        LIMPET_S3_ENDPOINT=s3_server.storage["endpoint"],
        LIMPET_S3_ACCESS_KEY=s3_server.storage["access_key_id"],
        LIMPET_S3_SECRET_KEY=s3_server.storage["secret_access_key"],
        LIMPET_S3_REGION=s3_server.storage["region"],
    )
    assert ended.returncode == 0, ended.stderr
    assert "step 10 to 20" in ended.stdout
    assert "step 19 is durable" in ended.stdout
