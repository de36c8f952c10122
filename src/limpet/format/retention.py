"""Which checkpoints stay: a pure function from a policy and what is live to what is kept, and why.

Rules that hold for every policy: the newest checkpoint and pinned ones stay; order is the order of
commits (``seq``), never that of steps, which may repeat or go back, nor that of clocks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from limpet.errors import CorruptError, FormatError, UsageError
from limpet.format.interval import check_period, plain_number
from limpet.format.nodes import brief
from limpet.types import CheckpointInfo

__all__ = [
    "AnyOf",
    "Best",
    "Decision",
    "Last",
    "Periodic",
    "Policy",
    "Rank",
    "check",
    "claims",
    "decide",
    "describe",
    "from_json",
    "narrows",
    "parts",
    "period_of",
    "rank_of",
    "to_json",
]


class _Combinable:
    """What all policies share: ``a | b`` keeps what either keeps."""

    __slots__ = ()

    def __or__(self, other: Policy) -> AnyOf:
        if not isinstance(other, _Combinable):
            return NotImplemented
        return AnyOf((self, other))  # type: ignore[arg-type]  # every subclass is a Policy


@dataclass(frozen=True, slots=True)
class Last(_Combinable):
    """Keep the newest ``n`` checkpoints.

    Raises:
        UsageError: ``n`` is not a whole number, 1 or more.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("Last", self.n))


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic(_Combinable):
    """Keep the first checkpoint that was committed in each period.

    Args:
        steps: a period is that many steps: 0 up to ``steps - 1``, and so on. Each write must then have a step.
        seconds: a period is that long, by the clock of whoever wrote the checkpoint. A clock that is wrong
            makes periods fall together or apart; it never changes what is newest.

    Raises:
        UsageError: both or neither are given, or not a number above zero (steps: a whole one).
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        steps, seconds = check_period("Periodic", self.steps, self.seconds)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "seconds", seconds)


@dataclass(frozen=True, slots=True)
class Best(_Combinable):
    """Keep the ``n`` checkpoints whose ``meta[metric]`` is best; of equals, the newer.

    A metric that is missing, or no finite number (NaN above all), is never best.

    Args:
        metric: the key in the ``meta`` that ``write`` is given.
        n: how many.
        largest: whether larger is better.

    Raises:
        UsageError: ``metric`` is no text or empty, ``n`` is not a whole number, 1 or more, or ``largest`` is no bool.
    """

    metric: str
    n: int = 1
    largest: bool = False

    def __post_init__(self) -> None:
        _check_ranking(self.metric, self.largest)
        object.__setattr__(self, "n", _count("Best", self.n))


@dataclass(frozen=True, slots=True)
class AnyOf(_Combinable):
    """Keep what any of several policies keeps; usually written ``a | b``.

    Args:
        policies: what is combined; nested ones are flattened, repeated ones dropped.

    Raises:
        UsageError: there is none, or one is no policy.
    """

    policies: tuple[Simple, ...]

    def __post_init__(self) -> None:
        flat: dict[Simple, None] = {}
        for policy in self.policies:
            if not isinstance(policy, _Combinable):
                raise UsageError(f"{policy!r} is no retention policy.", hint="Combine Last, Periodic and Best.")
            flat.update(dict.fromkeys(parts(policy)))
        if not flat:
            raise UsageError("AnyOf(()) keeps nothing.", hint="Give at least one policy.")
        object.__setattr__(self, "policies", tuple(flat))


Simple: TypeAlias = Last | Periodic | Best
Policy: TypeAlias = Simple | AnyOf
Rank: TypeAlias = tuple[int | float, int]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of the live checkpoints.

    Attributes:
        keep: the seqs that stay, oldest first, each with all reasons why.
        remove: the seqs that go, oldest first.
    """

    keep: dict[int, tuple[str, ...]]
    remove: tuple[int, ...]


def decide(policy: Policy, live: Iterable[CheckpointInfo]) -> Decision:
    """Decide which live checkpoints stay.

    Args:
        policy: the policy.
        live: all live checkpoints, in any order.
    """
    ordered = sorted(live, key=lambda info: info.seq)
    reasons: dict[int, list[str]] = {info.seq: [] for info in ordered}
    for info in ordered[-1:]:
        reasons[info.seq].append("newest")
    for info in ordered:
        if info.pinned:
            reasons[info.seq].append("pinned")
    for part in parts(policy):
        reason = describe(part)
        for seq in _kept_by(part, ordered):
            reasons[seq].append(reason)
    keep = {seq: tuple(why) for seq, why in reasons.items() if why}
    return Decision(keep, tuple(seq for seq in reasons if seq not in keep))


def claims(policy: Policy, candidate: CheckpointInfo, live: Iterable[CheckpointInfo]) -> bool:
    """Whether the policy would keep a candidate for its own sake, not just for being recent.

    Such a save is not superseded by a newer one while it waits. Being pinned is the caller's to look at.

    Args:
        policy: the policy.
        candidate: what would be committed next; its ``seq`` does not matter.
        live: all live checkpoints before it, in any order.
    """
    ordered = sorted(live, key=lambda info: info.seq)
    seq = ordered[-1].seq + 1 if ordered else 0
    ordered.append(replace(candidate, seq=seq))
    return any(seq in _kept_by(part, ordered) for part in parts(policy) if not isinstance(part, Last))


def narrows(old: Policy, new: Policy, live: Iterable[CheckpointInfo]) -> tuple[int, ...]:
    """The seqs, oldest first, that go under ``new`` and would stay under ``old``."""
    live = tuple(live)
    kept = decide(old, live).keep
    return tuple(seq for seq in decide(new, live).remove if seq in kept)


