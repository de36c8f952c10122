"""``start_from=``: another run to read from while ours holds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limpet.engine.opening import View, fresh_view
from limpet.engine.reader import Reader
from limpet.errors import NotFoundError, UsageError
from limpet.loop import EngineLoop, Operation, Wait, insist
from limpet.reading import Reading, Wanted
from limpet.stores.retry import Retrying
from limpet.stores.urls import open_store
from limpet.types import CheckpointInfo
from limpet.workers import Workers

__all__ = ["WarmStart", "parse_start"]

_END_SECONDS = 5.0


def parse_start(text: str) -> tuple[str, int | None]:
    """The url and the step of ``url`` or ``url@step``.

    Raises:
        UsageError: what follows the last ``@`` of the last segment is no step.
    """
    url, mark, step = text.rpartition("@")
    if not mark or "/" in step:
        return text, None
    if not (step.isascii() and step.isdigit()) or not url:
        raise UsageError(f"start_from={text!r}: {step!r} is not a step.", hint="Write url@step, such as runs/41@5000.")
    return url, int(step)


class WarmStart(Reading):
    """Reads another run, on the loop and threads of the one that starts from it.

    Args:
        text: ``url`` or ``url@step``.
        storage: options for its store.
        owner: the run that starts.
    """

    def __init__(self, text: str, storage: Mapping[str, Any], owner: Reading) -> None:
        url, self._step = parse_start(text)
        self._store = Retrying(open_store(url, storage))
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
