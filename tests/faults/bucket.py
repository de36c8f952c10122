"""A bucket in memory that answers S3 requests: what a store of the kind does when nothing goes wrong.

Enough of S3 for obstore: conditional puts, ranges, multipart uploads, listings in pages. It can also be a bad one:
see ``Manners``.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

BUCKET = "bucket"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PART = re.compile(rb"<PartNumber>(\d+)</PartNumber>")
_NO_CONDITION = ""


@dataclass(slots=True)
class Request:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    key: str = ""
    query: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path, _, query = self.target.partition("?")
        self.key = unquote(path).removeprefix(f"/{BUCKET}").removeprefix("/")
        self.query = dict(parse_qsl(query, keep_blank_values=True))

    @property
    def kind(self) -> str:
        """What it asks for, in a word."""
        if self.method == "GET":
            return "list" if not self.key else "get"
        if self.method == "PUT":
            if "partNumber" in self.query:
                return "part"
            return "create" if "if-none-match" in self.headers else "put"
        if self.method == "POST":
            return "start" if "uploads" in self.query else "complete"
        if self.method == "DELETE":
            return "abort" if "uploadId" in self.query else "delete"
        return self.method.lower()


@dataclass(slots=True)
class Reply:
    """An answer before anything happens to it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def error(cls, status: int, code: str, extra: str = "") -> Reply:
        """An answer in the words of S3."""
        words = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>words of the store</Message>{extra}</Error>"
        return cls(status, words.encode(), {"content-type": "application/xml"})


@dataclass
class Manners:
    """How the bucket departs from a good one.

    Attributes:
        page: most keys of one page of a listing.
        hides: keys that listings leave out (a listing that lags behind).
        shuffled: listings come in any order.
        etag: makes the etag that is told from the real one.
        ignores_conditions: a create replaces what is there.
        checks_first: a create looks, and puts a moment later: of several at once, all may win.
        bend_stored: what becomes of bytes on their way into the bucket.
        strict_delete: removing what is absent is an error.
    """

    page: int = 1000
    hides: Callable[[str], bool] = lambda _: False
    shuffled: bool = False
    etag: Callable[[str], str] = lambda etag: f'"{etag}"'
    ignores_conditions: bool = False
    checks_first: bool = False
    bend_stored: Callable[[str, bytes], bytes] = lambda _, data: data
    strict_delete: bool = False


class Bucket:
    """The objects and the uploads that are under way.

    Attributes:
        objects: bytes by key.
        stored: how often something was stored under each key.
        uploads: parts by number, by upload id.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.stored: dict[str, int] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.manners = Manners()
        self._numbers = count(1)
        self._random = random.Random(0)

    def keys(self, match: str = "") -> list[str]:
        """Keys that hold ``match``, in order."""
        return sorted(key for key in self.objects if match in key)

    def answer(self, request: Request) -> Reply:
        """Do what is asked."""
        return getattr(self, f"_{request.kind}")(request)

    def refuses(self, request: Request) -> bool:
        """Whether the condition of a create does not hold."""
        return request.key in self.objects and not self.manners.ignores_conditions

    def store(self, key: str, data: bytes) -> str:
        """Put an object there, whatever was; its etag as it is told."""
        self.objects[key] = self.manners.bend_stored(key, data)
        self.stored[key] = self.stored.get(key, 0) + 1
        return self._etag(key)

    def _etag(self, key: str) -> str:
        return self.manners.etag(hashlib.md5(self.objects[key]).hexdigest())

    def _put(self, request: Request) -> Reply:
        return Reply(headers={"etag": self.store(request.key, request.body)})

    def _create(self, request: Request) -> Reply:
        if self.refuses(request):
            return Reply.error(412, "PreconditionFailed")
        return self._put(request)

    def _get(self, request: Request) -> Reply:
        data = self.objects.get(request.key)
        if data is None:
            return Reply.error(404, "NoSuchKey")
        etag = self._etag(request.key)
        if (wanted := request.headers.get("if-match")) and wanted.strip('"') != etag.strip('"'):
            return Reply.error(412, "PreconditionFailed")
        headers = {"etag": etag}
        if (asked := _RANGE.fullmatch(request.headers.get("range", ""))) is None:
            return Reply(200, data, headers)
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return Reply.error(416, "InvalidRange")
        return Reply(206, data[start:end], {**headers, "content-range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _head(self, request: Request) -> Reply:
        reply = self._get(request)
        return reply if reply.status == 200 else Reply(reply.status)

    def _delete(self, request: Request) -> Reply:
        if self.objects.pop(request.key, None) is None and self.manners.strict_delete:
            return Reply.error(404, "NoSuchKey")
        return Reply(204)

    def _list(self, request: Request) -> Reply:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        found: dict[str, str] = {}
        for key in self.keys():
            if not key.startswith(prefix) or self.manners.hides(key):
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key if cut < 0 else key[: cut + 1]
            if name > after:
                found.setdefault(name, _NO_CONDITION if cut < 0 else "folder")
        names = list(found)
        page, rest = names[: self.manners.page], names[self.manners.page :]
        last = page[-1] if rest else ""
        if self.manners.shuffled:
            self._random.shuffle(page)
        entries = "".join(self._entry(name, bool(found[name])) for name in page)
        more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if rest else ""
        body = (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>{str(bool(rest)).lower()}</IsTruncated>{more}{entries}"
            "</ListBucketResult>"
        )
        return Reply(200, body.encode(), {"content-type": "application/xml"})

    def _entry(self, name: str, folder: bool) -> str:
        if folder:
            return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        return (
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-10-21T07:28:00.000Z</LastModified>"
            f"<ETag>{escape(self._etag(name))}</ETag><Size>{len(self.objects[name])}</Size></Contents>"
        )

    def _start(self, request: Request) -> Reply:
        upload = f"u{next(self._numbers)}"
        self.uploads[upload] = {}
        body = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        return Reply(200, body.encode())

    def _part(self, request: Request) -> Reply:
        parts = self.uploads.get(request.query["uploadId"])
        if parts is None:
            return Reply.error(404, "NoSuchUpload")
        parts[int(request.query["partNumber"])] = request.body
        return Reply(headers={"etag": '"part"'})

    def _complete(self, request: Request) -> Reply:
        parts = self.uploads.pop(request.query["uploadId"], None)
        if parts is None:
            return Reply.error(404, "NoSuchUpload")
        etag = self.store(request.key, b"".join(parts[int(number)] for number in _PART.findall(request.body)))
        body = f"<CompleteMultipartUploadResult><ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>"
        return Reply(200, body.encode())

    def _abort(self, request: Request) -> Reply:
        self.uploads.pop(request.query["uploadId"], None)
        return Reply(204)
