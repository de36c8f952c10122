"""A create whose answer is lost is read back: committed once, acknowledged once, never taken for a conflict."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import cycle

import pytest
from tests.faults.bucket import Request
from tests.faults.server import Act, Fault, FaultyS3, url
from tests.protocol.logs import at, committing, opened

from limpet.engine.log import Log
from limpet.engine.timing import Timing
from limpet.stores.retry import Retrying, RetryPolicy
from limpet.stores.urls import open_store

PARALLEL = 16
PATIENT = Timing(commit_deadline=60.0, open_deadline=60.0)
GIVES_UP_AFTER = 0.1
"""Seconds after which a client leaves a request without an answer."""
TAKES_EFFECT: list[Act] = ["close", "error", "hang", "reset"]
DOES_NOT: list[Act] = ["late", "close", "error", "reset"]
AGAIN = 0.2
"""The share of later tries that go wrong too."""


class LosingAnswers:
    """The first try of every create in a log goes wrong, most often after it took effect; so do some later ones.

    Attributes:
        lost: how many answers to creates that took effect were lost.
        struck: how often each fault struck.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._seen: set[str] = set()
        self._turns = cycle([*(4 * [(act, True) for act in TAKES_EFFECT]), *((act, False) for act in DOES_NOT)])
        self._landed: set[str] = set()
        self.struck: Counter[tuple[Act, bool]] = Counter()

    @property
    def lost(self) -> int:
        return len(self._landed)

    def __call__(self, request: Request) -> Fault | None:
        if request.kind != "create" or "/log/" not in request.target:
            return None
        if request.key in self._seen and self._chance.random() >= AGAIN:
            return None
        self._seen.add(request.key)
        act, applies = next(self._turns)
        self.struck[act, applies] += 1
        if applies or act == "late":
            self._landed.add(request.key)
        return Fault(act=act, applies=applies)


async def append_all(log: Log, count: int) -> list[str]:
    """The nonces of the records that were acknowledged, in order."""
    return [(await log.append(committing(step))).nonce for step in range(count)]


async def lose_answers(s3: FaultyS3, total: int) -> LosingAnswers:
    """Append to several logs at once while answers are lost, and see that nothing came of it."""
    each = -(-total // PARALLEL)
    root = open_store(url("run"), s3.storage(timeout=GIVES_UP_AFTER))
    stores = [Retrying(root.child(f"child/{name}"), RetryPolicy(0.001, 2, 0.05, 30)) for name in range(PARALLEL)]
    try:
        logs = [await opened(store, PATIENT) for store in stores]
        s3.choose = losing = LosingAnswers(seed=total)
        acknowledged = await asyncio.gather(*(append_all(log, each) for log in logs))
        s3.heal()
        for name, (store, nonces) in enumerate(zip(stores, acknowledged, strict=True)):
            records = [await at(store, seq) for seq in range(2, each + 2)]
            assert [record.nonce for record in records] == nonces
            assert [record.commit.step for record in records if record.commit] == list(range(each))
            assert len(s3.bucket.keys(f"/{name}/log/")) == 1 + each
        assert set(s3.bucket.stored.values()) == {1}
    finally:
        for store in (*stores, root):
            await store.close()
    return losing


async def test_a_lost_answer_on_create_is_neither_a_duplicate_nor_a_conflict(s3: FaultyS3) -> None:
    losing = await lose_answers(s3, 400)
    assert losing.lost >= 300
    assert len(losing.struck) == len(TAKES_EFFECT) + len(DOES_NOT)


@pytest.mark.heavy
@pytest.mark.timeout(600)
async def test_ten_thousand_lost_answers_are_neither_duplicates_nor_conflicts(s3: FaultyS3) -> None:
    losing = await lose_answers(s3, 12_000)
    assert losing.lost >= 10_000
