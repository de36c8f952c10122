"""How stores end their threads."""

from __future__ import annotations

import asyncio

from limpet.workers import Workers

__all__ = ["end_lanes"]

_FIRST_PAUSE_SECONDS = 0.0002
_LONGEST_PAUSE_SECONDS = 0.05


async def end_lanes(*lanes: Workers, timeout_seconds: float = 5.0) -> bool:
    """End the threads after what they were given, without blocking the loop.

    Returns:
        Whether all of them ended in time; one that hangs in the kernel (a dead disk, say) does not.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    pause = _FIRST_PAUSE_SECONDS
    while [lane for lane in lanes if not lane.close(0)]:  # each of them is told to end
        if loop.time() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return True
