"""Namedtuples, dataclasses and enums: found by name without running anything, rebuilt without their constructor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from enum import Enum, Flag
from functools import cached_property
from types import MemberDescriptorType
from typing import Any

from limpet.errors import MismatchError, UsageError
from limpet.format.leaves import DECODERS, decode_text, encode_int, encode_text
from limpet.format.nodes import Node, Refused, corrupt, items
from limpet.format.registry import Registry, full_name, imported_class, is_namedtuple

__all__ = [
    "check_fields",
    "dataclass_values",
    "decode_enum",
    "encode_enum",
    "field_names",
    "find_class",
    "is_dataclass",
    "is_enum",
    "namedtuple_values",
    "new_dataclass",
    "new_namedtuple",
]

_FLAG_BITS_MAX = 1024
_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE of CPython's object.h: set on classes that Python code made."""


def is_enum(cls: type) -> bool:
    """Whether instances are members of an enum."""
    return issubclass(cls, Enum)


def is_dataclass(cls: type) -> bool:
    """Whether instances are dataclasses that ``object.__new__`` can make: no builtin among their bases."""
    plain = all(base is object or base.__flags__ & _HEAP_TYPE for base in cls.__mro__)
    return plain and dataclasses.is_dataclass(cls)


def find_class(module: str, qualname: str, registry: Registry, fits: Callable[[type], bool], what: str) -> type[Any]:
    """The class that a checkpoint names.

    Args:
        module: its module, as stored.
        qualname: its qualified name, as stored.
        registry: classes that the program made known; they come first.
        fits: whether a class really is what the checkpoint says it was.
        what: its kind, for the error.

    Raises:
        UsageError: no such class is registered or already imported.
    """
    name = f"{module}.{qualname}"
    found = registry.class_named(name)
    if found is None:
        found = imported_class(module, qualname)
        if found is not None and (_runs_code(found) or full_name(found) != name):
            found = None
    if found is None or not fits(found):
        raise UsageError(
            f"the checkpoint holds a {what} {name}, which is not known here.",
            hint=f"Import {module or 'its module'} first, call limpet.register({qualname.rpartition('.')[2]}), "
            "or pass into= with an instance.",
            kind="unknown_class",
        )
    return found


def _runs_code(cls: type) -> bool:
    """Whether code of the class would run on, or with, what a checkpoint chose, with nobody having asked for it.

    A finalizer; a field behind a property, which the assignment of its value calls; how an enum takes unknown values.
    Only namespaces are looked into: a metaclass may have code of its own.
    """
    spaces = [type.__dict__["__dict__"].__get__(base) for base in type.__dict__["__mro__"].__get__(cls)]
    found = {name: value for space in reversed(spaces) for name, value in space.items()}
    if "__del__" in found:
        return True
    if issubclass(cls, Flag):
        return found["_missing_"] is not Flag.__dict__["_missing_"]
    fields = found.get("__dataclass_fields__", ())
    return any(
        hasattr(type(found[name]), "__set__") and not isinstance(found[name], MemberDescriptorType)
        for name in fields
        if name in found
    )


def field_names(cls: type) -> tuple[str, ...]:
    """The fields of a namedtuple or dataclass class, in order."""
    if is_namedtuple(cls):
        return tuple(cls._fields)  # type: ignore[attr-defined]  # every namedtuple has it
    return tuple(field.name for field in dataclasses.fields(cls))


def check_fields(cls: type, stored: Sequence[str]) -> None:
    """Raise ``MismatchError`` unless the class still has exactly the stored fields."""
    now = field_names(cls)
    if sorted(now) != sorted(stored):
        raise MismatchError(
            f"{full_name(cls)} has the fields ({', '.join(now)}), the checkpoint has ({', '.join(stored)}).",
            hint="Restore the old fields, or register a codec that converts.",
        )


def dataclass_values(value: Any) -> list[tuple[str, Any]]:
    """Field names and values of a dataclass instance.

    Raises:
        Refused: a field is unset, or attributes beside the fields would be lost.
    """
    cls = type(value)
    names = field_names(cls)
    missing = [name for name in names if not hasattr(value, name)]
    if missing:
        raise Refused(f"is a {full_name(cls)} whose field {missing[0]} has no value")
    extra = getattr(value, "__dict__", {}).keys() - set(names)
    lost = sorted(name for name in extra if not isinstance(getattr(cls, name, None), cached_property))
    if lost:
        raise Refused(
            f"is a {full_name(cls)} with attributes beside its fields: {', '.join(lost)}",
            "Declare them as field(init=False), or give limpet.register(...) a codec.",
        )
    return [(name, getattr(value, name)) for name in names]


def namedtuple_values(value: Any) -> list[tuple[str, Any]]:
    """Field names and values of a namedtuple.

    Raises:
        Refused: a subclass gave it attributes, which would be lost.
    """
    cls = type(value)
    if getattr(value, "__dict__", None) or len(cls._fields) != len(value):
        raise Refused(f"is a {full_name(cls)} with attributes beside its fields", "Give limpet.register(...) a codec.")
    return list(zip(cls._fields, tuple.__iter__(value), strict=True))


def new_dataclass(cls: type, names: Sequence[str], values: Sequence[Any]) -> Any:
    """An instance with these fields; no code of the class runs."""
    made: Any = object.__new__(cls)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


def new_namedtuple(cls: type, values: Sequence[Any]) -> Any:
    """An instance with these items; no code of the class runs."""
    return tuple.__new__(cls, values)


def encode_enum(member: Any) -> Node:
    """A member by class and name, or by value if it is a combination of flags."""
    cls = type(member)
    where = ["enum", encode_text(cls.__module__), encode_text(cls.__qualname__)]
    if cls.__members__.get(member.name or "") is member:
        return [*where, encode_text(member.name), None]
    if isinstance(member, Flag) and type(member.value) is int:
        return [*where, None, encode_int(member.value)]
    raise Refused(f"is {member!r}, which is no member of {full_name(cls)}")


def decode_enum(node: list[Any], registry: Registry, live: type | None = None) -> Any:
    """The member that ``encode_enum`` was given.

    Args:
        node: what was stored.
        registry: classes that the program made known.
        live: the class to take it from, where a live state has one there.

    Raises:
        UsageError: the class is not known.
        MismatchError: it has no such member any more.
    """
    _, module, qualname, name, value = items(node, 5, 5)
    module, qualname = decode_text(module), decode_text(qualname)
    cls = live or find_class(module, qualname, registry, is_enum, "member of the enum")
    if name is not None:
        member = cls.__members__.get(decode_text(name))  # type: ignore[attr-defined]  # find_class checked it
    else:
        member = _flags(cls, DECODERS["int"](value) if type(value) is list else value)
    if member is None:
        wanted = name if name is not None else value
        raise MismatchError(
            f"{full_name(cls)} has no member {wanted!r}, which the checkpoint holds.", hint="Restore the member."
        )
    return member


def _flags(cls: type, value: object) -> Any:
    if not issubclass(cls, Flag) or type(value) is not int or value.bit_length() > _FLAG_BITS_MAX:
        raise corrupt("an enum member has neither name nor flags")
    try:
        return cls(value)
    except (ValueError, TypeError):
        return None
