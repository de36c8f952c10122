"""``start_from=``: another run to read from while ours holds nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limpet.engine.opening import View, fresh_view
from limpet.engine.reader import Reader
from limpet.errors import NotFoundError, UsageError
from limpet.loop import EngineLoop, Operation, Wait, insist
from limpet.reading import Reading, Wanted
from limpet.stores.base import Store
from limpet.stores.retry import Retrying
from limpet.stores.sealed import sealed
from limpet.stores.urls import are_alike, open_store, refuse_credentials
from limpet.types import CheckpointInfo
from limpet.workers import Workers

__all__ = ["WarmStart", "open_start", "parse_start", "start_text"]

_END_SECONDS = 5.0


def parse_start(text: str) -> tuple[str, int | None]:
    """The url and the step of ``url`` or ``url@step``.

    Raises:
        UsageError: what follows the last ``@`` of the last segment is no step, or the url holds credentials.
    """
    url, mark, step = text.rpartition("@")
    if not mark or "/" in step:
        return text, None
    refuse_credentials(url if step.isascii() and step.isdigit() else text)  # before it is shown
    if not (step.isascii() and step.isdigit()) or not url:
        raise UsageError(f"start_from={text!r}: {step!r} is not a step.", hint="Write url@step, such as runs/41@5000.")
    return url, int(step)


def start_text(start_from: object) -> str:
    """``start_from=`` as text.

    Raises:
        UsageError: it is neither text nor a path.
    """
    text = os.fspath(start_from) if isinstance(start_from, os.PathLike) else start_from
    if not isinstance(text, str):
        raise UsageError(f"start_from={start_from!r:.100} is not a place.", hint="Write url or url@step.")
    return text


def open_start(text: str, own_url: str, storage: Mapping[str, Any]) -> tuple[Store, int | None]:
    """The store of the run to start from, and the step; nothing is contacted yet.

    Args:
        text: ``url`` or ``url@step``.
        own_url: of the run that starts.
        storage: options for the store of that one; the other gets them only if it is of the same scheme, so that no
            credentials reach a place they are not meant for.

    Raises:
        UsageError: the text names no run.
    """
    url, step = parse_start(text)
    return open_store(url, storage if are_alike(url, own_url) else {}), step


class WarmStart(Reading):
    """Reads another run, on the loop and threads of the one that starts from it.

    Args:
        text: ``url`` or ``url@step``.
        storage: options of the run that starts, for a store of the same scheme.
        owner: the run that starts.
        key: that signs the records of both; what is not signed must not get into a signed run.
    """

    def __init__(self, text: str, storage: Mapping[str, Any], owner: Reading, key: bytes | None = None) -> None:
        store, self._step = open_start(text, owner._store.url, storage)
        self._store = Retrying(sealed(store, key))
        self._owner = owner
        self._allow_pickle = owner._allow_pickle

    def find(self, wanted: Wanted) -> Operation[tuple[Any, CheckpointInfo] | None]:
        """What the other run has; it must have something.

        Raises:
            NotFoundError: it holds nothing.
        """
        found = yield from self._find(replace(wanted, at=self._step))
        if found is None:
            raise NotFoundError(
                f"start_from={self._store.url}: nothing was ever committed there.", hint="Name a run that has states."
            )
        return found

    def end(self) -> Operation[None]:
        """Release the other run's store, while the loop still runs."""
        yield from insist(Wait(self._engine.call(self._store.close), timeout_seconds=_END_SECONDS, shielded=True))

    def _ready(self) -> Operation[None]:
        return (yield from self._owner._ready())

    def _view(self) -> Operation[View]:
        return (yield from self._call(fresh_view, self._store))

    @property
    def _engine(self) -> EngineLoop:
        return self._owner._engine

    @property
    def _workers(self) -> Workers:
        return self._owner._workers

    @property
    def _reader(self) -> Reader:
        return Reader(self._store, self._workers)

    @property
    def _where(self) -> str:
        return self._store.url
