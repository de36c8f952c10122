"""What is wrong in a call is refused at once, in words that help and repeat no secret."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limpet
from limpet import Best, Checkpointer, Every, Files, Last, NotFoundError, Periodic, UsageError
from limpet.owner import check_rank
from limpet.stores.urls import open_store
from limpet.warm import open_start


@pytest.mark.parametrize(
    "setting",
    [
        {"owner": 5},
        {"owner": "\ud800"},
        {"owner": "x" * 1025},
        {"hooks": print},
        {"hooks": [1]},
        {"storage": [1]},
        {"takeover": 1},
        {"allow_pickle": "yes"},
        {"start_from": ""},
        {"start_from": 5},
        {"start_from": "ftp://x/y"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_at_once(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Checkpointer(tmp_path / "run", **setting)


@pytest.mark.parametrize("url", ["s3://KEY:SECRET@bucket/a", "s3://KEY:SEC/RET@bucket", "gs://SECRET@b/a"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    for place, more in ((url, {}), (tmp_path, {"start_from": url})):
        with pytest.raises(UsageError, match="storage=") as caught:
            Checkpointer(place, **more)  # type: ignore[arg-type]  # of two kinds
        assert "SEC" not in str(caught.value)


def test_storage_options_reach_only_a_store_of_the_same_scheme(tmp_path: Path) -> None:
    options = {"region": "us-east-1"}
    open_start(str(tmp_path), "s3://bucket/run", options)  # a folder would refuse them
    with pytest.raises(UsageError, match="no storage options"):
        open_start(str(tmp_path), str(tmp_path), options)


def test_a_checkpoint_of_another_run_is_not_taken_for_ours(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as cp:
        cp.write(1, durable=True)
        [info] = cp.checkpoints()
        assert cp.read(at=info) == 1
        with pytest.raises(NotFoundError, match="another run"):
            cp.read(at=replace(info, time=info.time + 1))
        with pytest.raises(NotFoundError, match=f"live seqs: .{info.seq}"):
            cp.read(at=3)


def test_after_a_warm_start_restored_is_that_of_the_source(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "old") as cp:
        cp.write(1, step=7, durable=True)
    with Checkpointer(tmp_path / "new", start_from=tmp_path / "old") as cp:
        cp.resume()
        assert cp.restored is not None
        assert cp.restored.step == 7


@pytest.mark.parametrize("name", ["", 5, "\ud800"])
def test_a_child_needs_a_name(name: Any, tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as cp, pytest.raises(UsageError, match="child"):
        cp.child(name)
    with limpet.open(tmp_path) as run, pytest.raises(UsageError, match="child"):
        run.child(name)


@pytest.mark.parametrize("opening", [Checkpointer, limpet.open])
def test_none_is_not_a_place(opening: Any) -> None:
    with pytest.raises(UsageError, match="is not a place for a run"):
        opening(None)


def test_numbers_of_numpy_become_plain() -> None:
    given = [Last(np.int64(3)).n, Best("m", np.int8(2)).n, Every(steps=np.int32(5)).steps]  # type: ignore[arg-type]
    assert [type(each) for each in given] == [int, int, int]
    assert type(Periodic(seconds=np.float32(1.5)).seconds) is float  # type: ignore[arg-type]


def test_a_metric_is_valid_text() -> None:
    with pytest.raises(UsageError):
        Best("\ud800")


def test_files_are_described_with_their_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    with Checkpointer(tmp_path / "run") as cp:
        cp.write({"f": Files(tmp_path / "f")}, durable=True)
        [row] = cp.describe()
    assert (row.kind, row.nbytes, row.shape) == ("files", 5, ())


def test_hints_say_what_works(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Write s3://bucket/run-42"):
        open_store("s3://")
    with pytest.raises(UsageError, match="Leave storage= out"):
        open_store(tmp_path, {"region": "x"})
    with pytest.raises(UsageError, match="reads on every rank"):
        check_rank({"RANK": "1"})
