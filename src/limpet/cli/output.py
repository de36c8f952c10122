"""How the command line shows things: tables on a terminal, aligned text elsewhere, one JSON document on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "age", "duration", "print_error", "print_json", "print_table", "size", "when"]

KIB = 1024


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and whether it holds numbers, which stand to the right."""

    heading: str
    is_number: bool = True


def print_table(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` below their headings on stdout."""
    if not sys.stdout.isatty():
        if title:
            print(title)
        print(_aligned(columns, rows))
        return
    table = Table(title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_error(message: str) -> None:
    """Print ``error: message`` on one line of stderr."""
    print("error: " + " ".join(message.split()), file=sys.stderr)


def size(size_bytes: float) -> str:
    """Give a size as people write it: ``0 B``, ``3.4 MiB``."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size_bytes < KIB:
            break
        size_bytes, unit = size_bytes / KIB, larger
    return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"


def duration(seconds: float) -> str:
    """Give a duration as people write it: ``85 us``, ``1.24 ms``, ``340 ms``, ``2.5 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s"


def when(time: float) -> str:
    """Give a moment, in seconds since 1970, in UTC: ``2025-11-22 06:25:30Z``."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # a record says what its writer's clock said, or what somebody wrote
        return f"{time:.4g} s"


def age(time: float, now: float) -> str:
    """Give how long before ``now`` a moment was: ``12 s``, ``3 h``; another machine's clock may make it 0."""
    seconds = max(0.0, now - time)
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    cells = [[column.heading for column in columns], *rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    )
