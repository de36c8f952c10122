"""Which of limpet's threads give way to the program, and which do not (docs/decisions/0004)."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from limpet import Checkpointer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux only")

GIVES_WAY = {"limpet-encode": 19, "limpet-steady": 10, "limpet-packs": 10}


def priorities() -> dict[str, int]:
    return {
        thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id)
        for thread in threading.enumerate()
        if thread.name.startswith("limpet-") and thread.native_id is not None
    }


@pytest.fixture
def after_a_save(tmp_path: Path) -> dict[str, int]:
    with Checkpointer(tmp_path / "run") as cp:
        cp.write(np.arange(1 << 20, dtype=np.float32)).result()
        return priorities()


def test_threads_that_encode_and_write_packs_give_way(after_a_save: dict[str, int]) -> None:
    niced = {name.rpartition("-")[0]: nice for name, nice in after_a_save.items() if name.startswith(tuple(GIVES_WAY))}
    assert niced == GIVES_WAY


def test_every_other_thread_keeps_the_programs_priority(after_a_save: dict[str, int]) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    others = {name: nice for name, nice in after_a_save.items() if not name.startswith(tuple(GIVES_WAY))}
    assert others
    assert set(others.values()) == {ours}
