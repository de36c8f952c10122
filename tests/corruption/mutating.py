"""Mutations of JSON trees and of bytes: seeded, many, and aware of what the checks behind a digest look at."""

from __future__ import annotations

import copy
import random
from typing import Any

ATOMS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**16,
    10**30, -(10**30), 0.0, -0.0, 0.5, 1e308, 5e-324, "", "a", "../../x", "/etc/passwd", "http://127.0.0.1/x", "a\0b", ".",
    "..", "\u0430", "data", "zstd", "raw", "planes2", "planes4", "planes8", "exec", "x" * 3000, "os", "system", "builtins",
    "subprocess", "Popen", "posix.system", "__class__", "__reduce__", "__globals__", "f" * 64, "0" * 64, "ff" * 16, "-", "-0",
    "0x1", "1_0", "|O8", "O", "<f4", ">f8", "<U9", "|S0", "|V0", "V999999999", "<M8[ns]", "ml_dtypes.bfloat16", "NaN", "inf",
    "1e999999999", "sNaN123", "Europe/Berlin", "UTC", "a/../b", "PosixPath", "cpu", "cuda", "float32", "bfloat16", [], {},
    [[]], ["utf8", "eda080"], ["utf8", "ff"], ["int", "f" * 4000], ["float", "7ff8000000000001"], ["hex", "00"], {"b": "Li4="},
    {"b": ""}, [1, 2], [[1, 10**16]], [[1, 1]], [[2, 1]],
)  # fmt: skip
TAGS = (
    "int", "float", "complex", "utf8", "hex", "str", "bytes", "bytearray", "datetime", "date", "time", "timedelta", "decimal",
    "fraction", "uuid", "path", "dict", "counter", "odict", "ddict", "list", "tuple", "deque", "set", "frozenset", "namedtuple",
    "dataclass", "enum", "stateful", "custom", "rng", "nd", "npscalar", "npstr", "npbytes", "jax", "jaxkey", "torch",
    "torchsize", "files", "pickle", "struct", "fixed", "zone",
)  # fmt: skip
DEEPER = 70
"""More levels than a tree may have."""


def mutated(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one to four changes somewhere in it."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        places = [place for place in _places(root) if place[0] is not root or len(root) == 1]
        holder, key = rng.choice(places)
        _change(rng, root, holder, key)
    return root[0] if root else None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        holder = pending.pop()
        pairs = enumerate(holder) if isinstance(holder, list) else holder.items()
        for key, item in pairs:
            found.append((holder, key))
            if isinstance(item, list | dict):
                pending.append(item)
    return found


def _change(rng: random.Random, root: list[Any], holder: Any, key: Any) -> None:
    what = rng.randrange(10)
    if what <= 3:
        holder[key] = copy.deepcopy(rng.choice(ATOMS))
    elif what == 4:
        holder[key] = _nudged(rng, holder[key])
    elif what == 5:
        holder[key] = copy.deepcopy(_some(rng, root))
    elif what == 6:
        holder[key] = [rng.choice(TAGS), *(copy.deepcopy(rng.choice(ATOMS)) for _ in range(rng.randrange(6)))]
    elif what == 7 and holder is not root:
        del holder[key]
    elif what == 8 and isinstance(holder, list) and holder is not root:
        holder.insert(key, copy.deepcopy(rng.choice((holder[key], _some(rng, root)))))
    elif what == 9:
        _wrap(rng, holder, key)


def _some(rng: random.Random, root: Any) -> Any:
    holder, key = rng.choice(_places(root))
    return holder[key]


def _nudged(rng: random.Random, value: Any) -> Any:
    """A value a little off: the next number, a string with another character, a list in another order."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, -value - 1, value, 1 << rng.randrange(64)))
    if isinstance(value, float):
        return value * 2
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice("0aZ/.\0-é\U0001f600[") + value[at + rng.randrange(2) :]
    if isinstance(value, list):
        return rng.sample(value, len(value))
    return value


def _wrap(rng: random.Random, holder: Any, key: Any) -> None:
    tag = rng.choice(("list", "tuple", "stateful", "custom", "dict"))
    for _ in range(rng.choice((1, 2, DEEPER))):
        inner = holder[key]
        holder[key] = {"dict": ["dict", ["k"], [inner]], "stateful": ["stateful", "x", inner]}.get(tag) or (
            ["custom", "x", inner] if tag == "custom" else [tag, [inner]]
        )


def bent(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to eight changes: flips, runs of one value, cuts, doubled stretches, numbers at their limits."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(found) + 1)
        what = rng.randrange(6)
        if what <= 1 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif what == 2:
            found[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
        elif what == 3:
            del found[at : at + rng.choice((1, 2, 8, 100))]
        elif what == 4:
            found[at:at] = found[at : at + rng.choice((1, 4, 64))]
        else:
            found[at:at] = rng.randbytes(rng.choice((1, 3, 16)))
    return bytes(found)
