"""What a bucket's answers become, against a server of this process that says what it is told to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.servers import free_ports
from tests.stores.contract import MIB, PACK, RECORD, parts_of

from limpet.errors import CorruptError, StoreError
from limpet.stores.base import Bytes, KeyExistsError, KeyMissingError, Store
from limpet.stores.object_errors import short_words
from limpet.stores.urls import open_store

SECRET = "the-very-secret-key"
TOKEN = "the-very-secret-token"


@dataclass
class Answer:
    status: int = 200
    code: str = ""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """The content length that is claimed, where it is a lie."""

    def content(self) -> bytes:
        if not self.code:
            return self.body
        return (
            f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>words of the store</Message>"
            f"<Token-0>{TOKEN}</Token-0></Error>"
        ).encode()


@dataclass
class Script:
    """Answers by method and path; requests as they came."""

    answer: Callable[[str, str], Answer] = lambda method, path: Answer(500)
    requests: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    conditions: list[str | None] = field(default_factory=list)
    port: int = 0

    def store(self, **storage: Any) -> Store:
        return open_store("s3://bucket/run", self.storage(**storage))

    def storage(self, **storage: Any) -> dict[str, Any]:
        quick = {"max_retries": 0}
        keys = {"access_key_id": "an-access-key", "secret_access_key": SECRET, "region": "us-east-1"}
        return {"endpoint": f"http://127.0.0.1:{self.port}", "retry_config": quick, **keys, **storage}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is part of the tests."""


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Scripted(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            script.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
            script.requests.append((self.command, self.path))
            script.conditions.append(self.headers.get("if-none-match"))
            answer = script.answer(self.command, self.path)
            content = answer.content()
            self.send_response(answer.status)
            headers = {"etag": '"1"', "last-modified": "Wed, 21 Oct 2026 07:28:00 GMT", **answer.headers}
            headers["content-length"] = str(len(content) if answer.length is None else answer.length)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

        def log_message(self, *args: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Scripted) as server:
        script.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        server.shutdown()
        thread.join()


@pytest.fixture
async def store(script: Script) -> AsyncIterator[Store]:
    store = script.store()
    yield store
    await store.close()


async def error_of(call: Any) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await call
    return caught.value


CALLS: dict[str, Callable[[Store], Any]] = {
    "get": lambda store: store.get(RECORD),
    "get_range": lambda store: store.get_range(RECORD, 0, 1),
    "list": lambda store: store.list("log/"),
    "create": lambda store: store.create(RECORD, b"x"),
    "put": lambda store: store.put(PACK, parts_of([b"x"])),
    "delete": lambda store: store.delete(RECORD),
    "prepare": lambda store: store.prepare(),
}


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        (500, "InternalError", True),
        (503, "SlowDown", True),
        (429, "TooManyRequests", True),
        (408, "RequestTimeout", True),
        (400, "InvalidRequest", False),
        (400, "ExpiredToken", False),
        (401, "Unauthorized", False),
        (403, "AccessDenied", False),
        (403, "RequestTimeTooSkewed", False),
        (404, "NoSuchBucket", False),
    ],
)
async def test_an_answer_is_an_error_with_the_stores_words_and_no_secret(
    script: Script, store: Store, status: int, code: str, transient: bool
) -> None:
    script.answer = lambda method, path: Answer(status, code)
    for name, call in CALLS.items():
        error = await error_of(call(store))
        assert (name, error.transient) == (name, transient)
        assert not isinstance(error, KeyMissingError | KeyExistsError)
        assert code in error.message
        assert "words of the store" in error.message
        assert TOKEN not in str(error)
        assert SECRET not in str(error)
        assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize(("code", "kind"), [("AccessDenied", "access"), ("NoSuchBucket", "no_bucket")])
async def test_what_a_person_must_mend_has_a_kind_and_a_hint(
    script: Script, store: Store, code: str, kind: str
) -> None:
    script.answer = lambda method, path: Answer(403 if kind == "access" else 404, code)
    error = await error_of(store.get(RECORD))
    assert error.kind == kind
    assert error.hint


@pytest.mark.parametrize("call", ["get", "get_range"])
async def test_a_missing_key_is_missing(script: Script, store: Store, call: str) -> None:
    script.answer = lambda method, path: Answer(404, "NoSuchKey")
    assert isinstance(await error_of(CALLS[call](store)), KeyMissingError)


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
async def test_a_create_that_lost_is_told_that_the_key_exists(
    script: Script, store: Store, status: int, code: str
) -> None:
    script.answer = lambda method, path: Answer(status, code)
    assert isinstance(await error_of(store.create(RECORD, b"x")), KeyExistsError)


async def test_a_delete_is_one_request_for_its_key(script: Script, store: Store) -> None:
    script.answer = lambda method, path: Answer(204)
    await store.delete(RECORD)
    assert script.requests == [("DELETE", f"/bucket/run/{RECORD}")]


def test_a_secret_and_a_query_are_cut_from_the_stores_words() -> None:
    words = short_words(f"GET https://h/k?sig=abc&se=1 said {SECRET}\n\nDebug source:\n{TOKEN}", (SECRET,))
    assert words == "GET https://h/k said ***"


async def test_a_create_is_one_conditional_request(script: Script, store: Store) -> None:
    script.answer = lambda method, path: Answer(200)
    await store.create(RECORD, b"record")
    assert script.requests == [("PUT", f"/bucket/run/{RECORD}")]
    assert script.bodies == [b"record"]
    assert script.conditions == ["*"]


