"""Errors as plain data: class, words, and what the class's own fields say."""

from __future__ import annotations

import builtins
import inspect
import traceback
from typing import Any

import msgspec

from limpet import errors
from limpet.errors import LimpetError, StoreError
from limpet.stores import base

__all__ = ["Fault", "fault_of"]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """An error that was raised in the other process.

    Attributes:
        name: of its class.
        message, hint, kind, transient, pack: as in ``limpet.errors``.
        trace: where it was raised; only of errors that are none of limpet's.
    """

    name: str
    message: str
    hint: str = ""
    kind: str | None = None
    transient: bool = False
    pack: str | None = None
    trace: str = ""

    def error(self) -> Exception:
        """The same error here."""
        cls = _classes().get(self.name)
        if cls is None or not issubclass(cls, LimpetError):
            error = cls(self.message) if cls is not None else LimpetError(f"{self.name}: {self.message}")
            if self.trace:
                error.add_note(f"limpet: raised in the writer's process:\n{self.trace}")
            return error
        fields: dict[str, Any] = {"transient": self.transient, "pack": self.pack}
        taken = inspect.signature(cls).parameters
        own = {name: value for name, value in fields.items() if name in taken}
        return cls(self.message, hint=self.hint, kind=self.kind, **own)


def fault_of(error: BaseException) -> Fault:
    """``error`` as plain data."""
    name = type(error).__name__
    if not isinstance(error, LimpetError):
        return Fault(name, str(error), trace="".join(traceback.format_exception(error)))
    transient = isinstance(error, StoreError) and error.transient
    return Fault(name, error.message, error.hint, error.kind, transient, getattr(error, "pack", None))


def _classes() -> dict[str, type[Exception]]:
    """Those that may come back as what they were: limpet's, and plain built-in ones of a single text."""
    ours = [getattr(module, name) for module in (errors, base) for name in module.__all__]
    plain = [getattr(builtins, name) for name in _PLAIN]
    found = [cls for cls in (*ours, *plain) if isinstance(cls, type) and issubclass(cls, Exception)]
    return {cls.__name__: cls for cls in found}


_PLAIN = ("AssertionError", "MemoryError", "OSError", "RuntimeError", "TimeoutError", "TypeError", "ValueError")
