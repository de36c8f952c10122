from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any, TypeVar

from limpet.errors import UsageError

__all__ = ["Codec", "Registry", "default_registry", "full_name", "imported_class", "is_namedtuple", "register"]

C = TypeVar("C", bound=type)

_BUILTINS = frozenset(
    {"builtins", "collections", "datetime", "decimal", "fractions", "uuid", "pathlib", "pathlib._local"}
)


@dataclass(frozen=True, slots=True)
class Codec:
    """How instances of one class become a tree and come back."""

    cls: type
    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class Registry:
    """The classes that a program lets checkpoints name, with their codecs. Lookups are by exact class."""

    def __init__(self) -> None:
        self._codecs: dict[type, Codec] = {}
        self._named_codecs: dict[str, Codec] = {}
        self._classes: dict[str, type] = {}
        self.version = 0
        """Goes up with everything that is registered."""

    def register(
        self,
        cls: C,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        *,
        name: str | None = None,
    ) -> C:
        """Make a class known; returns the class, so that this also works as a decorator.

        Args:
            cls: with a codec any class of yours; without one a namedtuple, dataclass or enum class.
            encode: turns an instance into a tree of supported leaves.
            decode: turns that tree back into an instance.
            name: what checkpoints call the class; default ``module.qualname``. Give the old name of a class that
                was moved, so that old checkpoints find it.

        Raises:
            UsageError: half a codec, a class that needs one, or a name that stands for another class.
        """
        name = _checked_name(cls, encode, decode, name)
        taken = self._named_codecs[name].cls if name in self._named_codecs else self._classes.get(name)
        if taken is not None and taken is not cls and full_name(taken) != full_name(cls):
            raise UsageError(f"{name!r} is registered for {full_name(taken)} already.", hint="Give another name=.")
        if encode is None or decode is None:
            self._classes[name] = cls
        else:
            self._codecs[cls] = self._named_codecs[name] = Codec(cls, name, encode, decode)
        self.version += 1
        return cls

    def codec_for(self, cls: type) -> Codec | None:
        """The codec for instances of exactly this class."""
        return self._codecs.get(cls)

    def codec_named(self, name: str) -> Codec | None:
        """The codec under which a checkpoint stored a leaf."""
        return self._named_codecs.get(name)

    def class_named(self, name: str) -> type | None:
        """The class registered under ``name``, without a codec."""
        return self._classes.get(name)

    def copy(self) -> Registry:
        """An independent registry with the same entries."""
        twin = Registry()
        twin._codecs.update(self._codecs)
        twin._named_codecs.update(self._named_codecs)
        twin._classes.update(self._classes)
        return twin


def _checked_name(cls: object, encode: object, decode: object, name: str | None) -> str:
    if not isinstance(cls, type):
        raise UsageError(f"register() takes a class, not {cls!r}.", hint="Pass the class of the objects to save.")
    if (encode is None) != (decode is None):
        raise UsageError(f"register({cls.__qualname__}) got half a codec.", hint="Give both encode= and decode=.")
    if cls.__module__ in _BUILTINS:
        raise UsageError(f"{full_name(cls)} is saved as it is and cannot be registered.", hint="Register a subclass.")
    if encode is None and not (dataclasses.is_dataclass(cls) or is_namedtuple(cls) or issubclass(cls, Enum)):
        raise UsageError(
            f"{full_name(cls)} is no namedtuple, dataclass or enum, so it needs a codec.",
            hint="Give register(cls, encode, decode).",
        )
    return full_name(cls) if name is None else name


def full_name(cls: type) -> str:
    """``module.qualname`` of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_namedtuple(cls: type) -> bool:
    """Whether a class came from ``collections.namedtuple`` or ``typing.NamedTuple``, or adds methods to one."""
    fields = getattr(cls, "_fields", None) if issubclass(cls, tuple) else None
    return type(fields) is tuple and all(type(field) is str for field in fields)


def imported_class(module: str, qualname: str) -> type | None:
    """A class from a module that is already imported, found without running anything.

    Only namespaces are looked into: no import, no module ``__getattr__``, no descriptor, no lazy loader.
    """
    holder: object = sys.modules.get(module)
    for part in qualname.split("."):
        if isinstance(holder, ModuleType):
            # vars() would wake importlib's lazy modules through their __getattribute__.
            holder = object.__getattribute__(holder, "__dict__").get(part)
        elif isinstance(holder, type):
            holder = type.__getattribute__(holder, "__dict__").get(part)
        else:
            return None
    return holder if isinstance(holder, type) else None


default_registry = Registry()
"""What ``limpet.register`` fills and every ``Checkpointer`` uses."""


def register(
    cls: C,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    *,
    name: str | None = None,
) -> C:
    """Make a class known to every checkpointer of this process; see ``Registry.register``."""
    return default_registry.register(cls, encode, decode, name=name)
