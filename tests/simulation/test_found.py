"""What the simulation found, each as a small case of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tests.faulty import PATIENCE_SECONDS, Faulty, write_over
from tests.protocol.logs import opened
from tests.support import noise

from limpet import FencedError, Last, LimpetError
from limpet.engine.opening import fresh_view
from limpet.format.layout import DATA_PREFIX, PackName, pack_key
from limpet.stores.base import Entry
from limpet.stores.memory import MemoryStore


@pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")
async def test_a_coroutine_that_was_told_of_a_fence_goes_on_when_another_save_fails_of_it() -> None:
    """The same error is given to everybody; to clear its frames ended whoever waited in one of them."""
    store = Faulty(MemoryStore())
    old = write_over(store, retain=Last(5))
    for step in (1, 2):
        await old.write_async(noise(step), step=step, durable=True)
    upload = store.script("put", waits=True)
    pending = await old.write_async(noise(3), step=3)
    await asyncio.to_thread(upload.wait_until_reached)
    async with write_over(store, takeover=True) as new:
        await new.checkpoints_async()
        told, go_on = asyncio.Event(), asyncio.Event()

        async def caller() -> str:
            try:
                await old.delete_async(1)
            except FencedError:
                told.set()
                await go_on.wait()
            return "went on"

        task = asyncio.create_task(caller())
        await asyncio.wait_for(told.wait(), PATIENCE_SECONDS)
        upload.release()
        with pytest.raises(FencedError):
            await pending
        go_on.set()
        assert await asyncio.wait_for(task, PATIENCE_SECONDS) == "went on"
    with contextlib.suppress(LimpetError):
        await old.close_async()


class BegunMeanwhile(MemoryStore):
    """Another writer opens the run and uploads its first pack just before the data is listed."""

    begun = False

    async def list(self, prefix: str) -> list[Entry]:
        if prefix == DATA_PREFIX and not self.begun:
            self.begun = True
            await opened(self)  # type: ignore[arg-type]
            await self.put(pack_key(PackName(1, 1, "0000aaaa", 0, 0)), parts(b"a pack"))
        return await super().list(prefix)


async def parts(*data: bytes) -> Any:
    for one in data:
        yield [one]


async def test_a_run_that_begins_while_it_is_looked_at_is_not_damaged() -> None:
    store = BegunMeanwhile()
    view = await fresh_view(store)
    assert store.begun
    assert (view.checkpoints, view.damaged, view.head_damaged) == ([], {}, ())
