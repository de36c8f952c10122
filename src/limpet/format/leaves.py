"""Scalars and the standard library's value types, each as a node of its own, without buffers.

Every function here works in both directions on one kind: the encoder stands above its decoder.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, DecimalException
from fractions import Fraction
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final
from uuid import UUID

from limpet.errors import UsageError
from limpet.format.nodes import Node, Refused, brief, corrupt, integer, items, text

__all__ = [
    "DECODERS",
    "ENCODERS",
    "INLINE_CHARACTERS",
    "SCALAR_TYPES",
    "decode_text",
    "encode_float",
    "encode_int",
    "encode_text",
]

MAX_JSON_INT: Final = 2**53 - 1
"""JSON readers elsewhere hold numbers as doubles (RFC 8259, section 6)."""

INLINE_CHARACTERS: Final = 1024
"""Longer strings go to a buffer, where they are referenced and not copied into the manifest."""

FRACTION_DIGITS_MAX: Final = 1 << 14
"""Hex digits of a fraction's parts: finding their common divisor takes time by the square of their size."""

_HEX = re.compile(r"[0-9a-f]*")
_HEX_INT = re.compile(r"-?[0-9a-f]+")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+\-]+(?:/[A-Za-z0-9_+\-]+)*")


def hexadecimal(value: object, size: int | None = None) -> bytes:
    """The bytes of a hex string, once it is known to be one (of ``size`` bytes)."""
    digits = text(value)
    if len(digits) % 2 or _HEX.fullmatch(digits) is None or (size is not None and len(digits) != 2 * size):
        raise corrupt("a hex string is damaged")
    return bytes.fromhex(digits)


def encode_int(value: int) -> Node:
    """An int of any size; hex beyond JSON's range, because Python refuses very long decimals."""
    return value if -MAX_JSON_INT <= value <= MAX_JSON_INT else ["int", format(value, "x")]


def _decode_int(node: list[Any]) -> int:
    digits = text(items(node, 2, 2)[1])
    if _HEX_INT.fullmatch(digits) is None:
        raise corrupt("an int is damaged")
    return int(digits, 16)


def encode_float(value: float) -> Node:
    """A float; infinities and NaNs, whose payload counts, by their bits."""
    return value if math.isfinite(value) else ["float", struct.pack(">d", value).hex()]


def _decode_float(node: list[Any]) -> float:
    (value,) = struct.unpack(">d", hexadecimal(items(node, 2, 2)[1], 8))
    return float(value)


def _encode_complex(value: complex) -> Node:
    return ["complex", struct.pack(">dd", value.real, value.imag).hex()]


def _decode_complex(node: list[Any]) -> complex:
    return complex(*struct.unpack(">dd", hexadecimal(items(node, 2, 2)[1], 16)))


