"""Buckets: S3, Google Cloud Storage and Azure Blob Storage through obstore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

import anyio
import numpy as np
import obstore

from limpet.errors import CorruptError, LimpetError, StoreError, UsageError
from limpet.format.layout import FORMAT_KEY
from limpet.stores.base import GET_BYTES_MAX, Bytes, Entry, KeyMissingError, Seen, check_size, split_key
from limpet.stores.lanes import end_lanes, refuse_after_fork, use_client
from limpet.stores.object_errors import object_error
from limpet.stores.probe import prove_creates
from limpet.workers import STEADY_NICE, Workers

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import AzureStore, GCSStore, S3Store

    Bucket = S3Store | GCSStore | AzureStore

__all__ = ["Connections", "ObjectStore", "part_bytes"]

T = TypeVar("T")
_MIB = 1 << 20
_PART_BYTES = 16 * _MIB
_MOST_PARTS = 8000  # S3 allows 10,000; the rest is room for a hint that was too small
_IN_FLIGHT_BYTES = 64 * _MIB
_COPY_INLINE_BYTES = 256 * 1024
_SMALL_BYTES = _MIB
"""Up to this size an object is a request like any other: it is repeated by the caller, and fails soon."""
_ABORT_SECONDS = 5.0
_HURRIED_ABORT_SECONDS = 0.5
# Said by the server, or by obstore of an answer that shows a smaller object (Azurite answers 206, without a byte).
_RANGE_NOT_SATISFIABLE = ("status code: 416", "Wanted range starting at")


def part_bytes(size_hint: int) -> int:
    """The size of an upload's parts: 16 MiB, more for objects that would need too many of them."""
    return max(_PART_BYTES, -(-size_hint // _MOST_PARTS))


@dataclass(slots=True)
class Connections:
    """The clients that a store and its children share.

    Attributes:
        requests: for everything small; retries little, since the caller does.
        uploads: for large bodies; retries more, since a caller can only repeat the whole object.
        secrets: words to keep out of messages.
        proven: whether the bucket was seen to create atomically.
    """

    requests: Bucket
    uploads: Bucket
    secrets: tuple[str, ...] = ()
    proven: bool = False

    def __repr__(self) -> str:
        return "Connections(...)"


class _Lane:
    """The thread that copies for a store and its children; the last one to close ends it."""

    def __init__(self) -> None:
        self.workers = Workers(1, "limpet-parts", nice=STEADY_NICE)
        self.users = 0


class ObjectStore:
    """Objects of a bucket below a prefix.

    Args:
        connections: clients of the bucket.
        url: of the root, for people.
        prefix: of every key, without slashes at its ends; may be empty.
    """

    url: str
    commit_interval_seconds = 1.0
    _connections: Connections
    _prefix: str
    _lane: _Lane
    _closed: bool

    def __init__(self, connections: Connections, url: str, prefix: str) -> None:
        self._share(connections, url, prefix, _Lane())

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a store cannot be pickled: it holds credentials", hint="Pass its url and open it there.")

    async def get(self, key: str, *, limit: int = GET_BYTES_MAX) -> bytes:
        """See ``Store.get``."""

        async def fetch() -> bytes:
            answer = await obstore.get_async(self._connections.requests, self._at(key))
            check_size(f"{self.url}/{key}", answer.meta["size"], limit)
            return bytes(await answer.bytes_async())

        return await self._call("reading", key, fetch)

    async def get_range(self, key: str, offset: int, size: int) -> Bytes:
        """See ``Store.get_range``. A view of obstore's memory: nothing is copied."""
        if size == 0:
            await self._require(key, offset)
            return b""
        try:
            found = await self._call(
                "reading",
                key,
                lambda: obstore.get_range_async(self._connections.requests, self._at(key), start=offset, length=size),
            )
        except StoreError as error:
            if not any(words in error.message for words in _RANGE_NOT_SATISFIABLE):
                raise
        else:
            if len(found) == size:
                return memoryview(found)
        await self._require(key, offset + size)
        raise StoreError(f"reading {self.url}/{key}: fewer than {size} bytes came", kind="short_read", transient=True)

    async def read_into(self, key: str, offset: int, targets: Sequence[memoryview], seen: Seen | None = None) -> None:
        """See ``Store.read_into``; nothing is shown: what came over the network is not in the cache."""
        found = memoryview(await self.get_range(key, offset, sum(map(len, targets))))
        for target in targets:
            await self._copy(target, found[: len(target)])
            found = found[len(target) :]

    async def list(self, prefix: str) -> list[Entry]:
        """See ``Store.list``."""
        root = f"{self._prefix}{prefix}".rstrip("/")
        skip = len(self._prefix)

        async def collect() -> list[Entry]:
            pages = obstore.list(self._connections.requests, root or None, chunk_size=1000)
            return [Entry(found["path"][skip:], found["size"]) async for page in pages for found in page]

        return await self._call("listing", prefix, collect)

    async def folders(self, prefix: str) -> set[str]:
        """See ``Store.folders``."""
        root = f"{self._prefix}{prefix}".rstrip("/")

        async def collect() -> set[str]:
            found = await obstore.list_with_delimiter_async(self._connections.requests, root or None)
            return {path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]}

        return await self._call("listing", prefix, collect)

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        """See ``Store.put``.

        What arrives is gathered into part buffers, since obstore uploads from the memory it was given and says of no
        single buffer when it is done. Up to one part is a plain request; more is a multipart upload with at most
        64 MiB, or two parts if those are larger, on their way. The multipart upload is aborted after an error or a
        cancel; a killed process leaves invisible parts, for which buckets have a lifecycle rule.
        """
        upload = _Upload(self._connections, self._at(key), part_bytes(size_hint))
        try:
            async for part in parts:
                for buffer in part:
                    await self._append(upload, key, memoryview(buffer))
                del part  # asking for the next one says that these buffers are free
            await self._finish(upload, key)
        except Exception:
            await upload.abort(_ABORT_SECONDS)
            raise
        except BaseException:  # cancelled, by somebody who waits
            await upload.abort(_HURRIED_ABORT_SECONDS)
            raise
        return upload.size

    async def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``. A conflict (409) of S3, which may leave nothing stored, is ``KeyExistsError`` too."""
        await self._call(
            "creating",
            key,
            lambda: obstore.put_async(
                self._connections.requests, self._at(key), data, mode="create", use_multipart=False
            ),
        )

    async def settle(self, key: str) -> None:
        """See ``Store.settle``: what a bucket shows is durable."""
        await self._size(key)

    async def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        try:
            await self._call("deleting", key, lambda: obstore.delete_async(self._connections.requests, self._at(key)))
        except KeyMissingError:
            return

    async def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``."""
        return None

    async def prepare(self) -> None:
        """List one page of the root: credentials, network and bucket are then known to be good for reading.

        If there is no run yet, see that the bucket creates atomically.
        """

        async def look() -> None:
            async for _ in obstore.list(self._connections.requests, self._prefix.rstrip("/") or None):
                return

        await self._call("listing", "", look)
        if self._connections.proven:
            return
        try:
            await self._size(FORMAT_KEY)
        except KeyMissingError:
            await prove_creates(self)
        self._connections.proven = True

    def acquire_writer_lock(self, owner: str) -> None:
        """See ``Store.acquire_writer_lock``: a bucket has none."""

    def release_writer_lock(self) -> None:
        """See ``Store.release_writer_lock``."""

    def spool_folder(self) -> str | None:
        """See ``Store.spool_folder``: there is none."""
        return None

    def child(self, prefix: str) -> ObjectStore:
        """See ``Store.child``."""
        child = ObjectStore.__new__(ObjectStore)
        path = "/".join(split_key(prefix))
        child._share(self._connections, f"{self.url}/{path}", f"{self._prefix}{path}", self._lane)
        return child

    async def close(self) -> None:
        """See ``Store.close``. obstore's connections are pooled in the process and go idle by themselves."""
        if self._closed:
            return
        self._closed = True
        self._lane.users -= 1
        if self._lane.users == 0:
            await end_lanes(self._lane.workers)

    def _share(self, connections: Connections, url: str, prefix: str, lane: _Lane) -> None:
        refuse_after_fork()
        self.url = url.rstrip("/")
        self._connections = connections
        self._prefix = f"{prefix}/" if prefix else ""
        self._lane = lane
        self._lane.users += 1
        self._closed = False

    def _at(self, key: str) -> str:
        split_key(key)
        return self._prefix + key

    async def _call(self, verb: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        """Run ``call``; what obstore raises comes out as our error, with nothing of the foreign one attached."""
        if self._closed:
            raise UsageError(f"the store {self.url} is closed")
        use_client()
        try:
            return await call()
        except (LimpetError, MemoryError):
            raise
        except Exception as error:  # obstore raises its own, several of Python's, and panics of its native code
            failure = object_error(error, verb, f"{self.url}/{key}", self._connections.secrets)
        raise failure  # outside of the block: an exception that is being handled would be attached to it

    async def _size(self, key: str) -> int:
        found = await self._call(
            "looking at", key, lambda: obstore.head_async(self._connections.requests, self._at(key))
        )
        return found["size"]

    async def _require(self, key: str, end: int) -> None:
        """Raise ``CorruptError`` if the object really ends before ``end``."""
        size = await self._size(key)
        if size < end:
            raise CorruptError(f"{self.url}/{key} ends at byte {size}, before byte {end}", kind="truncated")

    async def _append(self, upload: _Upload, key: str, data: memoryview) -> None:
        while len(data):
            if upload.room == 0:
                await self._call("writing", key, upload.send_part)
            taken, data = data[: upload.room], data[upload.room :]
            await self._copy(upload.reserve(len(taken)), taken)

    async def _finish(self, upload: _Upload, key: str) -> None:
        """Complete the upload and see that all of it arrived.

        A repeated "complete" may be told that the upload does not exist, since the first one took effect.
        """
        if not upload.is_multipart:
            await self._call("writing", key, upload.send_whole)
            return
        with suppress(KeyMissingError):
            await self._call("completing", key, upload.complete)
        try:
            size = await self._size(key)
        except KeyMissingError:
            size = 0
        if size != upload.size:
            words = f"writing {self.url}/{key}: {upload.size} bytes were sent, {size} were stored"
            raise StoreError(words, kind="short_write", transient=True)

    async def _copy(self, target: memoryview, source: memoryview) -> None:
        """Copy, without holding the interpreter lock, and off the loop's thread where it takes long."""
        if len(source) <= _COPY_INLINE_BYTES:
            target[:] = source
        else:
            await self._lane.workers.run(np.copyto, np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


class _Upload:
    """Gathers bytes into parts and sends them; at most one part of memory beside those on their way."""

    def __init__(self, connections: Connections, path: str, part_size: int) -> None:
        self.size = 0
        self._connections = connections
        self._path = path
        self._part_size = part_size
        self._part: memoryview | None = None
        self._filled = 0
        self._writer: AsyncWritableFile | None = None

    @property
    def room(self) -> int:
        """How many bytes the current part still takes."""
        return self._part_size - self._filled

    @property
    def is_multipart(self) -> bool:
        """Whether any part has been sent."""
        return self._writer is not None

    def reserve(self, size: int) -> memoryview:
        """The memory for the next ``size`` bytes, at most ``room``."""
        if self._part is None:
            self._part = np.empty(self._part_size, np.uint8).data
        start = self._filled
        self._filled += size
        self.size += size
        return self._part[start : self._filled]

    async def send_part(self) -> None:
        """Send what was gathered as one part; waits while too much is on its way."""
        if self._writer is None:
            concurrency = max(1, _IN_FLIGHT_BYTES // self._part_size - 1)
            writer = obstore.open_writer_async(
                self._connections.uploads, self._path, buffer_size=self._part_size, max_concurrency=concurrency
            )
            self._writer = await writer.__aenter__()
        await self._writer.write(self._take())

    async def send_whole(self) -> None:
        """Send everything in one request."""
        whole = self._take()
        bucket = self._connections.requests if len(whole) <= _SMALL_BYTES else self._connections.uploads
        await obstore.put_async(bucket, self._path, whole, use_multipart=False)

    async def complete(self) -> None:
        """Send the rest and make the object visible."""
        if self._writer is None:
            raise StoreError(f"no part of {self._path} was sent")
        if self._filled:
            await self._writer.write(self._take())
        await self._writer.__aexit__(None, None, None)

    async def abort(self, seconds: float) -> None:
        """Drop the parts that were sent, if it can be done in time; never raises anything but a second cancel."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        # Shielded: in a cancelled scope every await is cancelled again, and the parts would stay in the bucket.
        with anyio.CancelScope(shield=True), suppress(Exception):
            await asyncio.wait_for(writer.__aexit__(RuntimeError, RuntimeError("aborted"), None), seconds)

    def _take(self) -> memoryview:
        part = self._part if self._part is not None else memoryview(b"")
        filled, self._part, self._filled = self._filled, None, 0
        return part[:filled]
