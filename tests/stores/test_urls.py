from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest

from limpet.errors import UsageError
from limpet.stores.base import Store
from limpet.stores.local import LocalStore
from limpet.stores.memory import MemoryStore
from limpet.stores.objects import ObjectStore, part_bytes
from limpet.stores.urls import open_store

KEYS: dict[str, Any] = {"access_key_id": "an-access-key", "secret_access_key": "a-secret-key", "region": "us-east-1"}
AZURE = {"account_name": "acct", "account_key": "c2VjcmV0LWFjY291bnQta2V5"}
GCS = {"skip_signature": True}


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


async def opened(url: str | Path, storage: dict[str, Any] | None = None) -> Store:
    store = open_store(url, storage)
    await store.close()
    return store


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
async def test_a_path_and_a_file_url_are_a_folder(tmp_path: Path, form: str) -> None:
    store = await opened(form.format(path=tmp_path / "run"))
    assert (type(store), store.url) == (LocalStore, str(tmp_path / "run"))


async def test_a_path_object_is_a_folder_whatever_it_looks_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (await opened(Path("s3:/x"))).url == str(tmp_path / "s3:" / "x")


async def test_a_file_url_is_decoded_and_a_path_is_not(tmp_path: Path) -> None:
    assert (await opened(f"file://{tmp_path}/a%20b")).url == f"{tmp_path}/a b"
    assert (await opened(f"{tmp_path}/a%20b")).url == f"{tmp_path}/a%20b"


async def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await opened("~/run")).url == str(tmp_path / "run")


async def test_memory_of_one_name_is_shared(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    await open_store(f"memory://{name}/run").create("a", b"x")
    store = open_store(f"memory://{name}/run/")
    assert isinstance(store, MemoryStore)
    assert (await store.get("a"), store.url) == (b"x", f"memory://{name}/run")
    assert [each.key for each in await open_store(f"memory://{name}").list("")] == ["run/a"]


@pytest.mark.parametrize(
    ("url", "storage", "shown"),
    [
        ("s3://bucket/run/42/", KEYS, "s3://bucket/run/42"),
        ("s3a://bucket", KEYS, "s3a://bucket"),
        ("S3://bucket/a", KEYS, "s3://bucket/a"),
        ("gs://bucket/run", GCS, "gs://bucket/run"),
        ("gcs://bucket/run", GCS, "gcs://bucket/run"),
        ("az://container/run", AZURE, "az://container/run"),
        (
            "abfss://container@acct.dfs.core.windows.net/run",
            {"account_key": AZURE["account_key"]},
            "abfss://container/run",
        ),
    ],
)
async def test_a_bucket_is_opened_without_being_contacted(url: str, storage: dict[str, Any], shown: str) -> None:
    store = await opened(url, storage)
    assert (type(store), store.url, repr(store)) == (ObjectStore, shown, f"ObjectStore({shown!r})")


@pytest.mark.parametrize("url", ["ftp://host/x", "http://host/x", "https://host/x", "S4://b", "://x"])
def test_an_unknown_scheme_is_refused_with_those_that_are_known(url: str) -> None:
    with pytest.raises(UsageError, match=r"file://, memory://, s3://.*gs://.*az://"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        b"path",
        "a\0b",
        "memory://",
        "memory://name/a/../b",
        "s3://",
        "s3:///key",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://key:secret@bucket/a",
        "s3://bucket/a?versionId=1",
        "gs://bucket/a#b",
        "file://host/path",
        "file://",
        "file:///a?b",
    ],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_store(url, KEYS if url[:2] == "s3" else None)


def test_folders_and_memory_take_no_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'region'"):
        open_store(tmp_path, {"region": "x"})
    with pytest.raises(UsageError, match="'region'"):
        open_store("memory://x", {"region": "x"})


@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ({"nonsense": "1"}, "nonsense"),
        ({"client_options": {"nonsense": "1"}}, "nonsense"),
        ({"retry_config": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_an_unknown_option_is_named(storage: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        open_store("s3://bucket/a", {**KEYS, **storage})


def test_a_missing_option_is_named() -> None:
    with pytest.raises(UsageError, match="Account must be specified"):
        open_store("az://container/a")


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost:9000", "[::1]:9000"])
async def test_plain_http_is_allowed_to_this_host(host: str) -> None:
    await opened("s3://bucket/a", {**KEYS, "endpoint": f"http://{host}"})


@pytest.mark.parametrize(
    "host", ["minio.internal", "10.0.0.1:9000", "localhost.evil.example", "127.evil.example", "0.0.0.0"]
)
def test_plain_http_to_another_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="over plain http"):
        open_store("s3://bucket/a", {**KEYS, "endpoint": f"http://{host}"})


def test_plain_http_from_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.internal")
    with pytest.raises(UsageError, match="over plain http"):
        open_store("s3://bucket/a", KEYS)


@pytest.mark.parametrize("storage", [{"allow_http": True}, {"client_options": {"allow_http": True}}])
async def test_plain_http_can_be_asked_for(storage: dict[str, Any]) -> None:
    await opened("s3://bucket/a", {**KEYS, "endpoint": "http://minio.internal", **storage})


async def test_timeouts_are_seconds() -> None:
    await opened("s3://bucket/a", {**KEYS, "timeout": 60, "connect_timeout": 2.5, "read_timeout": "10s"})


async def test_no_secret_is_in_a_repr_a_pickle_or_the_url() -> None:
    store = await opened("s3://bucket/a", KEYS)
    assert isinstance(store, ObjectStore)
    assert "key" not in f"{store!r} {store.url} {store._connections!r}"
    with pytest.raises(UsageError, match="pickled"):
        pickle.dumps(store)


@pytest.mark.parametrize(
    ("size_hint", "expected"), [(0, 16 << 20), (1 << 30, 16 << 20), (8000 << 24, 16 << 20), (1 << 40, 137438954)]
)
def test_parts_grow_so_that_ten_thousand_are_enough(size_hint: int, expected: int) -> None:
    assert part_bytes(size_hint) == expected
    assert size_hint / part_bytes(size_hint) <= 8000
