"""What a question gave: tables of samples and the bounds that they meet or miss, printed and kept as JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measuring.machine import machine, versions
from measuring.plots import NO_MATPLOTLIB, Plot, draw, has_matplotlib

RESULTS = Path(__file__).parent.parent / "results"

_SCALES = {
    "s": [(1e-6, "us"), (1e-3, "ms"), (1.0, "s")],
    "B": [(1.0, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB")],
}
_RATIO = "x"


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured, a value a round. Units: ``s``, ``B``, ``1/s``, ``GB/s``, ``%`` (of 1) and ``x``."""

    values: list[float]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.values) < 2 or self.median == 0:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / 2 / abs(self.median)

    def over(self, other: Samples) -> Samples:
        """The paired ratio: within each round, so that what drifts over the rounds falls out."""
        return Samples([one / two for one, two in zip(self.values, other.values, strict=True)], _RATIO)


@dataclass(slots=True)
class Table:
    """Rows are contenders or cases, columns what was measured of each."""

    title: str
    rows: dict[str, dict[str, Samples]] = field(default_factory=dict)

    def put(self, row: str, column: str, values: Sequence[float], unit: str) -> Samples:
        """Fill one cell."""
        cell = Samples(list(values), unit)
        self.rows.setdefault(row, {})[column] = cell
        return cell

    def __getitem__(self, row: str) -> Samples:
        """The cell of a row in a table of one column."""
        (cell,) = self.rows[row].values()
        return cell

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for cells in self.rows.values() for column in cells))


@dataclass(frozen=True, slots=True)
class Bound:
    """A measured value beside what the project holds itself to.

    Attributes:
        name: what was measured, or divided by what.
        row: which target it belongs to, as ``docs/performance.md`` numbers them; ``None`` for a figure without one.
        samples: a value a round.
        at_most, at_least: in the unit of the samples; neither for a figure that is only shown.
        refused: why there are no samples, if what was asked for could not be done: that is a miss.
    """

    name: str
    row: int | None
    samples: Samples
    at_most: float | None = None
    at_least: float | None = None
    refused: str = ""

    @property
    def met(self) -> bool | None:
        if self.refused:
            return False
        if self.at_most is not None:
            return self.samples.median <= self.at_most
        if self.at_least is not None:
            return self.samples.median >= self.at_least
        return None

    @property
    def wanted(self) -> str:
        if self.at_most is not None:
            return f"at most {shorten(self.at_most, self.samples.unit)}"
        return f"at least {shorten(self.at_least, self.samples.unit)}" if self.at_least is not None else ""

    @property
    def verdict(self) -> str:
        return {None: "", True: "met", False: "MISSED: refused" if self.refused else "MISSED"}[self.met]


@dataclass(slots=True)
class Report:
    """Everything that one question gave."""

    question: str
    settings: argparse.Namespace
    tables: list[Table] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def table(self, title: str) -> Table:
        """A new, empty table."""
        self.tables.append(Table(title))
        return self.tables[-1]

    def bound(
        self,
        name: str,
        samples: Samples,
        *,
        row: int | None = None,
        most: float | None = None,
        least: float | None = None,
    ) -> None:
        """Hold a measured value against a target."""
        self.bounds.append(Bound(name, row, samples, most, least))

    def refuse(self, name: str, reason: str, *, row: int) -> None:
        """Say that a target was missed because what it asks for was refused."""
        self.bounds.append(Bound(name, row, Samples([], ""), refused=reason))
        self.notes.append(f"{name} was refused: {reason}")

    def finish(self) -> None:
        """Print the tables, write ``<script>.json``, and draw the plots beside it."""
        folder = Path(self.settings.results)
        folder.mkdir(parents=True, exist_ok=True)
        if self.plots and not has_matplotlib():
            self.absent["the plots"] = NO_MATPLOTLIB
        plain = self.plain()
        print(as_text(plain))
        path = folder / f"{script()}.json"
        path.write_text(json.dumps(plain, indent=1) + "\n")
        drawn = draw(plain, folder / script())
        print(f"\nevery sample: {', '.join(os.path.relpath(each) for each in (path, *drawn))}")

    def plain(self) -> dict[str, Any]:
        """The report as JSON values: what the tables and plots are made of."""
        return {
            "question": self.question,
            "command": " ".join(["python", f"benchmarks/{script()}.py", *_options()]),
            "when": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions(),
            "settings": {name: value for name, value in vars(self.settings).items() if name != "results"},
            "tables": [
                {"title": table.title, "columns": table.columns, "rows": _plain_rows(table.rows)}
                for table in self.tables
            ],
            "bounds": [
                {
                    "name": each.name,
                    "row": each.row,
                    **_plain_samples(each.samples),
                    "wanted": each.wanted,
                    "verdict": each.verdict,
                }
                for each in self.bounds
            ],
            "plots": [asdict(plot) for plot in self.plots],
            "notes": self.notes,
            "absent": self.absent,
        }


