"""Writes the tables of docs/performance.md from the JSON of the questions: no figure there is typed by hand.

python benchmarks/page.py --take           what benchmarks/results holds is copied to docs/performance, then written
python benchmarks/page.py --take stall     the same for one question
python benchmarks/page.py                  tables and plots again from docs/performance
python benchmarks/page.py --check          fails if the page says anything else than its JSON
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring.plots import draw
from measuring.report import RESULTS, bounds_of, rows_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
DATA = ROOT / "docs" / "performance"
TARGETS = {
    1: "stall of a save, mutable state in memory",
    2: "stall of a lazy save, read phase longer than the copy",
    3: "stall of a save, immutable leaves",
    4: "speed and tail of the loop while a save is encoded and written",
    5: "dense codec, one core",
    6: "bitwise delta of bf16 weights at small learning rates",
    7: "bytes per commit where little changed",
    8: "time to durable, compression off",
    9: "time to durable, compression auto",
    10: "restore, page cache warm",
    11: "peak memory above the state",
    12: "many leaves, same structure as last time",
    13: "8-byte saves",
    14: "a checkpoint at every step",
    15: "growth with bytes and with checkpoints",
}
_BLOCK = re.compile(r"(<!-- (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns go to the left."""
    header, *body = rows
    ruler = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *body))


def section(name: str, plain: Mapping[str, Any], folder: str) -> str:
    """All of one question."""
    command = plain["command"].removeprefix(f"python benchmarks/{name}.py").strip()
    lines = [f"*{plain['question']}* `{f'nox -s bench -- {name} {command}'.strip()}`, {plain['when']}.", ""]
    for table in plain["tables"]:
        lines += [markdown(rows_of(table)), ""]
    lines += [f"![{plot['name']}]({folder}/{name}-{plot['name']}.svg)\n" for plot in plain["plots"]]
    if plain["bounds"]:
        lines += [markdown(bounds_of(plain), left=2), ""]
    lines += [f"- {note}" for note in plain["notes"]]
    lines += [f"- absent: {what} ({why})" for what, why in plain["absent"].items()]
    return "\n".join(lines).rstrip() + "\n"


def targets(plains: Mapping[str, Mapping[str, Any]]) -> str:
    """Every target with every bound that belongs to it, met or not."""
    rows: list[Sequence[str]] = [("", "what", "measured", "wanted", "", "question")]
    for number, title in TARGETS.items():
        found = [(name, each) for name, plain in plains.items() for each in _bounds_of_row(plain, number)]
        if not found:
            rows.append((str(number), f"**{title}**", "", "", "not measured", ""))
            continue
        rows.append((str(number), f"**{title}**", "", "", _together([each[-1] for _, each in found]), ""))
        rows += [("", each[1], each[2], each[5], each[6], f"[{name}](#{name})") for name, each in found]
    return markdown(rows, left=2) + "\n"


def _bounds_of_row(plain: Mapping[str, Any], number: int) -> list[tuple[str, ...]]:
    return [each for each in bounds_of(plain)[1:] if each[0] == str(number)]


def _together(verdicts: Sequence[str]) -> str:
    missed = sum(verdict.startswith("MISSED") for verdict in verdicts)
    return f"**{missed} of {len(verdicts)} missed**" if missed else "met"


def machines(plains: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured on, and with: one line for each that differs."""
    lines: dict[str, list[str]] = {}
    for name, plain in plains.items():
        described = plain["machine"] | plain["versions"]
        lines.setdefault(", ".join(f"{key} {value}" for key, value in described.items()), []).append(name)
    return "\n".join(f"- {', '.join(names)}: {line}" for line, names in lines.items()) + "\n"


def written(text: str, plains: Mapping[str, Mapping[str, Any]], folder: str) -> str:
    """The page with every block between markers made anew."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name == "targets":
            body = targets(plains)
        elif name == "machines":
            body = machines(plains)
        elif name in plains:
            body = section(name, plains[name], folder)
        else:
            body = f"Not measured yet: `nox -s bench -- {name}`.\n"
        return f"{match[1]}{body}{match[3]}"

    return _BLOCK.sub(block, text)


def take(names: Iterable[str], results: Path, data: Path) -> None:
    """Copy what was measured to where it is committed."""
    data.mkdir(parents=True, exist_ok=True)
    for name in names or [path.stem for path in results.glob("*.json")]:
        source = results / f"{name}.json"
        if not source.exists():
            sys.exit(f"{source} is not there: run nox -s bench -- {name} first")
        shutil.copyfile(source, data / source.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", nargs="*", metavar="QUESTION")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--data", type=Path, default=DATA)
    settings = parser.parse_args()
    if settings.take is not None:
        take(settings.take, settings.results, settings.data)
    plains = {path.stem: json.loads(path.read_text()) for path in sorted(settings.data.glob("*.json"))}
    before = settings.page.read_text()
    after = written(before, plains, settings.data.name)
    if settings.check:
        sys.exit(0 if after == before else f"{settings.page.name} differs from its JSON: run python benchmarks/page.py")
    settings.page.write_text(after)
    drawn = [path for name, plain in plains.items() for path in draw(plain, settings.data / name)]
    print(f"{settings.page.name}: {len(plains)} questions, {len(drawn)} plots drawn")


if __name__ == "__main__":
    main()
