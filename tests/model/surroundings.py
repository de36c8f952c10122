"""What writers do not decide: when a request lands, what a reader sees, damage at rest, a loss of power.

The invariants are checked here, in the step that would break one; their numbers are those of the protocol's page.
"""

from __future__ import annotations

from itertools import chain, combinations

from tests.model.world import (
    BEGUN,
    CREATE,
    DEAD,
    ENDED,
    NEW,
    OPEN,
    OPENING,
    PUT,
    SENT,
    UNKNOWN,
    UPLOADED,
    Reader,
    Record,
    State,
)
from tests.model.writer import Steps, Writers


class World(Writers):
    """All steps of the model."""

    def successors(self, state: State) -> Steps:
        """Every step from ``state``, with what it leads to."""
        first = list(self.eager(state))
        if first:
            yield from first
            return
        yield from self.steps(state)
        for request in state.flight:
            yield self._land(state, request)
        yield from self._read(state)
        if state.rot:
            yield from self._rot(state)
        if state.power and state.log:
            yield from self._lose_power(state)

    # Requests land

    def _land(self, state: State, request: tuple[int, int, int]) -> tuple[str, State]:
        kind, seq, what = request
        landed = state._replace(flight=state.flight - {request})
        if kind == CREATE:
            return f"record {seq} lands", self._land_record(landed, seq, what)
        if kind == PUT:
            same = {pack for pack in state.objects if pack // 10 == what // 10 and pack != what}
            broken = "5: a name gets two contents" if same else ""
            return f"{what} lands", landed._replace(objects=state.objects - same | {what}, broken=broken)
        broken = self._deleting_breaks(state, what)
        return f"the delete of {what} lands", landed._replace(objects=state.objects - {what}, broken=broken)

    def _land_record(self, state: State, seq: int, number: int) -> State:
        if broken := self._record_breaks(state, seq, self.records[number]):
            return state._replace(broken=broken)
        flight = state.flight
        if "atomic_create" not in self.off:  # those that come too late for this number change nothing any more
            flight = frozenset(one for one in flight if one[0] != CREATE or one[1] != seq)
        unsynced = state.unsynced | {seq} if self.config.durable else state.unsynced
        return state._replace(log=(*state.log, number), flight=flight, unsynced=unsynced)

    def _record_breaks(self, state: State, seq: int, record: Record) -> str:
        last = len(state.log)
        if seq <= last:
            return "2: a record is replaced"
        if seq > last + 1:
            return "2: the log has a hole"
        before = self.record(state, last) if last else None
        if before is not None and record.epoch < before.epoch:
            return "4: a record of a replaced writer"
        damaged = last > 0 and state.damaged == last
        if record.prev != (state.log[-1] if last and not damaged else -1) and not (damaged and record.kind != "open"):
            return "2: the log is not chained"
        if before is not None and before.epoch == record.epoch and before.nonce[1] >= 0:
            if before.nonce[0] != record.nonce[0]:
                return "4: two processes commit under one epoch"
            if before.nonce[1] >= record.nonce[1]:
                return "2: commits are not in the order of the calls"
        if not record.packs <= state.objects:
            return "1: a record names a pack that is not there"
        sound = self.sound_head(state) if record.kind == "open" else last
        return self._live_breaks(self.record(state, sound) if sound else None, seq, record)

    def _live_breaks(self, before: Record | None, seq: int, record: Record) -> str:
        live = before.live if before else frozenset()
        pinned = before.pinned if before else frozenset()
        if record.kind == "s":
            if seq not in record.live or not pinned <= record.live:
                return "3: a commit drops the newest checkpoint, or one that is pinned"
            expected = frozenset(sorted(live | {seq})[-self.config.retain :]) | pinned
        else:
            expected = live
        return "" if record.live == expected else "2: what is live is not what was live, plus or minus the record's own"

    def _deleting_breaks(self, state: State, pack: int) -> str:
        head = self.sound_head(state)
        if not head:
            return ""
        # What a damaged head gave up may go: it was in the log when that was decided.
        if pack in self.packs(state, self.live(state, head) & self.live(state, len(state.log))):
            return "5: a pack that a live checkpoint needs is deleted"
        skipped = self.record(state, state.damaged + 1) if 0 < state.damaged < len(state.log) else None
        if skipped is not None and skipped.prev < 0 and pack in self.packs(state, frozenset({state.damaged})):
            return "5: a pack is deleted that a damaged record may still lead to"
        epoch = self.record(state, len(state.log)).epoch
        for i, writer in enumerate(state.writers):
            if writer.phase != OPEN or writer.epoch != epoch:
                continue
            for k, one in enumerate(writer.operations):
                busy = one.phase in (BEGUN, UPLOADED, SENT) or (one.phase == UNKNOWN and one.seq > len(state.log))
                if busy and (pack == one.shared or (one.phase != BEGUN and pack == self.own_pack(writer, i, k))):
                    return "5: a pack that a save in flight needs is deleted"
        return ""

    # The reader

    def _read(self, state: State) -> Steps:
        reader = state.reader
        if reader.phase == 0 and reader.reads:
            last = len(state.log)
            lengths = {last, max(last - 1, 0)} if self.config.stale_lists and "prove_head" in self.off else {last}
            for head in lengths:
                fresh = Reader(1, reader.reads - 1, acknowledged=state.acknowledged)
                yield f"a read finds head {head}", self._choose(state, fresh, head)
        elif reader.phase == 1:
            packs = sorted(self.record(state, reader.wanted).packs)
            pack = packs[reader.pack]
            if pack in state.objects:
                further = reader._replace(pack=reader.pack + 1)
                if further.pack == len(packs):
                    yield f"the read returns checkpoint {reader.wanted}", self._finish(state, further)
                else:
                    yield f"the read reads {pack}", state._replace(reader=further)
            else:
                yield f"the read misses {pack}", self._miss(state)
            if "tell_apart" in self.off:
                yield f"the read is told 503 for {pack}, and falls back", self._fall_back(state)

    def _choose(self, state: State, reader: Reader, head: int) -> State:
        live = self.live(state, head)
        if not live:
            return self._finish(state, reader._replace(head=head, wanted=0))
        return state._replace(reader=reader._replace(head=head, wanted=max(live), pack=0))

    def _finish(self, state: State, reader: Reader) -> State:
        broken = ""
        if reader.wanted < reader.acknowledged:
            broken = "6: a read returns less than what was acknowledged before it began"
        released = tuple(writer._replace(waits_for_reader=False) for writer in state.writers)
        return state._replace(reader=Reader(reads=reader.reads), writers=released, broken=broken)

    def _miss(self, state: State) -> State:
        reader = state.reader
        head = len(state.log)
        if "start_again" in self.off:
            return self._fall_back(state)
        if reader.wanted in self.live(state, head):
            return state._replace(broken="6: a read finds damage where there is none")
        if self.config.grace:
            return state._replace(broken="grace: a read that was quick enough is disturbed")
        return self._choose(state, reader, head)

    def _fall_back(self, state: State) -> State:
        reader = state.reader
        older = [seq for seq in self.live(state, reader.head) if seq < reader.wanted]
        if not older:
            return state._replace(broken="6: a read finds damage where there is none")
        return state._replace(reader=reader._replace(wanted=max(older), pack=0))

    # Damage and power

    def _rot(self, state: State) -> Steps:
        opening = any(writer.phase == OPENING for writer in state.writers)
        if self.config.rot == "record" and not opening and state.log and self.record(state, len(state.log)).kind == "s":
            last = len(state.log)
            yield f"record {last} is damaged", state._replace(rot=0, damaged=last)
        idle = all(operation.phase == ENDED for operation in state.writers[0].operations)
        if self.config.rot == "pack" and opening and idle:
            for pack in state.objects:
                lost = state.lost_packs | {pack}
                yield f"{pack} is lost", state._replace(rot=0, objects=state.objects - {pack}, lost_packs=lost)

    def _lose_power(self, state: State) -> Steps:
        """Everybody dies; what was not synced is there or not."""
        writers = tuple(
            writer if writer.phase == NEW else writer._replace(phase=DEAD, listed=None) for writer in state.writers
        )
        dark = state._replace(power=0, flight=frozenset(), writers=writers, unsynced=frozenset())
        for gone in _subsets(state.unsynced):
            for packs in _subsets(state.unsynced_packs):
                after = dark._replace(objects=state.objects - packs, unsynced_packs=frozenset())
                yield (
                    f"the power fails: records {sorted(gone)} and packs {sorted(packs)} are gone",
                    self._after(after, gone),
                )

    def _after(self, state: State, gone: frozenset[int]) -> State:
        kept = len(state.log) - len(gone)
        if any(seq <= kept for seq in gone):
            return state._replace(broken="2: the log has a hole")
        if state.acknowledged > kept:
            return state._replace(broken="3: an acknowledged checkpoint is gone")
        state = state._replace(log=state.log[:kept])
        if not self.packs(state, self.live(state, kept)) <= state.objects:
            return state._replace(broken="1: a pack that a live checkpoint needs was not durable")
        return state


def _subsets(items: frozenset[int]) -> list[frozenset[int]]:
    ordered = sorted(items)
    every = chain.from_iterable(combinations(ordered, count) for count in range(len(ordered) + 1))
    return [frozenset(one) for one in every]
