"""Plots of a report's tables, drawn from its JSON alone: the same figures give the same file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NO_MATPLOTLIB = "matplotlib is not installed; it comes with the extra 'bench'"
_OURS, _OTHERS = "#1f6f8b", "#b8b8b8"
_LINES = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#2e4057", "#bc8034", "#7a7a7a", "#c08497", "#3d5a80")


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of one table.

    Attributes:
        name: what the file is called, after the question.
        table: index of the table.
        kind: ``bars`` of one column, a row each; or ``lines``, a row each, over all columns.
        label: of the axis of values, with its unit.
        columns: the one to show as bars, or those to draw lines over; none: all of the table.
        positions: where each column lies on a line's axis.
        position_label: of that axis.
        log: whether the axis of values is logarithmic.
        log_positions: whether the other one is; otherwise each column has a tick.
    """

    name: str
    table: int
    kind: Literal["bars", "lines"]
    label: str
    columns: Sequence[str] = ()
    positions: Sequence[float] = ()
    position_label: str = ""
    log: bool = False
    log_positions: bool = False


def has_matplotlib() -> bool:
    """Whether anything can be drawn."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ImportError:
        return False


def draw(plain: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw every plot of a report as ``<stem>-<name>.svg``; the paths, none without matplotlib."""
    if not plain["plots"] or not has_matplotlib():
        return []
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "limpet", "svg.fonttype": "none", "font.size": 9})
    return [_draw_one(plain, plot, stem) for plot in plain["plots"]]


def _draw_one(plain: Mapping[str, Any], plot: Mapping[str, Any], stem: Path) -> Path:
    import matplotlib.pyplot as plt

    table = plain["tables"][plot["table"]]
    tall = 0.9 + 0.24 * len(table["rows"]) if plot["kind"] == "bars" else 3.6
    figure, axes = plt.subplots(figsize=(7.2, tall), layout="constrained")
    (_bars if plot["kind"] == "bars" else _lines)(axes, table, plot)
    axes.set_title(table["title"], fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path = stem.with_name(f"{stem.name}-{plot['name']}.svg")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _bars(axes: Any, table: Mapping[str, Any], plot: Mapping[str, Any]) -> None:
    column = (plot["columns"] or table["columns"])[0]
    cells = {name: row[column] for name, row in table["rows"].items() if column in row}
    names = list(cells)[::-1]
    medians = [cells[name]["median"] for name in names]
    # Values are kept with six digits, medians with all: a difference may come out just below zero.
    low = [max(0.0, cells[name]["median"] - min(cells[name]["values"])) for name in names]
    high = [max(0.0, max(cells[name]["values"]) - cells[name]["median"]) for name in names]
    colours = [_OURS if name.startswith("limpet") else _OTHERS for name in names]
    axes.barh(names, medians, xerr=[low, high], color=colours, error_kw={"lw": 0.8, "ecolor": "#444444"})
    axes.set_xlabel(plot["label"])
    if plot["log"]:
        axes.set_xscale("log")


def _lines(axes: Any, table: Mapping[str, Any], plot: Mapping[str, Any]) -> None:
    columns = plot["columns"] or table["columns"]
    positions = dict(zip(columns, plot["positions"], strict=True))
    others = iter(_LINES[1:])
    for name, row in table["rows"].items():
        points = [(position, row[column]["median"]) for column, position in positions.items() if column in row]
        ours = name.startswith("limpet")
        colour = _LINES[0] if ours else next(others, _OTHERS)
        style = {"lw": 2.0 if ours else 1.2, "ls": "-" if not ours or "," not in name else "--"}
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, color=colour, label=name, **style)
    axes.set_xlabel(plot["position_label"])
    axes.set_ylabel(plot["label"])
    if plot["log"]:
        axes.set_yscale("log")
    if plot["log_positions"]:
        axes.set_xscale("log")
    else:
        axes.set_xticks(list(positions.values()), columns)
    axes.legend(fontsize=7, frameon=False)
