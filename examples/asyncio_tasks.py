"""Several coroutines, each with a run of its own below one checkpointer; the event loop never stalls.

Run it twice with the same folder: the second time each shard goes on where it was.

    python examples/asyncio_tasks.py [folder]
"""

import asyncio
import sys
import tempfile

from limpet import Checkpointer

SHARDS = 4
ITEMS = 20


async def crawl(cp: Checkpointer, shard: int) -> int:
    child = cp.child(f"shard-{shard}")
    run = await child.resume_async(initial={"total": 0, "seen": []})
    state = run.state
    print(f"shard {shard} starts at item {run.next_step}")

    for item in range(run.next_step, ITEMS):
        await asyncio.sleep(0.001 * (shard + 1))  # the work: a page fetched, a file parsed
        state["total"] += item
        state["seen"].append(f"{shard}/{item}")
        await child.write_async(state, step=item)
    return state["total"]


async def main(folder: str) -> None:
    async with Checkpointer(folder) as cp:
        totals = await asyncio.gather(*(crawl(cp, shard) for shard in range(SHARDS)))
    print(f"totals: {totals}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="limpet-shards-")))
