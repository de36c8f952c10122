"""Whatever is done to a run, in whatever order: what was acknowledged and is live reads back bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.faulty import Faulty, Shelf, down, read_over, write_over

from limpet import CorruptError, FencedError, Last, Outcome, PendingWrite
from limpet.format.layout import log_key
from limpet.format.record import decode_record

KEPT = 3
shared = np.random.default_rng(99).random(40_000)


def state_of(number: int, size: str) -> dict[str, Any]:
    """A state that lies in its record, or has a pack of its own, or shares most of one with others."""
    state: dict[str, Any] = {"number": number}
    if size != "tiny":
        state["own"] = np.random.default_rng(number).random(3000)
    if size == "shared":
        state["shared"] = shared
    return state


def equal(found: Any, wanted: dict[str, Any]) -> bool:
    return bool(
        found.keys() == wanted.keys()
        and found["number"] == wanted["number"]
        and all(found[name].tobytes() == wanted[name].tobytes() for name in wanted if name != "number")
    )


class Runs(RuleBasedStateMachine):
    """A run, and a model of it: the live seqs with their states, those pinned, the packs that were damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Faulty()
        self.shelf = Shelf(self.store.store)
        self.live: dict[int, dict[str, Any]] = {}
        self.pinned: set[int] = set()
        self.harmed: set[str] = set()
        self.pending: list[tuple[PendingWrite, dict[str, Any], bool]] = []
        self.number = 0

    @initialize()
    def open(self) -> None:
        self.cp = write_over(self.store, retain=Last(KEPT))
        self.cp.__enter__()

    def teardown(self) -> None:
        self.cp.close()

    def committed(self, seq: int, state: dict[str, Any], pin: bool) -> None:
        self.live[seq] = state
        if pin:
            self.pinned.add(seq)
        newest = sorted(self.live)[-KEPT:]
        self.live = {seq: state for seq, state in self.live.items() if seq in newest or seq in self.pinned}
        self.pinned &= set(self.live)

    def settle(self) -> None:
        """Learn what became of everything that was written."""
        for handle, state, pin in self.pending:
            receipt = handle.result(10)
            assert receipt.seq is not None
            if receipt.outcome is Outcome.COMMITTED:
                self.committed(receipt.seq, state, pin)
        self.pending.clear()

    def next_state(self, size: str) -> dict[str, Any]:
        self.number += 1
        return state_of(self.number, size)

    sizes = st.sampled_from(["tiny", "own", "shared"])

    @rule(size=sizes, pin=st.booleans())
    def write(self, size: str, pin: bool) -> None:
        state = self.next_state(size)
        self.pending.append((self.cp.write(state, step=self.number, pin=pin), state, pin))

    @rule(size=sizes)
    def write_durably(self, size: str) -> None:
        self.settle()
        state = self.next_state(size)
        self.pending.append((self.cp.write(state, step=self.number, durable=True), state, False))
        self.settle()

    @rule(size=sizes, operation=st.sampled_from(["create", "put"]), kind=st.sampled_from(["before", "after"]))
    def write_with_a_fault(self, size: str, operation: str, kind: str) -> None:
        self.settle()
        fault = self.store.script(operation, "", **{kind: down()})
        self.write_durably(size)
        fault.times = 0

    # What is superseded, and swept when, is not the same in every run: no precondition may depend on it.

    @rule(which=st.integers(0, 9), pinned=st.booleans())
    def pin(self, which: int, pinned: bool) -> None:
        self.settle()
        if not self.live:
            return
        info = self.choose(which)
        self.cp.pin(info, pinned)
        (self.pinned.add if pinned else self.pinned.discard)(info.seq)

    @rule(which=st.integers(0, 9))
    def delete(self, which: int) -> None:
        self.settle()
        if len(self.live) < 2:
            return
        info = self.choose(which)
        self.cp.delete(info)
        del self.live[info.seq]
        self.pinned.discard(info.seq)

    @rule()
    def sweep(self) -> None:
        self.cp.sweep()

    @rule()
    def reopen(self) -> None:
        self.cp.close()
        self.settle()
        self.open()

    @rule(size=sizes)
    def take_over(self, size: str) -> None:
        self.settle()
        old, self.cp = self.cp, write_over(self.store, takeover=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.cp.__enter__()
            handle = old.write(self.next_state(size))
            try:
                handle.result(10)
            except FencedError:
                pass
            else:
                raise AssertionError("the replaced writer committed")
            old.sweep()
            old.close()

    @rule(which=st.integers(0, 9), at=st.integers(0, 10**6), gone=st.booleans())
    def harm(self, which: int, at: int, gone: bool) -> None:
        self.settle()
        packs = self.shelf.packs()
        if not packs:
            return
        key = packs[which % len(packs)]
        if gone:
            self.shelf.remove(key)
        else:
            self.shelf.flip(key, at % len(self.shelf.objects[key]))
        self.harmed.add(key)

    def choose(self, which: int) -> Any:
        infos = self.cp.checkpoints()
        return infos[which % len(infos)]

    def sound(self, seq: int) -> bool:
        commit = decode_record(self.shelf.objects[log_key(seq)], seq)[0].commit
        assert commit is not None
        return not self.harmed & {use.key for use in commit.packs}

    @precondition(lambda self: not self.pending)
    @invariant()
    def what_is_live_reads_back(self) -> None:
        with read_over(self.store) as run, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for reader in (self.cp, run):
                infos = reader.checkpoints()
                assert {info.seq for info in infos} == set(self.live)
                assert {info.seq for info in infos if info.pinned} == self.pinned
            for info in infos:
                if self.sound(info.seq):
                    assert equal(run.read(at=info), self.live[info.seq])
            sound = [seq for seq in self.live if self.sound(seq)]
            try:
                found = run.read()
            except CorruptError:
                assert not sound
                return
            if found is None:
                assert not self.live
            else:
                [seq] = [seq for seq, state in self.live.items() if state["number"] == found["number"]]
                assert equal(found, self.live[seq])
                assert seq >= max(sound, default=0)


TestRuns = Runs.TestCase
TestRuns.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
