from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import shutil
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from tests.servers.daemon import Daemon, Server, free_ports

from limpet.errors import StoreError

__all__ = ["Azurite", "azure_server", "azurite_or_skip"]

_ACCOUNT = "devstoreaccount1"
# The account key of every Azurite, printed in its documentation: https://github.com/Azure/Azurite#default-storage-account
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_CONTAINER = "limpet"
_API = "2021-12-02"
_HTTP_CONFLICT = 409


class Azurite(Daemon):
    """Microsoft's emulator of Azure Blob Storage, on a free port of 127.0.0.1.

    It keeps its index in memory and writes it down now and then, and when it is told to end: a SIGKILL loses what it
    had acknowledged since. To restart it, stop it with SIGTERM.
    """

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(folder)
        self._program = program
        (self._port,) = free_ports(1)
        endpoint = f"http://127.0.0.1:{self._port}/{_ACCOUNT}"
        keys = {"account_name": _ACCOUNT, "account_key": _KEY, "endpoint": endpoint}
        self.server = Server(f"az://{_CONTAINER}", keys)

    def command(self) -> list[str]:
        """See ``Daemon.command``."""
        command = [self._program, "--blobHost", "127.0.0.1", "--blobPort", str(self._port)]
        return [*command, "--location", str(self.folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    async def make_bucket(self) -> None:
        """See ``Daemon.make_bucket``: a container can be made by a signed request only."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("PUT", f"/{_ACCOUNT}/{_CONTAINER}?restype=container", headers=_signed())
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        if answer.status not in (http.client.CREATED, _HTTP_CONFLICT):
            raise StoreError(f"making the container: {answer.status} {answer.reason}")


def azurite_or_skip() -> str:
    """Where the program is, which comes from npm."""
    program = os.environ.get("LIMPET_AZURITE") or shutil.which("azurite-blob")
    if program is None or shutil.which(program) is None:
        pytest.skip("Azurite is not installed (npm install azurite@3.37.0; LIMPET_AZURITE=path/to/azurite-blob)")
    if shutil.which("node") is None:
        pytest.skip("Azurite needs node, which is not installed")
    return program


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Azurite, if it is on the path or named by LIMPET_AZURITE."""
    with Azurite(azurite_or_skip(), tmp_path_factory.mktemp("azurite")) as daemon:
        yield daemon.server


def _signed() -> dict[str, str]:
    """Headers of a request that makes the container (https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key)."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _API}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in sorted(headers.items()))]
    lines += [f"/{_ACCOUNT}/{_ACCOUNT}/{_CONTAINER}", "restype:container"]
    digest = hmac.digest(base64.b64decode(_KEY), "\n".join(lines).encode(), hashlib.sha256)
    return {
        **headers,
        "authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}",
        "content-length": "0",
    }
