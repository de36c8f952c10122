"""Cutting a state into segments, and copying byte ranges of it: together the segments are the whole, bit for bit."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet.engine.cutting import cut_range
from limpet.engine.slots import MemoryBudget, SlotPool
from limpet.engine.staging import Copier, Draft
from limpet.format.buffers import Buffer
from limpet.format.chunks import BufferSpec, plan_chunks
from limpet.format.registry import Registry
from limpet.format.segments import PACKS_MAX, cut_segments, half_of, least_window
from limpet.format.tree import flatten

MIB = 1 << 20
SIZES = st.one_of(
    st.integers(0, 300_000), st.integers(256 << 10, 40 * MIB), st.sampled_from([4 * MIB, 4 * MIB + 1, 2**30])
)
SPECS = st.lists(st.builds(BufferSpec, SIZES, st.just("f4"), st.booleans(), st.booleans(), st.booleans()), max_size=60)


@given(SPECS, st.integers(0, 64 * MIB))
def test_segments_hold_every_chunk_once_in_order_and_fit_into_half_of_the_window(specs, more):
    plan = plan_chunks(specs)
    half = half_of(least_window(plan) + more)
    segments = cut_segments(plan.chunks, half)
    ends = [segment.end for segment in segments]
    assert ends[-1] == len(plan.chunks)
    assert [segment.start for segment in segments] == [0, *ends[:-1]]
    assert len(segments) < PACKS_MAX
    for segment in segments:
        for chunk in plan.chunks[segment.start : segment.end]:
            if chunk.buffer < 0:
                assert chunk.offset - segment.base >= 0
                assert (chunk.offset - segment.base) % 4096 == chunk.offset % 4096
                assert chunk.offset + chunk.raw_bytes - segment.base <= half
                assert segment.first <= chunk.offset < segment.last


def test_a_chunk_that_needs_more_than_a_segment_may_have_is_refused():
    plan = plan_chunks([BufferSpec(4 * MIB, "", stays=False)])
    with pytest.raises(ValueError, match="does not fit into 1000000"):
        cut_segments(plan.chunks, 1_000_000)


@given(st.data())
def test_a_range_of_a_strided_array_is_gathered_as_the_whole_would_be(data):
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "f4", "c16", "V3", "V5"])))
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    steps = [data.draw(st.sampled_from([1, 2, -1, -3])) for _ in shape]
    whole = np.random.default_rng(0).integers(
        0, 256, (*(size * abs(step) for size, step in zip(shape, steps, strict=True)), dtype.itemsize), np.uint8
    )
    array = whole.view(dtype)[..., 0][tuple(slice(None, None, step) for step in steps)]
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    buffer = Buffer(array, array.nbytes, immutable=False)
    expected = np.empty(array.nbytes, np.uint8)
    buffer.copy_into(expected)
    start = data.draw(st.integers(0, array.nbytes))
    end = data.draw(st.integers(start, array.nbytes))
    target = np.zeros(end - start, np.uint8)
    for piece, source in cut_range(buffer, start, target):
        np.copyto(piece, source)
    assert target.tobytes() == expected[start:end].tobytes()


@settings(max_examples=6)
@given(st.integers(9, 30), st.integers(0, 400), st.booleans())
def test_what_is_copied_by_segments_is_what_is_copied_at_once(half_mib, small, strided):
    rng = np.random.default_rng(1)
    large = rng.integers(0, 2**32, (3 * MIB, 2), np.uint32)
    state = {
        "small": [rng.integers(0, 256, 20_000 + n, np.uint8) for n in range(small)],
        "joined": [rng.integers(0, 256, n, np.uint8) for n in range(50)],
        "large": large[:, 0] if strided else large,
        "still": bytes(5 * MIB),
        "odd": rng.integers(0, 256, 5 * MIB + 1, np.uint8),
    }
    draft = Draft.of(flatten(state, registry=Registry()))
    plan, copier = draft.plan, Copier()
    lease = SlotPool(1, MemoryBudget(1 << 30)).try_lease(plan.slot_bytes)
    try:
        copier.copy(draft, lease)
        half = np.empty(half_mib * MIB, np.uint8)
        for segment in cut_segments(plan.chunks, half.nbytes):
            half[:] = 0
            copier.copy_part(draft, segment, half, deque())
            for chunk in plan.chunks[segment.start : segment.end]:
                if chunk.buffer < 0:
                    whole = lease.memory[chunk.offset :][: chunk.raw_bytes]
                    assert np.array_equal(whole, half[chunk.offset - segment.base :][: chunk.raw_bytes])
    finally:
        copier.close()
        lease.release()