def is_unicode(value: str) -> bool:
    """Whether JSON can carry the string: no lone surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_text(value: str) -> Node:
    """A string; one with lone surrogates as the bytes of its code points."""
    return value if is_unicode(value) else ["utf8", value.encode("utf-8", "surrogatepass").hex()]


def decode_text(node: Node) -> str:
    """What ``encode_text`` was given."""
    if type(node) is str:
        return node
    tag, digits = items(node, 2, 2)
    if tag != "utf8":
        raise corrupt("a string is missing")
    try:
        return hexadecimal(digits).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise corrupt("a string is not UTF-8") from None


def _encode_bytes(value: bytes) -> Node:
    return ["hex", value.hex()]


def _decode_bytes(node: list[Any]) -> bytes:
    return hexadecimal(items(node, 2, 2)[1])


def _encode_zone(zone: tzinfo | None) -> Node:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # pickle's own view of it
        return ["fixed", _encode_timedelta(offset), *map(encode_text, name)]
    zoneinfo = sys.modules.get("zoneinfo")
    key: str | None = getattr(zone, "key", None) if type(zone) is getattr(zoneinfo, "ZoneInfo", None) else None
    if key is None or _ZONE_KEY.fullmatch(key) is None:
        raise Refused(
            f"has the time zone {brief(zone)}, which has no portable name",
            "Use datetime.timezone or zoneinfo.ZoneInfo.",
        )
    return ["zone", key]


def _decode_zone(node: Node) -> tzinfo | None:
    if node is None:
        return None
    tag, *parts = items(node, 2, 3)
    if tag == "fixed":
        offset = _decode_timedelta(items(parts[0], 4, 4))
        return timezone(offset, *map(decode_text, parts[1:]))
    key = text(parts[0])
    if tag != "zone" or _ZONE_KEY.fullmatch(key) is None:
        raise corrupt("a time zone is damaged")
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(key)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"this machine does not know the time zone {key!r} that the checkpoint holds.",
            hint="Install the tzdata package.",
        ) from None


def _encode_datetime(value: datetime) -> Node:
    parts = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
    return ["datetime", parts, value.fold, _encode_zone(value.tzinfo)]


def _decode_datetime(node: list[Any]) -> datetime:
    _, parts, fold, zone = items(node, 4, 4)
    year, month, day, hour, minute, second, micro = [integer(part) for part in items(parts, 7, 7)]
    return datetime(year, month, day, hour, minute, second, micro, _decode_zone(zone), fold=integer(fold, 0, 1))


def _encode_time(value: time) -> Node:
    parts = [value.hour, value.minute, value.second, value.microsecond]
    return ["time", parts, value.fold, _encode_zone(value.tzinfo)]


def _decode_time(node: list[Any]) -> time:
    _, parts, fold, zone = items(node, 4, 4)
    hour, minute, second, micro = [integer(part) for part in items(parts, 4, 4)]
    return time(hour, minute, second, micro, _decode_zone(zone), fold=integer(fold, 0, 1))


def _encode_date(value: date) -> Node:
    return ["date", value.year, value.month, value.day]


def _decode_date(node: list[Any]) -> date:
    return date(*[integer(part) for part in items(node, 4, 4)[1:]])


def _encode_timedelta(value: timedelta) -> Node:
    return ["timedelta", value.days, value.seconds, value.microseconds]


def _decode_timedelta(node: list[Any]) -> timedelta:
    days, seconds, microseconds = items(node, 4, 4)[1:]
    return timedelta(integer(days, -(10**9), 10**9), integer(seconds, 0, 86_399), integer(microseconds, 0, 999_999))


def _encode_decimal(value: Decimal) -> Node:
    return ["decimal", str(value)]


def _decode_decimal(node: list[Any]) -> Decimal:
    return Decimal(text(items(node, 2, 2)[1]))


def _encode_fraction(value: Fraction) -> Node:
    parts = [format(value.numerator, "x"), format(value.denominator, "x")]
    if max(map(len, parts)) > FRACTION_DIGITS_MAX:
        raise Refused("is a fraction of more than 65,000 bits", "Save numerator and denominator by themselves.")
    return ["fraction", *parts]


def _decode_fraction(node: list[Any]) -> Fraction:
    parts = [text(part) for part in items(node, 3, 3)[1:]]
    if max(map(len, parts)) > FRACTION_DIGITS_MAX:
        raise corrupt("a fraction has too many digits")
    numerator, denominator = (_decode_int(["int", part]) for part in parts)
    return Fraction(numerator, denominator)


def _encode_uuid(value: UUID) -> Node:
    return ["uuid", value.hex]


def _decode_uuid(node: list[Any]) -> UUID:
    return UUID(bytes=hexadecimal(items(node, 2, 2)[1], 16))


def _encode_path(value: PurePath) -> Node:
    return ["path", type(value).__name__, encode_text(str(value))]


def _decode_path(node: list[Any]) -> PurePath:
    _, kind, written = items(node, 3, 3)
    if (cls := _PATHS.get(text(kind))) is None:
        raise corrupt("a path is of an unknown kind")
    return cls(decode_text(written))


_PATHS: dict[str, type[PurePath]] = {
    "PurePosixPath": PurePosixPath,
    "PureWindowsPath": PureWindowsPath,
    # A concrete path of the other system cannot exist here; its pure form can.
    "PosixPath": Path if issubclass(type(Path()), PosixPath) else PurePosixPath,
    "WindowsPath": Path if issubclass(type(Path()), WindowsPath) else PureWindowsPath,
}


def _itself(value: Any) -> Node:
    return value


def _guarded(decode: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """The decoder, with what constructors raise for impossible values turned into ``CorruptError``."""

    def guarded(node: list[Any]) -> Any:
        try:
            return decode(node)
        except (ValueError, TypeError, OverflowError, ZeroDivisionError, DecimalException) as error:
            raise corrupt(f"a {node[0]} has an impossible value") from error

    return guarded


SCALAR_TYPES: Final = (type(None), bool, int, float, str)
"""What a node may be without a tag."""

ENCODERS: dict[type, Callable[[Any], Node]] = {
    type(None): _itself,
    bool: _itself,
    int: encode_int,
    float: encode_float,
    str: encode_text,
    complex: _encode_complex,
    bytes: _encode_bytes,
    datetime: _encode_datetime,
    date: _encode_date,
    time: _encode_time,
    timedelta: _encode_timedelta,
    Decimal: _encode_decimal,
    Fraction: _encode_fraction,
    UUID: _encode_uuid,
    **dict.fromkeys((PurePosixPath, PureWindowsPath, PosixPath, WindowsPath), _encode_path),
}
"""Exact type to encoder."""

DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    "int": _guarded(_decode_int),
    "float": _guarded(_decode_float),
    "utf8": decode_text,
    "complex": _guarded(_decode_complex),
    "hex": _guarded(_decode_bytes),
    "datetime": _guarded(_decode_datetime),
    "date": _guarded(_decode_date),
    "time": _guarded(_decode_time),
    "timedelta": _guarded(_decode_timedelta),
    "decimal": _guarded(_decode_decimal),
    "fraction": _guarded(_decode_fraction),
    "uuid": _guarded(_decode_uuid),
    "path": _guarded(_decode_path),
}
"""Tag to decoder."""
