"""Checkpoints that are deltas from earlier ones: read bit for bit, and not at all where any link is damaged."""

from __future__ import annotations

import random
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.chained import chain, fill, same, trained
from tests.reads.crafted import craft, read_commit

from limpet import CorruptError, DamagedCheckpointWarning, FormatError, Last
from limpet.engine import chains, pieces
from limpet.format import manifest as manifest_module
from limpet.format.deltas import DEPTH_MAX
from limpet.format.manifest import depth


@pytest.mark.parametrize("count", [1, 2, 3, DEPTH_MAX + 1])
def test_a_state_is_read_through_its_chain(store: Faulty, shelf: Shelf, count: int) -> None:
    fill(store, count)
    depths = depth(read_commit(shelf, count + 1)[2])
    assert sorted(depths) == [(count - 1) // 2, count - 1, count - 1]
    with read_over(store) as run:
        for step in range(count):
            assert same(run.read(at=step), step)


def test_a_state_is_read_into_the_arrays_of_the_caller(store: Faulty) -> None:
    fill(store, 4)
    target = {name: np.zeros_like(array) for name, array in trained(0).items()}
    weights = target["weights"]
    with read_over(store) as run:
        found = run.read(into=target)
    assert same(found, 3)
    assert found["weights"] is weights


@pytest.mark.parametrize("run_bytes", [1, 100_000])
def test_a_state_is_read_in_pieces_of_any_size(store: Faulty, monkeypatch: pytest.MonkeyPatch, run_bytes: int) -> None:
    fill(store, 4)
    monkeypatch.setattr(pieces, "_RUN_BYTES", run_bytes)
    monkeypatch.setattr(chains, "_BATCH_BYTES", run_bytes)
    with read_over(store) as run:
        assert same(run.read(), 3)


def test_saved_files_are_restored_through_their_chain(store: Faulty, shelf: Shelf, tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    contents = [trained(step)["weights"].tobytes() * 6 for step in range(3)]  # more than what is restored at once
    with write_over(store, compression="off", retain=Last(100)) as cp:
        for step, content in enumerate(contents):
            source.write_bytes(content)
            cp.save(source, step=step, durable=True)
    for seq in (3, 4):
        chain(shelf, seq)
    with read_over(store) as run:
        restored = run.restore(tmp_path / "restored")
    assert restored is not None
    assert (restored / "big.bin" if restored.is_dir() else restored).read_bytes() == contents[-1]


def test_verify_reads_every_link(store: Faulty, shelf: Shelf) -> None:
    fill(store, 4)
    manifest = read_commit(shelf, 5)[2]
    links = {*manifest.chunks, *manifest.bases}
    with read_over(store) as run:
        found = run.verify()
    assert found is not None
    assert (found.chunks, found.read_bytes) == (len(links), sum(link.stored_bytes for link in links))
    for link in links:
        key = manifest.packs[link.pack]
        shelf.flip(key, link.offset + link.stored_bytes // 2)
        with read_over(store) as run, pytest.raises(CorruptError, match=key):
            run.verify()
        shelf.flip(key, link.offset + link.stored_bytes // 2)


def test_damage_anywhere_in_a_chain_names_its_pack_and_leads_to_what_does_not_build_on_it(
    store: Faulty, shelf: Shelf
) -> None:
    fill(store, 4)
    link = shelf.packs()[2]
    shelf.flip(link, 1000)
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning) as told:
        assert same(run.read(), 1)
    [text] = [str(each.message) for each in told]
    assert [f"checkpoint {seq}: {link}" in text for seq in (5, 4, 3)] == [True, True, False]


def test_no_flipped_bit_in_any_pack_of_a_chain_is_ever_read(store: Faulty, shelf: Shelf) -> None:
    fill(store, 3)
    random_ = random.Random(0)
    for _ in range(40):
        key = random_.choice(shelf.packs())
        at = random_.randrange(len(shelf.objects[key]))
        shelf.flip(key, at)
        with read_over(store) as run, warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedCheckpointWarning)
            try:
                found = run.read()
            except CorruptError:
                found = None
        assert found is None or any(same(found, step) for step in range(3)), (key, at)
        shelf.flip(key, at)


def test_a_missing_pack_of_a_base_is_damage_of_all_that_build_on_it(store: Faulty, shelf: Shelf) -> None:
    fill(store, 4)
    shelf.remove(shelf.packs()[1])
    with read_over(store) as run, pytest.warns(DamagedCheckpointWarning, match=f"{shelf.packs()[0][:10]}.*is missing"):
        assert same(run.read(), 0)


@pytest.mark.parametrize("skip", range(6))
@pytest.mark.parametrize("operation", ["get_range", "read_into"])
def test_a_flip_on_the_way_in_any_link_is_no_damage(store: Faulty, operation: str, skip: int) -> None:
    fill(store, 4)
    store.script(operation, flip=True, skip=skip)
    with read_over(store) as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(run.read(), 3)


def test_a_flip_on_the_way_in_the_second_chunk_of_a_link_does_not_apply_the_first_twice(
    store: Faulty, shelf: Shelf
) -> None:
    fill(store, 3)
    manifest = read_commit(shelf, 4)[2]
    assert len(manifest.chunks) > 1
    bent = len(shelf.objects[shelf.packs()[2]])
    read_pieces = pieces._decode_part
    seen: list[int] = []

    def second_fails_once(run: Any, part: Any, stored: memoryview, **rest: Any) -> None:
        if part.content is not None and part is run.parts[-1] and part.number == 2 and not seen:
            seen.append(bent)
            stored = memoryview(bytes(len(stored)))
        read_pieces(run, part, stored, **rest)

    with pytest.MonkeyPatch.context() as patch, read_over(store) as run, warnings.catch_warnings():
        patch.setattr(pieces, "_decode_part", second_fails_once)
        warnings.simplefilter("error")
        assert same(run.read(), 2)
    assert seen


def test_a_link_that_is_not_what_it_says_is_found_although_all_digests_of_stored_bytes_fit(
    store: Faulty, shelf: Shelf
) -> None:
    """The base of one chunk is said to be another's: only the id of what comes out tells."""
    fill(store, 2)
    with write_over(store, compression="off", retain=Last(100)) as cp:
        two = trained(0)["weights"]
        cp.write({"a": two, "b": two[::-1].copy()}, step=2, durable=True)
        cp.write({"a": two + np.float16(1e-3), "b": two[::-1] + np.float16(1e-3)}, step=3, durable=True)
    chain(shelf, 7)

    def swap(fields: dict[str, Any]) -> None:
        (one, first), (other, second) = fields["deltas"]
        fields["deltas"] = [(one, second), (other, first)]

    craft(shelf, 7, swap)
    with read_over(store) as run, pytest.raises(CorruptError, match="is damaged at byte"):
        run.read(strict=True)


def test_a_reader_of_format_1_refuses_it_as_a_newer_format(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 3)
    monkeypatch.setattr(manifest_module, "_VERSION_MAX", 1)
    with read_over(store) as run:
        assert same(run.read(at=0), 0)
        with pytest.raises(FormatError, match="version 2; this limpet reads up to 1"):
            run.read()


def test_what_is_held_beside_the_destination_is_bounded(
    store: Faulty, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_RUN_BYTES", 1 << 20)
    monkeypatch.setattr(chains, "_BATCH_BYTES", 1 << 20)
    array = (np.random.default_rng(0).standard_normal(1 << 19) * 0.02).astype("<f2")
    arrays = [np.roll(array, number) for number in range(32)]
    with write_over(store, compression="off", retain=Last(100)) as cp:
        cp.write(arrays, step=0, durable=True)
        cp.write([each + np.float16(1e-4) for each in arrays], step=1, durable=True)
    chain(shelf, 3)
    target = [np.zeros_like(each) for each in arrays]
    with read_over(store) as run:
        run.read(at=0, into=target)
        tracemalloc.start()
        run.read(into=target)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert target[-1].tobytes() == (arrays[-1] + np.float16(1e-4)).tobytes()
    assert peak_bytes < 16 << 20, "of a state of 32 MiB"


@pytest.mark.filterwarnings("ignore:.*kept last 100")
def test_packs_of_bases_stay_when_the_checkpoints_that_wrote_them_go(store: Faulty, shelf: Shelf) -> None:
    fill(store, 4)
    before = shelf.packs()
    with write_over(store, compression="off", retain=Last(2)) as cp:
        cp.write({"other": np.arange(100_000)}, step=4, durable=True)
        cp.sweep()
        assert [info.step for info in cp.checkpoints()] == [3, 4]
        assert set(before) < set(shelf.packs())
        assert same(cp.read(at=3), 3)
        cp.write({"other": np.arange(100_000) * 3}, step=5, durable=True)
        cp.sweep()
        assert not set(before) & set(shelf.packs())
