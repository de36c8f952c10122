"""A log of very many records costs no more to open than a short one."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from tests.faulty import Faulty, read_over, write_over
from tests.protocol.logs import RUN, tiny_commit

from limpet.format.layout import FORMAT_KEY, log_key
from limpet.format.marker import encode_marker
from limpet.format.record import Prev, Record, Writer, encode_record

LISTS_MAX = 4
"""The folders of the log, the newest of them, and the same for a reader's or writer's second look."""
GETS_MAX = 12


def fill(store: Faulty, records: int) -> None:
    """A log of one opening and ``records - 1`` commits, of which the last three are live."""
    objects = store.store._space.objects
    objects[FORMAT_KEY] = encode_marker(RUN, "")
    record = Record(1, RUN, 1, 1, "open", "0" * 32, "test", 0.0, Writer(), {"kind": "last", "n": 3})
    digest = ""
    for seq in range(1, records + 1):
        if seq > 1:
            record = msgspec.structs.replace(
                record, seq=seq, kind="commit", nonce=f"{seq:032x}", prev=Prev(seq - 1, digest),
                commit=tiny_commit(seq), live=[(max(2, seq - 2), seq)],
            )  # fmt: skip
        data, digest = encode_record(record)
        objects[log_key(seq)] = data


def requests(store: Faulty) -> Counter[str]:
    found = store.counts()
    store.calls.clear()
    return found


@pytest.mark.filterwarnings("ignore:limpet took")
@pytest.mark.parametrize("records", [7, 1_000, 12_345, 100_000])
def test_opening_takes_a_bounded_number_of_requests(records: int) -> None:
    store = Faulty()
    fill(store, records)
    with read_over(store) as run:
        assert [info.step for info in run.checkpoints()] == [records - 2, records - 1, records]
    reading = requests(store)
    assert reading["list"] <= LISTS_MAX
    assert reading["get"] <= GETS_MAX
    with write_over(store) as cp:
        writing = requests(store)
        assert cp.latest is not None
        assert cp.latest.step == records
    assert writing["list"] <= LISTS_MAX
    assert writing["get"] <= GETS_MAX


@pytest.mark.parametrize("hidden", [1, 2])
def test_a_head_that_a_stale_listing_does_not_show_yet_is_found_across_folders(hidden: int) -> None:
    """The listing is a hint; the head is where the store positively has no next record."""
    store = Faulty()
    fill(store, 1_000)
    late = {log_key(seq) for seq in range(1_001 - hidden, 1_001)}
    real_list, real_folders = store.store.list, store.store.folders

    async def stale_list(prefix: str):
        return [entry for entry in await real_list(prefix) if entry.key not in late]

    async def stale_folders(prefix: str):
        return await real_folders(prefix) - {log_key(1_000).split("/")[1]}

    store.store.list, store.store.folders = stale_list, stale_folders
    with read_over(store) as run:
        assert run.checkpoints()[-1].step == 1_000


def test_a_foreign_folder_beside_the_log_does_not_hide_it() -> None:
    store = Faulty()
    fill(store, 5)
    store.store._space.objects["log/9999999999999/notes.txt"] = b"not a record"
    with read_over(store) as run:
        assert run.checkpoints()[-1].step == 5
