"""The processes of a simulated run: writers, readers, and the one that comes last and finds everything in order.

They make the calls of the public faces, step by step on their own loop.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import numpy as np
from blake3 import blake3
from tests.simulation.engine import SimEngine, SimThreads, SimWorkers
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Action, Actor, Plan
from tests.simulation.simstore import Disk, SimStore
from tests.simulation.world import Process, World

from limpet.engine.timing import Timing
from limpet.engine.writer import RunWriter
from limpet.errors import LimpetError, NotFoundError, UsageError
from limpet.finding import Wanted
from limpet.format.retention import Last, Periodic, Policy
from limpet.lazy import LazySaves
from limpet.loop import Operation, drive_async
from limpet.run import Run
from limpet.settings import Settings
from limpet.stores.retry import Retrying, RetryPolicy
from limpet.writing import Request, Writing

__all__ = ["Finale", "ReadingActor", "Simulation", "WritingActor"]

_PERIOD = 10
_SHARED = tuple(np.frombuffer(blake3(b"shared %d" % which).digest(3000), dtype=np.uint8) for which in range(2))


class Simulation:
    """What all actors of one run share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self.disk = Disk(self.world, plan.outages)
        bent = any(fault.kind in ("flip", "short") for actor in plan.actors for fault in actor.faults.values())
        self.oracle = Oracle(self.world, self.disk, bent=bent or bool(plan.rots))
        self.disk.watcher = self.oracle
        self._number = 0

    def next_state(self, choice: int) -> dict[str, Any]:
        """A state like no other: tiny, with a pack of its own, or sharing most of one with others."""
        self._number += 1
        number = self._number
        state: dict[str, Any] = {"number": number}
        if choice % 4 in (1, 3):
            noise = blake3(b"own %d" % number).digest(1500)
            state["own"] = np.frombuffer(noise if choice & 8 else noise[:100] * 15, dtype=np.uint8)
        if choice % 4 >= 2:
            state["shared"] = _SHARED[choice >> 4 & 1]
        self.oracle.staged[number] = state
        return state


class _Parent:
    """What stands above a checkpointer here: it lends loop and threads, and is always ready."""

    def __init__(self, threads: SimThreads) -> None:
        self.threads = threads
        self._children: list[Any] = []
        self._lazies = LazySaves()

    @property
    def _open_session(self) -> _Parent:
        return self

    def _ready(self) -> Operation[None]:
        yield from ()


class _Base:
    """One process with a client of the disk."""

    def __init__(self, simulation: Simulation, number: int, actor: Actor, name: str) -> None:
        self.simulation = simulation
        self.oracle = simulation.oracle
        self.actor = actor
        self.finished = False
        self.process = Process(
            simulation.world,
            name,
            skew_seconds=actor.skew_seconds,
            rate=actor.rate,
            crash_at=actor.crash_at,
            stalls=actor.stalls,
        )
        plan = simulation.plan
        self.rng = Random(f"actor {plan.seed} {number}")
        store = SimStore(
            simulation.disk, self.process, number, Random(f"net {plan.seed} {number}"), actor.faults, plan.interval
        )
        self.store = Retrying(store, RetryPolicy(0.1, 2.0, 5.0, plan.retry_deadline), clock=self.process.time)
        simulation.oracle.writers[name] = lambda: None

    def start(self) -> None:
        """Begin at the planned time."""
        self.simulation.world.after(
            self.actor.start, lambda: self.process.call_soon(lambda: self.process.create_task(self._live()))
        )

    async def _live(self) -> None:
        try:
            await self.play()
        except Exception as error:
            self.simulation.world.fail("unexpected", f"{self.process.name}: {type(error).__name__}: {error}")
        self.finished = True
        self.process.exit()

    async def play(self) -> None:
        for action in self.actor.script:
            if action.pause:
                await asyncio.sleep(action.pause)
            try:
                await self.act(action)
            except (LimpetError, TimeoutError) as error:
                self.failed(action, error)

    async def act(self, action: Action) -> None:
        raise NotImplementedError

    def failed(self, action: Action, error: Exception) -> None:
        self.simulation.world.note(self.process.name, action.kind, f"{type(error).__name__}: {error}")
        self.oracle.judge(error, self.process)

    async def _read(self, finding: Any, wanted: Wanted) -> Any:
        before = self.oracle.before_read()
        found = await drive_async(finding._find(wanted))
        self.simulation.world.note(self.process.name, "reads", found and found[1].seq)
        self.oracle.read(before, found, self.process.name)
        return found


