"""docs/performance.md says what its JSON says, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"

PLAIN = {
    "question": "How long?",
    "command": "python benchmarks/stall.py --mib 4",
    "when": "2026-01-01",
    "machine": {"cpu": "one"},
    "versions": {"python": "3.11"},
    "settings": {},
    "tables": [
        {
            "title": "stall",
            "columns": ["time"],
            "rows": {
                "limpet": {"time": {"values": [0.002, 0.001, 0.003], "unit": "s", "median": 0.002, "spread": 0.25}}
            },
        }
    ],
    "bounds": [
        {
            "name": "ours",
            "row": 1,
            "values": [2.0],
            "unit": "x",
            "median": 2.0,
            "spread": 0.0,
            "wanted": "at most 1.2 x",
            "verdict": "MISSED",
        },
        {"name": "lazy", "row": 2, "values": [], "unit": "", "wanted": "", "verdict": "MISSED: refused"},
    ],
    "plots": [],
    "notes": ["a note"],
    "absent": {"orbax": "not installed"},
}


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "page.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})


@pytest.fixture
def places(tmp_path):
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    (results / "stall.json").write_text(json.dumps(PLAIN))
    page.write_text(
        "# Title\n\n<!-- targets -->\nold\n<!-- end -->\n\nprose\n\n<!-- stall -->\n<!-- end -->\n\n<!-- restore -->\n<!-- end -->\n"
    )
    return ["--results", results, "--page", page, "--data", tmp_path / "data"], page


def test_the_page_is_what_its_json_gives():
    done = run("--check")

    assert done.returncode == 0, done.stderr


def test_every_question_has_its_block():
    questions = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"page"}
    blocks = set(re.findall(r"<!-- ([a-z_]+) -->", PAGE.read_text()))

    assert questions | {"targets", "machines", "end"} == blocks


def test_taking_results_writes_tables_verdicts_and_the_command(places):
    where, page = places

    assert run("--take", *where).returncode == 0

    text = page.read_text()
    assert "| limpet | 2 ms | 1 ms | 3 ms | 25% | 3 |" in text
    assert "`nox -s bench -- stall --mib 4`" in text
    assert "| 1 | **stall of a save, mutable state in memory** |  |  | **1 of 1 missed** |  |" in text
    assert "MISSED: refused" in text
    assert "absent: orbax (not installed)" in text
    assert "Not measured yet: `nox -s bench -- restore`." in text
    assert text.startswith("# Title")
    assert "prose" in text
    assert "old" not in text


def test_a_figure_that_was_edited_by_hand_is_noticed(places):
    where, page = places
    run("--take", *where)
    assert run("--check", *where).returncode == 0

    page.write_text(page.read_text().replace("| 2 ms |", "| 1 ms |"))

    assert run("--check", *where).returncode == 1


def test_a_question_without_results_is_refused_by_name(places):
    where, _ = places

    done = run("--take", "restore", *where)

    assert done.returncode == 1
    assert "nox -s bench -- restore" in done.stderr
