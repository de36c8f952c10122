"""What a fresh pair of eyes found: each of these once hung, lost a save, or changed memory that was not its own."""

import threading

import anyio
import numpy as np
import pytest
from tests.support import Gated, checkpointer_over, noise, run_script

import limpet
from limpet import Checkpointer, StoreError, UsageError
from limpet.engine.budget import ByteBudget
from limpet.engine.memory import MemoryBudget
from limpet.engine.slots import SlotPool
from limpet.engine.staging import Copier, Draft
from limpet.format.registry import default_registry
from limpet.format.tree import flatten
from limpet.stores.memory import MemoryStore


def test_a_save_of_a_grandchild_is_committed_at_the_end_of_the_program(tmp_path):
    done = run_script(
        "import sys, limpet; limpet.Checkpointer(sys.argv[1]).child('a').child('b').write(b'deep', step=1)", tmp_path
    )
    assert done.returncode == 0
    with limpet.open(tmp_path) as run:
        assert run.child("a").child("b").read() == b"deep"


def test_a_crashed_run_opens_again_where_warnings_are_errors(tmp_path):
    crash = "import os, sys, limpet; limpet.Checkpointer(sys.argv[1]).write(b'x', step=1, durable=True); os._exit(0)"
    run_script(crash, tmp_path)
    again = "import sys, warnings; warnings.simplefilter('error', RuntimeWarning); import limpet\n"
    again += "with limpet.Checkpointer(sys.argv[1]) as cp: print(cp.read())"
    assert run_script(again, tmp_path).stdout.strip() == "b'x'"


def test_a_hook_that_calls_while_the_run_opens_is_refused_instead_of_hanging():
    caught = []

    def hook(_event):
        if not caught:
            try:
                cp.write(b"from the hook")
            except UsageError as error:
                caught.append(error.kind)

    cp = checkpointer_over(Gated(), hooks=[hook])
    with cp:
        cp.write(b"x", durable=True)
    assert caught == ["wrong_thread"]


def test_a_read_that_is_cancelled_does_not_go_on_filling_the_callers_arrays(run_async):
    store = Gated(MemoryStore("cancelled-into"))
    state = {str(i): noise(i, 1 << 20) for i in range(4)}
    with checkpointer_over(store) as cp:
        cp.write(state, durable=True)
        held = store.hold("read_into")
        live = {name: np.zeros_like(array) for name, array in state.items()}

        async def read_and_cancel():
            with anyio.move_on_after(0.05):
                await cp.read_async(into=live)
            return {name: array.copy() for name, array in live.items()}

        releaser = threading.Timer(0.3, held.release)
        releaser.start()
        after = run_async(read_and_cancel)
        releaser.join()
        cp.read()  # whatever was still under way has ended now
        assert all(np.array_equal(after[name], live[name]) for name in live)


def test_a_close_that_passes_during_a_copy_names_the_save_that_was_being_staged():
    store = Gated(MemoryStore())
    with checkpointer_over(store) as cp:
        cp.write(b"x", durable=True)
        copying, go_on = threading.Event(), threading.Event()
        copier = cp._session.threads.copier
        copy = copier.copy

        def slow_copy(draft, lease):
            copying.set()
            go_on.wait(10)
            copy(draft, lease)

        copier.copy = slow_copy
        writer = threading.Thread(target=lambda: _quietly(cp.write, noise(1, 8 << 20)))
        writer.start()
        assert copying.wait(10)
        with pytest.raises(StoreError) as caught:
            cp.close(timeout=0.05)
        go_on.set()
        writer.join(10)
        assert not writer.is_alive()
        assert caught.value.kind == "late"


def _quietly(function, *args):
    try:
        function(*args)
    except limpet.LimpetError:
        return


def test_a_copy_ends_even_when_its_helpers_have_been_dismissed():
    draft = Draft.of(flatten(noise(0, 16 << 20), registry=default_registry))
    lease = SlotPool(1, MemoryBudget(1 << 30)).try_lease(draft.plan.slot_bytes)
    copier = Copier()
    copier.close()
    copier.copy(draft, lease)
    assert lease.memory.tobytes() == noise(0, 16 << 20).tobytes()


async def test_room_is_not_promised_past_those_who_wait():
    budget = ByteBudget(100)
    await budget.acquire(80)
    async with anyio.create_task_group() as group:
        group.start_soon(budget.acquire, 50)
        await anyio.sleep(0)
        await anyio.sleep(0)
        assert not budget.has_room(10)
        budget.release(80)
    assert budget.held_bytes == 50


def test_a_full_disk_does_not_protect_the_packs_of_a_save_that_failed():
    store = Gated(MemoryStore())
    with checkpointer_over(store) as cp:
        cp.write(b"first", step=1, durable=True)
        store.fail("create", StoreError("full", kind="no_space", transient=True))
        with pytest.raises(StoreError):
            cp.write(noise(1, 1 << 20), step=2, durable=True)
        assert cp.sweep().objects == 1


def test_only_a_text_may_be_an_owner(tmp_path):
    with pytest.raises(UsageError):
        Checkpointer(tmp_path, owner=7)  # its records would be refused by every reader
