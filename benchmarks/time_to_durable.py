"""How long until a save is durable, on a fast disk and on a slow store?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import limpet.checkpointer
from limpet.stores.urls import open_store

from measuring.contender import Limpet
from measuring.peers import PEERS, PlainWrite, absent, durability, present
from measuring.plots import Plot
from measuring.report import Report, Samples
from measuring.running import options, turns, workplace
from measuring.states import MIB, Arrays, arrays

PLAIN = PlainWrite.title
OFF, AUTO = "limpet, compression off", "limpet, compression auto"
SLOW_BYTES_PER_SECOND = 100e6


class SlowStore:
    """A store that takes in data at so many bytes a second, and does all else as fast as it can."""

    def __init__(self, store: Any, bytes_per_second: float) -> None:
        self._store = store
        self._bytes_per_second = bytes_per_second

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, key: str, parts: AsyncIterable[Sequence[Any]], *, size_hint: int = 0) -> int:
        size: int = await self._store.put(key, self._paced(parts), size_hint=size_hint)
        return size

    async def _paced(self, parts: AsyncIterable[Sequence[Any]]) -> AsyncIterator[Sequence[Any]]:
        start, taken = time.monotonic(), 0
        async for part in parts:
            taken += sum(len(buffer) for buffer in part)
            yield part
            await asyncio.sleep(max(0.0, start + taken / self._bytes_per_second - time.monotonic()))


@contextmanager
def slow_stores() -> Iterator[None]:
    """What is opened meanwhile is slow."""

    def slow(*arguments: Any) -> Any:
        return SlowStore(open_store(*arguments), SLOW_BYTES_PER_SECOND)

    with mock.patch.object(limpet.checkpointer, "open_store", slow):
        yield


def ours(folder: Path, state: Arrays, stack: ExitStack) -> dict[str, Limpet]:
    """limpet with and without compression, below ``folder``."""
    folder.mkdir()
    both = {
        OFF: Limpet(folder / "off", state, "compression off", compression="off"),
        AUTO: Limpet(folder / "auto", state, "compression auto"),
    }
    for each in both.values():
        stack.callback(each.close)
    return both


def ratio_of_bytes(limpet_auto: Limpet) -> float:
    """Raw by stored, of the last save."""
    assert limpet_auto.pending is not None
    receipt = limpet_auto.pending.result()
    return receipt.raw_bytes / receipt.new_bytes


def fast_disk(settings: Any, report: Report) -> None:
    state = arrays(settings.mib)
    need_bytes = (3 * settings.rounds + 12) * settings.mib * MIB
    with workplace(settings.folder, need_bytes) as folder, ExitStack() as stack:
        peers = present(folder, state, flush=True)
        for peer in peers:
            stack.callback(peer.close)
        both = ours(folder / "ours", state, stack)
        contenders = [PlainWrite(folder / "plain", state), *both.values(), *peers]
        values = turns({each.name: each.until_written() for each in contenders}, settings.rounds)
    table = report.table(f"time to durable, {settings.mib} MiB of dense fp32, local folder")
    cells = {name: table.put(name, "time", each, "s") for name, each in values.items()}
    report.bound(f"{PLAIN} / {OFF} (rates)", cells[PLAIN].over(cells[OFF]), row=8, least=0.9)
    report.bound(f"{AUTO} / {OFF}, fast disk", cells[AUTO].over(cells[OFF]), row=9, most=1.05)


def slow_store(settings: Any, report: Report) -> None:
    state = arrays(settings.slow_mib)
    need_bytes = (settings.rounds + 6) * settings.slow_mib * MIB
    with workplace(settings.folder, need_bytes) as folder, ExitStack() as stack, slow_stores():
        both = ours(folder / "slow", state, stack)
        values = turns({name: each.until_written() for name, each in both.items()}, settings.rounds, warmups=2)
        shrunk = ratio_of_bytes(both[AUTO])
    table = report.table(f"time to durable, {settings.slow_mib} MiB of dense fp32, a store that takes 100 MB/s")
    cells = {name: table.put(name, "time", each, "s") for name, each in values.items()}
    gain = Samples([one / shrunk for one in cells[OFF].over(cells[AUTO]).values], "x")
    report.bound(f"({OFF} / {AUTO}) / (raw / stored bytes), slow store", gain, row=9, least=0.95)
    report.notes.append(f"slow store: auto stored 1 / {shrunk:.3f} of the bytes; a gain of 1 x is all of that, in time")


def main() -> None:
    parser = options(__doc__ or "", mib=1024, rounds=5)
    parser.add_argument("--slow-mib", type=int, default=256, help="size on the slow store (default: %(default)s)")
    settings = parser.parse_args()
    report = Report(__doc__ or "", settings, absent=absent(PEERS), notes=durability(PEERS))
    fast_disk(settings, report)
    slow_store(settings, report)
    report.plots.append(Plot("disk", 0, "bars", "seconds"))
    report.finish()


if __name__ == "__main__":
    main()
