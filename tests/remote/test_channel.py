"""What a packet carries stays open until it has left, and what passes is tried again."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable

import pytest

from limpet.remote.channel import Channel, Packet


class Refusing:
    """A socket whose next sends fail."""

    def __init__(self, sock: socket.socket, *errnos: int) -> None:
        self.sock = sock
        self.errnos = list(errnos)

    def sendmsg(self, *args):
        if self.errnos:
            number = self.errnos.pop(0)
            raise OSError(number, os.strerror(number))
        return self.sock.sendmsg(*args)

    def __getattr__(self, name: str):
        return getattr(self.sock, name)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_fd() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_descriptors_of_a_packet_are_closed_once_it_was_sent(ends):
    fd = open_fd()
    Channel(ends[0]).send(Packet(b"body", [fd]))
    assert not is_open(fd)
    body, fds = Channel(ends[1]).receive()
    assert body == b"body"
    assert len(fds) == 1
    os.close(fds[0])


def test_descriptors_of_packets_that_are_never_sent_are_closed_with_the_channel(ends):
    fd = open_fd()
    channel = Channel(Refusing(ends[0], errno.EAGAIN))
    channel.send(Packet(b"body", [fd]))
    assert is_open(fd)
    channel.close()
    assert not is_open(fd)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
def test_a_message_that_finds_no_room_in_the_system_is_sent_later(ends, number):
    full: list[bool] = []
    channel = Channel(Refusing(ends[0], number), lambda: full.append(True))
    channel.send(Packet(b"first"))
    assert full == [True]
    channel.send(Packet(b"second"))
    receiving = Channel(ends[1])
    assert [receiving.receive(), receiving.receive()] == [(b"first", []), (b"second", [])]


def test_whoever_cannot_be_told_something_sees_the_end(ends):
    Channel(Refusing(ends[0], errno.EBADF)).send(Packet(b"body"))
    with pytest.raises(EOFError):
        Channel(ends[1]).receive()


class Interrupted(Refusing):
    """A socket on which something happens in the middle of each send."""

    def __init__(self, sock: socket.socket, happens: Callable[[], None]) -> None:
        super().__init__(sock)
        self.happens = happens

    def sendmsg(self, *args):
        sent = self.sock.sendmsg(*args)
        self.happens()
        return sent


def test_a_channel_may_be_closed_while_another_thread_sends_on_it(ends):
    closing = threading.Thread(target=lambda: channel.close())

    def close_elsewhere() -> None:
        closing.start()
        closing.join(0.1)  # it may end here, or wait for us

    fd = open_fd()
    channel = Channel(Interrupted(ends[0], close_elsewhere))
    channel.send(Packet(b"body", [fd]))
    closing.join()
    assert not is_open(fd)
    assert Channel(ends[1]).receive()[0] == b"body"


def test_a_finalizer_may_close_a_channel_in_the_middle_of_a_send(ends):
    fds = [open_fd(), open_fd()]
    channel = Channel(Interrupted(ends[0], lambda: (channel.send(Packet(b"never", fds[1:])), channel.close())))
    channel.send(Packet(b"body", fds[:1]))
    assert not any(map(is_open, fds))
