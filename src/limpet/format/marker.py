"""``limpet.json``: what makes a folder or prefix a run. Created once, never changed."""

from __future__ import annotations

import msgspec

from limpet.errors import FormatError
from limpet.format.record import FORMAT_VERSION

__all__ = ["Marker", "decode_marker", "encode_marker"]

_NAME = "limpet"


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
        marker = msgspec.json.decode(data, type=Marker)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{url} holds a limpet.json that limpet did not write.", hint="Use another place for the run."
        ) from error
    if marker.format != _NAME:
        raise FormatError(
            f"{url} holds something else (its limpet.json says {marker.format!r}).", hint="Use another place."
        )
    if marker.version > FORMAT_VERSION:
        raise FormatError(
            f"{url} has format version {marker.version}; this limpet reads up to {FORMAT_VERSION}.",
            hint="Install a newer limpet to use this run.",
        )
    return marker
