"""Getting at a run: the marker, the proof that the store creates atomically, and a fresh view of what is live."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from limpet.engine.live import Checkpoint, load_checkpoints
from limpet.engine.log import check_run, find_head
from limpet.engine.timing import Timing
from limpet.errors import LimpetError, StoreError
from limpet.failpoints import reach
from limpet.format.layout import FORMAT_KEY
from limpet.format.marker import Marker, decode_marker, encode_marker
from limpet.stores.base import KeyExistsError, KeyMissingError, Store
from limpet.stores.retry import RetryPolicy, backoff_delays

__all__ = ["View", "claim_root", "fresh_view"]


@dataclass(frozen=True, slots=True)
class View:
    """What can be read.

    Attributes:
        checkpoints: newest first.
        damaged: live seqs that cannot be used, and why.
        head_damaged: newer log records that do not verify.
    """

    checkpoints: list[Checkpoint] = field(default_factory=list)
    damaged: dict[int, LimpetError] = field(default_factory=dict)
    head_damaged: tuple[int, ...] = ()


async def fresh_view(store: Store, known: Callable[[int], Checkpoint | None] = lambda _: None) -> View:
    """What the newest record of the run names.

    Raises:
        CorruptError: the log has a hole, or there is data without a log.
        FormatError: the place holds something else, or a newer format.
        StoreError: the store could not tell.
    """
    marker = await read_marker(store)
    head = await find_head(store)
    reach("read.listed")
    if head.record is None:
        return View()
    if marker is not None:
        check_run(store, head, marker.run)
    checkpoints, damaged = await load_checkpoints(store, head.record, known=known)
    return View(checkpoints, damaged, head.damaged)


async def read_marker(store: Store) -> Marker | None:
    """The run's marker, if it has one."""
    data = await _get_marker(store)
    return None if data is None else decode_marker(data, store.url)


async def claim_root(store: Store, name: str, timing: Timing | None = None) -> Marker:
    """Make the root a run if it is none yet, and prove that a second create is refused.

    Args:
        store: the root.
        name: of a child run.
        timing: how long a store that cannot tell is asked again.

    Raises:
        FormatError: the place holds something else, or a newer format.
        StoreError: the store has no atomic create, or could not tell.
    """
    timing = timing or Timing()
    found = await _get_marker(store)
    if found is None:
        head = await find_head(store)
        run = head.record.run if head.record is not None else secrets.token_hex(16)
        await _create_marker(store, encode_marker(run, name), timing)
        found = await _get_marker(store)
        if found is None:
            raise _not_atomic(store)
    marker = decode_marker(found, store.url)
    # Other bytes of the same meaning: a store that overwrites them has done no harm.
    if await _create_marker(store, found + b"\n", timing) or await _get_marker(store) != found:
        raise _not_atomic(store)
    return marker


async def _get_marker(store: Store) -> bytes | None:
    try:
        return await store.get(FORMAT_KEY)
    except KeyMissingError:
        return None


async def _create_marker(store: Store, data: bytes, timing: Timing) -> bool:
    """Whether the marker is ``data`` now, by this create; ``False`` if there was one before."""
    deadline = timing.clock() + timing.open_deadline
    for delay in backoff_delays(RetryPolicy()):
        try:
            await store.create(FORMAT_KEY, data)
        except StoreError as error:
            exists = isinstance(error, KeyExistsError)
            found = await _get_marker(store) if exists else None
            if found is not None:
                return found == data  # ours if the answer to an earlier try was lost
            if not (exists or error.transient) or timing.clock() + delay >= deadline:
                raise
            await timing.sleep(delay)
        else:
            return True
    raise AssertionError("unreachable")


def _not_atomic(store: Store) -> StoreError:
    return StoreError(
        f"{store.url} does not refuse a second create of the same object, so two writers could not be told apart.",
        hint="Use a store with conditional writes (local disk, S3, GCS, Azure).",
        kind="no_atomic_create",
    )
