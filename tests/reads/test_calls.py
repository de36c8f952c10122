"""What each reading call gives, when all is well."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.states import big, fill, same

import limpet
from limpet import Best, Checkpointer, Last, NotFoundError, UsageError


def test_a_checkpoint_is_read_by_its_step_or_its_info(store: Faulty) -> None:
    fill(store)
    with read_over(store) as run:
        for info in run.checkpoints():
            assert info.step is not None
            assert same(run.read(at=info.step), info.step)
            assert run.restored == info
            assert same(run.read(at=info), info.step)


def test_checkpoints_come_oldest_first_with_what_was_written(store: Faulty) -> None:
    fill(store)
    with read_over(store) as run:
        found = run.checkpoints()
        assert [info.seq for info in found] == [2, 3, 4]
        assert [info.step for info in found] == [0, 1, 2]
        assert [info.meta for info in found] == [{"loss": 10}, {"loss": 9}, {"loss": 8}]
        assert {info.owner for info in found} == {"test"}
        assert {info.epoch for info in found} == {1}
        assert {info.raw_bytes for info in found} == {460_000}
        assert run.latest == found[-1]


def test_resume_says_where_to_go_on(store: Faulty) -> None:
    fill(store)
    with read_over(store) as run:
        found = run.resume()
        assert same(found.state, 2)
        assert found.next_step == 3
        assert found.meta == {"loss": 8}
        assert found.info == run.latest == run.restored


def test_without_a_step_there_is_no_next_one(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write(1, durable=True)
        with pytest.raises(UsageError, match="without a step"):
            cp.resume().next_step  # noqa: B018


def test_best_is_by_the_metric(store: Faulty) -> None:
    with write_over(store, retain=Last(10)) as cp:
        for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0, None]):
            cp.write(step, step=step, meta={} if loss is None else {"loss": loss}, durable=True)
        best, worst, none = cp.best("loss"), cp.best("loss", largest=True), cp.best("accuracy")
        assert best is not None
        assert worst is not None
        assert (best.step, worst.step, none) == (1, 0, None)


def test_best_survives_with_its_policy(store: Faulty) -> None:
    with write_over(store, retain=Last(1) | Best("loss")) as cp:
        for step, loss in enumerate([3, 1, 2, 5]):
            cp.write(step, step=step, meta={"loss": loss}, durable=True)
        best = cp.best("loss")
        assert best is not None
        assert cp.read(at=best) == 1


def test_a_part_is_selected_without_reading_the_rest(store: Faulty) -> None:
    fill(store)
    with read_over(store) as run:
        store.calls.clear()
        assert run.read(select="name") == "step 2"
        assert run.read(select="weights").tobytes() == big(2)["weights"].tobytes()
        assert run.read(select="step", at=0) == 0


def test_into_fills_the_same_memory(store: Faulty) -> None:
    fill(store)
    into = big(0)
    weights, noise = into["weights"], into["noise"]
    with read_over(store) as run:
        found = run.read(into=into)
    assert found is into
    assert found["weights"] is weights
    assert found["noise"] is noise
    assert same(into, 2)


def test_resume_into_leaves_the_live_state_alone_when_there_is_nothing(store: Faulty) -> None:
    into = big(5)
    with write_over(store) as cp:
        found = cp.resume(into=into)
        assert found.state is into
        assert found.info is None
    assert same(into, 5)


def test_into_and_initial_contradict_each_other(store: Faulty) -> None:
    with write_over(store) as cp, pytest.raises(UsageError, match="not both"):
        cp.resume(1, into=2)  # type: ignore[call-overload]


def test_into_calls_load_state_dict(store: Faulty) -> None:
    class Model:
        def __init__(self) -> None:
            self.weights = np.zeros(3)
            self.loaded = 0

        def state_dict(self) -> dict[str, Any]:
            return {"weights": self.weights}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.weights = state["weights"]
            self.loaded += 1

    model = Model()
    model.weights += 7
    with write_over(store) as cp:
        cp.write({"model": model}, durable=True)
        fresh = Model()
        cp.read(into={"model": fresh})
    assert fresh.loaded == 1
    assert fresh.weights.tolist() == [7, 7, 7]


def test_an_error_after_the_first_byte_says_that_the_target_is_undefined(store: Faulty, shelf: Shelf) -> None:
    fill(store, 1)
    shelf.flip(shelf.packs()[0], 1000)
    with read_over(store) as run, pytest.raises(limpet.CorruptError) as caught:
        run.read(into=big(0), at=0)
    assert "undefined" in caught.value.hint


def test_describe_gives_rows_without_reading_data(store: Faulty) -> None:
    fill(store)
    with read_over(store) as run:
        rows = {row.path: row for row in run.describe()}
    assert set(rows) == {"step", "weights", "noise", "name"}
    assert (rows["weights"].dtype, rows["weights"].shape, rows["weights"].nbytes) == ("float32", (40_000,), 160_000)
    assert store.count("read_into") == 0


def test_a_writer_reads_what_it_has_committed(store: Faulty) -> None:
    with write_over(store) as cp:
        assert cp.read() is None
        cp.write(big(0), step=0, durable=True)
        assert same(cp.read(), 0)
        assert cp.latest == cp.restored == cp.checkpoints()[0]


def test_a_closed_run_is_closed(store: Faulty) -> None:
    run = read_over(store)
    with run:
        run.read()
    with pytest.raises(UsageError, match="closed") as caught:
        run.read()
    assert caught.value.kind == "closed"


def test_children_are_read_through_their_parent(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as cp:
        cp.write("parent", durable=True)
        cp.child("a").write("child", durable=True)
        cp.child("a").child("b").write("grandchild", durable=True)
    with limpet.open(tmp_path) as run:
        assert run.read() == "parent"
        assert run.child("a").read() == "child"
        assert run.child("a").child("b").read() == "grandchild"
        assert run.child("z").read() is None


# Reading only


def snapshot(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every entry with its bytes and its time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def test_reading_creates_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
    before = snapshot(tmp_path)
    with limpet.open(tmp_path) as run:
        assert same(run.read(), 2)
        run.resume()
        run.checkpoints()
        run.best("loss")
        run.verify()
        run.describe()
        run.child("x").read()
    assert snapshot(tmp_path) == before


def test_reading_fences_nobody(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as cp:
        cp.write(big(0), step=0, durable=True)
        with limpet.open(tmp_path) as run:
            assert same(run.read(), 0)
        cp.write(big(1), step=1, durable=True)
        assert same(cp.read(), 1)


def test_a_folder_that_may_only_be_read_can_be_read(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with Checkpointer(root) as cp:
        cp.write(big(0), step=0, durable=True)
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o555)
    try:
        with limpet.open(root) as run:
            assert same(run.read(), 0)
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o700)


def test_a_copied_run_reads_the_same_and_can_be_written(tmp_path: Path) -> None:
    """R12"""
    with Checkpointer(tmp_path / "old") as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
        cp.child("c").write(b"child", durable=True)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    with limpet.open(tmp_path / "old") as old, limpet.open(tmp_path / "new") as new:
        assert old.checkpoints() == new.checkpoints()
        assert same(new.read(), 2)
        assert new.child("c").read() == b"child"
        assert new.verify() is not None
    with Checkpointer(tmp_path / "new") as cp:
        assert cp.resume().next_step == 3
        cp.write(big(3), step=3, durable=True)
    with limpet.open(tmp_path / "old") as old, limpet.open(tmp_path / "new") as new:
        assert same(old.read(), 2)
        assert same(new.read(), 3)


def test_a_run_that_was_copied_while_it_was_written_reads_something_that_was_written(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "old") as cp:
        for step in range(3):
            cp.write(big(step), step=step, durable=True)
        shutil.copytree(tmp_path / "old", tmp_path / "new", ignore=shutil.ignore_patterns("tmp", "*.lock"))
    with limpet.open(tmp_path / "new") as new:
        assert same(new.read(), 2)


def test_objects_restored_to_a_memory_store_read_the_same(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    other = Faulty()
    copy = Shelf(other.store)
    for key, data in reversed(shelf.objects.items()):
        copy.replace(key, data)
    with read_over(other) as run:
        assert same(run.read(), 2)


def test_a_copy_without_its_log_is_an_error_and_not_none(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    for key in shelf.keys("log/"):
        shelf.remove(key)
    with read_over(store) as run, pytest.raises(limpet.CorruptError, match="no log"):
        run.read()


def test_a_copy_without_its_marker_reads_the_same(store: Faulty, shelf: Shelf) -> None:
    fill(store)
    shelf.remove("limpet.json")
    with read_over(store) as run:
        assert same(run.read(), 2)


def test_reading_needs_no_rank(store: Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as cp:
        cp.write(1, durable=True)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with limpet.open(tmp_path) as run:
        assert run.read() == 1


def test_restore_is_for_what_was_saved(store: Faulty, tmp_path: Path) -> None:
    with write_over(store) as cp:
        cp.write({"a": 1}, durable=True)
        with pytest.raises(UsageError, match=r"written with write\(\)"):
            cp.restore(tmp_path / "out")
        with pytest.raises(NotFoundError):
            cp.restore(tmp_path / "out", at=3)
