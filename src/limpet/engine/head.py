"""Finding the head of a log, proved by what is not there; nothing that is read is trusted before it verifies."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from limpet.errors import CorruptError, StoreError
from limpet.format.layout import (
    DATA_PREFIX,
    LOG_PREFIX,
    MAX_SEQ,
    log_folders,
    log_key,
    parse_log_key,
    parse_pack_key,
)
from limpet.format.record import Record, decode_record
from limpet.stores.base import KeyMissingError, Store

__all__ = ["Head", "check_run", "find_head", "read_record"]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record that verifies.

    Attributes:
        record: it; ``None`` for an empty log.
        digest: it carries this.
        last_seq: of the newest record, verified or not.
        damaged: seqs of newer records that do not verify.
    """

    record: Record | None
    digest: str = ""
    last_seq: int = 0
    damaged: tuple[int, ...] = ()


async def read_record(store: Store, seq: int) -> tuple[Record, str]:
    """Record ``seq`` and its digest.

    Raises:
        KeyMissingError: there is none.
        CorruptError: it does not verify, three times in a row.
    """
    for last in (False, False, True):
        try:
            return decode_record(await store.get(log_key(seq)), seq)
        except CorruptError:
            if last:
                raise
    raise AssertionError("unreachable")


async def find_head(store: Store) -> Head:
    """The head of the log, proved by a positive not-found of the record after it.

    Raises:
        CorruptError: the log has a hole, or data without any record.
        StoreError: the store could not tell.
    """
    last = await _listed_head(store)
    while last < MAX_SEQ and await _is_there(store, last + 1):
        last += 1
    if last == MAX_SEQ:
        raise CorruptError(f"{store.url} has a log record {last}, after which none can come.", hint="Remove it.")
    if last == 0:
        # Found not empty and not damaged: somebody began the run between our two requests.
        return Head(None) if await _is_empty(store) else await find_head(store)
    if last > 1:
        await _prove_first(store, last)
    return await _newest_verified(store, last)


async def _listed_head(store: Store) -> int:
    """The newest record that a listing shows: of one folder, however long the log is. It may lag behind."""
    for prefix in log_folders(await store.folders(LOG_PREFIX)):
        seqs = [seq for entry in await store.list(prefix) if (seq := parse_log_key(entry.key)) is not None]
        if seqs:
            return max(seqs)
    return 0


def check_run(store: Store, head: Head, run: str) -> None:
    """Refuse a log that is not of the run that the marker names.

    Raises:
        StoreError: it is another run's.
    """
    if head.record is not None and head.record.run != run:
        raise StoreError(
            f"{store.url} mixes two runs: its limpet.json and its log do not belong together.",
            hint="One was copied over the other; restore either from a copy.",
            kind="mixed_runs",
        )


async def _prove_first(store: Store, last: int) -> None:
    if not await _is_there(store, 1):
        raise CorruptError(
            f"{store.url} has log records up to {last}, but not the first.",
            hint="Part of the log was removed: restore it from a copy.",
        )


async def _is_empty(store: Store) -> bool:
    packs = [entry.key for entry in await store.list(DATA_PREFIX) if parse_pack_key(entry.key) is not None]
    if not packs:
        return True
    if not await _is_there(store, 1):
        raise CorruptError(
            f"{store.url} holds {len(packs)} data objects but no log.",
            hint="The log was removed or only a part was copied: restore it, or use another place.",
        )
    return False


async def _is_there(store: Store, seq: int) -> bool:
    """Whether there is a record ``seq``, sound or not."""
    with suppress(CorruptError):  # too large to be one, and yet there
        try:
            await store.get(log_key(seq))
        except KeyMissingError:
            return False
    return True


async def _newest_verified(store: Store, last: int) -> Head:
    damaged: list[int] = []
    for seq in range(last, 0, -1):
        try:
            record, digest = await read_record(store, seq)
        except CorruptError:
            damaged.append(seq)
        except KeyMissingError as error:
            raise CorruptError(
                f"{store.url} has log records up to {last}, but not record {seq}.",
                hint="Part of the log was removed: restore it from a copy.",
            ) from error
        else:
            return Head(record, digest, last, tuple(sorted(damaged)))
    raise CorruptError(f"{store.url}: none of the {last} log records verifies.")
