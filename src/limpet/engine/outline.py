"""From a live state to a draft in two steps, so that the second may happen on another thread.

The outline is taken in the call itself: structure, and references to what must be copied. The files that the
state names are captured afterwards, which blocks for as long as the disk takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from limpet.engine.capture import Spool
from limpet.engine.staging import Draft, detach_small
from limpet.format.chunks import Plan
from limpet.format.registry import Registry
from limpet.format.tree import Buffer, Recall, flatten
from limpet.types import Files

__all__ = ["Outline"]


class Outline:
    """A flattened state whose files are not captured yet.

    Args:
        state: the live tree.
        registry: user codecs.
        allow_pickle: pickle what nothing else can save.
        folders: where copies of files may lie.
        copy_all: copy also what nobody can change: the writer is another process.
        recall: remembers the structure of the last state.

    Raises:
        UnsupportedLeafError: something in the state cannot be saved.
    """

    def __init__(
        self,
        state: Any,
        *,
        registry: Registry,
        allow_pickle: bool,
        folders: Callable[[], Sequence[Path]],
        copy_all: bool = False,
        recall: Recall | None = None,
    ) -> None:
        self._folders = folders
        self._copy_all = copy_all
        self._captures: list[tuple[Files, Callable[[Buffer], int], dict[str, Any]]] = []
        self._spool: Spool | None = None
        self._tree = flatten(state, registry=registry, allow_pickle=allow_pickle, files=self._note, recall=recall)

    @property
    def has_files(self) -> bool:
        """Whether ``draft`` will take as long as copying files does."""
        return bool(self._captures)

    @property
    def plan(self) -> Plan:
        """The layout of a snapshot, small files apart."""
        return Draft.of(self._tree, copy_all=self._copy_all).plan

    def detach_small(self) -> None:
        """Copy every small buffer that its owner may change."""
        detach_small(self._tree)

    def draft(self) -> Draft:
        """Capture the files, and lay everything out. Blocks; on any thread, once.

        Raises:
            FileNotFoundError: there is nothing at a path.
            UnsupportedLeafError, UsageError, StoreError: as for ``Spool.capture``; the copies are gone.
        """
        if self._captures:
            self._spool = Spool(self._folders())
        try:
            for leaf, add_buffer, payload in self._captures:
                assert self._spool is not None
                payload.update(self._spool.capture(leaf, add_buffer))
            return Draft.of(self._tree, self._spool, copy_all=self._copy_all)
        except BaseException:
            if self._spool is not None:
                self._spool.close()
            raise

    def _note(self, leaf: Files, add_buffer: Callable[[Buffer], int]) -> dict[str, Any]:
        """The leaf's payload, to be filled in by ``draft``."""
        payload: dict[str, Any] = {}
        self._captures.append((leaf, add_buffer, payload))
        return payload
