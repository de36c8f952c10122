from __future__ import annotations

from tests.support import run_async

__all__ = ["run_async"]