async def test_a_short_answer_is_corrupt_only_if_the_object_is_short(script: Script, store: Store) -> None:
    sizes = {"HEAD": 4}

    def answer(method: str, path: str) -> Answer:
        if method == "HEAD":
            return Answer(200, length=sizes["HEAD"])
        return Answer(206, body=b"0123", headers={"content-range": "bytes 0-3/4"})

    script.answer = answer
    with pytest.raises(CorruptError, match="ends at byte 4"):
        await store.get_range(PACK, 0, 10)
    sizes["HEAD"] = 100
    error = await error_of(store.get_range(PACK, 0, 10))
    assert (error.kind, error.transient) == ("short_read", True)


async def test_a_refused_range_is_corrupt_only_if_the_object_is_short(script: Script, store: Store) -> None:
    sizes = {"HEAD": 4}
    script.answer = lambda method, path: (
        Answer(200, length=sizes["HEAD"]) if method == "HEAD" else Answer(416, "InvalidRange")
    )
    with pytest.raises(CorruptError, match="ends at byte 4"):
        await store.get_range(PACK, 10, 10)
    sizes["HEAD"] = 100
    assert (await error_of(store.get_range(PACK, 10, 10))).transient


class Multipart:
    """Just enough of a multipart upload."""

    def __init__(self, fail_at: str = "", size: int | None = None) -> None:
        self.fail_at = fail_at
        self.size = size
        self.parts = 0
        self.completed = self.aborted = False

    def __call__(self, method: str, path: str) -> Answer:
        query = path.partition("?")[2]
        if method == "POST" and query.startswith("uploads"):
            body = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
            return Answer(200, body=body)
        if method == "PUT":
            self.parts += 1
            return Answer(500, "InternalError") if self.fail_at == "part" and self.parts == 2 else Answer(200)
        if method == "POST":
            self.completed = True
            if self.fail_at == "complete":
                return Answer(404, "NoSuchUpload")
            body = b'<CompleteMultipartUploadResult><ETag>"2"</ETag></CompleteMultipartUploadResult>'
            return Answer(200, body=body)
        if method == "DELETE":
            self.aborted = True
            return Answer(204)
        return Answer(404) if self.size is None else Answer(200, length=self.size)


async def blocks(count: int) -> AsyncIterator[Sequence[Bytes]]:
    for _ in range(count):
        yield [bytes(MIB)]


async def test_a_multipart_upload_has_large_parts_and_its_size_is_checked(script: Script, store: Store) -> None:
    script.answer = Multipart(size=40 * MIB)
    assert await store.put(PACK, blocks(40)) == 40 * MIB
    parts = [body for (method, _), body in zip(script.requests, script.bodies, strict=True) if method == "PUT"]
    assert sorted(map(len, parts)) == [8 * MIB, 16 * MIB, 16 * MIB]


async def test_an_upload_that_arrived_short_is_an_error(script: Script, store: Store) -> None:
    script.answer = Multipart(size=39 * MIB)
    error = await error_of(store.put(PACK, blocks(40)))
    assert (error.kind, error.transient) == ("short_write", True)


async def test_a_failed_part_aborts_the_upload(script: Script, store: Store) -> None:
    script.answer = upload = Multipart(fail_at="part")
    assert (await error_of(store.put(PACK, blocks(60)))).transient
    assert (upload.completed, upload.aborted) == (False, True)


async def test_an_upload_whose_source_raises_is_aborted_and_never_completed(script: Script, store: Store) -> None:
    script.answer = upload = Multipart()

    async def parts() -> AsyncIterator[Sequence[Bytes]]:
        async for each in blocks(40):
            yield each
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        await store.put(PACK, parts())
    assert (upload.completed, upload.aborted) == (False, True)


async def test_a_cancelled_upload_is_aborted_and_never_completed(script: Script, store: Store) -> None:
    script.answer = upload = Multipart()
    asked = asyncio.Event()

    async def parts() -> AsyncIterator[Sequence[Bytes]]:
        async for each in blocks(40):
            yield each
        asked.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put(PACK, parts()))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (upload.completed, upload.aborted) == (False, True)


async def test_an_upload_that_is_unknown_at_its_end_but_landed_is_a_success(script: Script, store: Store) -> None:
    script.answer = Multipart(fail_at="complete", size=40 * MIB)
    assert await store.put(PACK, blocks(40)) == 40 * MIB


async def test_an_upload_that_is_unknown_at_its_end_and_did_not_land_is_an_error(script: Script, store: Store) -> None:
    script.answer = Multipart(fail_at="complete")
    error = await error_of(store.put(PACK, blocks(40)))
    assert not isinstance(error, KeyMissingError)
    assert error.transient


async def test_a_host_that_does_not_listen_may_come_back(script: Script) -> None:
    store = script.store(endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (await error_of(store.get(RECORD))).transient
    await store.close()


async def test_a_host_without_a_name_may_come_back_and_says_what_to_check(script: Script) -> None:
    store = script.store(endpoint="http://no-such-host.invalid", allow_http=True)
    error = await error_of(store.get(RECORD))
    assert error.transient
    assert "check the endpoint" in error.hint
    await store.close()


async def test_without_credentials_it_fails_fast_and_says_so(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    script.answer = lambda method, path: Answer(404)
    storage = {"region": "us-east-1", "metadata_endpoint": f"http://127.0.0.1:{script.port}"}
    store = open_store("s3://bucket/run", storage)
    began = time.monotonic()
    error = await error_of(store.prepare())
    assert time.monotonic() - began < 10
    assert (error.kind, error.transient) == ("no_credentials", False)
    assert "storage=" in error.hint
    await store.close()


async def test_a_server_that_hangs_is_left_after_the_timeout(script: Script) -> None:
    release = threading.Event()

    def hang(method: str, path: str) -> Answer:
        release.wait(30)
        return Answer(500)

    script.answer = hang
    store = script.store(timeout=0.3)
    error = await error_of(store.get(RECORD))
    release.set()
    assert error.transient
    await store.close()
