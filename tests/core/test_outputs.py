import errno
import gc
import mmap
import threading

import numpy as np
import pytest

from limpet.engine.outputs import Outputs

SIZE = 5 << 20


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_refers_to_it():
    outputs = Outputs()
    array = outputs.take(SIZE)
    before = address(array)
    del array
    assert address(outputs.take(SIZE)) == before


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array[5:9],
        lambda array: array[5:][1:][1:].reshape(1, -1),
        lambda array: array.data,
        lambda array: memoryview(array[7:].data)[3:8],
        lambda array: np.frombuffer(array[7:].data, np.uint8)[1:],
    ],
    ids=["slice", "slice of a slice", "memoryview", "slice of a memoryview", "array over a memoryview"],
)
def test_memory_is_left_alone_as_long_as_any_view_of_it_lives(keep):
    outputs = Outputs()
    array = outputs.take(SIZE)
    before = address(array)
    view = keep(array)
    del array
    gc.collect()
    other = outputs.take(SIZE)
    assert address(other) != before
    del view
    assert address(outputs.take(SIZE)) == before


def test_memory_that_is_too_small_is_given_up():
    outputs = Outputs()
    outputs.take(SIZE)
    assert outputs.take(2 * SIZE).size == 2 * SIZE
    assert len(outputs._free) == 1


def test_it_can_be_dropped_on_another_thread():
    outputs = Outputs()
    held = [outputs.take(SIZE)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert len(outputs._free) == 1


def test_what_is_still_referred_to_outlives_its_owner():
    outputs = Outputs()
    array = outputs.take(SIZE)
    array[:] = 7
    del outputs
    gc.collect()
    assert (array == 7).all()


def test_without_a_mapping_to_be_had_the_heap_is_tried(monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    assert Outputs().take(SIZE).size == SIZE


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_little_memory_is_taken_from_the_heap(size):
    outputs = Outputs()
    assert outputs.take(size).size == size
    assert not outputs._free
