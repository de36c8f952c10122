"""The writer's process: it serves the runs of one trainer, and outlives it for as long as something is staged.

It ends when it is told to, or when its trainer is dead and all that was staged is committed, or after five minutes of
trying. Signals do not end it: whoever sends them to a whole group means the trainer, which has its own way of ending.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Any

import anyio
import numpy as np

from limpet.engine.slots import Bytes8
from limpet.engine.urgency import Encoders
from limpet.remote import messages as said
from limpet.remote.channel import Channel, Packet
from limpet.remote.faults import fault_of
from limpet.remote.handed import Loan
from limpet.remote.hosted import HostedRun
from limpet.remote.memory import ViewedMemory
from limpet.remote.place import store_at
from limpet.stores.local_lock import work_for
from limpet.stores.retry import Retrying

__all__ = ["host"]

_DRAIN_SECONDS = 300.0
_DEFECT = 70
_SHORT_SECONDS = 0.5
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def host(fd: int, trainer_pid: int) -> None:
    """Serve the trainer ``trainer_pid``, at the other end of the socket ``fd``, and end the process."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("limpet-writer")
    status = _DEFECT
    try:
        anyio.run(_Host(socket.socket(fileno=fd)).main, trainer_pid)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # threads that hang in a system call must not keep it


class _Host:
    """Takes messages, and does what they say."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, self._flush_later)
        self._encoders = Encoders()
        self._slots: dict[int, ViewedMemory] = {}
        self._runs: dict[int, HostedRun] = {}
        self._root: Retrying | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._trainer = -1
        self._bereft = False
        self._over = asyncio.Event()
        self._defect: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop

    async def main(self, trainer_pid: int) -> None:
        """Serve until there is nothing left to do."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._read)
        _forward_warnings(lambda text: self._tell(said.Warned(text)))
        self._tell(said.Ready())
        self._watch_trainer(trainer_pid)
        await self._over.wait()
        self._channel.flush_within(_SHORT_SECONDS)
        if self._defect is not None:
            raise self._defect

    # Messages.

    def _read(self) -> None:
        try:
            while not self._over.is_set() and (found := self._channel.receive()) is not None:
                self._take(said.decode_from_trainer(found[0]), found[1])
        except EOFError:  # it has ended, or become another program
            self._lose_trainer()
        except BaseException as error:  # a defect of ours: better a new process than one that misses messages
            self._defect = error
            self._over.set()

    def _take(self, message: said.FromTrainer, fds: list[int]) -> None:
        match message:
            case said.OpenRun():
                self._open(message)
            case said.NewSlot():
                self._slots[message.slot] = ViewedMemory(fds[0], message.content_bytes)
                os.close(fds[0])
            case said.DropSlot():
                self._slots.pop(message.slot, None)
            case said.StageSave():
                self._stage(message, fds)
            case said.Call():
                self._spawn(self._answer(message))
            case said.Goodbye():
                self._over.set()
            case _:
                self._pass_on(message)

    def _pass_on(self, message: said.StartSave | said.Withdraw | said.Hurry | said.Discard) -> None:
        run = self._runs.get(message.run)
        if run is None:  # it could not be opened, or was closed meanwhile
            return
        match message:
            case said.StartSave():
                run.start(message.number)
            case said.Withdraw():
                for number in message.numbers:
                    run.withdraw(number)
            case said.Hurry():
                run.hurry(message.hurried)
            case said.Discard():
                run.discard(message.pack)

    def _open(self, message: said.OpenRun) -> None:
        place = message.place
        if self._root is None:
            self._root = store_at(said.Place(place.url, place.storage, place.key))
        store = self._root
        for prefix in place.prefixes:
            store = store.child(prefix)
        run = HostedRun(
            message,
            store,
            encoders=self._encoders,
            tell=self._tell,
            tell_first=self._tell_first,
            bereft=lambda: self._bereft,
        )
        self._runs[message.run] = run
        self._spawn(self._answer_opening(run, message))

    async def _answer_opening(self, run: HostedRun, message: said.OpenRun) -> None:
        try:
            self._tell(await run.open())
            run.begin()
        except Exception as error:
            self._runs.pop(run.number, None)
            self._tell(said.Answer(message.call, fault=fault_of(error)))

    def _stage(self, message: said.StageSave, fds: list[int]) -> None:
        run = self._runs.get(message.run)
        if run is None or run.knows(message.number):
            for fd in fds:
                os.close(fd)
            return
        memory = self._slots[message.slot] if message.slot else None
        content: Bytes8 = np.frombuffer(message.data, dtype=np.uint8) if memory is None else memory.array
        loan = Loan(content, lambda lent: self._tell(said.Released(run.number, message.number, lent)))
        run.stage(message, memory, loan, fds)

    async def _answer(self, message: said.Call) -> None:
        run = self._runs.get(message.run)
        value: Any = None
        try:
            if run is not None:
                value = await run.call(message)
            answer = said.Answer(message.call, value)
        except Exception as error:
            answer = said.Answer(message.call, fault=fault_of(error))
        if message.name == "stop":
            self._runs.pop(message.run, None)
        self._tell(answer)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, message: said.FromWriter) -> None:
        self._channel.send(Packet(said.encode(message)))

    def _tell_first(self, message: said.FromWriter) -> None:
        self._tell(message)
        while not self._channel.flush_within(_SHORT_SECONDS) and not self._bereft and not self._trainer_is_dead():
            pass

    def _flush_later(self) -> None:
        def flush() -> None:
            if self._channel.flush():
                self._loop.remove_writer(self._channel.fileno())

        self._loop.add_writer(self._channel.fileno(), flush)

    # The trainer's death.

    def _watch_trainer(self, pid: int) -> None:
        work_for(pid)
        try:
            self._trainer = os.pidfd_open(pid)
        except OSError:
            self._lose_trainer()
            return
        if os.getppid() != pid:  # it died before, and another process has its number
            self._lose_trainer()
            return
        self._loop.add_reader(self._trainer, self._on_death)

    def _trainer_is_dead(self) -> bool:
        return self._trainer >= 0 and bool(select.select([self._trainer], [], [], 0)[0])

    def _on_death(self) -> None:
        """Forked children of the trainer may have its socket still: its process says when it is dead."""
        self._read()  # all that it had sent
        self._lose_trainer()

    def _lose_trainer(self) -> None:
        if self._bereft or self._over.is_set():
            return
        self._bereft = True
        if self._trainer >= 0:
            self._loop.remove_reader(self._trainer)
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._spawn(self._drain())

    async def _drain(self) -> None:
        """Commit what was staged, each run by itself, and leave."""
        with anyio.move_on_after(_DRAIN_SECONDS):
            async with anyio.create_task_group() as group:
                for run in list(self._runs.values()):
                    group.start_soon(_drained, run)
        self._over.set()


async def _drained(run: HostedRun) -> None:
    try:
        await run.drain()
    except Exception:  # the other runs' saves are as dear
        traceback.print_exc()


class _Forwarding(logging.Handler):
    """Hands log lines on to where somebody reads them."""

    def __init__(self, tell: Any) -> None:
        super().__init__(logging.WARNING)
        self._tell_text = tell

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler.emit``."""
        self._tell_text(record.getMessage())


def _forward_warnings(tell: Any) -> None:
    loop = asyncio.get_running_loop()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        loop.call_soon_threadsafe(tell, str(message))

    warnings.simplefilter("always", RuntimeWarning)
    warnings.showwarning = show
    logging.getLogger("limpet").addHandler(_Forwarding(lambda text: loop.call_soon_threadsafe(tell, text)))
