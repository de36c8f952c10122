"""Where a run is, as plain data: what both processes make their stores from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from limpet.errors import UsageError
from limpet.remote.messages import Place
from limpet.stores.base import Store
from limpet.stores.retry import Retrying
from limpet.stores.sealed import sealed
from limpet.stores.urls import open_store

__all__ = ["check_capable", "child_place", "describe_place", "store_at"]

_SECONDS = "$seconds"


def check_capable() -> None:
    """Refuse where the system lacks what a writer's process needs.

    Raises:
        UsageError: it does.
    """
    if not (hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")):
        raise UsageError(
            'engine="process" needs memfd_create and pidfd_open, which this system does not have.',
            hint='Use engine="thread", or Linux 5.3 or newer.',
            kind="engine",
        )
    if not sys.executable:
        raise UsageError(
            'engine="process" needs an interpreter to start, and sys.executable names none.',
            hint='Use engine="thread" in an embedded Python.',
            kind="engine",
        )


def describe_place(url: str | os.PathLike[str], storage: Mapping[str, Any], key: bytes | None) -> Place:
    """What another process makes the same store from.

    Raises:
        UsageError: the store is this process's memory, or an option is an object of this process.
    """
    text = os.fspath(url)
    if isinstance(url, os.PathLike) or "://" not in text:
        text = os.path.abspath(os.path.expanduser(text))
    elif urlsplit(text).scheme.lower() == "memory":
        raise UsageError(
            f'{text} is the memory of this process, which a writer in a process of its own (engine="process") cannot'
            " reach.",
            hint='Use engine="thread", or a folder or bucket.',
            kind="engine",
        )
    return Place(text, {name: _plain(name, value) for name, value in storage.items()}, key)


def child_place(place: Place, prefix: str) -> Place:
    """That of a child run."""
    return Place(place.url, place.storage, place.key, (*place.prefixes, prefix))


def store_at(place: Place) -> Retrying:
    """The store; nothing is contacted yet."""
    storage = {name: _live(value) for name, value in place.storage.items()}
    store: Store = open_store(place.url, storage)
    root = Retrying(sealed(store, place.key))
    for prefix in place.prefixes:
        root = root.child(prefix)
    return root


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, timedelta):
        return {_SECONDS: value.total_seconds()}
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    raise UsageError(
        f"storage option {name!r} is a {type(value).__name__}, which cannot be handed to a writer in a process of its"
        ' own (engine="process").',
        hint='Give plain values (keys, or a profile in the environment), or use engine="thread".',
        kind="engine",
    )


def _live(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_SECONDS}:
            return timedelta(seconds=value[_SECONDS])
        return {name: _live(inner) for name, inner in value.items()}
    return [_live(inner) for inner in value] if isinstance(value, list) else value
