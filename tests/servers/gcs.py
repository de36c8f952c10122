"""As much of Google Cloud Storage's XML API as obstore speaks, within this process.

No packaged emulator answers what obstore sends. This one follows https://cloud.google.com/storage/docs/xml-api:
generations and their preconditions, ranges, listings in pages, multipart uploads, a bearer token. Its objects are in
memory; each request is atomic.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from tests.servers.daemon import Server

__all__ = ["Cloud", "GcsServer", "gcs_server", "running_gcs"]

_BUCKET, _TOKEN = "limpet", "limpet-bearer-token"
_PAGE = 1000
_NAME_BYTES_MAX = 1024
_PART_BYTES_MIN = 5 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Blob:
    data: bytes
    generation: int

    @property
    def headers(self) -> dict[str, str]:
        etag = f'"{hashlib.md5(self.data).hexdigest()}"'
        return {"etag": etag, "x-goog-generation": str(self.generation), "last-modified": formatdate(usegmt=True)}


@dataclass
class Cloud:
    """What the server holds: objects by name, and multipart uploads that are neither completed nor aborted."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[int, bytes]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _generations: Iterator[int] = field(default_factory=lambda: itertools.count(1_000_001))

    def put(self, name: str, data: bytes, match: str | None = None) -> Blob:
        """Store an object, if the one that is there has generation ``match`` ("0": none may be there)."""
        if len(name.encode()) > _NAME_BYTES_MAX:
            raise Refused(400, "KeyTooLongError")
        with self.lock:
            current = self.blobs.get(name)
            if match is not None and match != str(current.generation if current else 0):
                raise Refused(412, "PreconditionFailed")
            blob = self.blobs[name] = Blob(data, next(self._generations))
        return blob

    def get(self, name: str) -> Blob:
        blob = self.blobs.get(name)
        if blob is None:
            raise Refused(404, "NoSuchKey")
        return blob

    def delete(self, name: str) -> None:
        with self.lock:
            if self.blobs.pop(name, None) is None:
                raise Refused(404, "NoSuchKey")

    def begin(self, name: str) -> str:
        upload = uuid.uuid4().hex
        self.uploads[upload] = (name, {})
        return upload

    def part(self, upload: str, number: int, data: bytes) -> Blob:
        with self.lock:
            if upload not in self.uploads:
                raise Refused(404, "NoSuchUpload")
            self.uploads[upload][1][number] = data
        return Blob(data, 0)

    def complete(self, upload: str, body: bytes) -> Blob:
        with self.lock:
            if upload not in self.uploads:
                raise Refused(404, "NoSuchUpload")
            name, parts = self.uploads[upload]
            wanted = [(int(_text(each, "PartNumber")), _text(each, "ETag")) for each in ET.fromstring(body)]
            if wanted != sorted(wanted):
                raise Refused(400, "InvalidPartOrder")
            if any(number not in parts or Blob(parts[number], 0).headers["etag"] != tag for number, tag in wanted):
                raise Refused(400, "InvalidPart")
            if any(len(parts[number]) < _PART_BYTES_MIN for number, _ in wanted[:-1]):
                raise Refused(400, "EntityTooSmall")
            del self.uploads[upload]
        return self.put(name, b"".join(parts[number] for number, _ in wanted))

    def abort(self, upload: str) -> None:
        with self.lock:
            if self.uploads.pop(upload, None) is None:
                raise Refused(404, "NoSuchUpload")

    def listing(self, prefix: str, delimiter: str, after: str, most: int) -> bytes:
        """One page, in order of names; what lies behind a delimiter is one entry, which counts too."""
        with self.lock:
            names = sorted(name for name in self.blobs if name.startswith(prefix))
            sizes = {name: len(self.blobs[name].data) for name in names}
        entries = {}
        for name in names:
            head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entries[f"{prefix}{head}{mark}" if mark else name] = bool(mark)
        page = [(entry, common) for entry, common in entries.items() if entry > after][: most + 1]
        xml = ["<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>"]
        if more := len(page) > most:
            xml.append(f"<NextContinuationToken>{escape(page[most - 1][0])}</NextContinuationToken>")
        xml.append(f"<IsTruncated>{str(more).lower()}</IsTruncated>")
        for entry, common in page[:most]:
            shown = escape(entry)
            xml.append(
                f"<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>"
                if common
                else f"<Contents><Key>{shown}</Key><Size>{sizes[entry]}</Size><ETag>&quot;1&quot;</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        return "".join([*xml, "</ListBucketResult>"]).encode()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    cloud: Cloud

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is part of the tests."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            if self.headers.get("authorization") != f"Bearer {_TOKEN}":
                raise Refused(401, "AuthenticationRequired")
            if unquote(bucket) != _BUCKET:
                raise Refused(404, "NoSuchBucket")
            getattr(self, f"serve_{self.command.lower()}")(self.server.cloud, unquote(name), query, body)
        except Refused as refused:
            xml = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{refused.code}</Code></Error>"
            self.answer(refused.status, xml.encode())

    def serve_put(self, cloud: Cloud, name: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            blob = cloud.part(query["uploadId"], int(query["partNumber"]), body)
        else:
            blob = cloud.put(name, body, self.headers.get("x-goog-if-generation-match"))
        self.answer(200, b"", blob.headers)

    def serve_post(self, cloud: Cloud, name: str, query: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            xml = f"<UploadId>{cloud.begin(name)}</UploadId>"
            return self.answer(200, f"<InitiateMultipartUploadResult>{xml}</InitiateMultipartUploadResult>".encode())
        blob = cloud.complete(query["uploadId"], body)
        xml = f"<ETag>{blob.headers['etag']}</ETag>"
        xml = f"<CompleteMultipartUploadResult>{xml}</CompleteMultipartUploadResult>"
        return self.answer(200, xml.encode(), {"x-goog-generation": str(blob.generation)})

    def serve_delete(self, cloud: Cloud, name: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            cloud.abort(query["uploadId"])
        else:
            cloud.delete(name)
        self.answer(204, b"")

    def serve_get(self, cloud: Cloud, name: str, query: dict[str, str], body: bytes) -> None:
        if not name:
            after = query.get("continuation-token") or query.get("start-after", "")
            most = min(_PAGE, int(query.get("max-keys", _PAGE)))
            return self.answer(200, cloud.listing(query.get("prefix", ""), query.get("delimiter", ""), after, most))
        blob = cloud.get(name)
        found = _RANGE.fullmatch(self.headers.get("range", ""))
        if found is None:
            return self.answer(200, blob.data, blob.headers)
        start, total = int(found[1]), len(blob.data)
        if start >= total:
            raise Refused(416, "InvalidRange")
        end = min(int(found[2]) + 1 if found[2] else total, total)
        return self.answer(
            206, blob.data[start:end], {**blob.headers, "content-range": f"bytes {start}-{end - 1}/{total}"}
        )

    serve_head = serve_get

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
            if status != 204 or name != "content-length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def log_message(self, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class GcsServer(Server):
    """The server, and what it holds, to look at."""

    cloud: Cloud


@contextmanager
def running_gcs() -> Iterator[GcsServer]:
    """Serve an empty bucket on a free port of 127.0.0.1."""
    with _Http(("127.0.0.1", 0), _Request) as http:
        http.cloud = Cloud()
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        storage = {"base_url": f"http://127.0.0.1:{http.server_address[1]}", "bearer_token": _TOKEN}
        try:
            yield GcsServer(f"gs://{_BUCKET}", storage, http.cloud)
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """A server of this process that speaks Google Cloud Storage's XML API."""
    with running_gcs() as server:
        yield server


def _text(part: ET.Element, name: str) -> str:
    return part.findtext(name, "")
