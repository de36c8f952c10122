"""Leaf paths: tuples of keys, and their written form, of which each is the exact inverse of the other.

A string key is written bare where it looks like an ASCII identifier and is quoted otherwise; every other
key stands in brackets: ``model."layer1.0.weight"``, ``history[0]``, ``table[(1, "x")]``, ``flags[True]``.
The empty path, which is the state itself, is the empty string.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

from limpet.errors import UsageError

__all__ = ["Key", "LeafPath", "format_path", "parse_path", "place"]

Key: TypeAlias = Any
"""``str``, ``int``, ``bool``, ``float``, ``bytes``, ``None``, or a tuple of these."""

LeafPath: TypeAlias = tuple[Key, ...]

_MAX_NESTING = 64
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPED = re.compile('["\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\]|\\u[0-9a-f]{4})*)"')
_BYTES = re.compile(r'b"((?:[ !#-\[\]-~]|\\["\\]|\\x[0-9a-f]{2})*)"')
_ESCAPE = re.compile(r'\\(?:(["\\])|u([0-9a-f]{4})|x([0-9a-f]{2}))')
_NUMBER = re.compile(r"-?(?:inf|nan|[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
_HEXADECIMAL = re.compile(r"(-?)0x([0-9a-f]+)")
_LONG_DIGITS = 600
_LONG = 10**_LONG_DIGITS  # sys.set_int_max_str_digits may forbid longer decimals
_CONSTANTS = {"True": True, "False": False, "None": None}


def format_path(path: LeafPath) -> str:
    """A leaf's path as a quoted, unambiguous string.

    Args:
        path: keys from the root to the leaf; list indices and int keys are ``int``.

    Returns:
        What ``parse_path`` turns back into the same tuple.
    """
    parts: list[str] = []
    for key in path:
        if type(key) is not str:
            parts.append(f"[{_literal(key)}]")
            continue
        parts.append("." if parts else "")
        parts.append(key if _BARE.fullmatch(key) else _quote(key))
    return "".join(parts)


def place(path: LeafPath) -> str:
    """A leaf's path for an error message, where the root needs a name too."""
    return format_path(path) or "the state itself"


def parse_path(text: str) -> LeafPath:
    """The keys that a written path stands for.

    Raises:
        UsageError: the text is not a path; says at which character.
    """
    reader = _Reader(text)
    keys: list[Key] = []
    while reader.position < len(text):
        if reader.take("["):
            keys.append(reader.literal())
            reader.expect("]")
            continue
        if keys:
            reader.expect(".")
        keys.append(reader.name())
    return tuple(keys)


def _quote(text: str) -> str:
    return '"' + _ESCAPED.sub(_escape, text) + '"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return "\\" + character if character in '"\\' else f"\\u{ord(character):04x}"


def _literal(key: Key) -> str:
    match key:
        case str():
            return _quote(key)
        case bytes():
            return 'b"' + "".join(_byte(value) for value in key) + '"'
        case tuple():
            inner = ", ".join(_literal(item) for item in key)
            return f"({inner},)" if len(key) == 1 else f"({inner})"
        case int() if not isinstance(key, bool) and abs(key) >= _LONG:
            return f"{'-' if key < 0 else ''}0x{abs(key):x}"
        case _:
            return repr(key)


def _byte(value: int) -> str:
    if value in b'"\\':
        return "\\" + chr(value)
    return chr(value) if 0x20 <= value < 0x7F else f"\\x{value:02x}"


def _unescape(match: re.Match[str]) -> str:
    return match[1] or chr(int(match[2] or match[3], 16))


class _Reader:
    """A cursor over a written path."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def failure(self, wanted: str) -> UsageError:
        return UsageError(
            f"{self.text!r} is not a leaf path: expected {wanted} at character {self.position}.",
            hint='Write it like model."layer1.0.weight" or history[0].',
        )

    def take(self, token: str) -> bool:
        if not self.text.startswith(token, self.position):
            return False
        self.position += len(token)
        return True

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise self.failure(repr(token))

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.position)
        if found is not None:
            self.position = found.end()
        return found

    def name(self) -> str:
        if (bare := self.match(_BARE)) is not None:
            return bare[0]
        if (quoted := self.match(_QUOTED)) is not None:
            return _ESCAPE.sub(_unescape, quoted[1])
        raise self.failure("a name or a quoted string")

    def literal(self, depth: int = 0) -> Key:
        if (raw := self.match(_BYTES)) is not None:
            return _ESCAPE.sub(_unescape, raw[1]).encode("latin-1")
        if self.text.startswith('"', self.position):
            return self.name()
        for word, value in _CONSTANTS.items():
            if self.take(word):
                return value
        if depth < _MAX_NESTING and self.take("("):
            return self.items(depth + 1)
        return self.number()

    def items(self, depth: int) -> tuple[Key, ...]:
        found: list[Key] = []
        while not self.take(")"):
            found.append(self.literal(depth))
            if self.take(")"):
                if len(found) == 1:
                    raise self.failure("','")
                break
            self.expect(",")
            self.take(" ")
        return tuple(found)

    def number(self) -> int | float:
        if (hexadecimal := self.match(_HEXADECIMAL)) is not None:
            return int(hexadecimal[1] + hexadecimal[2], 16)
        if (found := self.match(_NUMBER)) is None:
            raise self.failure("a number, True, False, None, a quoted string, bytes or a tuple")
        digits = found[0].lstrip("-")
        if not digits.isdigit():
            value = float(found[0])
            return math.copysign(value, -1.0) if found[0].startswith("-") else value
        if len(digits) > _LONG_DIGITS:
            raise self.failure(f"at most {_LONG_DIGITS} decimal digits (longer numbers are written as 0x...)")
        return int(found[0])
