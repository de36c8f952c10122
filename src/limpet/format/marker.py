"""``limpet.json``: what makes a folder or prefix a run. Created once, never changed."""

from __future__ import annotations

import re

import msgspec

from limpet.errors import FormatError
from limpet.format.record import FORMAT_VERSION, RECORD_BYTES_MAX

__all__ = ["Marker", "decode_marker", "encode_marker"]

_NAME = "limpet"
_RUN = re.compile(r"[0-9a-f]{32}")


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """The marker's fields.

    Attributes:
        format: always ``"limpet"``.
        version: of the format.
        run: id of the run, 32 hex digits.
        name: of a child run; empty for a run of its own.
    """

    format: str
    version: int
    run: str
    name: str = ""


def encode_marker(run: str, name: str = "") -> bytes:
    """The marker's bytes."""
    return msgspec.json.encode(Marker(format=_NAME, version=FORMAT_VERSION, run=run, name=name))


def decode_marker(data: bytes, url: str) -> Marker:
    """The marker at ``url``, checked.

    Raises:
        FormatError: it is not limpet's, or of a newer version.
    """
    try:
        if len(data) > RECORD_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes")
        marker = msgspec.json.decode(data, type=Marker)
        ours = marker.format == _NAME and marker.version <= FORMAT_VERSION
        if ours and (marker.version < 1 or _RUN.fullmatch(marker.run) is None):
            raise ValueError(f"version {marker.version}, run {marker.run[:64]!r}")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{url} holds a limpet.json that limpet did not write, or that was damaged.",
            hint="Use another place for the run; if there is a run here, remove this file: the log says what it is.",
        ) from error
    if marker.format != _NAME:
        raise FormatError(
            f"{url} holds something else (its limpet.json says {marker.format[:64]!r}).", hint="Use another place."
        )
    if marker.version > FORMAT_VERSION:
        raise FormatError(
            f"{url} has format version {marker.version}; this limpet reads up to {FORMAT_VERSION}.",
            hint="Install a newer limpet to use this run.",
        )
    return marker
