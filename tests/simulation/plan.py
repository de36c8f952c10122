"""What happens in a simulated run, as plain data made from a seed: who does what when, and what goes wrong.

A plan is a list of decisions, each of which can be taken out again: that is how a failing one is made short.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

__all__ = ["Action", "Actor", "Fault", "Outage", "Plan", "make_plan"]

_OPERATIONS = ("create", "put", "delete", "get", "get_range", "read_into", "list")
_WRITE_FAULTS = ("refuse", "lose", "late", "twice", "stall")
_FAULTS: dict[str, tuple[str, ...]] = {
    "create": (*_WRITE_FAULTS, "lose", "late", "conflict", "twice_seen", "full"),
    "put": (*_WRITE_FAULTS, "cut", "full"),
    "delete": (*_WRITE_FAULTS, "forbid"),
    "get": ("refuse", "refuse", "short", "flip", "stall", "forbid"),
    "get_range": ("refuse", "short", "flip", "stall", "forbid"),
    "read_into": ("refuse", "short", "flip", "stall", "forbid"),
    "list": ("refuse", "stale", "stale", "stall"),
}
_LONGEST_DELAY = 3600.0
_FAULTY_REQUESTS = 24
"""Of each kind, from the first one of a process on: later ones always work."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; ``delay`` is how late it is applied, or answered."""

    kind: str
    delay: float = 0.0


@dataclass(frozen=True)
class Outage:
    """The store answers ``kind`` to requests of ``actor`` (all, if ``None``) from ``start`` on, for so long.

    Attributes:
        hits: ``"all"``, ``"writes"`` or ``"create"``.
    """

    start: float
    seconds: float
    actor: int | None
    kind: str
    hits: str


@dataclass(frozen=True)
class Action:
    """One step of an actor's script, after ``pause`` seconds."""

    kind: str
    pause: float = 0.0
    choice: int = 0
    flag: bool = False


@dataclass
class Actor:
    """A process that writes, or only reads.

    Attributes:
        script: what it does, one after the other.
        crash_at: it dies before this step of its own.
        stalls: before which steps it stops, and for how long.
        faults: by operation and its number within the process.
    """

    writes: bool
    start: float
    script: list[Action]
    crash_at: int | None = None
    stalls: dict[int, float] = field(default_factory=dict)
    faults: dict[tuple[str, int], Fault] = field(default_factory=dict)
    skew_seconds: float = 0.0
    rate: float = 1.0
    keep: int | None = None
    on_busy: str = "supersede"
    compression: str = "off"
    buffers: int = 2


@dataclass
class Plan:
    """A whole run.

    Attributes:
        rots: at what time a stored object is damaged for good, and which (a number to choose by).
    """

    seed: int
    actors: list[Actor]
    outages: list[Outage] = field(default_factory=list)
    rots: list[tuple[float, int]] = field(default_factory=list)
    commit_deadline: float = 10.0
    open_deadline: float = 30.0
    upload_deadline: float = 10.0
    retry_deadline: float = 10.0
    grace: float = 60.0
    interval: float = 0.1


