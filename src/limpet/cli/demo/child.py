"""The process that the demo kills: it trains, saves in the background, and says on stdout what it did.

Run as ``python -m limpet.cli.demo.child`` with its settings on stdin.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limpet import Checkpointer, LimpetError
from limpet import open as open_run
from limpet.cli.demo import messages
from limpet.cli.demo.digits import load_digits
from limpet.cli.demo.messages import Finished, Message, Pickled, Resumed, Saved, Settings, Settled, Stepped
from limpet.cli.demo.training import accuracy, fingerprint, new_state, train_step, weights_fingerprint

if TYPE_CHECKING:
    from limpet import PendingWrite

__all__ = ["main", "train"]

Say = Callable[[Message], None]


def main() -> int:
    """Do what the settings on stdin ask for; return the exit code."""
    try:
        train(Settings.decode(sys.stdin.readline()), say_on_stdout)
    except LimpetError as error:
        say_on_stdout(messages.Failed(str(error)))
        return 1
    return 0


def train(settings: Settings, say: Say) -> None:
    """Resume the run, train it to its last step, and close it."""
    digits = load_digits()
    open_saves: list[PendingWrite] = []
    with Checkpointer(settings.url, storage=settings.storage or None) as cp:
        run = cp.resume(initial=new_state(settings.seed, settings.hidden))
        state: dict[str, Any] = run.state
        say(_resumed(run.info, run.next_step))
        for step in range(run.next_step, settings.steps):
            loss = train_step(state, digits)
            if _is_due(step, settings.save_every) or step == settings.steps - 1:
                open_saves.append(_save(cp, state, step, say))
            say(Stepped(step, loss))
            open_saves = [pending for pending in open_saves if not _settled(pending, say)]
            if _is_due(step, settings.pickle_every):
                cp.wait()  # or the disk would be busy with our own writes, and pickle would look slower than it is
                say(_pickle(state, Path(settings.scratch)))
    for pending in open_saves:
        _settled(pending, say)
    with open_run(settings.url, storage=settings.storage or None) as run_read:
        stored = fingerprint(run_read.read())
    say(Finished(weights_fingerprint(state), fingerprint(state), stored, accuracy(state, digits)))


def say_on_stdout(message: Message) -> None:
    """Send ``message`` to the parent at once: the next instruction may be our last."""
    sys.stdout.write(messages.encode(message) + "\n")
    sys.stdout.flush()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0


def _resumed(info: Any, next_step: int) -> Resumed:
    if info is None:
        return Resumed(next_step, 0, 0, 0, 0)
    return Resumed(next_step, info.seq, info.raw_bytes, info.stored_bytes, info.new_bytes)


def _save(cp: Checkpointer, state: dict[str, Any], step: int, say: Say) -> PendingWrite:
    begun = time.perf_counter()
    pending = cp.write(state, step=step)
    say(Saved(step, time.perf_counter() - begun))
    return pending


def _settled(pending: PendingWrite, say: Say) -> bool:
    if not pending.done():
        return False
    receipt = pending.result(0)
    say(
        Settled(
            receipt.step if receipt.step is not None else -1,
            str(receipt.outcome),
            receipt.seq or 0,
            receipt.raw_bytes,
            receipt.stored_bytes,
            receipt.new_bytes,
        )
    )
    return True


def _pickle(state: dict[str, Any], folder: Path) -> Pickled:
    """What many training scripts do today: stop, pickle, fsync, go on."""
    path = folder / "synchronous.pickle"
    begun = time.perf_counter()
    with path.open("wb") as file:
        pickle.dump(state, file, protocol=pickle.HIGHEST_PROTOCOL)
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - begun
    size_bytes = path.stat().st_size
    path.unlink()
    return Pickled(taken, size_bytes)


if __name__ == "__main__":
    sys.exit(main())
