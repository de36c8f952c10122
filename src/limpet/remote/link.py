"""The trainer's end: one writer's process after another, for all runs of one ``Checkpointer``.

A process that dies is followed by a new one, which is told everything again that had not come to its end: runs to
open, calls, staged saves. What it may find done already carries what is needed to recognise it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from limpet.errors import StoreError
from limpet.events import warn_gently
from limpet.remote import messages as said
from limpet.remote.channel import Channel, Packet
from limpet.remote.launch import Launched
from limpet.remote.memory import SharedMemory, forget_after_fork

if TYPE_CHECKING:
    from limpet.remote.proxy import RemoteWriter

__all__ = ["Link"]

_DEATHS_MAX = 3
"""So many in a row, without a commit between them, and nobody tries again."""


class Link:
    """See the module. The process is started here and now, and imports what it needs while the caller goes on.

    Args:
        call_soon: runs a function on the engine's loop; ``False`` once that has ended.
        launched: a process that was started ahead, if one was.

    Attributes:
        lock: held while the tables of runs and saves change together with what is sent.
        lost: why there is no process any more, once nobody tries again.

    Raises:
        StoreError: no process could be started.
    """

    def __init__(self, call_soon: Callable[..., bool], launched: Launched | None = None) -> None:
        self.lock = threading.RLock()
        self.lost: StoreError | None = None
        self._call_soon = call_soon
        self._runs = itertools.count()
        self._saves = itertools.count(1)
        self._call_numbers = itertools.count(1)
        self._writers: dict[int, RemoteWriter] = {}
        self._calls: dict[int, tuple[said.OpenRun | said.Call, asyncio.Future[Any]]] = {}
        self._deaths = 0
        self._ready = False
        self._ending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._launch(launched)
        _links.add(self)

    def next_run(self) -> int:
        """A number for a run."""
        return next(self._runs)

    def next_save(self) -> int:
        """A number for a save."""
        return next(self._saves)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._launched.pid

    def memory(self, nbytes: int) -> SharedMemory:
        """Memory for a slot, which the process gets to see with the first save in it."""
        return SharedMemory(nbytes, self._forget_slot)

    # What is said.

    def send(self, message: said.FromTrainer, fds: tuple[int, ...] = ()) -> Packet:
        """Send a message, from any thread; with copies of ``fds``, whose owners may close them meanwhile.

        What a dead process did not get, the next one is told.

        Raises:
            OSError: this process may not open so many files.
        """
        packet = Packet(said.encode(message), [os.dup(fd) for fd in fds])
        self._channel.send(packet)
        return packet

    def take_back(self, packet: Packet) -> bool:
        """See ``Channel.take_back``."""
        return self._channel.take_back(packet)

    def show(self, memory: SharedMemory) -> None:
        """Hand a slot over, unless the process has it."""
        if memory.number not in self._shown:
            self.send(said.NewSlot(memory.number, memory.content_bytes), (memory.fd,))
            self._shown.add(memory.number)

    async def open(self, writer: RemoteWriter) -> None:
        """Have a run opened; on the loop.

        Raises:
            LimpetError: see ``Session.open``.
        """
        if self._loop is None:
            self._attach()
        with self.lock:
            self._writers[writer.run] = writer
            answer = self._ask(writer.opening(next(self._call_numbers)))
        try:
            await answer
        except BaseException:
            self.leave(writer)
            raise

    async def call(self, run: int, name: str, *args: Any) -> Any:
        """What the writer's method of that name gives; on the loop.

        Raises:
            LimpetError: what it raised, or the process died for good.
        """
        return await self._ask(said.Call(next(self._call_numbers), run, name, list(args)))

    def leave(self, writer: RemoteWriter) -> None:
        """A run is closed."""
        with self.lock:
            self._writers.pop(writer.run, None)

    def progress(self) -> None:
        """Something was committed."""
        self._deaths = 0

    def end(self, patience_seconds: float) -> None:
        """Let the process go, or end it after that long; what is not committed then fails. Idempotent; any thread."""
        with self.lock:
            ended, self._ending = self._ending, True
        if ended:
            return
        self._call_soon(self._detach)
        self.send(said.Goodbye())
        self._launched.end(patience_seconds)
        self._channel.close()
        late = StoreError("the save was not committed before the deadline of close().", kind="late")
        for writer in list(self._writers.values()):
            writer.lose(late)

    def forget(self) -> None:
        """In a forked child: none of this is ours."""
        self._ending = True
        self._channel.close()

    def _ask(self, message: said.OpenRun | said.Call) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.lost is not None:
            answer.set_exception(self.lost)
            return answer
        self._calls[message.call] = message, answer
        self.send(message)
        return answer

    def _forget_slot(self, number: int) -> None:
        self._shown.discard(number)
        if not self._ending:
            self.send(said.DropSlot(number))

    # What is heard; on the loop.

    def _launch(self, launched: Launched | None = None) -> None:
        self._shown: set[int] = set()
        self._launched = launched or Launched()
        self._channel = Channel(self._launched.sock, self._full)

    def _attach(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._read)
        self._loop.add_reader(self._launched.pidfd, self._on_death)

    def _detach(self) -> None:
        if self._loop is not None:
            for fd in (self._channel.fileno(), self._launched.pidfd):
                with suppress(ValueError, OSError):
                    self._loop.remove_reader(fd)
                    self._loop.remove_writer(fd)

    def _read(self) -> None:
        try:
            while (found := self._channel.receive()) is not None:
                self._take(said.decode_from_writer(found[0]))
        except EOFError:  # it ends, or lost its way: a moment later its descriptor says so
            assert self._loop is not None
            self._loop.remove_reader(self._channel.fileno())
            if not self._ending:
                self._launched.kill()

    def _take(self, message: said.FromWriter) -> None:
        match message:
            case said.Ready():
                self._ready = True
            case said.Opened():
                self._adopt(message)
                self._settle(message.call, message, None)
            case said.Answer():
                self._settle(message.call, message.value, None if message.fault is None else message.fault.error())
            case said.Warned():
                warn_gently(message.text)
            case _:
                writer = self._writers.get(message.run)
                if writer is not None:
                    writer.take(message)

    def _adopt(self, opened: said.Opened) -> None:
        """At once: the messages after it build on what it says."""
        asked, _ = self._calls.get(opened.call, (None, None))
        writer = None if asked is None else self._writers.get(asked.run)
        if writer is not None:
            writer.adopt(opened)

    def _settle(self, call: int, value: Any, error: BaseException | None) -> None:
        _, answer = self._calls.pop(call, (None, None))
        if answer is None or answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)

    def _full(self) -> None:
        self._call_soon(self._flush_later)

    def _flush_later(self) -> None:
        if self._loop is None or self._ending:
            return

        def flush() -> None:
            if self._channel.flush() and self._loop is not None:
                with suppress(ValueError, OSError):
                    self._loop.remove_writer(self._channel.fileno())

        with suppress(ValueError, OSError):
            self._loop.add_writer(self._channel.fileno(), flush)

    # The process's death.

    def _on_death(self) -> None:
        if self._ending:
            self._detach()
            return
        self._read()  # what it had said before
        self._detach()
        how = self._launched.describe_end()
        self._channel.close()
        self._launched.end(0)
        self._deaths += 1
        if not self._ready or self._deaths > _DEATHS_MAX:
            self._give_up(how)
            return
        for writer in list(self._writers.values()):
            writer.report(how)
        try:
            with self.lock:
                self._restart()
        except StoreError as error:
            self._give_up(f"{how}; {error}")

    def _restart(self) -> None:
        self._launch()
        self._attach()
        opening = {message.run for message, _ in self._calls.values() if isinstance(message, said.OpenRun)}
        for writer in self._writers.values():
            if writer.run not in opening:
                writer.reopen(self._ask(writer.opening(next(self._call_numbers))))
        for call, (message, answer) in list(self._calls.items()):
            if isinstance(message, said.Call):
                message = said.Call(call, message.run, message.name, message.args, again=True)  # noqa: PLW2901
                self._calls[call] = message, answer
                self.send(message)
            elif message.run in opening:
                self.send(message)
        for writer in self._writers.values():
            writer.tell_again()

    def _give_up(self, how: str) -> None:
        when = (
            f"{self._deaths} times in a row; the last one ended" if self._ready else "before it could begin; it ended"
        )
        self.lost = StoreError(
            f"the writer's process died {when} {how}.",
            hint='Look at what it printed, or use engine="thread".',
            kind="engine",
        )
        for call in list(self._calls):
            self._settle(call, None, self.lost)
        for writer in list(self._writers.values()):
            writer.lose(self.lost)


_links: WeakSet[Link] = WeakSet()


def _after_fork() -> None:
    links = list(_links)
    _links.clear()
    for link in links:
        link.forget()
    if links:
        forget_after_fork()


os.register_at_fork(after_in_child=_after_fork)
