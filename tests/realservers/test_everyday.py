"""A whole job on each kind of bucket, through urls and ``storage=`` alone, as a user would have it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.servers import Server

import limpet
from limpet import Best, Checkpointer, FencedError, Files, Last, NotFoundError
from limpet.format.layout import parse_pack_key
from limpet.stores.urls import open_store

SECRETS = ("secret_access_key", "account_key", "bearer_token")
PARTS_BYTES = 40 << 20
"""More than two parts of an upload."""


def state_of(step: int) -> dict[str, Any]:
    """A state with a frozen half, which later saves refer to, and one that changes."""
    random = np.random.default_rng(step)
    return {
        "step": step,
        "frozen": np.random.default_rng(0).random(200_000),
        "weights": random.random(150_000, dtype=np.float32),
        "name": f"step {step}",
    }


def same(found: Any, step: int) -> bool:
    wanted = state_of(step)
    return bool(
        found.keys() == wanted.keys()
        and (found["step"], found["name"]) == (step, wanted["name"])
        and found["frozen"].tobytes() == wanted["frozen"].tobytes()
        and found["weights"].tobytes() == wanted["weights"].tobytes()
    )


def objects_at(url: str, server: Server) -> dict[str, bytes]:
    """Every object below ``url``, with its bytes."""

    async def collect() -> dict[str, bytes]:
        store = open_store(url, server.storage)
        try:
            return {entry.key: await store.get(entry.key, limit=1 << 30) for entry in await store.list("")}
        finally:
            await store.close()

    return asyncio.run(collect())


def test_a_job_saves_resumes_keeps_and_verifies(bucket: Server) -> None:
    url = bucket.fresh_url()
    retain = Last(2) | Best("loss")
    with Checkpointer(url, storage=bucket.storage, retain=retain) as cp:
        assert cp.resume(initial=None).info is None
        for step in range(4):
            cp.write(state_of(step), step=step, meta={"loss": abs(step - 1)}, durable=True)
    with Checkpointer(url, storage=bucket.storage) as cp:
        resumed = cp.resume()
        assert resumed.next_step == 4
        assert same(resumed.state, 3)
        assert [info.step for info in cp.checkpoints()] == [1, 2, 3]
        for info in cp.checkpoints():
            assert same(cp.read(at=info), info.step or 0)
            assert cp.verify(info) is not None
        cp.pin(2)
        cp.delete(1)
        for step in range(4, 7):
            cp.write(state_of(step), step=step, meta={"loss": step}, durable=True)
    with limpet.open(url, storage=bucket.storage) as run:
        assert [info.step for info in run.checkpoints()][-2:] == [5, 6]
        assert same(run.read(at=2), 2)
        assert same(run.read(), 6)
        with pytest.raises(NotFoundError):
            run.read(at=1)


def test_a_sweep_leaves_what_is_live_and_what_is_not_ours(bucket: Server) -> None:
    url = bucket.fresh_url()

    async def add_foreign() -> None:
        store = open_store(url, bucket.storage)
        await store.create("tensorboard/events 1.v2", b"foreign")
        await store.create("data/readme.md", b"foreign")
        await store.close()

    asyncio.run(add_foreign())
    with Checkpointer(url, storage=bucket.storage, retain=Last(1)) as cp:
        for step in range(3):
            cp.write(np.random.default_rng(step).bytes(100_000), step=step, durable=True)
        cp.sweep()
        assert cp.read() == np.random.default_rng(2).bytes(100_000)
        there = objects_at(url, bucket)
    packs = [key for key in there if parse_pack_key(key) is not None]
    assert len(packs) == 1
    assert (there["tensorboard/events 1.v2"], there["data/readme.md"]) == (b"foreign", b"foreign")


def test_a_state_of_several_parts_comes_back_whole(bucket: Server) -> None:
    url = bucket.fresh_url()
    data = np.random.default_rng(1).integers(0, 256, PARTS_BYTES, np.uint8)
    with Checkpointer(url, storage=bucket.storage, compression="off") as cp:
        cp.write({"data": data}, durable=True)
    with limpet.open(url, storage=bucket.storage) as run:
        into = {"data": np.zeros_like(data)}
        run.resume(into=into)
        assert np.array_equal(into["data"], data)
        assert run.verify() is not None


def test_children_are_runs_of_their_own(bucket: Server) -> None:
    url = bucket.fresh_url()
    with Checkpointer(url, storage=bucket.storage) as cp:
        for name in ("policy", "value/ü", "replay"):
            cp.child(name).write(state_of(len(name)), step=len(name), durable=True)
        cp.write({"all": 3}, durable=True)
    with limpet.open(url, storage=bucket.storage) as run:
        assert run.read() == {"all": 3}
        for name in ("policy", "value/ü", "replay"):
            assert same(run.child(name).read(), len(name))


def test_a_new_run_starts_from_another(bucket: Server) -> None:
    parent, url = bucket.fresh_url(), bucket.fresh_url()
    with Checkpointer(parent, storage=bucket.storage) as cp:
        for step in (10, 20):
            cp.write(state_of(step), step=step, durable=True)
    before = objects_at(parent, bucket)
    with Checkpointer(url, storage=bucket.storage, start_from=f"{parent}@10") as cp:
        assert same(cp.resume().state, 10)
        cp.write(state_of(11), step=11, durable=True)
    with Checkpointer(url, storage=bucket.storage, start_from=f"{parent}@10") as cp:
        assert same(cp.resume().state, 11)
    assert objects_at(parent, bucket) == before


def test_files_are_saved_and_restored(bucket: Server, tmp_path: Path) -> None:
    url = bucket.fresh_url()
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "weights.bin").write_bytes(np.random.default_rng(3).bytes(300_000))
    with Checkpointer(url, storage=bucket.storage) as cp:
        cp.write({"files": Files(source)}, durable=True)
    with limpet.open(url, storage=bucket.storage) as run:
        restored = run.read()["files"].restore(tmp_path / "restored")
    assert (restored / "below" / "weights.bin").read_bytes() == (source / "below" / "weights.bin").read_bytes()


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_replaced_writer_is_fenced(bucket: Server) -> None:
    url = bucket.fresh_url()
    with Checkpointer(url, storage=bucket.storage) as old:
        old.write(1, step=1, durable=True)
        with Checkpointer(url, storage=bucket.storage) as new:
            assert new.read() == 1
            with pytest.raises(FencedError):
                old.write(2, step=2, durable=True)
            new.write(3, step=3, durable=True)
    with limpet.open(url, storage=bucket.storage) as run:
        assert [info.step for info in run.checkpoints()] == [1, 3]


async def test_coroutines_save_and_read(bucket: Server) -> None:
    url = bucket.fresh_url()
    async with Checkpointer(url, storage=bucket.storage) as cp:
        await cp.write_async(state_of(5), step=5, durable=True)
        assert same(await cp.read_async(), 5)


def test_no_secret_reaches_the_bucket_or_a_repr(bucket: Server) -> None:
    url = bucket.fresh_url()
    secrets = [value for name, value in bucket.storage.items() if name in SECRETS]
    assert secrets
    with Checkpointer(url, storage=bucket.storage) as cp:
        cp.write(state_of(1), step=1, meta={"a": 1}, durable=True)
        shown = repr(cp) + repr(cp.checkpoints())
    there = objects_at(url, bucket)
    assert there
    for secret in secrets:
        assert secret not in shown
        assert not [key for key, data in there.items() if secret.encode() in data]


def test_a_run_that_is_not_there_is_empty_and_a_wrong_key_is_an_error(bucket: Server) -> None:
    url = bucket.fresh_url()
    with limpet.open(url, storage=bucket.storage) as run:
        assert run.read() is None
    wrong = {name: _bent(value) if name in SECRETS else value for name, value in bucket.storage.items()}
    with limpet.open(url, storage=wrong) as run, pytest.raises(limpet.StoreError) as caught:
        run.read()
    assert caught.value.kind == "access"
    assert objects_at(url, bucket) == {}


def _bent(secret: str) -> str:
    """Another secret of the same form."""
    return ("B" if secret[0] == "A" else "A") + secret[1:]
