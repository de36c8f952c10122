"""Lazy saves of a run: which states are still being copied, and when they may change.

Two lists, one for each side. A lazy write says that it needs its state before it looks whether the state changes just now;
a body that changes it says so before it looks who needs it. So of two that meet at least one sees the other, without a
lock that either could be stuck behind.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from types import TracebackType
from typing import Self

from limpet.engine.staging import Volatile
from limpet.errors import UsageError
from limpet.loop import Operation, Wait, drive, drive_async
from limpet.pending import Completion, PendingWrite, check_may_block

__all__ = ["LazySaves", "Mutating", "Need", "Spans"]

_LOOK_AGAIN_SECONDS = 0.5
Spans = Callable[[], Iterable[tuple[int, int]]]
"""Runs of memory, each from one address up to another."""


class Need:
    """A lazy write needs its state as it is, from the call until it is staged.

    Attributes:
        over: settles when the state may change.
        handle: of the save, once it was admitted.
        wanted: somebody waits for it.
        returned: the call has ended, well or not.
    """

    __slots__ = ("handle", "over", "returned", "wanted")

    def __init__(self) -> None:
        self.over: Completion[None] = Completion()
        self.handle: PendingWrite | None = None
        self.wanted = False
        self.returned = False

    @property
    def is_over(self) -> bool:
        """Whether the state may change, also if an interrupt kept the call from telling that."""
        return self.over.done() or (self.returned and (self.handle is None or self.handle._staged.done()))

    def hurry(self) -> None:
        """Somebody waits for it: copy at full speed."""
        self.wanted = True  # for a copy that has not begun
        if self.handle is not None and self.handle._hurry is not None:
            self.handle._hurry()


class LazySaves:
    """The lazy saves of one run and of its children.

    Args:
        parent: of a child run: its bodies change the state of its children too, and wait for their saves.
    """

    def __init__(self, parent: LazySaves | None = None) -> None:
        self._line: tuple[LazySaves, ...] = (self, *(parent._line if parent is not None else ()))
        self._needs: dict[Need, None] = {}
        self._bodies: list[Mutating] = []
        self._volatile: dict[Spans, None] = {}
        self._pid = os.getpid()

    def enter(self, need: Need) -> None:
        """A lazy write begins; to be followed by ``leave`` in any case.

        Raises:
            UsageError: the state is being changed.
        """
        for saves in self._line:
            saves._needs[need] = None
        if any(saves._bodies for saves in self._line):
            raise UsageError(
                "a lazy write inside mutating(): the state changes while it would be copied.",
                hint="Write after the block, or without lazy=True.",
            )

    def leave(self, need: Need) -> None:
        """Its call has ended, well or not: the state is needed until it was staged, if it is to be staged at all."""
        need.returned = True
        if need.handle is None:
            self._leave(need)
        else:
            need.handle._staged.add_callback(lambda: self._leave(need))

    def _leave(self, need: Need) -> None:
        for saves in self._line:
            saves._needs.pop(need, None)
        need.over.set_result(None)

    def settled(self) -> Operation[None]:
        """Wait until no copy is under way; they go at full speed meanwhile."""
        if os.getpid() != self._pid:
            return  # the threads that copy are the parent process's, and copy its memory
        needs = list(self._needs)
        if needs:
            check_may_block()
        for need in needs:
            need.hurry()
        for need in needs:
            while not need.is_over:
                yield Wait(need.over, timeout_seconds=_LOOK_AGAIN_SECONDS)
            self._leave(need)

    def add_volatile(self, spans: Spans) -> Callable[[], None]:
        """Let each lazy write copy in its call what lies in ``spans()``; returns what ends that."""
        self._volatile[spans] = None
        return lambda: self._volatile.pop(spans, None)

    def volatile(self) -> Volatile:
        """Tells, for one write, whether memory may change although nobody waits for its copy."""
        found = sorted(span for saves in self._line for spans in list(saves._volatile) for span in spans())
        starts = [start for start, _ in found]
        ends = list(accumulate((end for _, end in found), max))  # of all up to here: some may lie in others

        def is_volatile(first: int, end: int) -> bool:
            before = bisect_left(starts, end)
            return before > 0 and ends[before - 1] > first

        return is_volatile


class Mutating:
    """A block that changes the state: entered once nothing of it is still to be copied. See ``Checkpointer.mutating``."""

    __slots__ = ("_saves",)

    def __init__(self, saves: LazySaves) -> None:
        self._saves = saves

    def begin(self) -> Operation[None]:
        """Enter it; to be followed by ``end``, unless this raises."""
        try:
            self._saves._bodies.append(self)
            yield from self._saves.settled()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Leave it."""
        if self in self._saves._bodies:
            self._saves._bodies.remove(self)

    def __enter__(self) -> Self:
        drive(self.begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    async def __aenter__(self) -> Self:
        await drive_async(self.begin())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
