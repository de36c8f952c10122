"""A directory as the state: what other software writes (an index, a database file, logs) survives the process.

python examples/save_directory.py [folder]
"""

import shutil
import sys
import tempfile
from pathlib import Path

from limpet import Checkpointer


def build(work: Path, part: int) -> None:
    (work / "index").mkdir(parents=True, exist_ok=True)
    (work / "index" / f"part-{part}.txt").write_text(f"terms of part {part}\n")
    (work / "done").write_text(str(part + 1))


def main(folder: Path) -> None:
    work = folder / "work"
    with Checkpointer(folder / "run") as cp:
        for part in range(3):
            build(work, part)
            cp.save(work, step=part)  # as it is now; the directory may change as soon as this returns

    shutil.rmtree(work)  # the machine is gone, and its disk with it

    with Checkpointer(folder / "run") as cp:
        found = cp.restore(work)
    if found is None:
        sys.exit("there was no checkpoint")
    print(f"restored {sorted(path.name for path in (found / 'index').iterdir())}")
    print(f"goes on with part {(found / 'done').read_text()}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="limpet-directory-")))
