"""How much memory is taken above the state itself, with two buffers?"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from harness import MIB, PeakMemory, Ratio, Report, Samples, arrays, change, in_child, options, turns, workplace

SAVES = 5


def child(mib: int, folder: str) -> None:
    """Both buffers are in use: every save starts while the one before it is being written."""
    state = arrays(mib)
    change(state)
    memory = PeakMemory()  # before limpet is imported, so that its own libraries count too

    from limpet import Checkpointer, Last

    with Checkpointer(folder, retain=Last(1), on_busy="wait", buffers=2) as cp:
        for _ in range(SAVES):
            change(state)
            cp.write(state)
    print(json.dumps({"added": memory.added_bytes(), "resettable": memory.resettable}))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[3]), sys.argv[4])
        return
    settings = options(__doc__ or "", mib=512, rounds=5).parse_args()
    resettable: list[bool] = []

    def run() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            answer = in_child("two-buffers", settings.mib, Path(place) / "run")
        resettable.append(answer["resettable"])
        return float(answer["added"])

    with workplace(settings.folder, need_bytes=(SAVES + 1) * settings.mib * MIB) as folder:
        values = turns({"peak above the state": run}, settings.rounds, warmups=0)["peak above the state"]
    report = Report(__doc__ or "", vars(settings))
    report.samples["peak above the state"] = Samples(values, "B")
    bound = 2 * settings.mib * MIB + 256 * MIB
    report.ratios.append(Ratio("peak / (2 x state + 256 MiB)", [value / bound for value in values], at_most=1))
    if not all(resettable):
        report.notes.append("the peak could not be set back: it includes the making of the state")
    report.finish()


if __name__ == "__main__":
    main()
