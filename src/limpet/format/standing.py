"""What a policy makes of the live checkpoints, kept up as they come and go.

``retention.decide`` looks at all of them, and gives its reasons; a commit asks here, so that it, and a call that asks
whether its state would be kept for its own sake, do not take longer the more checkpoints there are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable

from limpet.format.retention import Best, Last, Periodic, Policy, Rank, parts, period_of, rank_of
from limpet.types import CheckpointInfo

__all__ = ["Standing"]


class Standing:
    """The live checkpoints as a policy sees them. One thread changes it; ``claims`` may be asked from any.

    Args:
        policy: the policy.
        live: all live checkpoints, oldest first.
    """

    def __init__(self, policy: Policy, live: Iterable[CheckpointInfo] = ()) -> None:
        self._last = max((part.n for part in parts(policy) if isinstance(part, Last)), default=0)
        self._others = [
            _Ranking(part) if isinstance(part, Best) else _Periods(part)
            for part in parts(policy)
            if not isinstance(part, Last)
        ]
        self._seqs: dict[int, None] = {}
        for info in live:
            self.add(info)

    def follow(self, left: Iterable[CheckpointInfo], newest: CheckpointInfo | None) -> None:
        """A record was applied: these have left the live set, and ``newest``, if there is one, has come."""
        for info in left:
            self.remove(info)
        if newest is not None:
            self.add(newest)

    def add(self, info: CheckpointInfo) -> None:
        """A checkpoint was committed, after all that are here."""
        self._seqs[info.seq] = None
        for part in self._others:
            part.add(info)

    def remove(self, info: CheckpointInfo) -> None:
        """A checkpoint left the live set."""
        if info.seq in self._seqs:
            del self._seqs[info.seq]
            for part in self._others:
                part.remove(info)

    def kept_with(self, candidate: CheckpointInfo) -> set[int]:
        """The seqs that the policy keeps once ``candidate`` is committed, itself among them."""
        kept = {candidate.seq}
        for seq, _ in zip(reversed(self._seqs), range(self._last - 1), strict=False):
            kept.add(seq)
        for part in self._others:
            kept |= part.kept_with(candidate)
        return kept

    def claims(self, candidate: CheckpointInfo) -> bool:
        """As ``retention.claims``: whether it would be kept for its own sake; its ``seq`` does not matter."""
        return any(part.claims(candidate) for part in self._others)


class _Periods:
    def __init__(self, policy: Periodic) -> None:
        self._policy = policy
        self._seqs: dict[Hashable, list[int]] = {}
        self._period_of: dict[int, Hashable] = {}
        """As it was when the checkpoint came: its ``meta`` is a dict that somebody may have changed since."""

    def add(self, info: CheckpointInfo) -> None:
        period = period_of(self._policy, info)
        if period is not None:
            self._seqs.setdefault(period, []).append(info.seq)
            self._period_of[info.seq] = period

    def remove(self, info: CheckpointInfo) -> None:
        period = self._period_of.pop(info.seq, None)
        if period is None:
            return
        seqs = self._seqs[period]
        seqs.remove(info.seq)
        if not seqs:
            del self._seqs[period]

    def kept_with(self, _candidate: CheckpointInfo) -> set[int]:
        return {seqs[0] for seqs in self._seqs.values()}

    def claims(self, candidate: CheckpointInfo) -> bool:
        period = period_of(self._policy, candidate)
        return period is not None and period not in self._seqs


class _Ranking:
    def __init__(self, policy: Best) -> None:
        self._policy = policy
        self._ranked: list[Rank] = []
        self._rank_of: dict[int, Rank] = {}
        """As it was when the checkpoint came; see above."""
        self._worst: Rank | None = None
        """The last of those that are kept, once there are as many as may be."""

    def add(self, info: CheckpointInfo) -> None:
        rank = rank_of(self._policy, info)
        if rank is not None:
            insort(self._ranked, rank)
            self._rank_of[info.seq] = rank
            self._note_worst()

    def remove(self, info: CheckpointInfo) -> None:
        rank = self._rank_of.pop(info.seq, None)
        if rank is not None:
            del self._ranked[bisect_left(self._ranked, rank)]
            self._note_worst()

    def kept_with(self, candidate: CheckpointInfo) -> set[int]:
        best = self._ranked[: self._policy.n]
        rank = rank_of(self._policy, candidate)
        if rank is not None:
            insort(best, rank)
        return {-negated for _, negated in best[: self._policy.n]}

    def claims(self, candidate: CheckpointInfo) -> bool:
        rank = rank_of(self._policy, candidate)
        worst = self._worst
        # Of equals the newer is kept, and this one would be the newest.
        return rank is not None and (worst is None or rank[0] <= worst[0])

    def _note_worst(self) -> None:
        n = self._policy.n
        self._worst = self._ranked[n - 1] if len(self._ranked) >= n else None
