"""What writers do: take over, put packs, send records, learn their fate, sweep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from tests.model.book import NOTHING, Book, with_operation, with_writer
from tests.model.world import (
    BEGUN,
    CREATE,
    DEAD,
    DELETE,
    ENDED,
    NEW,
    OPEN,
    OPENING,
    PUT,
    SENT,
    UNKNOWN,
    UPLOADED,
    WAITING,
    Nonce,
    Operation,
    Record,
    State,
    Writer,
    epoch_of,
    pack_of,
    save_of,
)

Steps: TypeAlias = Iterator[tuple[str, State]]


class Writers(Book):
    """The steps of writers."""

    def eager(self, state: State) -> Steps:
        """A step that may come first without loss: nobody else's steps depend on it, nor it on theirs."""
        for i, writer in enumerate(state.writers):
            landed = writer.phase == OPENING and not self.config.rot and len(state.log) >= writer.head
            if landed and self.record(state, writer.head).nonce[:2] == (i, -1):
                yield from self._learn_opening(state, i)
                return

    def steps(self, state: State) -> Steps:
        """Every step that some writer can take."""
        for i, writer in enumerate(state.writers):
            if writer.phase == NEW:
                if i == 0 or state.writers[i - 1].phase != NEW:
                    yield from self._start(state, i)
                break
            if writer.phase == OPENING:
                yield from self._learn_opening(state, i)
            elif writer.phase == OPEN:
                for k, operation in enumerate(writer.operations):
                    yield from self._operate(state, i, k, operation)
                yield from self._sweep(state, i)

    def _start(self, state: State, i: int) -> Steps:
        first = state.writers[0]
        if self.config.clone and i == 1:
            if first.phase == OPEN and all(one.phase == WAITING for one in first.operations):
                yield "writer 1 is a copy of writer 0's process", with_writer(state, 1, first)
            return
        if state.flight and self.config.durable and state.power == 0:
            return  # after a loss of power nothing is in flight
        yield f"writer {i} opens", self._open(state, i)
        if "owner_deletes" in self.off and state.log:
            keep = self.packs(state, self.live(state, len(state.log)))
            doomed = state.objects - keep
            yield f"process {i} sweeps without opening", self._delete(state, doomed)

    def _open(self, state: State, i: int) -> State:
        """Find the head and send an open record after it."""
        writer = state.writers[i]
        first = writer.phase == NEW
        last = len(state.log)
        head = self.sound_head(state)
        believed = writer.view if "winners_record" in self.off and not first else head
        before = self.record(state, believed) if believed else None
        live = before.live if before else NOTHING
        if "live_in_record" in self.off:
            live = frozenset(seq for seq in range(1, last + 1) if self.record(state, seq).kind == "s")
        noted = before.quarantined if before and "carry_quarantine" not in self.off else NOTHING
        if head < last and "note_damage" not in self.off:
            noted |= {last}
        prev = state.log[-1] if head == last and last else -1
        if "settle_head" not in self.off:
            state = state._replace(unsynced=state.unsynced - {last})
        if "open_record" in self.off:
            opened = writer._replace(phase=OPEN, epoch=last + 1, head=last, view=head)
            return with_writer(state, i, opened)
        record = Record(
            "open", last + 1, (i, -1, last + 1, 0), prev, live, before.pinned if before else NOTHING, NOTHING, noted
        )
        resumed = max(live, default=0) if first or "read_after_open" not in self.off else writer.resumed
        opening = writer._replace(phase=OPENING, head=last + 1, view=believed, resumed=resumed)
        return self._send(with_writer(state, i, opening), last + 1, record)

    def _send(self, state: State, seq: int, record: Record) -> State:
        if "atomic_create" not in self.off and seq <= len(state.log):
            return state  # its name is taken for good: it can never land
        return state._replace(flight=state.flight | {(CREATE, seq, self.number(record))})

    def _learn_opening(self, state: State, i: int) -> Steps:
        writer = state.writers[i]
        seq = writer.head
        if len(state.log) < seq:
            return
        found = self.record(state, seq)
        if found.nonce[:2] != (i, -1):
            yield f"writer {i} lost the race for record {seq} and goes on from it", self._open(state, i)
            return
        graceful = self.config.grace and "grace" not in self.off
        state = state._replace(unsynced=state.unsynced - {seq})
        missing = self.packs(state, found.live) - state.objects
        opened = writer._replace(
            phase=OPEN,
            epoch=seq,
            view=seq,
            older_too=not graceful,
            waits_for_reader=graceful and state.reader.phase == 1,
            unusable=missing if "index_listed" not in self.off else NOTHING,
            resumed=0,
        )
        state = with_writer(state, i, opened)
        if writer.resumed < state.acknowledged < seq and not state.damaged:
            state = state._replace(broken="3: a takeover resumes from less than what was acknowledged")
        yield f"writer {i} owns epoch {seq}", state

    def _operate(self, state: State, i: int, k: int, operation: Operation) -> Steps:
        writer = state.writers[i]
        before = writer.operations[:k]
        if operation.phase == WAITING:
            if all(one.phase != WAITING for one in before):
                yield from self._begin(state, i, k)
        elif operation.phase == BEGUN:
            yield from self._upload(state, i, k)
        elif operation.phase == UPLOADED:
            others = writer.operations if "call_order" in self.off else before
            if all(one.phase in (ENDED, UNKNOWN) or (others is not before and one.phase != SENT) for one in others):
                yield from self._commit(state, i, k)
        elif operation.phase == SENT:
            yield from self._learn(state, i, k)

    def _begin(self, state: State, i: int, k: int) -> Steps:
        writer = state.writers[i]
        words = f"writer {i} begins {self._what(i, k)}"
        if self.config.programs[i][k] == "p":
            yield words, with_writer(state, i, with_operation(writer, k, Operation(UPLOADED, writer.view)))
            return
        readable = self.live(state, writer.view) - self._unreadable(state, writer)
        newest = self.record(state, max(readable)) if readable else None
        shared = {pack for pack in newest.packs if epoch_of(pack) == newest.epoch} if newest else set()
        choices = {max(shared - writer.unusable, default=0)}
        if "share_live_only" in self.off:
            choices |= state.objects
        for choice in choices:
            begun = Operation(BEGUN, writer.view, choice)
            yield (
                f"{words}, sharing {choice}" if choice else words,
                with_writer(state, i, with_operation(writer, k, begun)),
            )

    def _what(self, i: int, k: int) -> str:
        return f"{'save' if self.config.programs[i][k] == 's' else 'pin'} {k}"

    def own_pack(self, writer: Writer, i: int, k: int) -> int:
        """The pack that operation ``k`` of writer ``i`` puts."""
        attempt = writer.operations[k].attempt
        return pack_of(writer.epoch, i, k, 0 if "fresh_names" in self.off else attempt, attempt)

    def _upload(self, state: State, i: int, k: int) -> Steps:
        writer = state.writers[i]
        operation = writer.operations[k]
        pack = self.own_pack(writer, i, k)
        uploaded = with_writer(state, i, with_operation(writer, k, operation._replace(phase=UPLOADED)))
        if any(other // 10 == pack // 10 and other != pack for kind, _, other in state.flight if kind == PUT):
            uploaded = uploaded._replace(broken="5: a name gets two contents")
        done = uploaded._replace(objects=state.objects | {pack})
        if "sync_data" in self.off:
            done = done._replace(unsynced_packs=state.unsynced_packs | {pack})
        yield f"writer {i} puts {pack}", done
        sent = state.flight | {(PUT, 0, pack)}
        if "data_before_create" in self.off:
            yield f"writer {i} sends {pack} and does not wait", uploaded._replace(flight=sent)
        if state.faults:
            again = with_operation(writer, k, operation._replace(attempt=operation.attempt + 1))
            failed = with_writer(state, i, again)._replace(flight=sent, faults=state.faults - 1)
            yield f"writer {i} is told that putting {pack} failed", failed

    def _commit(self, state: State, i: int, k: int) -> Steps:
        """Send the record of operation ``k``."""
        writer = state.writers[i]
        seq = writer.head + 1
        if "same_seq" in self.off:
            seq += sum(one.phase == UNKNOWN for one in writer.operations)
        operation = writer.operations[k]._replace(phase=SENT, seq=seq)
        record = self._make(state, i, k, seq, operation.again)
        sent = self._send(with_writer(state, i, with_operation(writer, k, operation)), seq, record)
        if "acknowledge_last" in self.off:
            sent = self._acknowledge(sent, record.nonce, seq)
        yield f"writer {i} sends record {seq} for {self._what(i, k)}", sent

    def _make(self, state: State, i: int, k: int, seq: int, again: int) -> Record:
        writer = state.writers[i]
        before = self.record(state, writer.view) if writer.view else Record("", 0, (0, 0, 0, 0), -1)
        prev = state.log[writer.head - 1] if writer.head else -1
        noted = NOTHING if "carry_quarantine" in self.off else before.quarantined
        nonce: Nonce = (i, k, seq, again)
        if self.config.programs[i][k] == "p":
            pinned = before.pinned | {max(before.live, default=0)} - {0}
            return Record("p", writer.epoch, nonce, prev, before.live, pinned, NOTHING, noted)
        operation = writer.operations[k]
        packs = frozenset({self.own_pack(writer, i, k), operation.shared} - {0})
        live = self.retained(before.live | {seq}, before.pinned)
        return Record("s", writer.epoch, nonce, prev, live, before.pinned & live, packs, noted)

    def _acknowledge(self, state: State, nonce: Nonce, seq: int) -> State:
        if len(state.log) < seq or (record := self.record(state, seq)).nonce != nonce:
            return state._replace(broken="3: a save is acknowledged that is not in the log")
        if record.kind != "s":
            return state
        return state._replace(acknowledged=max(state.acknowledged, seq))

    def _learn(self, state: State, i: int, k: int) -> Steps:
        """Read the key back: whose record is it?"""
        writer = state.writers[i]
        operation = writer.operations[k]
        seq, nonce = operation.seq, (i, k, operation.seq, operation.again)
        words = f"writer {i} finds that record {seq} is"
        if len(state.log) >= seq:
            found = self.record(state, seq)
            same_epoch = found.epoch == writer.epoch
            if found.nonce == nonce:
                yield f"{words} its own", self._committed(state, i, k)
                if "own_create_is_no_conflict" in self.off:
                    yield f"{words} taken, by itself", self._stop(state, i)
            elif "read_back" in self.off or ("nonce" in self.off and same_epoch):
                yield f"{words} there, and takes it for its own", self._acknowledge(state, nonce, seq)
            elif same_epoch and (self._tried(writer, i, found.nonce) or "one_process" in self.off):
                yield f"{words} an earlier try of its own", self._adopt(state, i, k)
            elif "fence_is_final" in self.off:
                on = with_operation(writer._replace(head=seq, view=seq), k, operation._replace(phase=UPLOADED))
                yield f"{words} another's, and goes on after it", with_writer(state, i, on)
            else:
                yield f"{words} another's: it is fenced", self._stop(state, i)
        elif "read_back" in self.off:
            yield f"writer {i} is told that record {seq} exists", self._acknowledge(state, nonce, seq)
        if "same_bytes" in self.off and not operation.again and len(state.log) < seq:
            record = self._make(state, i, k, seq, 1)
            other = with_writer(state, i, with_operation(writer, k, operation._replace(again=1)))
            yield f"writer {i} sends another record {seq}", self._send(other, seq, record)
        if state.faults:
            unknown = with_operation(writer, k, operation._replace(phase=UNKNOWN))
            words = f"writer {i} cannot tell about record {seq}: unknown"
            yield words, with_writer(state, i, unknown)._replace(faults=state.faults - 1)

    def _tried(self, writer: Writer, i: int, nonce: Nonce) -> bool:
        return nonce[0] == i and nonce[1] >= 0 and writer.operations[nonce[1]].phase == UNKNOWN

    def _settled(self, writer: Writer) -> Writer:
        """No create of ours may land any more: their numbers are taken."""
        if all(one.phase != UNKNOWN for one in writer.operations):
            return writer
        settled = (Operation(ENDED) if one.phase == UNKNOWN else one for one in writer.operations)
        return writer._replace(operations=tuple(settled))

    def _committed(self, state: State, i: int, k: int) -> State:
        writer = state.writers[i]
        operation = writer.operations[k]
        seq = operation.seq
        writer = self._settled(with_operation(writer, k, Operation(ENDED)))
        writer = self._retire(state, writer, seq)._replace(head=seq, view=seq)
        if "sync_record" not in self.off:
            state = state._replace(unsynced=state.unsynced - {seq})
        nonce: Nonce = (i, k, seq, operation.again)
        return self._acknowledge(with_writer(state, i, writer), nonce, seq)

    def _adopt(self, state: State, i: int, k: int) -> State:
        writer = state.writers[i]
        operation = writer.operations[k]
        seq = operation.seq
        writer = self._settled(with_operation(writer, k, operation._replace(phase=UPLOADED)))
        if "adopt" in self.off:
            writer = writer._replace(head=seq)
        else:
            writer = self._retire(state, writer, seq)._replace(head=seq, view=seq)
        if "settle_read_back" not in self.off:
            state = state._replace(unsynced=state.unsynced - {seq})
        return with_writer(state, i, writer)

    def _retire(self, state: State, writer: Writer, seq: int) -> Writer:
        """What has just left the live set may go after the grace."""
        if not self.config.grace or "grace" in self.off:
            return writer
        left = self.live(state, writer.view) - self.live(state, seq)
        if not left:
            return writer
        waits = writer.waits_for_reader or state.reader.phase == 1
        return writer._replace(retired=writer.retired | self.packs(state, left), waits_for_reader=waits)

    def _stop(self, state: State, i: int) -> State:
        """``FencedError``, for good."""
        writer = state.writers[i]
        stopped = with_writer(state, i, Writer(DEAD))
        newer = self.records[state.log[-1]].epoch > writer.epoch if state.log else False
        newer = newer or any(epoch_of(pack) > writer.epoch for pack in state.objects)
        if newer or self.config.clone:
            return stopped
        return stopped._replace(broken="4: a writer is fenced though nobody replaced it")

    # Sweeps

    def _sweep(self, state: State, i: int) -> Steps:
        writer = state.writers[i]
        if writer.listed is not None:
            yield f"writer {i} decides what may go", self._decide(state, i)
        elif writer.sweeps and not self._blocked(state, writer):
            seen = state.objects if "list_first" not in self.off else self._kept(state, i)
            yield f"writer {i} lists", with_writer(state, i, writer._replace(listed=seen))
        if (writer.retired or not writer.older_too) and not writer.waits_for_reader:
            over = writer._replace(retired=NOTHING, older_too=True)
            yield f"a grace of writer {i} is over", with_writer(state, i, over)

    def _blocked(self, state: State, writer: Writer) -> bool:
        if not writer.view or "quarantine_blocks" in self.off:
            return False
        noted = self.record(state, writer.view).quarantined
        return bool(noted or self._unreadable(state, writer) & self.live(state, writer.view))

    def _unreadable(self, state: State, writer: Writer) -> frozenset[int]:
        """Who opened before the damage knows what the record said."""
        return frozenset({state.damaged}) if 0 < state.damaged < writer.epoch else NOTHING

    def _unsettled(self, writer: Writer) -> Iterator[tuple[int, Operation]]:
        for k, operation in enumerate(writer.operations):
            unknown = operation.phase == UNKNOWN and "keep_unknown" not in self.off
            if operation.phase in (BEGUN, UPLOADED, SENT) or unknown:
                yield k, operation

    def _kept(self, state: State, i: int) -> frozenset[int]:
        """Packs that must stay, own ones of saves in flight aside."""
        writer = state.writers[i]
        live = self.live(state, writer.view)
        coming = any(one.phase in (UPLOADED, SENT) for one in writer.operations)
        if "retain_in_commit" in self.off and coming:
            live = self.retained(live | {writer.head + 1}, NOTHING) & live
        bases = NOTHING
        if "keep_base" not in self.off:
            bases = NOTHING.union(*(self.live(state, one.base) for _, one in self._unsettled(writer)))
        return self.packs(state, (live | bases) - self._unreadable(state, writer)) | writer.retired

    def _decide(self, state: State, i: int) -> State:
        writer = state.writers[i]
        listed = writer.listed or NOTHING
        done = writer._replace(listed=None, sweeps=writer.sweeps - 1)
        if "list_first" in self.off:
            kept, listed, flying = listed, state.objects, set()
        else:
            kept = self._kept(state, i)
            flying = {k for k, _ in self._unsettled(writer)} if "keep_in_flight" not in self.off else set()
        if "epoch_check" not in self.off and any(epoch_of(pack) > writer.epoch for pack in listed):
            return self._stop(with_writer(state, i, done), i)
        doomed = frozenset(
            pack
            for pack in listed - kept
            if not (epoch_of(pack) == writer.epoch and save_of(pack) in flying)
            and (writer.older_too or epoch_of(pack) >= writer.epoch)
        )
        return self._delete(with_writer(state, i, done), doomed)

    def _delete(self, state: State, doomed: frozenset[int]) -> State:
        return state._replace(flight=state.flight | {(DELETE, 0, pack) for pack in doomed & state.objects})
