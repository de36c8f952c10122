"""A run against a model of it: any sequence of calls, failures and restarts leaves exactly what the model says."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support import Gated, checkpointer_over, down, noise

from limpet import Last, NotFoundError, StoreError, UsageError

KEPT = 3
STEPS = st.none() | st.integers(0, 5)
SIZES = st.sampled_from([0, 1, 3000, 20_000, 300_000])
STATES = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=9)
        | st.binary(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.builds(noise, st.integers(0, 9), SIZES),
    st.builds(lambda seed, size: {"w": noise(seed, size), "same": noise(0, size)}, st.integers(1, 9), SIZES),
)


def same(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return (type(found), found) == (type(expected), expected)


class Commit:
    """What the model knows of a checkpoint."""

    def __init__(self, step, state, pinned):
        self.step = step
        self.state = state
        self.pinned = pinned


class Model(RuleBasedStateMachine):
    """One run that is written, read, thinned out, closed, reopened and taken over."""

    @initialize(buffers=st.integers(1, 4))
    def begin(self, buffers):
        self.store = Gated()
        self.buffers = buffers
        self.live = []
        self.unseen = 0
        self.open()

    def open(self):
        self.cp = checkpointer_over(
            self.store, retain=Last(KEPT), on_busy="wait", buffers=self.buffers, takeover=True, memory_limit=8 << 20
        )

    def commit(self, step, state, pinned=False):
        self.live.append(Commit(step, state, pinned))
        newest = self.live[-KEPT:]
        self.live = [commit for commit in self.live if commit.pinned or commit in newest]

    @rule(step=STEPS, state=STATES, pin=st.booleans(), durable=st.booleans())
    def write(self, step, state, pin, durable):
        self.cp.write(state, step=step, pin=pin, durable=durable)
        self.commit(step, state, pin)

    @rule(state=STATES, lazy=st.booleans())
    def write_and_change(self, state, lazy):
        value = {"state": state, "array": noise(1, 400_000), "list": [1]}
        self.cp.write(value, lazy=lazy).staged.wait(10)
        value["array"][:] = 0
        value["list"].append(2)
        self.commit(None, {"state": state, "array": noise(1, 400_000), "list": [1]})

    @rule(operation=st.sampled_from(["put", "create"]))
    def fail(self, operation):
        """A save that fails leaves everything as it was."""
        self.cp.wait()
        self.store.fail(operation, down())
        with pytest.raises(StoreError, match="down"):
            self.cp.write(noise(77, 50_000 + len(self.store.calls)), durable=True)

    @rule(step=STEPS.filter(lambda step: step is not None))
    def read_at(self, step):
        self.cp.wait()
        found = [commit for commit in self.live if commit.step == step]
        if found:
            assert same(self.cp.read(at=step), found[-1].state)
        else:
            with pytest.raises(NotFoundError):
                self.cp.read(at=step)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data, pinned):
        self.cp.wait()
        index = data.draw(st.integers(0, len(self.live) - 1))
        assert self.cp.pin(self.cp.checkpoints()[index], pinned).pinned == pinned
        self.live[index].pinned = pinned

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def delete(self, data):
        self.cp.wait()
        index = data.draw(st.integers(0, len(self.live) - 1))
        info = self.cp.checkpoints()[index]
        if len(self.live) == 1:
            with pytest.raises(UsageError, match="the only"):
                self.cp.delete(info)
        else:
            self.cp.delete(info)
            del self.live[index]

    @rule()
    def sweep(self):
        """Whatever is live survives."""
        self.cp.sweep()

    @rule()
    def reopen(self):
        self.cp.close()
        self.open()

    @rule()
    def take_over(self):
        """The one that is replaced has committed everything, and may do nothing more."""
        self.cp.wait()
        replaced = self.cp
        self.open()
        self.cp.read()
        with pytest.raises(Exception, match="no longer owns"):
            replaced.write(b"late", durable=True)
        replaced.close()

    @invariant()
    def everything_is_as_the_model_says(self):
        if not hasattr(self, "cp"):
            return
        self.cp.wait()
        infos = self.cp.checkpoints()
        assert [(info.step, info.pinned) for info in infos] == [(commit.step, commit.pinned) for commit in self.live]
        for info, commit in zip(infos, self.live, strict=True):
            assert same(self.cp.read(at=info), commit.state)
        if not self.live:
            assert self.cp.read() is None

    def teardown(self):
        if hasattr(self, "cp"):
            self.cp.close()


Model.TestCase.settings = settings(
    max_examples=settings().max_examples // 4,  # of the profile: each runs twenty calls
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRun = pytest.mark.filterwarnings("ignore:limpet took:RuntimeWarning")(Model.TestCase)
