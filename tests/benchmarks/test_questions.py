"""Every question runs at toy size, with no peer installed; what the figures are is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
TOY = {
    "bytes_stored": ["--mib", "1", "--rounds", "1"],
    "dense_codec": ["--mib", "1", "--rounds", "1"],
    "every_step": ["--mib", "1", "--rounds", "1", "--steps", "2", "--step-seconds", "0.02"],
    "growth": ["--sizes", "1", "2", "--checkpoints", "1", "3", "--count-mib", "1", "--rounds", "1"],
    "interference": ["--mib", "1", "--rounds", "1", "--quiet-seconds", "0.05", "--loops", "CrowdedPythonLoop"],
    "many_leaves": ["--leaves", "1", "20", "--rounds", "1"],
    "memory": ["--mib", "1", "--rounds", "1"],
    "restore": ["--mib", "1", "--rounds", "1"],
    "small_writes": ["--calls", "3", "--rounds", "1"],
    "stall": ["--mib", "1", "--rounds", "1"],
    "time_to_durable": ["--mib", "1", "--slow-mib", "1", "--rounds", "1"],
}
HIDDEN = ["flytekit", "jax", "matplotlib", "orbax", "safetensors", "torch"]
HIDE = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN}:
            raise ModuleNotFoundError(f"{{name}} is hidden")

sys.meta_path.insert(0, Hidden())
"""


def ask(question, tmp_path, *arguments):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    where = ["--folder", str(tmp_path), "--results", str(tmp_path / "results")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{question}.py"), *arguments, *where],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "results" / f"{question}.json").read_text())


def test_every_question_has_a_toy_size():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"page"} == set(TOY)


@pytest.mark.parametrize("question", sorted(TOY))
def test_a_question_runs_without_peers_and_fills_every_table(question, tmp_path):
    text, plain = ask(question, tmp_path, *TOY[question])

    assert plain["tables"]
    for table in plain["tables"]:
        assert table["title"] in text
        assert table["rows"]
        assert all(cell["values"] for cells in table["rows"].values() for cell in cells.values())
    assert not list(tmp_path.glob("limpet-bench-*"))


def test_a_peer_that_is_not_installed_is_named_with_the_reason(tmp_path):
    text, plain = ask("stall", tmp_path, *TOY["stall"])

    assert "orbax.checkpoint is not installed" in plain["absent"]["orbax AsyncCheckpointer, numpy leaves"]
    assert "absent: torch.save (torch is not installed" in text
    assert "absent: the plots (matplotlib is not installed" in text
