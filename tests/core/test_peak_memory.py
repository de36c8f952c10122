"""What saving takes above the state, as the operating system counts it: one copy for each buffer, and little more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.support import run_script

MIB = 1 << 20
STATE_BYTES = 288 * MIB
"""More than may be taken besides: a copy too many shows."""
ALLOWANCE_BYTES = 256 * MIB

SCRIPT = """
from pathlib import Path
import numpy as np
from limpet import Checkpointer, Last

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

state = {{str(n): np.random.default_rng(n).standard_normal({nbytes} // 4 // 8, dtype=np.float32) for n in range(8)}}
Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM begins anew
before = status("VmRSS:")
with Checkpointer({folder!r}, retain=Last(1), on_busy="wait", buffers={buffers}, compression={compression!r}) as cp:
    for step in range({saves}):
        cp.write(state, step=step)
        for array in state.values():
            array += 1
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that counts")
@pytest.mark.parametrize("compression", ["off", pytest.param("zstd", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("buffers", [1, 2])
def test_saving_takes_a_copy_for_each_buffer_and_little_more(tmp_path: Path, buffers: int, compression: str) -> None:
    script = SCRIPT.format(
        nbytes=STATE_BYTES, folder=str(tmp_path / "run"), buffers=buffers, saves=buffers + 1, compression=compression
    )
    taken = int(run_script(script).stdout)
    assert STATE_BYTES <= taken <= buffers * STATE_BYTES + ALLOWANCE_BYTES


STREAMED = """
from pathlib import Path
import numpy as np
from limpet import Checkpointer, Last

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

state = {{str(n): np.random.default_rng(n).standard_normal({nbytes} // 4 // 8, dtype=np.float32) for n in range(8)}}
Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM begins anew
before = status("VmRSS:")
with Checkpointer({folder!r}, retain=Last(1), memory_limit={limit}, compression={compression!r}) as cp:
    for step in range(2):
        for array in state.values():
            array += 1
        cp.write(state, step=step, lazy={lazy})
        cp.wait()
    print(status("VmHWM:") - before)
    found = cp.read()
assert all(found[name].tobytes() == array.tobytes() for name, array in state.items())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that counts")
@pytest.mark.parametrize(
    ("compression", "lazy"),
    [
        ("off", False),
        pytest.param("zstd", False, marks=pytest.mark.heavy),
        pytest.param("auto", True, marks=pytest.mark.heavy),
    ],
)
def test_a_streamed_state_takes_the_limit_and_little_more(tmp_path: Path, compression: str, lazy: bool) -> None:
    limit = 128 * MIB
    script = STREAMED.format(
        nbytes=512 * MIB, folder=str(tmp_path / "run"), limit=limit, compression=compression, lazy=lazy
    )
    ended = run_script(script, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert limit <= int(ended.stdout) <= limit + ALLOWANCE_BYTES
