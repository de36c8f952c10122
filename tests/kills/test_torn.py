"""Row 29: the trainer changes its arrays right after ``write`` has returned, and all the while they are uploaded.

Every leaf of a state holds one number, its round's. A checkpoint with two numbers in it is torn.
"""

from __future__ import annotations

import uuid
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from limpet import Checkpointer, Last

SIZES = (1_000, 300_000, 5 << 20)  # shares a chunk; has its own; has several, and is copied by several threads
ROUNDS_OF_A_SIZE = {1_000: 12, 300_000: 5, 5 << 20: 1}
DEFAULT_ROUNDS = 18


def state_of(number: int, nbytes: int) -> dict[str, Any]:
    value = number % 251
    return {
        "array": np.full(nbytes, value, np.uint8),
        "strided": np.full((nbytes // 8, 2), value, np.int32)[:, 0],
        "fortran": np.asfortranarray(np.full((nbytes // 64, 8), value, np.float64)),
        "bytes": bytearray([value]) * nbytes,
        "list": [value] * 50,
        "queue": deque([value] * 5),
        "nested": {"deep": {"value": value, "array": np.full(7, value)}},
    }


def change(state: dict[str, Any], value: int) -> None:
    """What the next training step does, in place."""
    state["array"][:] = value
    state["strided"][:] = value
    state["fortran"][:] = value
    state["bytes"][:] = bytes([value]) * len(state["bytes"])
    state["list"][:] = [value] * 50
    state["queue"].extend([value] * 5)
    state["nested"]["deep"].update(value=value)
    state["nested"]["deep"]["array"][:] = value


def values_of(state: Any) -> set[int]:
    """Every number in a state."""
    found = {int(state["nested"]["deep"]["value"]), *state["list"], *state["queue"]}
    raw = np.frombuffer(state["bytes"], np.uint8)
    for array in (raw, state["array"], state["strided"], state["fortran"], state["nested"]["deep"]["array"]):
        found.update(int(value) for value in np.unique(array))
    return found


def sizes(rounds: int) -> list[int]:
    """Of the rounds: mostly small ones, which are quick, all in turn."""
    turn = [size for size, times in ROUNDS_OF_A_SIZE.items() for _ in range(times)]
    return [turn[number % len(turn)] for number in range(rounds)]


def torn(cp: Checkpointer, rounds: int) -> int:
    """How many checkpoints are not what was written."""
    found = 0
    for number, nbytes in enumerate(sizes(rounds)):
        state = state_of(number, nbytes)
        pending = cp.write(state, step=number)
        change(state, 252)
        while not pending.done():  # and again, while it is encoded and uploaded
            change(state, 253)
        pending.result()
        found += values_of(cp.read(at=number, strict=True)) != {number % 251}
    return found


async def torn_async(cp: Checkpointer, rounds: int, *, lazy: bool) -> int:
    """The same for coroutines; a lazy state may be changed once it is staged."""
    found = 0
    for number, nbytes in enumerate(sizes(rounds)):
        state = state_of(number, nbytes)
        pending = await cp.write_async(state, step=number, lazy=lazy)
        await pending.staged
        change(state, 252)
        while not pending.done():
            change(state, 253)
            await anyio.lowlevel.checkpoint()
        await pending
        found += values_of(await cp.read_async(at=number, strict=True)) != {number % 251}
    return found


def place(kind: str, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}" if kind == "memory" else str(tmp_path / "run")


ROUNDS = [DEFAULT_ROUNDS, pytest.param(1000, marks=[pytest.mark.heavy, pytest.mark.timeout(600)])]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_state_that_is_changed_while_it_is_saved_is_never_torn(tmp_path: Path, kind: str, rounds: int) -> None:
    with Checkpointer(place(kind, tmp_path), retain=Last(1), on_busy="wait") as cp:
        assert torn(cp, rounds) == 0


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_state_that_is_changed_while_a_coroutine_saves_it_is_never_torn(
    backend: str, lazy: bool, rounds: int
) -> None:
    async def main() -> int:
        async with Checkpointer(place("memory", Path()), retain=Last(1), on_busy="wait") as cp:
            return await torn_async(cp, rounds, lazy=lazy)

    assert anyio.run(main, backend=backend) == 0


class Retaining:
    """A store that fails after some parts and goes on reading what it was given, as a native uploader may."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.url = store.url
        self.commit_interval_seconds = 0.0
        self.fail_after: int | None = None
        self.kept: list[tuple[memoryview, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def put(self, key: str, parts: Any, *, size_hint: int = 0) -> int:
        """See ``Store.put``."""
        from limpet import StoreError

        async def tapped() -> Any:
            async for number, part in anumerated(parts):
                if self.fail_after is not None:
                    self.kept += [(memoryview(buffer), bytes(buffer)) for buffer in part]
                    if number == self.fail_after:
                        self.fail_after = None
                        raise StoreError("the connection broke")
                yield part

        return int(await self.store.put(key, tapped(), size_hint=size_hint))

    def changed(self) -> int:
        """How many of the buffers that are still held have changed."""
        return sum(bytes(view) != content for view, content in self.kept)


async def anumerated(parts: Any) -> Any:
    number = 0
    async for part in parts:
        yield number, part
        number += 1


@pytest.mark.parametrize("fail_after", [0, 1, 2, 3])
@pytest.mark.parametrize("on_busy", ["wait", "supersede"])
def test_memory_that_an_upload_still_reads_from_is_not_used_again(
    on_busy: Any, fail_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 30: the save has failed, but its buffers are still on their way."""
    from tests.support import checkpointer_over, noise

    from limpet import StoreError
    from limpet.engine import encode
    from limpet.stores.memory import MemoryStore

    monkeypatch.setattr(encode, "BATCH_BYTES", 1 << 20)
    store = Retaining(MemoryStore())
    with checkpointer_over(store, buffers=2, on_busy=on_busy, compression="off") as cp:  # type: ignore[arg-type]
        cp.write([noise(0, 1 << 20) for _ in range(3)], durable=True)
        store.fail_after = fail_after
        with pytest.raises(StoreError, match="the connection broke"):
            cp.write([noise(number, 1 << 20) for number in (1, 2, 3)], durable=True)
        assert len(store.kept) >= min(fail_after + 1, 3)
        for number in range(10, 22, 3):
            cp.write([noise(number + each, 1 << 20) for each in range(3)], durable=True)
            assert store.changed() == 0
        store.kept.clear()