def script() -> str:
    """The name of the question that runs."""
    return Path(sys.argv[0]).stem


def _options() -> list[str]:
    """What the command was given, less the places that say nothing about the figures."""
    kept, skip = [], False
    for option in sys.argv[1:]:
        if not skip and option not in ("--results", "--folder"):
            kept.append(option)
        skip = not skip and option in ("--results", "--folder")
    return kept


def _plain_rows(rows: Mapping[str, Mapping[str, Samples]]) -> dict[str, dict[str, Any]]:
    return {name: {column: _plain_samples(cell) for column, cell in cells.items()} for name, cells in rows.items()}


def _plain_samples(samples: Samples) -> dict[str, Any]:
    values = [float(f"{value:.6g}") for value in samples.values]
    if not values:
        return {"values": values, "unit": samples.unit}
    return {"values": values, "unit": samples.unit, "median": samples.median, "spread": samples.spread}


def shorten(value: float, unit: str) -> str:
    """A number with its unit, three or four digits."""
    if unit == "%":
        return f"{value * 100:.3g} %"
    scale, name = 1.0, unit
    for candidate, candidate_name in _SCALES.get(unit, []):
        if abs(value) >= candidate or candidate == _SCALES[unit][0][0]:
            scale, name = candidate, candidate_name
    number = value / scale
    digits = 4 if unit == _RATIO else 3  # a ratio of bytes is judged by its third decimal
    return f"{number:,.0f} {name}" if abs(number) >= 1000 else f"{number:.{digits}g} {name}"


def rows_of(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A table of the JSON as text, its header first: one column in full, several as median and spread."""
    columns = table["columns"]
    if len(columns) == 1:
        rows: list[tuple[str, ...]] = [(table["title"], f"{columns[0]}: median", "min", "max", "spread", "runs")]
        for name, cells in table["rows"].items():
            cell = cells[columns[0]]
            shown = (
                shorten(value, cell["unit"]) for value in (cell["median"], min(cell["values"]), max(cell["values"]))
            )
            rows.append((name, *shown, f"{cell['spread']:.0%}", str(len(cell["values"]))))
        return rows
    rows = [(table["title"], *columns)]
    rows.extend((name, *(_cell(cells.get(column)) for column in columns)) for name, cells in table["rows"].items())
    return rows


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    spread = f" ±{cell['spread']:.0%}" if len(cell["values"]) > 1 and cell["spread"] >= 0.005 else ""
    return shorten(cell["median"], cell["unit"]) + spread


def bounds_of(plain: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The bounds of the JSON as text, their header first."""
    rows: list[tuple[str, ...]] = [("target", "what", "median", "min", "max", "wanted", "")]
    for each in plain["bounds"]:
        values = each["values"] and (each["median"], min(each["values"]), max(each["values"]))
        shown = [shorten(value, each["unit"]) for value in values] or [""] * 3
        number = "" if each["row"] is None else str(each["row"])
        rows.append((number, each["name"], *shown, each["wanted"], each["verdict"]))
    return rows


def as_text(plain: Mapping[str, Any]) -> str:
    """Everything, for a terminal."""
    pairs = (("machine", plain["machine"]), ("versions", plain["versions"]), ("settings", plain["settings"]))
    lines = ["", plain["question"]]
    lines += [f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()) for name, values in pairs]
    for table in plain["tables"]:
        lines += ["", *aligned(rows_of(table))]
    if plain["bounds"]:
        lines += ["", *aligned(bounds_of(plain), left=2)]
    lines += [f"note: {note}" for note in plain["notes"]]
    lines += [f"absent: {name} ({reason})" for name, reason in plain["absent"].items()]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Columns as wide as their widest cell; the first ``left`` ones to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines
