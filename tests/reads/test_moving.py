"""A5: retention removes what a reader is reading: it falls forward, or says clearly what happened."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.states import big, same

from limpet import Checkpointer, DamagedCheckpointWarning, Last, NotFoundError, Run, StoreError


def outrun(reader: Faulty, cp: Checkpointer, call: Callable[[Run], Any], step: int = 1) -> Any:
    """Start ``call``, and retire and sweep what it reads before its first byte of data arrives."""
    held = reader.script("get_range", "data/", waits=True)
    results: list[Any] = []

    def read() -> None:
        with read_over(reader) as run, warnings.catch_warnings():
            warnings.simplefilter("error", DamagedCheckpointWarning)
            try:
                results.append(call(run))
            except Exception as error:
                results.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    held.wait_until_reached()
    cp.write(big(step), step=step, meta={"loss": 1}, durable=True)
    cp.sweep()
    held.release()
    thread.join()
    return results[0]


@pytest.fixture
def reader(store: Faulty) -> Faulty:
    """The same objects through a store of the reader's own."""
    return Faulty(store.store)


def test_a_reader_falls_forward_to_the_newer_checkpoint(store: Faulty, reader: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
        assert same(outrun(reader, cp, lambda run: run.read()), 1)


def test_into_falls_forward_too(store: Faulty, reader: Faulty) -> None:
    into = big(7)
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
        outrun(reader, cp, lambda run: run.read(into=into))
    assert same(into, 1)


@pytest.mark.parametrize("name", ["verify", "describe", "resume"])
def test_every_call_that_reads_falls_forward(store: Faulty, reader: Faulty, name: str) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
        found = outrun(reader, cp, lambda run: getattr(run, name)())
    assert not isinstance(found, Exception), found
    if name == "describe":
        assert found[0].value in (1, "step 1") or any(row.value == 1 for row in found)
    else:
        assert found.info.step == 1


def test_who_asked_for_that_very_checkpoint_is_told_that_it_is_gone(store: Faulty, reader: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp:
        cp.write(big(0), step=0, durable=True)
        error = outrun(reader, cp, lambda run: run.read(at=0))
    assert isinstance(error, NotFoundError)
    assert "no live checkpoint at step 0" in str(error)


def test_a_reader_that_is_outrun_again_and_again_is_told_so(store: Faulty, reader: Faulty) -> None:
    with write_over(store, retain=Last(1)) as cp, read_over(reader) as run:
        cp.write(big(0), step=0, durable=True)
        fetch = reader.store.get_range
        steps = iter(range(1, 100))

        async def outrun_each(key: str, offset: int, size: int) -> Any:
            writing = threading.Thread(target=replace_it)
            writing.start()
            while writing.is_alive():
                await _tick()
            return await fetch(key, offset, size)

        def replace_it() -> None:
            step = next(steps)
            cp.write(big(step), step=step, durable=True)
            cp.sweep()

        reader.store = _With(reader.store, get_range=outrun_each)
        with pytest.raises(StoreError, match="5 checkpoints in a row were removed") as caught:
            run.read()
        assert caught.value.transient
        assert "retain=" in caught.value.hint


async def _tick() -> None:
    import anyio

    await anyio.sleep(0.001)


class _With:
    """A store with some of its calls replaced."""

    def __init__(self, store: Any, **calls: Any) -> None:
        self._store = store
        self.__dict__.update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_pack_that_is_missing_while_others_commit_is_damage_all_the_same(
    store: Faulty, reader: Faulty, shelf: Shelf
) -> None:
    """A live checkpoint lost its pack; that the log grows meanwhile does not excuse it."""
    with write_over(store) as cp:
        cp.write(big(0), step=0, durable=True)
        cp.write(big(1), step=1, durable=True)
        shelf.remove(shelf.packs()[1])
        held = reader.script("get_range", "data/", waits=True)
        results: list[Any] = []
        told: list[str] = []

        def read() -> None:
            with read_over(reader) as run, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                results.append(run.read())
                told.extend(str(one.message) for one in caught)

        thread = threading.Thread(target=read)
        thread.start()
        held.wait_until_reached()
        cp.write(big(2), step=2, durable=True)
        held.release()
        thread.join()
        assert same(results[0], 0)
        assert any("is missing" in text for text in told)


def test_the_writer_s_own_read_is_kept_by_the_grace(store: Faulty) -> None:
    from dataclasses import replace

    from tests.faulty import QUICK

    with write_over(store, retain=Last(1), timing=replace(QUICK, grace=60.0)) as cp:
        cp.write(big(0), step=0, durable=True)
        held = store.script("get_range", "data/", waits=True)
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(cp.read()))
        thread.start()
        held.wait_until_reached()
        cp.write(big(1), step=1, durable=True)
        time.sleep(0)
        held.release()
        thread.join()
        assert same(results[0], 0)


@pytest.mark.filterwarnings("ignore:limpet:RuntimeWarning")
def test_a_replaced_writer_that_reads_sees_what_its_successor_has(store: Faulty) -> None:
    old = write_over(store, takeover=True)
    with old:
        old.write(big(0), step=0, durable=True)
        with write_over(Faulty(store.store), retain=Last(1), takeover=True) as new:
            new.write(big(1), step=1, durable=True)
            new.sweep()
            assert same(old.read(), 1)
