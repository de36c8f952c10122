"""Whether a store creates as it must: of several creates of one key at once, exactly one succeeds.

That a second create is refused is not enough: a server may look, and put a moment later. Every promise to whoever
shares a run rests on this, so it is tried out before the first record of a place is written.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from limpet.errors import StoreError
from limpet.stores.base import KeyExistsError, KeyMissingError, Store

__all__ = ["not_atomic", "prove_creates"]

_WRITERS = 4  # a good server may take seconds for more of them (SeaweedFS: 1 to 3 s for 8 at once)


def not_atomic(store: Store) -> StoreError:
    """The error for a store that cannot be used."""
    return StoreError(
        f"{store.url} does not refuse a second create of the same object, so two writers could not be told apart.",
        hint="Use a store with conditional writes (local disk, S3, GCS, Azure).",
        kind="no_atomic_create",
    )


async def prove_creates(store: Store) -> None:
    """Let several creates race for a key, and remove what they made.

    Raises:
        StoreError: two of them succeeded, or what is there is not what the winner wrote; or the store could not tell.
    """
    key = f"probe/{secrets.token_hex(8)}"
    try:
        await _race(store, key)
    finally:
        with suppress(StoreError):  # whoever may not delete leaves a few bytes
            await store.delete(key)


async def _race(store: Store, key: str) -> None:
    bodies = [secrets.token_bytes(16) for _ in range(_WRITERS)]
    outcomes = await asyncio.gather(*(_won(store, key, body) for body in bodies), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    winners = [body for body, won in zip(bodies, outcomes, strict=True) if won]
    try:
        found = await store.get(key)
    except KeyMissingError:
        if winners:
            raise not_atomic(store) from None
        raise StoreError(f"{store.url} took none of {_WRITERS} small objects.", transient=True) from None
    # Without a winner the answer to the one that succeeded was lost: that is no fault of the store.
    if found not in (winners or bodies) or len(winners) > 1:
        raise not_atomic(store)


async def _won(store: Store, key: str, body: bytes) -> bool:
    try:
        await store.create(key, body)
    except KeyExistsError:
        return False
    except StoreError as error:
        if not error.transient:
            raise
        return False
    return True
