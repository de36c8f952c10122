"""A socket between two processes of this machine: whole messages, in order, and descriptors with them.

A packet is a byte that says which kind it is, and the message itself, or, of a large one, a memfd that holds it: a
sender is never held up by a large message, and a receiver never sees a part of one.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Channel", "Packet", "received", "sent"]

_INLINE_BYTES_MAX = 96 << 10
"""Of a message: several packets of that size fit into a socket's buffer of 208 KiB, the default."""
_DESCRIPTORS_MAX = 200
_INLINE, _BODY = b"\0", b"\1"
_RIGHTS_BYTES = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
_AT_ONCE = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_LATER = {errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS}
"""What passes: it is tried again with the next message, or once the socket can be written."""
_NOW = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


@dataclass(slots=True, eq=False)
class Packet:
    """A message on its way out.

    Attributes:
        body: encoded.
        fds: descriptors that go with it; they become the packet's.
    """

    body: bytes
    fds: Sequence[int] = ()

    def close(self) -> None:
        """It was sent, or never will be."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            with suppress(OSError):
                os.close(fd)


def sent(_packet: Packet) -> None:
    """A packet has left. For tests, which put their own in its place."""


def received(_body: bytes) -> None:
    """A packet has come. For tests, which put their own in its place."""


class Channel:
    """One end of the socket. Sends from any thread; receives on one.

    Args:
        sock: of packets; it becomes the channel's.
        full: called when the other side does not keep up: somebody must ``flush`` again once the socket can be written.
    """

    def __init__(self, sock: socket.socket, full: Callable[[], None] = lambda: None) -> None:
        self._sock = sock
        self._full = full
        self._outbox: deque[Packet] = deque()
        self._lock = threading.RLock()
        self._sending = False
        self._broken = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def send(self, packet: Packet) -> None:
        """Send what is still to be sent, and ``packet``; at once, if the other side keeps up. Never raises."""
        self._outbox.append(packet)
        if not self.flush():
            self._full()

    def flush(self) -> bool:
        """Send what can be sent now; whether nothing is left. Once nobody reads any more, everything is dropped."""
        with self._lock:
            if self._sending:  # a finalizer, or a signal's handler, on top of ourselves: whoever is below goes on
                return True
            self._sending = True
            try:
                while self._outbox:
                    if not self._broken and not self._send(self._outbox[0]):
                        return False
                    self._outbox.popleft().close()
            finally:
                self._sending = False
        return True

    def take_back(self, packet: Packet) -> bool:
        """Do not send ``packet`` after all; ``False`` if it has left, or is about to."""
        with self._lock:
            if self._sending or packet not in self._outbox:
                return False
            self._outbox.remove(packet)
        packet.close()
        return True

    def flush_within(self, seconds: float) -> bool:
        """``flush``, waiting for so long; whether nothing is left."""
        while not self.flush():
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            if not poll.poll(seconds * 1000):
                return False
        return True

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message and its descriptors; ``None`` if there is none yet.

        Raises:
            EOFError: the other side has closed, or ended.
        """
        try:
            # Not socket.recv_fds: that of CPython 3.11 forgets the flags.
            data, rights, flags, _ = self._sock.recvmsg(_INLINE_BYTES_MAX + 1, _RIGHTS_BYTES, _AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:  # ECONNRESET: it ended with messages of ours unread
            raise EOFError from error
        fds = array.array("i")
        for _, _, descriptors in rights:
            fds.frombytes(descriptors[: len(descriptors) // fds.itemsize * fds.itemsize])
        if not data:
            raise EOFError
        if flags & socket.MSG_CTRUNC:  # this process may not open so many
            raise EOFError
        body = data[1:]
        if data[:1] == _BODY:
            body = _read(fds.pop(0))
        received(body)
        return body, list(fds)

    def close(self) -> None:
        """Idempotent."""
        self._broken = True
        self.flush()  # drops what is left, after a thread that is in the middle of sending it
        with self._lock, suppress(OSError):
            self._sock.close()

    def _send(self, packet: Packet) -> bool:
        body = packet.body
        fds = list(packet.fds)
        head = _INLINE
        try:
            if len(body) > _INLINE_BYTES_MAX:
                head, body = _BODY, b""
                fds.insert(0, _written(packet.body))
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            self._sock.sendmsg([head, body], rights, _NOW)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _LATER:
                return False
            # EPIPE, mostly: nobody reads any more. Whatever it is, both sides must come to know that no message gets
            # through, so that a new process is told everything again.
            self._broken = True
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            sent(packet)
        finally:
            if head is _BODY and len(fds) > len(packet.fds):
                os.close(fds[0])
        return True


def _written(body: bytes) -> int:
    fd = os.memfd_create("limpet-message", os.MFD_CLOEXEC)
    view = memoryview(body)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _read(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        buffer = bytearray(size)
        done = 0
        while done < size:
            done += os.preadv(fd, [memoryview(buffer)[done:]], done)
        return bytes(buffer)
    finally:
        os.close(fd)
