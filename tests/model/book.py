"""What everybody in the model looks things up in: the table of records, and what they say of a state."""

from __future__ import annotations

from tests.model.world import Config, Operation, Record, State, Writer

NOTHING: frozenset[int] = frozenset()


def with_writer(state: State, i: int, writer: Writer) -> State:
    """``state`` with another writer ``i``."""
    return state._replace(writers=(*state.writers[:i], writer, *state.writers[i + 1 :]))


def with_operation(writer: Writer, k: int, operation: Operation) -> Writer:
    """``writer`` with another operation ``k``."""
    return writer._replace(operations=(*writer.operations[:k], operation, *writer.operations[k + 1 :]))


class Book:
    """Records by number, under a configuration, without the rules in ``off``."""

    def __init__(self, config: Config, off: frozenset[str]) -> None:
        self.config = config
        self.off = off
        self.records: list[Record] = []
        self._numbers: dict[Record, int] = {}

    def number(self, record: Record) -> int:
        """The record's index in the table."""
        found = self._numbers.get(record)
        if found is None:
            found = self._numbers[record] = len(self.records)
            self.records.append(record)
        return found

    def record(self, state: State, seq: int) -> Record:
        """The record ``seq`` of the log."""
        return self.records[state.log[seq - 1]]

    def sound_head(self, state: State) -> int:
        """The newest record that verifies; 0 if there is none."""
        last = len(state.log)
        return last - 1 if last and last == state.damaged else last

    def live(self, state: State, seq: int) -> frozenset[int]:
        """What record ``seq`` calls live."""
        return self.record(state, seq).live if seq else NOTHING

    def packs(self, state: State, seqs: frozenset[int]) -> frozenset[int]:
        """What these checkpoints need."""
        return NOTHING.union(*(self.record(state, seq).packs for seq in seqs))

    def retained(self, seqs: frozenset[int], pinned: frozenset[int]) -> frozenset[int]:
        """What retention keeps of ``seqs``."""
        if "pins" in self.off:
            pinned = NOTHING
        # Steps go down while seqs go up: whoever orders by them gets it the wrong way round.
        ordered = sorted(seqs, reverse="newest_by_seq" in self.off)
        return frozenset(ordered[-self.config.retain :]) | (pinned & seqs)
