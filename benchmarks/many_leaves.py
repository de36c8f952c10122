"""What does a save of many leaves cost in the call, from 1 to 100,000?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from measuring.contender import Contender, Limpet, missing_module
from measuring.peers import PEERS, Deepcopy, OrbaxJax, Pickle, absent, jax_leaves, present
from measuring.plots import Plot
from measuring.report import Report, Table
from measuring.running import options, turns, workplace
from measuring.states import Arrays

OURS = "limpet"
COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
ALWAYS = (Pickle, Deepcopy)
OTHERS = tuple(peer for peer in PEERS if peer not in (*ALWAYS, OrbaxJax))
_BOUNDS = {10_000: 0.025, 100_000: 0.25}


def nested(state: Arrays) -> dict[str, Any]:
    """The same arrays as an optimizer has them, each beside a few numbers."""
    return {"groups": [{"w": array, "step": 1, "lr": 0.1} for array in state.values()]}


def tensors(state: Arrays) -> dict[str, Any]:
    """The same values as torch tensors of their own, made anew, as ``state_dict()`` makes them."""
    torch: Any = import_module("torch")
    return {name: torch.tensor(array) for name, array in state.items()}


KINDS: dict[str, tuple[str, Callable[[Arrays], Any]]] = {
    "nested": ("", nested),
    "torch tensors": ("torch", tensors),
    "jax arrays": ("jax", jax_leaves),
}
"""What else the leaves may be: the module that it needs, and what makes them of arrays."""


class Other(Limpet):
    """limpet, with leaves of another kind, which are made anew for each save."""

    make: Callable[[Arrays], Any]

    def changed(self) -> None:
        self.leaves = self.make(self.state)

    def save(self) -> None:
        self.pending = self.cp.write(self.leaves)


def other(folder: Path, state: Arrays, kind: str) -> Other:
    """limpet, with leaves of that kind."""
    made = Other(folder / kind, state, kind)
    made.make = KINDS[kind][1]
    return made


def leaves(count: int, values: int) -> Arrays:
    """``count`` small fp32 arrays."""
    random = np.random.default_rng(0)
    return {f"layer{index:06d}": random.standard_normal(values, dtype=np.float32) for index in range(count)}


def stalls(settings: Any, table: Table, count: int) -> None:
    """One column of the table: every contender's stall with so many leaves."""
    state = leaves(count, settings.values)
    with workplace(settings.folder, 1 << 30) as folder, ExitStack() as stack:
        others = list(ALWAYS) + (list(OTHERS) if count <= settings.peer_leaves else [])
        contenders: list[Contender] = [_limpet(folder, state), *present(folder, state, others)]
        contenders += [other(folder, state, kind) for kind in KINDS if f"{OURS}, {kind}" not in missing_kinds()]
        for contender in contenders:
            stack.callback(contender.close)
        values = turns({each.name: each.stall() for each in contenders}, settings.rounds)
    for name, each in values.items():
        table.put(name, f"{count:,}", each, "s")


def missing_kinds() -> dict[str, str]:
    """The kinds of leaves that cannot be made here, and why."""
    found = {f"{OURS}, {kind}": missing_module([module]) for kind, (module, _) in KINDS.items() if module}
    return {name: why for name, why in found.items() if why}


def _limpet(folder: Path, state: Arrays) -> Limpet:
    return Limpet(folder / "ours", state)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--values", type=int, default=16, help="fp32 values a leaf (default: %(default)s)")
    parser.add_argument("--leaves", type=int, nargs="*", default=list(COUNTS), help="how many (default: %(default)s)")
    parser.add_argument(
        "--peer-leaves", type=int, default=1_000, help="at most so many for slow peers (default: %(default)s)"
    )
    settings = parser.parse_args()
    report = Report(__doc__ or "", settings, absent=absent((*ALWAYS, *OTHERS)) | missing_kinds())
    table = report.table(f"stall by number of leaves of {settings.values} fp32 values, same structure as last time")
    for count in settings.leaves:
        stalls(settings, table, count)
    for name in (OURS, *(f"{OURS}, {kind}" for kind in KINDS)):
        for count, most in _BOUNDS.items():
            if f"{count:,}" in table.rows.get(name, {}):
                report.bound(f"{name}, {count:,} leaves", table.rows[name][f"{count:,}"], row=12, most=most)
    report.plots.append(
        Plot("leaves", 0, "lines", "seconds (log)", (), settings.leaves, "leaves (log)", log=True, log_positions=True)
    )
    report.notes += [
        "values change between saves, names and shapes do not",
        f"above {settings.peer_leaves:,} leaves most peers take many seconds and are left out: --peer-leaves asks them too",
    ]
    report.finish()


if __name__ == "__main__":
    main()
