from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kills.forks import Zygote, run_zygote
from tests.kills.life import Place, write_files
from tests.servers import Server, azure_server, s3_server

__all__ = ["azure_server", "s3_server"]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks processes to be killed."""
    with run_zygote() as zygote:
        yield zygote


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where a run may lie, with files to save beside it; all temporary files go there too."""
    write_files(tmp_path / "files")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return Place(str(tmp_path / "run"), str(tmp_path / "files"), str(tmp_path / "scratch"))


@pytest.fixture(params=["s3_server", "azure_server"], ids=["s3", "azure"])
def remote_place(request: pytest.FixtureRequest, place: Place) -> Place:
    """The same on a real server."""
    server: Server = request.getfixturevalue(request.param)
    return replace(place, url=server.fresh_url(), storage=server.storage)
