"""``start_from=``: an empty run begins where another one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.reads.states import big, same

import limpet
from limpet import Checkpointer, CorruptError, NotFoundError, StoreError, UsageError
from limpet.format.layout import log_key


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A run with the states of steps 0 to 2."""
    root = tmp_path / "parent"
    with Checkpointer(root) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
    return root


def test_an_empty_run_starts_from_the_newest_state_of_another(parent: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=str(parent)) as cp:
        found = cp.resume(initial=0)
        assert same(found.state, 2)
        assert found.next_step == 3


def test_an_empty_run_starts_from_a_step_of_another(parent: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=f"{parent}@1") as cp:
        assert same(cp.resume().state, 1)
        assert same(cp.read(), 1)


def test_a_path_object_names_another_run(parent: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=parent) as cp:
        assert same(cp.read(), 2)


def test_once_it_has_a_checkpoint_the_run_goes_its_own_way(parent: Path, tmp_path: Path) -> None:
    for expected in (2, 10, 10):
        with Checkpointer(tmp_path / "new", start_from=str(parent)) as cp:
            assert same(cp.resume().state, expected)
            if expected == 2:
                cp.write(big(10), step=10, durable=True)


def test_where_it_came_from_is_recorded(parent: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=f"{parent}@1"):
        pass
    opened = json.loads((tmp_path / "new" / log_key(1)).read_bytes())["record"]
    assert opened["note"] == {"start_from": f"{parent}@1"}


def test_the_other_run_is_not_touched(parent: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    with Checkpointer(tmp_path / "new", start_from=str(parent)) as cp:
        cp.resume()
        cp.write(big(9), step=9, durable=True)
    assert {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()} == before


def test_it_fills_live_arrays_too(parent: Path, tmp_path: Path) -> None:
    into = big(7)
    weights = into["weights"]
    with Checkpointer(tmp_path / "new", start_from=str(parent)) as cp:
        cp.resume(into=into)
    assert same(into, 2)
    assert into["weights"] is weights


def test_a_step_of_this_run_is_not_looked_for_in_the_other(parent: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=str(parent)) as cp, pytest.raises(NotFoundError):
        cp.read(at=1)


def test_another_run_that_holds_nothing_is_an_error(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=str(tmp_path / "nothing")) as cp:
        with pytest.raises(NotFoundError, match="nothing was ever committed there"):
            cp.resume(initial=0)
    assert not (tmp_path / "nothing").exists()


def test_a_step_that_the_other_run_does_not_have_is_an_error(parent: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", start_from=f"{parent}@77") as cp, pytest.raises(NotFoundError, match="step 77"):
        cp.resume(initial=0)


@pytest.mark.parametrize("text", ["runs/41@x", "runs/41@", "@5", "runs/41@-1", "runs/41@1.5", "runs/41@²"])
def test_what_names_no_step_is_refused_at_once(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="start_from"):
        Checkpointer(tmp_path / "new", start_from=text)
    assert not (tmp_path / "new").exists()


def test_an_at_sign_in_a_folder_above_is_no_step(tmp_path: Path) -> None:
    root = tmp_path / "me@home" / "run"
    with Checkpointer(root) as cp:
        cp.write("there", durable=True)
    with Checkpointer(tmp_path / "new", start_from=str(root)) as cp:
        assert cp.read() == "there"


def test_an_unknown_scheme_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ftp"):
        Checkpointer(tmp_path / "new", start_from="ftp://x/y")


def test_damage_here_does_not_lead_there(parent: Path, tmp_path: Path) -> None:
    root = tmp_path / "new"
    with Checkpointer(root) as cp:
        cp.write(np.arange(100_000), step=50, durable=True)
    for pack in root.rglob("*.pack"):
        pack.write_bytes(b"")
    with Checkpointer(root, start_from=str(parent)) as cp, pytest.raises(CorruptError, match="no checkpoint verifies"):
        cp.resume(initial=0)


@pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")
def test_a_damaged_log_here_does_not_lead_there(parent: Path, tmp_path: Path) -> None:
    root = tmp_path / "new"
    with Checkpointer(root) as cp:
        cp.write(1, step=50, durable=True)
    for seq in (2, 3):
        (root / log_key(seq)).write_bytes(b"damaged")
    with Checkpointer(root, start_from=str(parent)) as cp, pytest.raises(CorruptError, match="damaged"):
        cp.resume(initial=0)


def test_another_run_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "limpet.json").mkdir()
    with Checkpointer(tmp_path / "new", start_from=str(tmp_path / "parent")) as cp:
        with pytest.raises((StoreError, limpet.FormatError)):
            cp.resume(initial=0)


def test_files_of_another_run_can_be_restored_lazily(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"content")
    with Checkpointer(tmp_path / "parent") as cp:
        cp.write({"files": limpet.Files(source), "n": 1}, step=1, durable=True)
    with Checkpointer(tmp_path / "new", start_from=str(tmp_path / "parent")) as cp:
        state: Any = cp.resume().state
        restored = state["files"].restore(tmp_path / "out")
        assert (restored / "f").read_bytes() == b"content"