class WritingActor(_Base):
    """A program that writes checkpoints."""

    def __init__(self, simulation: Simulation, number: int, actor: Actor, name: str) -> None:
        super().__init__(simulation, number, actor, name)
        plan = simulation.plan
        threads = SimThreads(self.process, self.rng)
        self.writing = Writing(self.store, _settings(actor, name), parent=_Parent(threads))  # type: ignore[arg-type]
        self.writing._timing = self.timing(plan)
        self.handles: list[Any] = []
        simulation.oracle.writers[name] = self._engine

    def timing(self, plan: Plan) -> Timing:
        """Deadlines as planned, on this process's clock."""
        return Timing(
            commit_deadline=plan.commit_deadline,
            open_deadline=plan.open_deadline,
            upload_deadline=plan.upload_deadline,
            grace=plan.grace,
            clock=self.process.time,
        )

    def _engine(self) -> RunWriter | None:
        session = self.writing._session
        return getattr(session, "writer", None)

    async def act(self, action: Action) -> None:
        if action.kind in ("write", "durable", "pinned"):
            await self._write(action)
        elif action.kind == "sweep":
            self.simulation.world.stats["sweeps"] += 1
            await drive_async(self.writing._sweep())
        elif action.kind in ("pin", "delete"):
            await self._change(action)
        elif action.kind == "wait":
            await drive_async(self.writing._wait(5.0 if action.flag else None))
        elif action.kind == "read":
            await self._read(self.writing, Wanted())
        elif action.kind == "close":
            await self._close((None, 0.0, 5.0)[action.choice])

    async def _write(self, action: Action) -> None:
        state = self.simulation.next_state(action.choice)
        number = state["number"]
        if action.kind == "pinned":
            self.oracle.pins.add(number)
        request = Request(
            number if action.choice % 5 else number % 7,  # a label that may go back: the newest commit counts
            {"number": number},
            pin=action.kind == "pinned",
            durable=action.kind == "durable",
            off_thread=action.flag,
        )
        try:
            handle = await drive_async(self._watched(state, request, number))
        except LimpetError as error:
            if error.pending is None:
                raise
            handle = error.pending
            self.oracle.judge(error, self.process)
        self.handles.append(handle)

    def _watched(self, state: Any, request: Request, number: int) -> Operation[Any]:
        """``_write``, with its handle watched from its birth."""
        made = self.writing._save_for

        def save_for(*args: Any) -> Any:
            save = made(*args)
            self.oracle.watch(save.handle, number, self.process)
            return save

        self.writing._save_for = save_for  # type: ignore[method-assign]
        try:
            return (yield from self.writing._write(state, request))
        finally:
            self.writing._save_for = made  # type: ignore[method-assign]

    async def _change(self, action: Action) -> None:
        await drive_async(self.writing._ready())
        infos = self.writing._open_session.committed
        if not infos:
            return
        info = infos[action.choice % len(infos)]
        try:
            if action.kind == "pin":
                await drive_async(self.writing._pin(info, action.flag))
            else:
                await drive_async(self.writing._delete(info))
        except NotFoundError:
            self.simulation.world.stats["changes.gone"] += 1
        except UsageError as error:
            if "only usable one" not in str(error):
                raise

    async def _close(self, timeout: float | None) -> None:
        try:
            await drive_async(self.writing._close(timeout))
        finally:
            left = [handle for handle in self.handles if not handle.done()]
            if left:
                self.simulation.world.fail("handles", f"{self.process.name} closed, and {left} never end")


class ReadingActor(_Base):
    """A program that reads."""

    def __init__(self, simulation: Simulation, number: int, actor: Actor, name: str) -> None:
        super().__init__(simulation, number, actor, name)
        self.run = Run(self.store)
        self.run._loop = SimEngine(self.process, self.rng)  # type: ignore[assignment]
        self.run._threads = SimWorkers(self.process, self.rng)  # type: ignore[assignment]

    async def act(self, action: Action) -> None:
        if action.kind == "read":
            await self._read(self.run, Wanted())
            return
        before = self.oracle.before_read()
        if action.kind == "verify":
            found = await drive_async(self.run._verify(None))
            nothing = found is None
        else:
            nothing = not await drive_async(self.run._checkpoints())
        least = self.oracle.newest(before)
        if nothing and least:
            self.simulation.world.fail("none", f"{self.process.name} sees nothing, though {least} is there")


class Finale(WritingActor):
    """The next attempt on a healthy store: it finds what was acknowledged, and leaves nothing behind."""

    def timing(self, plan: Plan) -> Timing:
        """What ships: a healthy store needs no more patience."""
        return Timing(clock=self.process.time)

    async def play(self) -> None:
        try:
            await drive_async(self.writing._ready())
            for info in list(self.writing._open_session.committed):
                await self._check(info.seq, info)
            await self._read(self.writing, Wanted())
            await self._write(Action("durable", choice=3))
            await self._sweep()
            await self._close(None)
        except LimpetError as error:
            if not self.simulation.disk.rotten:
                self.simulation.world.fail("heal", f"{type(error).__name__}: {error}")

    async def _check(self, seq: int, info: Any) -> None:
        try:
            found = await drive_async(self.writing._find(Wanted(info)))
        except LimpetError as error:
            if self.oracle.is_sound(seq):
                self.simulation.world.fail("heal", f"checkpoint {seq}: {error}")
            return
        self.simulation.world.stats["reads.final"] += 1
        self.oracle.check_state(*found, self.process.name)

    async def _sweep(self) -> None:
        await drive_async(self.writing._sweep())
        writer = self._engine()
        assert writer is not None
        if writer.janitor.blocked:
            return
        left = {key for key in self.simulation.disk.objects if key.startswith("data/")}
        reach = self.oracle.reach()
        if left - reach:
            self.simulation.world.fail("garbage", f"{sorted(left - reach)} are left after a sweep")
        self.simulation.world.stats["swept clean"] += 1


def _settings(actor: Actor, name: str) -> Settings:
    retain: Policy | None = None
    if actor.keep is not None:
        retain = Last(actor.keep) if actor.keep != 12 else Last(1) | Periodic(steps=_PERIOD)
    return Settings(
        retain=retain,
        every=None,
        buffers=actor.buffers,
        on_busy=actor.on_busy,  # type: ignore[arg-type]
        on_error="raise",
        compression=actor.compression,
        memory_limit=None,
        owner=name,
        takeover=True,
        start_from=None,
        allow_pickle=False,
        hooks=(),
        storage={},
    )
