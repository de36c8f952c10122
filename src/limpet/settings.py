"""What a ``Checkpointer`` is given, validated together before anything is touched."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NoReturn, get_args

from limpet.engine.queue import OnBusy
from limpet.errors import UsageError
from limpet.events import Hook
from limpet.format.choosing import parse_compression
from limpet.format.interval import Interval
from limpet.format.record import META_BYTES_MAX, meta_size
from limpet.format.retention import Policy
from limpet.format.seal import Seal
from limpet.remote.messages import Place
from limpet.remote.place import check_capable, describe_place

__all__ = ["Engine", "OnError", "Settings", "check_meta", "check_step", "place_for"]

OnError = Literal["raise", "warn"]
Engine = Literal["thread", "process"]
_BUFFERS_MAX = 16
_OWNER_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """See ``Checkpointer``."""

    retain: Policy | None
    every: Interval | None
    buffers: int
    on_busy: OnBusy
    on_error: OnError
    compression: str
    memory_limit: int | None
    owner: str
    takeover: bool
    start_from: str | None
    allow_pickle: bool
    hooks: Sequence[Hook]
    storage: Mapping[str, Any] = field(repr=False)
    key: bytes | None = field(default=None, repr=False)
    engine: Engine = "thread"
    check: bool = False
    delta: bool = False

    def __post_init__(self) -> None:
        if self.key is not None:
            Seal(self.key)
        mode, _ = parse_compression(self.compression)
        _one_of("on_busy", self.on_busy, get_args(OnBusy))
        _one_of("engine", self.engine, get_args(Engine))
        _one_of("on_error", self.on_error, get_args(OnError))
        _type_of("retain", self.retain, Policy | None, "Last, Periodic, Best or several of them joined by |")
        _type_of("every", self.every, Interval | None, "Every(steps=...) or Every(seconds=...)")
        if not _is_int(self.buffers) or not 1 <= self.buffers <= _BUFFERS_MAX:
            raise UsageError(f"buffers={self.buffers!r} is not a number from 1 to {_BUFFERS_MAX}.")
        if self.memory_limit is not None and (not _is_int(self.memory_limit) or self.memory_limit < 1):
            raise UsageError(f"memory_limit={self.memory_limit!r} is not a positive number of bytes.")
        if not _is_short_text(self.owner):
            raise UsageError(
                f"owner={self.owner!r:.100} is not a short text.",
                hint=f"Give at most {_OWNER_BYTES_MAX} bytes of UTF-8.",
            )
        _type_of("takeover", self.takeover, bool, "True or False")
        _type_of("allow_pickle", self.allow_pickle, bool, "True or False")
        _type_of("check", self.check, bool, "True or False")
        _type_of("delta", self.delta, bool, "True or False")
        if self.delta and mode == "off":
            raise UsageError(
                'delta=True stores differences, which are coded, and compression="off" stores bytes as they are.',
                hint="Choose one.",
            )
        if not isinstance(self.storage, Mapping):  # not shown: it may be a secret
            raise UsageError(
                f"storage= is a {type(self.storage).__name__}, not a dict.", hint="Give names and values of options."
            )
        object.__setattr__(self, "storage", dict(self.storage))
        object.__setattr__(self, "hooks", _functions(self.hooks))
        if self.buffers == 1 and self.on_busy == "skip":
            raise UsageError(
                'buffers=1 with on_busy="skip" would skip every state that comes while one is written, the last too.',
                hint='Use buffers=2, or on_busy="wait".',
            )

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "settings cannot be pickled: they hold credentials", hint="Make a Checkpointer where it is used."
        )


def place_for(url: str | os.PathLike[str], settings: Settings) -> Place | None:
    """What a writer in a process of its own makes the store of ``url`` from; ``None`` if there is to be none.

    Raises:
        UsageError: it cannot be had here, or cannot reach that store.
    """
    if settings.engine == "thread":
        return None
    check_capable()
    return describe_place(url, settings.storage, settings.key)


def check_step(step: object) -> int | None:
    """``step`` as a plain int.

    Raises:
        UsageError: it is negative, or no integer.
    """
    if step is None:
        return None
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise UsageError(f"step={step!r} is not an integer.", hint="Give a whole number, 0 or more, or no step.")
    value = int(step.__index__())
    if not 0 <= value < 2**63:
        raise UsageError(f"step={value} is out of range.", hint="Give a whole number, 0 or more, or no step.")
    return value


def check_meta(meta: object) -> dict[str, Any]:
    """``meta`` as a dict of its own.

    Raises:
        UsageError: it is no mapping of JSON values, or too large.
    """
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise UsageError(f"meta is a {type(meta).__name__}, not a dict.", hint="Give names and JSON values.")
    if not meta:
        return {}
    try:
        copied: dict[str, Any] = _plain(meta)
        size = meta_size(copied)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"meta holds something that JSON cannot: {error}.", hint="Put it into the state.") from error
    if size > META_BYTES_MAX:
        raise UsageError(
            f"meta has {size} bytes; at most {META_BYTES_MAX} are allowed.", hint="Put it into the state instead."
        )
    return copied


def _plain(value: Any) -> Any:
    """What JSON will give back for ``value``: a number of another library (a loss, say) as Python's own.

    Raises:
        TypeError: JSON would give back something else.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None  # JSON has neither infinity nor NaN
    if isinstance(value, Mapping):
        return {_key(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | int) and not isinstance(value, Enum):
        return str(value) if isinstance(value, str) else int(value)
    item = getattr(value, "item", None)
    if not callable(item) or getattr(value, "ndim", None) != 0:
        raise TypeError(f"a {type(value).__name__}")
    return _plain(item())


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r}, which is not a str")
    return key


def _functions(hooks: Any) -> tuple[Hook, ...]:
    try:
        listed = tuple(hooks)
    except TypeError:
        listed = (None,)
    if not all(callable(hook) for hook in listed):
        raise UsageError(f"hooks={hooks!r:.100} is not a list of functions.", hint="Give [function].")
    return listed


def _is_short_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return len(value.encode()) <= _OWNER_BYTES_MAX
    except UnicodeEncodeError:  # a surrogate
        return False


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}.")


def _type_of(name: str, value: object, allowed: Any, wanted: str) -> None:
    if not isinstance(value, allowed):
        raise UsageError(f"{name}={value!r} is not understood.", hint=f"Give {wanted}.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
