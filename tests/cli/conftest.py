"""The command line, called as the console script calls it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.servers import s3_server

from limpet.cli import main

__all__ = ["Ended", "limpet_command", "s3_server"]

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def limpet_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    for package in ("typer", "rich"):
        pytest.importorskip(package, reason="the extra 'cli'")

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["limpet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    return call
