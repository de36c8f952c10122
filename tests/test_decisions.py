"""What pages of docs/decisions say and no other test looks at."""

from __future__ import annotations

import numpy as np
from tests.support import noise, run_script

import limpet
from limpet.engine.memory import MemoryBudget
from limpet.engine.slots import SlotPool
from limpet.format.layout import parse_pack_key

MIB = 1 << 20


def test_packs_of_a_save_are_numbered_and_read_as_one(tmp_path, monkeypatch):
    """Decision 0009."""
    monkeypatch.setattr("limpet.engine.upload._PACK_BYTES", 4 * MIB)
    state = noise(1, 40 * MIB)
    with limpet.Checkpointer(tmp_path, compression="off") as cp:
        cp.write(state, durable=True)
        names = [parse_pack_key(path.relative_to(tmp_path).as_posix()) for path in tmp_path.glob("data/*/*.pack")]
        assert sorted(name.part for name in names) == [0, 1, 2]
        assert {(name.epoch, name.save, name.rank) for name in names} == {(1, 1, 0)}
        assert np.array_equal(cp.read(), state)


def test_a_chunk_of_a_body_is_not_referred_to_by_a_later_save(tmp_path):
    """Decision 0010."""
    state = {"same": noise(1, 3000)}
    with limpet.Checkpointer(tmp_path, retain=limpet.Last(1)) as cp:
        first = cp.write(state, durable=True).result()
        second = cp.write(state, durable=True).result()
        assert min(first.new_bytes, second.new_bytes) > 3000
        assert not list(tmp_path.glob("data/*/*"))
        assert np.array_equal(cp.read()["same"], state["same"])


def test_a_directory_that_is_saved_right_before_the_end_of_a_script_is_committed(tmp_path):
    """Decision 0011: nothing that a save needs refuses work once the main thread has ended."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large").write_bytes(bytes(3 * MIB))
    code = """
        import sys, limpet
        cp = limpet.Checkpointer(sys.argv[2])
        cp.save(sys.argv[1], step=1)
    """
    done = run_script(code, tmp_path / "work", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    with limpet.open(tmp_path / "run") as run:
        restored = run.restore(tmp_path / "restored")
    assert (restored / "large").read_bytes() == bytes(3 * MIB)


def test_memory_that_somebody_still_reads_is_not_leased_again():
    """Decision 0012."""
    pool = SlotPool(2, MemoryBudget(64 * MIB))
    lease = pool.try_lease(MIB)
    lent = lease.borrow(0, MIB)
    address = lent.__array_interface__["data"][0]
    lease.release()
    again = pool.try_lease(MIB)
    assert again.memory.__array_interface__["data"][0] != address
    del lent
    again.release()
    reused = pool.try_lease(MIB)
    assert reused.memory.nbytes == MIB
    reused.release()
    del lease, again, reused
    pool.close()


def test_memory_that_nobody_reads_any_more_is_leased_again():
    """Decision 0012."""
    pool = SlotPool(2, MemoryBudget(64 * MIB))
    lease = pool.try_lease(MIB)
    address = lease.memory.__array_interface__["data"][0]
    lent = lease.borrow(0, MIB)
    del lent
    lease.release()
    again = pool.try_lease(MIB)
    assert again.memory.__array_interface__["data"][0] == address
    again.release()
    pool.close()
