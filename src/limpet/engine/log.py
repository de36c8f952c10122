"""A run's log: find its head, take it over, and append to it, exactly once each.

The one place where the commit protocol's races are decided (``docs/spec.md``, "Committing"). Every answer to
a create but success is resolved in the same way: the key is read back, and the nonce in it tells whose it is.
"""

from __future__ import annotations

import os
import platform
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from limpet.engine.head import Head, check_run, find_head, read_record
from limpet.engine.timing import Timing
from limpet.errors import (
    CommitUnknownError,
    CorruptError,
    FencedError,
    FormatError,
    LimpetError,
    StoreError,
    UntrustedError,
)
from limpet.failpoints import reach
from limpet.format.layout import log_key
from limpet.format.record import (
    RECORD_BYTES_MAX,
    Prev,
    Record,
    Writer,
    decode_record,
    encode_record,
)
from limpet.stores.base import NO_SPACE, NOT_DURABLE, KeyExistsError, Store

__all__ = ["Head", "Log", "check_run", "find_head", "read_record"]


async def _no_room() -> bool:
    return False


@dataclass(slots=True)
class Log:
    """The writing end of a run's log, held by one writer.

    Attributes:
        head: the newest record that this writer knows to be in the log.
        epoch: of this writer.
        on_adopted: told when an earlier, unclear try of ours turns out to be in the log.
        on_retry: told of every failed create that is sent again: operation, key, number of the attempt, error.
        make_room: frees what may go at once when the store is full; whether there was anything.
        stopped: set for good once a newer writer was met, or a record's durability was lost.
    """

    store: Store
    timing: Timing
    run: str
    owner: str
    library: str
    head: Record
    digest: str
    epoch: int = 0
    quarantined: tuple[int, ...] = ()
    stopped: LimpetError | None = None
    on_adopted: Callable[[Record], None] = lambda _: None
    on_retry: Callable[[str, str, int, BaseException], None] = lambda *_: None
    make_room: Callable[[], Awaitable[bool]] = _no_room
    _unsettled: set[str] = field(default_factory=set)

    @classmethod
    async def open(
        cls,
        store: Store,
        timing: Timing,
        *,
        run: str,
        owner: str,
        library: str,
        retain: Callable[[Head], Any],
        note: dict[str, Any],
    ) -> tuple[Log, Head]:
        """Take the run over: create the next record as ``open``.

        Returns:
            The log, and the head that it extends (what the replaced attempt left behind).

        Raises:
            StoreError: others kept winning until the deadline, or the store could not tell.
        """
        deadline = timing.clock() + timing.open_deadline
        while True:
            head = await timing.within(deadline, find_head(store))
            check_run(store, head, run)
            if head.last_seq:
                await timing.within(deadline, store.settle(log_key(head.last_seq)))
            record = _open_record(head, run=run, owner=owner, library=library, retain=retain(head), note=note)
            data, digest = encode_record(record)
            log = cls(store, timing, run, owner, library, record, digest, record.epoch, tuple(record.quarantined))
            try:
                if await log._create(record, data, deadline):
                    log._unsettled.clear()
                    return log, head
            except FencedError:
                pass  # somebody else took this seq: go on from their record
            if timing.clock() >= deadline:
                raise StoreError(
                    f"could not take over {store.url} within {timing.open_deadline:.0f} s: other writers kept winning.",
                    hint="Look for other attempts that open the same run.",
                    transient=True,
                )
            await timing.sleep(random.uniform(0.01, 0.2))  # noqa: S311 - jitter

    async def append(self, make: Callable[[Record], Record]) -> Record:
        """Create the next record.

        Args:
            make: builds it from the record before; called again if an earlier try turns out to have landed.

        Returns:
            The record, now in the log.

        Raises:
            FencedError: a newer writer owns the run; so does every later call.
            CommitUnknownError: the store did not say until the deadline.
        """
        deadline = self.timing.clock() + self.timing.commit_deadline
        while True:
            if self.stopped is not None:
                raise self.stopped
            record = make(self._next(self.head))
            data, digest = encode_record(record)
            if len(data) > RECORD_BYTES_MAX:
                raise StoreError(
                    f"a log record of {len(data)} bytes is above the limit of {RECORD_BYTES_MAX}.",
                    hint="Keep fewer checkpoints (retain=) or a smaller meta.",
                )
            if await self._create(record, data, deadline):
                self.head, self.digest = record, digest
                self._unsettled.clear()
                return record
            # An earlier try of ours holds this seq after all: it is in the log, and ours comes after it.
            self.on_adopted(self.head)

    @property
    def settled(self) -> bool:
        """Whether no create of ours may still land."""
        return not self._unsettled

    def _next(self, before: Record) -> Record:
        """An ``edit`` record without a change: what ``make`` starts from."""
        return Record(
            version=before.version,
            run=self.run,
            seq=before.seq + 1,
            epoch=self.epoch,
            kind="edit",
            nonce=secrets.token_hex(16),
            owner=self.owner,
            time=time.time(),
            writer=this_writer(self.library),
            retain=before.retain,
            prev=Prev(before.seq, self.digest),
            live=before.live,
            pinned=before.pinned,
            quarantined=list(self.quarantined),
        )

    async def _create(self, record: Record, data: bytes, deadline: float) -> bool:
        """Whether ``record`` is in the log now; ``False`` if an earlier try of ours was adopted instead."""
        key = log_key(record.seq)
        decode_record(data, record.seq)  # what our own reader would refuse must never get into a log
        delay = 0.05
        # Noted before it is sent: whatever ends this call, a cancellation too, the create may still land.
        self._unsettled.add(record.nonce)
        unclear = False
        for attempt in count(1):
            last_error: StoreError
            try:
                reach("create.before")
                # Half of the time: an answer that was lost may still be found out by reading back.
                await self.timing.within(deadline, self.store.create(key, data), share=0.5)
                reach("create.after")
            except StoreError as error:
                last_error = error
                unclear = unclear or error.kind != NO_SPACE
            else:
                return True
            if last_error.kind != NOT_DURABLE:
                verdict = await self._read_back(record, key, last_error, deadline)
                if verdict is not None:
                    return verdict
            if last_error.kind == NO_SPACE and not await self.make_room():
                if not unclear:  # refused before it could be named: it cannot land any more
                    self._unsettled.discard(record.nonce)
                raise last_error
            left = deadline - self.timing.clock()
            if last_error.kind == NOT_DURABLE or left <= 0:
                raise self._unknown(record, last_error) from last_error
            if not last_error.transient and not isinstance(last_error, KeyExistsError):
                raise last_error
            self.on_retry("create", key, attempt, last_error)
            await self.timing.sleep(min(delay * random.uniform(0.5, 1.0), left))  # noqa: S311 - jitter
            delay = min(delay * 2, 5.0)
        raise AssertionError("unreachable")

    def _unknown(self, record: Record, cause: StoreError) -> CommitUnknownError:
        error = CommitUnknownError(
            f"{self.store.url} did not say whether log record {record.seq} was created ({cause.message})",
            hint="Nothing was deleted; the next write resolves it.",
            transient=True,
        )
        if cause.kind == NOT_DURABLE:
            # The record may stand there and vanish with the power: nothing may be built on it by us.
            error.hint = "Nothing was deleted. This writer stops; open the run again."
            self.stopped = error
        return error

    async def _read_back(self, record: Record, key: str, cause: StoreError, deadline: float) -> bool | None:
        """Who holds ``key``: True: this try. False: an earlier one of ours. None: nobody, or nobody can tell."""
        try:
            data = await self.timing.within(deadline, self.store.get(key))
            found, digest = decode_record(data, record.seq)
            if found.epoch == self.epoch:
                # Its own create may have ended before its fsync.
                await self.timing.within(deadline, self.store.settle(key))
        except (StoreError, CorruptError):
            return None
        except FormatError as error:
            raise self.fence("a newer version of limpet took it over") from error
        except UntrustedError as error:
            who = "with a key that we were not given" if error.kind == "key_needed" else "without its key"
            raise self.fence(f"somebody {who} took it over") from error
        if found.nonce == record.nonce:
            return True
        if found.epoch == self.epoch and record.kind != "open":
            if found.nonce not in self._unsettled:
                raise self.fence(f"two processes share epoch {self.epoch} of this run") from cause
            self.head, self.digest = found, digest
            self._unsettled.clear()
            return False
        raise self.fence(f"{found.owner or 'another writer'} took it over with epoch {found.epoch}") from cause

    def fence(self, why: str) -> FencedError:
        """Stop for good: a newer writer was met. Returns the error to raise."""
        error = FencedError(
            f"this writer (epoch {self.epoch}) no longer owns {self.store.url}: {why}.",
            hint="Stop: the newer attempt goes on from the last commit.",
        )
        self.stopped = error
        return error


def this_writer(library: str) -> Writer:
    """Who we are, for people."""
    return Writer(host=platform.node(), pid=os.getpid(), library=library)


def _open_record(head: Head, *, run: str, owner: str, library: str, retain: Any, note: dict[str, Any]) -> Record:
    seq = head.last_seq + 1
    before = head.record
    damaged = set(head.damaged) | set(before.quarantined if before else ())
    return Record(
        version=1,
        run=run,
        seq=seq,
        epoch=seq,
        kind="open",
        nonce=secrets.token_hex(16),
        owner=owner,
        time=time.time(),
        writer=this_writer(library),
        retain=retain,
        prev=_prev(head),
        live=before.live if before else [],
        pinned=before.pinned if before else [],
        quarantined=sorted(damaged),
        note=note,
    )


def _prev(head: Head) -> Prev | None:
    if head.record is None:
        return None
    # A damaged record's digest cannot be known: the link then names the newest one that verifies.
    return Prev(head.last_seq, head.digest if not head.damaged else "")
