from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.servers import GcsServer, Server
from tests.stores.contract import MIB, StoreContract
from tests.stores.listings import FOREIGN

from limpet.errors import StoreError
from limpet.stores import objects
from limpet.stores.base import Store
from limpet.stores.local import LocalStore
from limpet.stores.memory import MemoryStore
from limpet.stores.retry import Retrying
from limpet.stores.urls import open_store

REAL_URLS = os.environ.get("LIMPET_TEST_URLS", "").split()
"""Roots in real buckets, with credentials from the environment: what is written below them is removed again."""

NOT_BACKSLASH = tuple(name for name in FOREIGN if "\\" not in name)
"""SeaweedFS and Azurite list a backslash as a slash."""


async def both(store: Store, twin: Store) -> AsyncIterator[tuple[Store, Store]]:
    await store.prepare()
    yield store, twin
    await twin.close()
    await store.close()


class OneRoot(StoreContract):
    @pytest.fixture
    def store(self, pair: tuple[Store, Store]) -> Store:
        return pair[0]

    @pytest.fixture
    def twin(self, pair: tuple[Store, Store]) -> Store:
        return pair[1]


class TestLocal(OneRoot):
    many, churns = 60, 2  # a folder has no pages, and each of its objects costs two fsyncs

    @pytest.fixture
    async def pair(self, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
        async for pair in both(LocalStore(tmp_path / "run"), LocalStore(tmp_path / "run")):
            yield pair


class TestMemory(OneRoot):
    @pytest.fixture
    async def pair(self) -> AsyncIterator[tuple[Store, Store]]:
        name = uuid.uuid4().hex
        async for pair in both(MemoryStore(name), MemoryStore(name)):
            yield pair


class TestRetryingMemory(OneRoot):
    @pytest.fixture
    async def pair(self) -> AsyncIterator[tuple[Store, Store]]:
        name = uuid.uuid4().hex
        async for pair in both(Retrying(MemoryStore(name)), Retrying(MemoryStore(name))):
            yield pair


class InBucket(OneRoot):
    large_bytes = 40 * MIB  # three parts
    part_bytes = 16 * MIB

    @pytest.fixture
    async def pair(self, server: Server) -> AsyncIterator[tuple[Store, Store]]:
        url = server.fresh_url()
        async for pair in both(open_store(url, server.storage), open_store(url, server.storage)):
            yield pair


@pytest.mark.server
class TestS3(InBucket):
    races = 1  # seconds each; tests/realservers has hundreds, side by side
    foreign = NOT_BACKSLASH

    @pytest.fixture
    def server(self, s3_server: Server) -> Server:
        return s3_server


@pytest.mark.server
class TestAzure(InBucket):
    foreign = NOT_BACKSLASH

    @pytest.fixture
    def server(self, azure_server: Server) -> Server:
        return azure_server


class TestGoogle(InBucket):
    large_bytes = 12 * MIB
    part_bytes = 5 * MIB  # what the real service takes at least; its stand-in is not the fastest

    @pytest.fixture
    def server(self, gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
        monkeypatch.setattr(objects, "_PART_BYTES", self.part_bytes)
        yield gcs_server
        assert gcs_server.cloud.uploads == {}, "an upload was neither completed nor aborted"


@pytest.mark.server
@pytest.mark.skipif(not REAL_URLS, reason="LIMPET_TEST_URLS names no real bucket")
class TestReal(InBucket):
    @pytest.fixture(params=REAL_URLS)
    async def server(self, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
        server = Server(f"{request.param.rstrip('/')}/limpet-tests-{uuid.uuid4().hex}", {})
        yield server
        store = open_store(server.url)
        for entry in await store.list(""):
            await store.delete(entry.key)
        await store.close()


@pytest.mark.parametrize("token", ["wrong", ""])
async def test_the_cloud_of_these_tests_asks_for_its_token(gcs_server: GcsServer, token: str) -> None:
    store = open_store(gcs_server.fresh_url(), {**gcs_server.storage, "bearer_token": token})
    with pytest.raises(StoreError) as caught:
        await store.get("log/x")
    assert caught.value.kind == "access"
    await store.close()


async def test_a_bucket_that_is_not_there_is_an_error_for_every_call(gcs_server: GcsServer) -> None:
    store = open_store("gs://not-there/run", gcs_server.storage)
    for call in (store.get("x"), store.list(""), store.folders(""), store.create("x", b""), store.prepare()):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.kind == "no_bucket"
    await store.close()
