"""Getting at a run: the marker, the proof that the store creates atomically, and a fresh view of what is live."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from limpet.engine.head import check_run, find_head
from limpet.engine.live import Checkpoint, load_checkpoints
from limpet.engine.timing import Timing
from limpet.errors import CorruptError, FormatError, HeldError, LimpetError, StoreError
from limpet.failpoints import reach
from limpet.format.layout import FORMAT_KEY
from limpet.format.marker import Marker, decode_marker, encode_marker
from limpet.stores.base import NO_SPACE, ORPHANED, KeyExistsError, KeyMissingError, Store
from limpet.stores.probe import not_atomic
from limpet.stores.retry import RetryPolicy, backoff_delays

__all__ = ["View", "claim_root", "fresh_view", "take_writer_lock"]

_ORPHAN_SECONDS = 330.0
"""How long a writer without a trainer is waited for: it has 300 s itself."""
_LOOK_AGAIN_SECONDS = 0.05


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


async def take_writer_lock(store: Store, owner: str, *, takeover: bool) -> bool:
    """Take this host's lock on being the run's writer; whether it is held now.

    A writer whose trainer is dead, and that still commits what was staged, is waited for.

    Raises:
        HeldError: a writer is alive, and ``takeover`` was not asked for.
    """
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            store.acquire_writer_lock(owner)
        except HeldError as error:
            if takeover:
                return False
            if error.kind != ORPHANED or time.monotonic() > deadline:
                raise
        else:
            return True
        await anyio.sleep(_LOOK_AGAIN_SECONDS)


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
    found = await _read_marker(store)
    return None if found is None else found[0]


async def _read_marker(store: Store) -> tuple[Marker, bytes] | None:
    """The marker and its bytes; asked for three times before it counts as damaged."""
    for last in (False, False, True):
        data = await _get_marker(store)
        if data is None:
            return None
        try:
            return decode_marker(data, store.url), data
        except FormatError:
            if last:
                raise
    raise AssertionError("unreachable")


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
    found = await _read_marker(store)
    if found is None:
        head = await find_head(store)
        run = head.record.run if head.record is not None else secrets.token_hex(16)
        await _create_marker(store, encode_marker(run, name), timing)
        found = await _read_marker(store)
        if found is None:
            raise not_atomic(store)
    marker, data = found
    other = data + b"\n"  # of the same meaning: a store that overwrites has done no harm
    if await _create_marker(store, other, timing) or (again := await _get_marker(store)) in (None, other):
        raise not_atomic(store)
    if again != data:
        raise StoreError(f"{store.url}: limpet.json was read twice, and differed.", transient=True)
    return marker


async def _get_marker(store: Store) -> bytes | None:
    try:
        return await store.get(FORMAT_KEY)
    except KeyMissingError:
        return None
    except CorruptError as error:
        raise FormatError(
            f"{store.url} holds a limpet.json that limpet did not write: {error.message}", hint="Use another place."
        ) from error


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
            hopeless = error.kind == NO_SPACE or not (exists or error.transient)
            if hopeless or timing.clock() + delay >= deadline:
                raise
            await timing.sleep(delay)
        else:
            return True
    raise AssertionError("unreachable")
