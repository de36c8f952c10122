"""Which chunks a save may refer to: those of live manifests, of sound packs, and not for ever."""

from __future__ import annotations

import msgspec
import pytest

from limpet.engine import index as index_module
from limpet.engine.index import ChunkIndex
from limpet.format.layout import PackName, pack_key
from limpet.format.manifest import ChunkAt, Manifest


def pack(save: int) -> str:
    return pack_key(PackName(1, save, "0000aaaa", 0, 0))


def manifest(*chunks: tuple[str, int, int]) -> Manifest:
    """Of chunks (id, number of the save whose pack holds it, stored bytes); save 0 is the record itself."""
    packs = list(dict.fromkeys(pack(save) if save else "" for _, save, _ in chunks))
    return Manifest(
        version=1,
        run="r",
        save="1/1",
        tree=None,
        buffers=[],
        chunks=[
            ChunkAt(id_, 10, "raw", packs.index(pack(save) if save else ""), 0, size) for id_, save, size in chunks
        ],
        packs=packs,
    )


def add(index: ChunkIndex, seq: int, *chunks: tuple[str, int, int]) -> None:
    index.add(seq, manifest(*chunks), {pack(save): 100 for _, save, _ in chunks if save})


def test_chunks_of_live_manifests_are_offered() -> None:
    index = ChunkIndex()
    add(index, 2, ("a", 1, 10))
    add(index, 3, ("b", 2, 10))
    assert {id_: known.pack for id_, known in index.offer().items()} == {"a": pack(1), "b": pack(2)}


def test_of_two_places_the_newer_manifest_s_is_offered() -> None:
    index = ChunkIndex()
    add(index, 2, ("a", 1, 10))
    add(index, 3, ("a", 2, 10))
    assert index.offer()["a"].pack == pack(2)


def test_what_left_the_live_set_is_not_offered() -> None:
    index = ChunkIndex()
    add(index, 2, ("a", 1, 10))
    add(index, 3, ("b", 2, 10))
    index.keep_only({3})
    assert set(index.offer()) == {"b"}


def test_what_travels_in_a_record_is_not_offered() -> None:
    index = ChunkIndex()
    add(index, 2, ("a", 0, 10), ("b", 1, 10))
    assert set(index.offer()) == {"b"}


def test_nothing_of_a_damaged_pack_is_offered() -> None:
    index = ChunkIndex()
    add(index, 2, ("a", 1, 10), ("b", 2, 10))
    index.discard_pack(pack(1))
    assert set(index.offer()) == {"b"}
    add(index, 3, ("a", 1, 10))
    assert set(index.offer()) == {"b"}


def test_only_the_newest_manifests_are_searched() -> None:
    index = ChunkIndex()
    for seq in range(2, 9):
        add(index, seq, (f"chunk {seq}", seq, 10))
    assert set(index.offer()) == {"chunk 6", "chunk 7", "chunk 8"}


def test_an_offer_does_not_change_any_more() -> None:
    index = ChunkIndex()
    add(index, 2, ("a", 1, 10))
    offer = index.offer()
    index.keep_only(set())
    assert set(offer) == {"a"}


@pytest.mark.parametrize("live_at_once", [1, 2, 3])
def test_a_chunk_is_written_anew_after_so_many_commits(monkeypatch: pytest.MonkeyPatch, live_at_once: int) -> None:
    monkeypatch.setattr(index_module, "_SHARES_MAX", 4)
    index = ChunkIndex()
    save, written = 1, []
    for seq in range(2, 16):
        known = index.offer().get("a")
        if known is None:
            save, written = seq, [*written, seq]
        add(index, seq, ("a", save, 10))
        index.keep_only(set(range(seq - live_at_once + 1, seq + 1)))
    assert written == [2, 7, 12]


def test_a_save_refers_to_so_many_packs_at_most_and_gives_up_the_smallest() -> None:
    index = ChunkIndex()
    count = index_module._PACKS_MAX + 10
    add(index, 2, *((f"chunk {save}", save, save) for save in range(1, count + 1)))
    offered = index.offer()
    assert len({known.pack for known in offered.values()}) == index_module._PACKS_MAX
    assert "chunk 10" not in offered
    assert "chunk 11" in offered


def delta_manifest(*chain: tuple[str, int]) -> Manifest:
    """Of one chunk (id, number of the save whose pack holds it) and its bases, down to what is stored in full."""
    made = manifest(*((id_, save, 10) for id_, save in chain))
    deltas = [(index, index + 1) for index in range(len(chain) - 1)]
    return msgspec.structs.replace(made, version=2, chunks=made.chunks[:1], bases=made.chunks[1:], deltas=deltas)


def add_chain(index: ChunkIndex, seq: int, *chain: tuple[str, int]) -> None:
    index.add(seq, delta_manifest(*chain), {pack(save): 100 for _, save in chain})


def test_a_delta_is_offered_with_all_that_it_is_read_from() -> None:
    index = ChunkIndex()
    add_chain(index, 2, ("c", 3), ("b", 2), ("a", 1))
    offered = index.offer()
    assert [link.id for link in offered["c"].chain] == ["c", "b", "a"]
    assert {id_: known.depth for id_, known in offered.items()} == {"a": 0, "b": 1, "c": 2}
    assert index.packs() == {pack(1): 100, pack(2): 100, pack(3): 100}


def test_a_delta_from_a_damaged_pack_s_chunk_is_not_offered() -> None:
    index = ChunkIndex()
    add_chain(index, 2, ("c", 3), ("b", 2), ("a", 1))
    index.discard_pack(pack(2))
    assert set(index.offer()) == {"a"}


def test_a_delta_whose_base_was_shared_too_often_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_SHARES_MAX", 2)
    index = ChunkIndex()
    for seq in (2, 3):
        add_chain(index, seq, (f"b{seq}", seq), ("a", 1))
    before = set(index.offer())
    add_chain(index, 4, ("b4", 4), ("a", 1))
    assert (before >= {"a", "b2", "b3"}, {"a", "b4"}.isdisjoint(index.offer())) == (True, True)


def test_a_delta_is_offered_only_with_all_of_its_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_PACKS_MAX", 2)
    index = ChunkIndex()
    add_chain(index, 2, ("c", 3), ("b", 2), ("a", 1))
    offered = index.offer()
    assert (len(offered) >= 1, "c" in offered) == (True, False)
    assert len({link.pack for known in offered.values() for link in known.chain}) <= 2
