"""What only these tests notice: each was written because a mutation survived."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from tests.faulty import PATIENCE_SECONDS, QUICK, Faulty, Shelf, read_over, write_over
from tests.protocol.logs import opened
from tests.stores.contract import parts_of

from limpet import CorruptError, Last, StoreError
from limpet.engine.budget import ByteBudget
from limpet.engine.janitor import Janitor
from limpet.engine.live import LiveSet
from limpet.format.layout import PackName, epoch_prefix, pack_key
from limpet.stores.local import LocalStore
from limpet.stores.memory import MemoryStore

PACK = "data/0000000000000001/00000001-9f3a0000-0000-000.pack"
RECORD = "log/0000000000000/0000000000000001.json"


@pytest.mark.parametrize(("at", "decoder"), [(0, "limpet.format.codec.decode"), (-1, "limpet.format.manifest.inflate")])
def test_bytes_whose_digest_does_not_fit_are_never_decoded(
    at: int, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder is native code that was written for honest input: damage must be found before it sees any."""
    store = Faulty(MemoryStore())
    shelf = Shelf(store.store)
    with write_over(store, compression="zstd") as cp:
        cp.write({"zeros": np.zeros(1 << 20, dtype=np.uint8)}, step=0, durable=True)
    [pack] = shelf.packs()
    shelf.flip(pack, at if at >= 0 else len(shelf.objects[pack]) + at)
    decoded: list[Any] = []
    monkeypatch.setattr(decoder, lambda *given, **_: decoded.append(given))
    with read_over(store) as run, pytest.raises(CorruptError):
        run.read(strict=True)
    assert decoded == []


@pytest.mark.parametrize("planted", ["file", "link"])
@pytest.mark.parametrize("operation", ["put", "create"])
async def test_a_temporary_name_that_was_planted_is_refused(
    tmp_path: Path, planted: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limpet.stores.local_objects.secrets.token_hex", lambda _: "guessed")
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    name = tmp_path / "run" / "tmp" / f"{os.getpid()}-guessed"
    name.parent.mkdir(parents=True)
    if planted == "file":
        os.link(outside, name)
    else:
        name.symlink_to(outside)
    store = LocalStore(tmp_path / "run")
    try:
        with pytest.raises(StoreError):
            await (store.put(PACK, parts_of([b"ours"])) if operation == "put" else store.create(RECORD, b"ours"))
    finally:
        await store.close()
    assert outside.read_bytes() == b"not ours"


async def test_a_save_that_begins_while_an_epoch_is_listed_keeps_its_packs() -> None:
    """What to keep is decided after the listing of each epoch, not when the sweep begins."""
    store = Faulty(MemoryStore())
    shelf = Shelf(store.store)
    log = await opened(store)
    keeper = Janitor(store, log, LiveSet(), QUICK)
    garbage, fresh = (pack_key(PackName(log.epoch, save, "0000aaaa", 0, 0)) for save in (1, 9))
    shelf.replace(garbage, b"x")
    listing = store.script("list", epoch_prefix(log.epoch), waits=True)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: keeper.sweep(graceful=False))
        with anyio.fail_after(PATIENCE_SECONDS):
            while not listing._reached.is_set():
                await anyio.sleep(0)
        keeper.begin(9)
        shelf.replace(fresh, b"x")
        listing.release()
    assert shelf.packs() == [fresh]


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_what_a_commit_that_never_landed_would_have_dropped_is_still_there() -> None:
    """Retention takes effect with the commit's record, not before."""
    store = Faulty(MemoryStore())
    cp = write_over(store, retain=Last(1), timing=replace(QUICK, commit_deadline=60.0))
    with cp:
        cp.write({"step": 0, "weights": np.random.default_rng(0).random(8192)}, step=0, durable=True)
        store.script("create", "log/", waits=True)
        cp.write({"step": 1, "weights": np.random.default_rng(1).random(8192)}, step=1)
        with pytest.raises(StoreError, match="deadline of close"):
            cp.close(timeout=0.2)
    store.heal()
    with read_over(store) as run:
        assert run.read(strict=True)["step"] == 0


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_pack_that_was_lost_between_two_attempts_is_not_shared_by_the_second() -> None:
    """The manifest of the newest checkpoint is there, in a pack of its own; an older pack that it needs is not."""
    frozen = np.random.default_rng(99).random(40_000)

    def state(step: int) -> dict[str, Any]:
        return {"step": step, "frozen": frozen, "own": np.random.default_rng(step).random(8192)}

    store = Faulty(MemoryStore())
    shelf = Shelf(store.store)
    with write_over(store) as cp:
        cp.write(state(0), step=0, durable=True)
        [first] = shelf.packs()
        cp.write(state(1), step=1, durable=True)
    shelf.remove(first)
    with write_over(store) as cp:
        cp.write(state(2), step=2, durable=True)
    with read_over(store) as run:
        found = run.read(strict=True)
    assert found["step"] == 2
    assert np.array_equal(found["frozen"], frozen)


async def test_bytes_that_are_given_back_let_the_next_one_in() -> None:
    budget = ByteBudget(10)
    await budget.acquire(8)
    assert not budget.has_room(8)
    budget.release(8)
    assert budget.held_bytes == 0
    with anyio.fail_after(PATIENCE_SECONDS):
        await budget.acquire(8)