def make_plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = Random(f"plan {seed}")
    rate = rng.choice((0.0, 0.05, 0.15, 0.3, 0.5))
    writers = rng.choice((1, 2, 2, 2, 3))
    actors = [_writer(rng, number, rate) for number in range(writers)]
    if rng.random() < 0.02:  # a storm of takeovers
        actors += [_writer(rng, 0, rate) for _ in range(rng.randint(2, 5))]
    if rng.random() < 0.8:
        actors.append(_reader(rng, rate))
    plan = Plan(
        seed,
        actors,
        commit_deadline=rng.choice((0.6, 3.0, 60.0)),
        open_deadline=rng.choice((2.0, 60.0)),
        upload_deadline=rng.choice((1.0, 30.0)),
        retry_deadline=rng.choice((0.2, 2.0, 20.0)),
        grace=rng.choice((0.0, 3.0, 60.0)),
        interval=rng.choice((0.0, 0.1, 1.0)),
    )
    if rate and rng.random() < 0.4:
        plan.outages = [_outage(rng, len(actors)) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.08:
        plan.rots = [(rng.uniform(1, 20), rng.randrange(1 << 30)) for _ in range(rng.randint(1, 2))]
    return plan


def _writer(rng: Random, number: int, rate: float) -> Actor:
    actor = Actor(True, 0.0 if number == 0 else rng.choice((rng.uniform(0, 3), rng.uniform(0, 15))), [])
    for _ in range(rng.randint(3, 8)):
        kind = rng.choice(
            ("write",) * 9
            + ("durable", "durable", "sweep", "sweep", "pin", "delete", "wait", "read", "pinned", "pinned")
        )
        pause = rng.choice((0.0, 0.0, rng.uniform(0, 0.2), rng.uniform(0, 2)))
        if rng.random() < 0.03:
            pause += rng.choice((70.0, 4000.0))
        actor.script.append(Action(kind, pause, rng.randrange(64), rng.random() < 0.5))
    end = rng.random()
    if end < 0.35:
        actor.script.append(Action("close", rng.choice((0.0, rng.uniform(0, 70))), rng.randrange(3)))
    elif end < 0.65:
        actor.crash_at = rng.randint(1, rng.choice((60, 250, 700)))
    if rng.random() < 0.35:
        for _ in range(rng.randint(1, 2)):
            actor.stalls[rng.randint(1, 500)] = rng.choice((rng.uniform(0, 5), rng.uniform(5, 100), 4000.0))
    actor.faults = _faults(rng, rate)
    if rng.random() < 0.5:
        actor.skew_seconds = rng.choice((-1, 1)) * rng.choice((5.0, 3e8))
    if rng.random() < 0.2:
        actor.rate = rng.choice((0.5, 2.0))
    actor.keep = rng.choice((None, 1, 1, 2, 3, 12))
    actor.on_busy = rng.choice(("supersede", "wait", "wait", "skip"))
    actor.buffers = rng.choice((2, 3, 5))
    actor.compression = rng.choice(("off", "zstd"))
    return actor


def _reader(rng: Random, rate: float) -> Actor:
    actor = Actor(False, rng.uniform(0, 5), [])
    for _ in range(rng.randint(2, 6)):
        kind = rng.choice(("read", "read", "read", "verify", "list"))
        actor.script.append(Action(kind, rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 5)))))
    actor.faults = _faults(rng, rate / 2)
    if rng.random() < 0.1:
        actor.stalls[rng.randint(1, 200)] = rng.uniform(1, 100)
    return actor


def _faults(rng: Random, rate: float) -> dict[tuple[str, int], Fault]:
    if not rate:
        return {}
    faults: dict[tuple[str, int], Fault] = {}
    luck = rng.random
    for operation in _OPERATIONS:
        limit = rate * (1.0 if operation in ("create", "put", "delete") else 0.3)
        for number in range(_FAULTY_REQUESTS):
            if luck() < limit:
                fault = _fault(rng, operation)
                for again in range(rng.choice((1, 1, 3))):
                    faults.setdefault((operation, number + again), fault)
    return faults


def _fault(rng: Random, operation: str) -> Fault:
    kind = rng.choice(_FAULTS[operation])
    delay = rng.choice((rng.uniform(0, 0.3), rng.uniform(0, 5), rng.uniform(0, 60), rng.uniform(0, _LONGEST_DELAY)))
    return Fault(kind, min(delay, 120.0) if kind == "stall" else delay)


def _outage(rng: Random, actors: int) -> Outage:
    return Outage(
        start=rng.uniform(0, 12),
        seconds=rng.choice((rng.uniform(0, 2), rng.uniform(2, 15), rng.uniform(15, 100))),
        actor=rng.choice((None, rng.randrange(actors), rng.randrange(actors))),
        kind=rng.choice(("refuse", "lose", "late", "mixed")),
        hits=rng.choice(("all", "all", "writes", "create", "create")),
    )
