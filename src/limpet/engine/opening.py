"""Getting at a run: the marker, the proof that the store creates atomically, and a fresh view of what is live."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from limpet.engine.live import Checkpoint, load_checkpoints
from limpet.engine.log import Head, find_head
from limpet.errors import LimpetError, StoreError
from limpet.format.layout import FORMAT_KEY
from limpet.format.marker import Marker, decode_marker, encode_marker
from limpet.stores.base import KeyExistsError, KeyMissingError, Store

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
    if head.record is None:
        return View()
    if marker is not None and marker.run != head.record.run:
        raise StoreError(
            f"{store.url} mixes two runs: its limpet.json and its log do not belong together.",
            hint="One was copied over the other; restore either from a copy.",
            kind="mixed_runs",
        )
    checkpoints, damaged = await load_checkpoints(store, head.record, known=known)
    return View(checkpoints, damaged, head.damaged)


async def read_marker(store: Store) -> Marker | None:
    """The run's marker, if it has one."""
    try:
        return decode_marker(await store.get(FORMAT_KEY), store.url)
    except KeyMissingError:
        return None


async def claim_root(store: Store, name: str) -> Marker:
    """Make the root a run if it is none yet, and prove that a second create is refused.

    Args:
        store: the root.
        name: of a child run.

    Raises:
        FormatError: the place holds something else, or a newer format.
        StoreError: the store has no atomic create, or could not tell.
    """
    found = await read_marker(store)
    if found is None:
        head: Head = await find_head(store)
        run = head.record.run if head.record is not None else secrets.token_hex(16)
        await _create_marker(store, encode_marker(run, name))
    await _prove_create(store, name)
    found = await read_marker(store)
    if found is None:
        raise _not_atomic(store)
    return found


async def _create_marker(store: Store, data: bytes) -> None:
    try:
        await store.create(FORMAT_KEY, data)
    except KeyExistsError:
        return
    except StoreError as error:
        if not error.transient or await read_marker(store) is None:
            raise


async def _prove_create(store: Store, name: str) -> None:
    """Create the marker that exists: the store must refuse, and must still hold the first."""
    before = await store.get(FORMAT_KEY)
    try:
        await store.create(FORMAT_KEY, encode_marker(secrets.token_hex(16), name))
    except KeyExistsError:
        if await store.get(FORMAT_KEY) == before:
            return
    raise _not_atomic(store)


def _not_atomic(store: Store) -> StoreError:
    return StoreError(
        f"{store.url} does not refuse a second create of the same object, so two writers could not be told apart.",
        hint="Use a store with conditional writes (local disk, S3, GCS, Azure).",
        kind="no_atomic_create",
    )