def check(policy: Policy, step: int | None) -> None:
    """Check that a write gives what the policy goes by.

    Raises:
        UsageError: the policy counts steps, and ``step`` is ``None``.
    """
    if step is not None or type(policy) is Last:  # the usual answers: a loop may write as fast as it can
        return
    for part in parts(policy):
        if isinstance(part, Periodic) and part.steps is not None:
            raise UsageError(
                f"retain=Periodic(steps={part.steps}) counts steps, and this write has none.",
                hint="Give write(..., step=...) or use Periodic(seconds=...).",
            )


def describe(policy: Policy) -> str:
    """A policy in a few words, as in ``last 3, one per 1000 steps``."""
    match policy:
        case AnyOf(policies):
            return ", ".join(map(describe, policies))
        case Last(n):
            return f"last {n}"
        case Periodic(steps=int(steps)):
            return f"one per {steps} steps"
        case Periodic(seconds=seconds):
            return f"one per {seconds:g} s"
        case Best(metric, n, largest):
            return f"best {n} by {'largest' if largest else 'smallest'} {metric}"


def parts(policy: Policy) -> tuple[Simple, ...]:
    """The policies that it is a union of."""
    return policy.policies if isinstance(policy, AnyOf) else (policy,)


def _count(name: str, n: object) -> int:
    count = plain_number(n)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"{name}: {n!r} is not a number of checkpoints.", hint="Give a whole number, 1 or more.")
    return count


def _check_ranking(metric: object, largest: object) -> None:
    if not isinstance(metric, str) or not metric:
        raise UsageError(f"Best({metric!r}) names no metric.", hint='Give a key of meta, as Best("loss").')
    try:
        metric.encode()
    except UnicodeEncodeError:
        raise UsageError(f"Best({metric!r}) is no valid text.", hint="Take surrogates out.") from None
    if not isinstance(largest, bool):
        raise UsageError(f"Best(largest={largest!r}) is neither True nor False.", hint="Give one of them.")


def _kept_by(policy: Simple, ordered: Sequence[CheckpointInfo]) -> set[int]:
    """The seqs that one policy keeps of checkpoints that come oldest first."""
    match policy:
        case Last(n):
            return {info.seq for info in ordered[-n:]}
        case Periodic():
            first: dict[Hashable, int] = {}
            for info in ordered:
                period = period_of(policy, info)
                if period is not None:
                    first.setdefault(period, info.seq)
            return set(first.values())
        case Best():
            ranked = sorted(rank for info in ordered if (rank := rank_of(policy, info)) is not None)
            return {-negated for _, negated in ranked[: policy.n]}


def rank_of(policy: Best, info: CheckpointInfo) -> Rank | None:
    """Where a checkpoint stands: the smaller, the better; of equals the newer. ``None`` if it cannot be ranked."""
    value = _number(info.meta.get(policy.metric))
    return None if value is None else (-value if policy.largest else value, -info.seq)


def period_of(policy: Periodic, info: CheckpointInfo) -> Hashable:
    """Which period a checkpoint is in; ``None`` if it cannot be told (written under another policy)."""
    if policy.steps is not None:
        return None if info.step is None else info.step // policy.steps
    assert policy.seconds is not None
    return info.time // policy.seconds if math.isfinite(info.time) else None


def _number(value: object) -> int | float | None:
    """A metric that can be ranked."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


_KINDS: dict[str, tuple[type[Simple], frozenset[str]]] = {
    "last": (Last, frozenset({"n"})),
    "periodic": (Periodic, frozenset({"steps", "seconds"})),
    "best": (Best, frozenset({"metric", "n", "largest"})),
}
_NAMES = {kind: name for name, (kind, _) in _KINDS.items()}


def to_json(policy: Policy) -> dict[str, Any]:
    """A policy as plain data for a record: ``{"kind": "last", "n": 3}``, several as ``{"kind": "any", "of": [...]}``."""
    if isinstance(policy, AnyOf):
        return {"kind": "any", "of": [to_json(part) for part in policy.policies]}
    return {"kind": _NAMES[type(policy)], **asdict(policy)}


def from_json(value: object) -> Policy:
    """The policy that ``to_json`` was given.

    Raises:
        CorruptError: the value is not what ``to_json`` makes.
        FormatError: it is of a kind that this version does not know.
    """
    fields = _fields(value)
    if fields["kind"] != "any":
        return _simple_from_json(fields)
    parts = fields.get("of")
    if fields.keys() != {"kind", "of"} or not isinstance(parts, list) or not parts:
        raise _malformed(value)
    # Unions are flat, so nothing here is as deep as a record could make it.
    return AnyOf(tuple(_simple_from_json(_fields(part)) for part in parts))


def _simple_from_json(fields: dict[str, Any]) -> Simple:
    kind = fields["kind"]
    if kind == "any":
        raise _malformed(fields)
    if kind not in _KINDS:
        raise FormatError(
            f"a record names the retention policy {kind!r}, which this version of limpet does not know.",
            hint="Open the run with a newer version, or give retain= explicitly.",
        )
    policy, names = _KINDS[kind]
    arguments = {name: item for name, item in fields.items() if name != "kind"}
    if arguments.keys() != names:
        raise _malformed(fields)
    try:
        return policy(**arguments)
    except UsageError as error:
        raise _malformed(fields) from error


def _fields(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise _malformed(value)
    return value


def _malformed(value: object) -> CorruptError:
    return CorruptError(f"a record's retention policy is malformed: {brief(value)}.")
