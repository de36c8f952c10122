"""An S3 server on loopback, in this process, that goes wrong by script.

Each ``Fault`` strikes requests of some kind and on some keys. It says whether the request takes effect, and what
becomes of the answer. Everything else is answered as a good store would.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from tests.faults.bucket import BUCKET, Bucket, Reply, Request

EVER = 10**9
ACCESS_KEY = "AKIAPLANTEDACCESSKEY"
SECRET_KEY = "planted/secret+access+key"
SESSION_TOKEN = "planted-session-token//+=="
SECRETS = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)
"""What must never be seen; so must no ``Signature`` of a request."""
QUICK_RETRIES = {
    "max_retries": 1,
    "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2), "base": 2},
}
_RESET = struct.pack("ii", 1, 0)
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed"}

Act = Literal[
    "answer", "error", "close", "reset", "hang", "late",
    "cut", "cut_and_replace", "short", "oversize", "flip", "drip",
]  # fmt: skip


@dataclass
class Fault:
    """What goes wrong with requests of ``kind`` on keys that hold ``match``.

    Attributes:
        kind: see ``Request.kind``; several, separated by blanks, or all of them if empty.
        act: what becomes of the answer: it is sent as it is, is an error, or never comes (``close``, ``reset``,
            ``hang``, and ``late``, where the request takes effect once the client has given up); or its body breaks off (``cut``; the object is another one then: ``cut_and_replace``), is short
            with an honest length, is too long, has a flipped bit, or drips.
        applies: whether the request takes effect all the same.
        status, code: of an error.
        headers: of an error.
        times, skip: how often it strikes, after how many.
        share: it strikes this share of the requests, chosen by ``random``.
        where: a further condition.
    """

    kind: str = ""
    match: str = ""
    act: Act = "error"
    applies: bool = False
    status: int = 503
    code: str = "SlowDown"
    headers: dict[str, str] | None = None
    times: int = EVER
    skip: int = 0
    share: float = 1.0
    where: Callable[[Request], bool] | None = None
    struck: int = 0

    def takes(self, request: Request, chance: random.Random) -> bool:
        """Whether it strikes this request."""
        if self.kind and request.kind not in self.kind.split():
            return False
        if self.times <= 0 or self.match not in request.target or (self.where and not self.where(request)):
            return False
        if self.share < 1 and chance.random() >= self.share:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        self.struck += 1
        return True


_SOUND = Fault(act="answer", applies=True)


class FaultyS3:
    """The server. All methods but ``serve`` may be called from any thread.

    Attributes:
        bucket: what it holds.
        requests: every request so far.
        choose: a fault for a request that no scripted one strikes.
        connections: how many are open.
        most_connections: the largest number of them so far.
    """

    def __init__(self, seed: int = 0) -> None:
        self.bucket = Bucket()
        self.requests: list[Request] = []
        self.connections = 0
        self.most_connections = 0
        self.port = 0
        self.choose: Callable[[Request], Fault | None] = lambda _: None
        self._faults: list[Fault] = []
        self._chance = random.Random(seed)
        self._healed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    # Scripts.

    def script(self, kind: str = "", match: str = "", act: Act = "error", **what: Any) -> Fault:
        """Add a fault; faults strike in the order in which they were added."""
        fault = Fault(kind, match, act, **what)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Nothing goes wrong any more; who waits for an answer is cut off."""
        self._faults.clear()
        self.choose = lambda _: None
        self._loop.call_soon_threadsafe(self._let_go)

    def counts(self) -> Counter[str]:
        """How many requests of each kind came so far."""
        return Counter(request.kind for request in list(self.requests))

    def count(self, kind: str, match: str = "") -> int:
        """How many requests of a kind came so far, on targets that hold ``match``."""
        return sum(request.kind == kind and match in request.target for request in list(self.requests))

    def storage(self, **storage: Any) -> dict[str, Any]:
        """Options that reach this server, with retries below us that a test can sit out."""
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "session_token": SESSION_TOKEN,
            "region": "us-east-1",
            "retry_config": QUICK_RETRIES,
            **storage,
        }

    # Serving.

    @contextmanager
    def running(self) -> Iterator[FaultyS3]:
        """Serve on a free port, from a thread of its own."""
        ready = threading.Event()
        thread = threading.Thread(target=self._run, args=(ready,), name="faulty-s3")
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stopped.set)
            thread.join(10)
            assert not thread.is_alive()

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve_all(ready))

    async def _serve_all(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            self.most_connections = max(self.connections, self.most_connections)
            try:
                await self._serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client has left, or the test has ended
            finally:
                self.connections -= 1
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _next_request(reader)) is not None:
            self.requests.append(request)
            if not await self._answer(request, self._fault_for(request), reader, writer):
                return

    def _fault_for(self, request: Request) -> Fault:
        scripted = next((each for each in self._faults if each.takes(request, self._chance)), None)
        return scripted or self.choose(request) or _SOUND

    async def _answer(
        self, request: Request, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection goes on."""
        applies = fault.applies or fault.act not in ("error", "close", "reset", "hang", "late")
        reply = await self._apply(request) if applies else Reply.error(fault.status, fault.code)
        if fault.act == "error":
            reply = Reply.error(fault.status, fault.code, _echo(request))
            reply.headers.update(fault.headers or {})
        elif fault.act == "close":
            return False
        elif fault.act == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            return False
        elif fault.act in ("hang", "late"):
            await self._hold(reader)
            if fault.act == "late":
                await self._apply(request)
            return False
        return await self._send(request, reply, fault.act, writer)

    async def _apply(self, request: Request) -> Reply:
        bucket = self.bucket
        if request.kind == "create" and bucket.manners.checks_first:
            refused = bucket.refuses(request)
            await asyncio.sleep(0.02)
            return Reply.error(412, "PreconditionFailed") if refused else bucket._put(request)
        return bucket.answer(request)

    async def _hold(self, reader: asyncio.StreamReader) -> None:
        """Wait until the client leaves, or ``heal``."""
        leaving = asyncio.ensure_future(reader.read(1))
        healed = asyncio.ensure_future(self._healed.wait())
        try:
            await asyncio.wait((leaving, healed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            healed.cancel()

    def _let_go(self) -> None:
        self._healed.set()
        self._healed = asyncio.Event()

    async def _send(self, request: Request, reply: Reply, act: Act, writer: asyncio.StreamWriter) -> bool:
        body, length = reply.body, len(reply.body)
        if act in ("cut", "cut_and_replace"):
            body = body[: length // 2]
        elif act == "short":
            body = body[: length // 2]
            length = len(body)
        elif act == "oversize":
            body += b"more than there is"
            length = len(body)
        elif act == "flip" and body:
            bent = bytearray(body)
            bent[length // 2] ^= 0x10
            body = bytes(bent)
        writer.write(_head_of(reply, length))
        if request.method == "HEAD":
            await writer.drain()
            return True
        if act == "drip":
            for at in range(0, length, 16):
                writer.write(body[at : at + 16])
                await writer.drain()
                await asyncio.sleep(0.05)
            return True
        writer.write(body)
        await writer.drain()
        if act == "cut_and_replace":
            self.bucket.store(request.key, b"another object")
        return act not in ("cut", "cut_and_replace")


def _head_of(reply: Reply, length: int) -> bytes:
    headers = {"last-modified": "Wed, 21 Oct 2026 07:28:00 GMT", **reply.headers}
    if reply.status != 204:
        headers["content-length"] = str(length)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Error')}\r\n{lines}\r\n".encode()


def _echo(request: Request) -> str:
    """What S3 repeats of a request in some of its errors."""
    names = ("authorization", "x-amz-security-token")
    sent = "".join(f"<Sent>{request.headers.get(name, '')}</Sent>" for name in names)
    return f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId>{sent}<Token-0>{SESSION_TOKEN}</Token-0>"


async def _next_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body)


def url(name: str) -> str:
    """The place of a run in the bucket."""
    return f"s3://{BUCKET}/{name}"


__all__ = ["EVER", "SECRETS", "Fault", "FaultyS3", "url"]
