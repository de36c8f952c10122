"""Which limpet this is."""

from __future__ import annotations

from functools import cache

__all__ = ["library", "version"]


@cache
def version() -> str:
    """The installed version; ``"0"`` when run from a source tree that was not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("limpet")
    except PackageNotFoundError:
        return "0"


def library() -> str:
    """How records name this library."""
    return f"limpet {version()}"
