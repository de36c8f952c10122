from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers import S3Server
from tests.stores.contract import MIB, StoreContract

from limpet.stores.base import Store
from limpet.stores.local import LocalStore
from limpet.stores.memory import MemoryStore
from limpet.stores.retry import Retrying
from limpet.stores.urls import open_store


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


@pytest.mark.server
class TestS3(OneRoot):
    large_bytes = 40 * MIB  # three parts

    @pytest.fixture
    async def pair(self, s3_server: S3Server) -> AsyncIterator[tuple[Store, Store]]:
        url = s3_server.fresh_url()
        async for pair in both(open_store(url, s3_server.storage), open_store(url, s3_server.storage)):
            yield pair
