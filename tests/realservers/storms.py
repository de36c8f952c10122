"""Writers that take one run from each other over and over, on threads, each with a store of its own.

Each opens the run with ``takeover=True``, sees that it goes on from the newest commit, saves a few states, and leaves: in
good order, or as a zombie that comes back when another has long taken over.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tests.faulty import write_over
from tests.realservers.history import Ack, check_history, check_kept, newest_commit, read_history

from limpet import Checkpointer, FencedError, Last
from limpet.engine.timing import Timing
from limpet.events import Event, Opened
from limpet.stores.base import Store

__all__ = ["Storm", "state_of"]

_TIMING = Timing(grace=0.0)  # what is dropped goes at once: a reader that is slow sees it vanish
_MOST_SAVES = 8
_ZOMBIES = 0.3
_PAUSE_SECONDS = 0.5


def state_of(owner: str, step: int) -> dict[str, Any]:
    """A state that no other save has; every third is too large for a record."""
    random_ = np.random.default_rng([step, *owner.encode()])
    return {"owner": owner, "step": step, "data": random_.bytes(6000 if step % 3 == 0 else 60)}


def check_state(found: Any) -> tuple[str, int]:
    """Whose save it is, if it is one, bit for bit."""
    owner, step = found["owner"], found["step"]
    assert found == state_of(owner, step)
    return owner, step


@dataclass
class Storm:
    """One storm, and what its writers were told.

    Attributes:
        open_one: a store object of its own for each attempt.
        writers: how many at a time.
        slots: it ends when a record of this number, or above, was acknowledged.
        seed: of what each writer does; when it gets to do it is up to the machine.
    """

    open_one: Callable[[], Store]
    writers: int
    slots: int
    seed: int
    acknowledged: list[Ack] = field(default_factory=list)
    went_on_from: list[tuple[int, int | None]] = field(default_factory=list)
    fenced: int = 0
    newest: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> None:
        """Let them loose until the log is long enough."""
        with ThreadPoolExecutor(self.writers) as pool:
            for job in [pool.submit(self._one_writer, number) for number in range(self.writers)]:
                job.result()

    def check(self) -> int:
        """One record a slot, a linear history, nothing acknowledged lost; how many slots there are."""
        history = asyncio.run(read_history(self.open_one))
        check_history(history)
        check_kept(history, self.acknowledged)
        for epoch, seq in self.went_on_from:
            at_takeover = newest_commit(history, epoch)
            # A newer one only if that had gone when it was read, since yet another writer had taken over.
            assert at_takeover == seq or (seq is not None and seq > (at_takeover or 0))
        newest = newest_commit(history, len(history) + 1)
        assert newest is not None
        with write_over(self.open_one(), timing=_TIMING, deadline_seconds=20.0, takeover=True) as cp:
            found = cp.resume()
            commit = history[newest - 1][0]
            assert commit.commit is not None
            assert check_state(found.state) == (commit.owner, commit.commit.step)
            for info in cp.checkpoints():
                assert cp.verify(info) is not None
        return len(history)

    def _one_writer(self, number: int) -> None:
        draw = random.Random(f"{self.seed}/{number}")
        zombie: Checkpointer | None = None
        attempt = 0
        while self.newest < self.slots:
            attempt += 1
            owner = f"{number}.{attempt}"
            mine = self._opened(owner)
            saved = self._save(mine, owner, draw.randint(1, _MOST_SAVES))
            if zombie is not None:
                self._refuse(zombie)
                zombie = None
            if not saved:
                self._refuse(mine)
                self._wait(draw.randint(0, 2 * self.writers))
            elif draw.random() < _ZOMBIES:
                zombie = mine
            else:
                mine.close()
        if zombie is not None:
            zombie.close()

    def _opened(self, owner: str) -> Checkpointer:
        epochs: list[int] = []

        def note(event: Event) -> None:
            if isinstance(event, Opened):
                epochs.append(event.epoch)

        cp = write_over(
            self.open_one(),
            timing=_TIMING,
            deadline_seconds=20.0,
            takeover=True,
            owner=owner,
            retain=Last(3),
            hooks=[note],
        )
        found = cp.resume(initial=None)
        if found.info is not None:
            check_state(found.state)
        with self.changed:
            self.went_on_from.append((epochs[0], found.info.seq if found.info else None))
        return cp

    def _save(self, cp: Checkpointer, owner: str, count: int) -> bool:
        """Save so often; whether nobody took over meanwhile."""
        for step in range(count):
            try:
                receipt = cp.write(state_of(owner, step), step=step, durable=True).result()
            except FencedError:
                with self.changed:
                    self.fenced += 1
                return False
            assert receipt.seq is not None
            with self.changed:
                self.acknowledged.append(Ack(receipt.seq, owner, step))
                self.newest = max(self.newest, receipt.seq)
                self.changed.notify_all()
        return True

    def _refuse(self, cp: Checkpointer) -> None:
        """A writer that was replaced is told so by every save, and leaves without a word."""
        try:
            cp.write(state_of("a zombie", 0), step=10**6, durable=True)
        except FencedError:
            pass
        else:
            raise AssertionError("a replaced writer saved")
        cp.close()

    def _wait(self, saves: int) -> None:
        """Let others save so often, so that there are histories of more than takeovers."""
        with self.changed:
            until = self.newest + saves
            self.changed.wait_for(lambda: self.newest >= until, _PAUSE_SECONDS)
