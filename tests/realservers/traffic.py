"""A writer that saves without end while its server dies and comes back, and what it was told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from tests.faulty import retrying
from tests.realservers.history import Ack, check_history, check_kept, newest_commit, read_history
from tests.realservers.storms import check_state, state_of
from tests.servers import Server

from limpet import Checkpointer, Last, Run, StoreError
from limpet.stores.urls import open_store

__all__ = ["Traffic"]

_OWNER = "the writer"
_PATIENCE_SECONDS = 90.0
_KEPT = 12


class Traffic:
    """Saves on a thread of their own, each after the one before is durable."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = server.fresh_url()
        self.acknowledged: list[Ack] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._failure: BaseException | None = None

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Save until the block ends. One that fails is not held up by a writer whose server is down."""
        thread = threading.Thread(target=self._save, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped = True
        thread.join(_PATIENCE_SECONDS)
        assert not thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def wait_for(self, saves: int) -> None:
        """Until so many more were acknowledged."""
        with self._changed:
            wanted = len(self.acknowledged) + saves
            came = self._changed.wait_for(
                lambda: len(self.acknowledged) >= wanted or self._failure is not None, _PATIENCE_SECONDS
            )
        assert came, "no save came through"
        if self._failure is not None:
            raise self._failure

    def check_silence(self) -> None:
        """While the server is down, a reader says that it cannot tell: not "nothing", not an older state."""
        with self._reader(deadline_seconds=0.3) as run:
            for look in (run.read, run.resume, run.checkpoints, run.verify):
                with pytest.raises(StoreError) as caught:
                    look()
                assert caught.value.transient

    def check_newest(self) -> None:
        """What is read is the newest that was acknowledged, or the one after it, which may have landed."""
        with self._changed:
            before = len(self.acknowledged)
        with self._reader(deadline_seconds=30.0) as run:
            _, step = check_state(run.read(strict=True))
        assert before - 1 <= step <= len(self.acknowledged)

    def check_all(self) -> None:
        """All that was acknowledged is in the log, and what retention keeps of it can be read, bit for bit."""
        history = asyncio.run(read_history(partial(open_store, self.url, self.server.storage)))
        check_history(history)
        check_kept(history, self.acknowledged)
        assert newest_commit(history, len(history) + 1) == max(self.acknowledged).seq
        with self._reader(deadline_seconds=30.0) as run:
            kept = run.checkpoints()
            assert [info.seq for info in kept] == [ack.seq for ack in sorted(self.acknowledged)[-_KEPT:]]
            for info in kept:
                assert check_state(run.read(at=info)) == (_OWNER, info.step)
                assert run.verify(info) is not None

    def _reader(self, deadline_seconds: float) -> Run:
        # No waits within the client: how long a reader waits is then only for the deadline to say.
        storage = {**self.server.storage, "retry_config": {"max_retries": 0}}
        return Run(retrying(open_store(self.url, storage), deadline_seconds))

    def _save(self) -> None:
        try:
            with Checkpointer(self.url, storage=self.server.storage, owner=_OWNER, retain=Last(_KEPT)) as cp:
                step = 0
                while not self._stopped:
                    receipt = cp.write(state_of(_OWNER, step), step=step, durable=True).result()
                    assert receipt.seq is not None
                    with self._changed:
                        self.acknowledged.append(Ack(receipt.seq, _OWNER, step))
                        self._changed.notify_all()
                    step += 1
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
