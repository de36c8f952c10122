"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Json", "KeyFile", "Storage", "Url", "key_in", "parsed_storage"]

Url = Annotated[str, typer.Argument(help="Folder of the run, or file:// s3:// gs:// az:// URL.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Storage = Annotated[
    list[str] | None,
    typer.Option("--storage", metavar="KEY=VALUE", help="Option of the store, such as endpoint=...; may be repeated."),
]

KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="PATH", help="File with the key of a signed run, every byte of it."),
]


def key_in(path: Path | None) -> bytes | None:
    """The key in the file, if one was named; never on the command line, which every user of the machine can read.

    Raises:
        typer.BadParameter: the file cannot be read.
    """
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{error.strerror}: {path}", param_hint="--key-file") from None


def parsed_storage(options: Sequence[str] | None) -> dict[str, Any] | None:
    """Give ``["endpoint=http://x", "timeout=60"]`` as a mapping; ``None`` where there are no options.

    ``true`` and ``false`` become booleans, timeouts become seconds; all else stays text (a key id may be all digits).

    Raises:
        typer.BadParameter: an option has no ``=``, or no key before it.
    """
    parsed: dict[str, Any] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not key.strip():
            # The text may hold half a credential: name the shape that is wanted, not what was typed.
            raise typer.BadParameter("expected KEY=VALUE", param_hint="--storage")
        parsed[key.strip()] = _value(key.strip(), value)
    return parsed or None


def _value(key: str, text: str) -> str | bool | float:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not key.endswith("timeout"):
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{key} is given in seconds, as a number", param_hint="--storage") from None
