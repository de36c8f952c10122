"""Which manifests with deltas are taken, and which are refused before anything is read because of them."""

import blake3
import msgspec
import pytest
import zstandard

from limpet.errors import CorruptError, FormatError
from limpet.format.deltas import DEPTH_MAX
from limpet.format.manifest import ChunkAt, Manifest, decode_manifest, depth, encode_manifest, version_for

PACK = "data/0000000000000001/00000001-00000001-0000-000.pack"


def chunk(number, codec="delta2", raw_bytes=100):
    stored = raw_bytes if codec == "raw" else 10
    return ChunkAt(f"{number:064x}", raw_bytes, codec, 0, number * 100, stored, "" if codec == "raw" else "0" * 64)


def manifest(chunks, bases=(), deltas=(), **changes):
    made = Manifest(
        version=version_for(deltas),
        run="r",
        save="1/1",
        tree=None,
        buffers=[],
        chunks=[*chunks],
        packs=[PACK],
        bases=[*bases],
        deltas=[*deltas],
    )
    return msgspec.structs.replace(made, **changes)


def read(made):
    return decode_manifest(*encode_manifest(made))


def refused(made, match):
    with pytest.raises(CorruptError, match=match):
        read(made)


def chain(links):
    """One chunk that so many deltas lead to."""
    bases = [*(chunk(number) for number in range(1, links)), chunk(links, "raw")]
    return manifest([chunk(0)], bases, [(number, number + 1) for number in range(links)])


def test_a_manifest_without_deltas_has_the_bytes_that_it_always_had():
    stored, _ = encode_manifest(manifest([chunk(0, "raw")]))
    plain = msgspec.json.decode(zstandard.decompress(stored))
    assert list(plain) == ["version", "run", "save", "tree", "buffers", "chunks", "packs"]
    assert plain["version"] == 1


@pytest.mark.parametrize("links", range(1, DEPTH_MAX + 1))
def test_a_chain_of_any_length_that_is_allowed_comes_back(links):
    made = chain(links)
    assert made.version == 2
    assert read(made) == made
    assert depth(made) == [links]


def test_a_chain_that_is_longer_is_refused():
    refused(chain(DEPTH_MAX + 1), "9 deltas deep; at most 8")


def test_each_chunk_has_a_depth_of_its_own():
    made = manifest(
        [chunk(0, "raw"), chunk(1), chunk(2), chunk(3)],
        [chunk(4), chunk(5, "raw")],
        [(1, 5), (2, 4), (3, 5), (4, 5)],
    )
    assert read(made) == made
    assert depth(made) == [0, 1, 2, 1]


def test_a_chunk_without_deltas_has_no_depth():
    assert depth(manifest([chunk(0, "raw")])) == [0]
    assert depth(manifest([])) == []


ONE, FULL = chunk(0), chunk(1, "raw")
IMPOSSIBLE = {
    "a version without deltas": (manifest([FULL], version=2), "version 2 and 0 deltas"),
    "deltas without the version": (manifest([ONE], [FULL], [(0, 1)], version=1), "version 1 and 1 deltas"),
    "bases without deltas": (manifest([FULL], [chunk(2, "raw")]), "bases that nothing needs"),
    "a base that nothing needs": (manifest([ONE], [FULL, chunk(2, "raw")], [(0, 1)]), "bases that nothing needs"),
    "a delta without a base": (manifest([ONE]), "chunk 0 is a delta of nothing"),
    "a base that is a delta of nothing": (manifest([ONE], [chunk(1)], [(0, 1)]), "chunk 1 is a delta of nothing"),
    "a full chunk with a base": (manifest([chunk(0, "raw")], [FULL], [(0, 1)]), "chunk 0 cannot be a delta of 1"),
    "a base that is not there": (manifest([ONE], [FULL], [(0, 2)]), "chunk 0 cannot be a delta of 2"),
    "a base before the first": (manifest([ONE], [FULL], [(0, -1)]), "cannot be a delta"),
    "a chunk before the first": (manifest([ONE], [FULL], [(-1, 1)]), "cannot be a delta"),
    "a base among the chunks": (manifest([ONE, FULL], [chunk(2, "raw")], [(0, 1)]), "cannot be a delta"),
    "a chunk that is its own base": (manifest([ONE], [chunk(1)], [(0, 1), (1, 1)]), "chunk 1 cannot be a delta of 1"),
    "a circle": (manifest([ONE], [chunk(1), chunk(2)], [(0, 1), (1, 2), (2, 1)]), "chunk 2 cannot be a delta of 1"),
    "two bases": (manifest([ONE], [FULL, chunk(2, "raw")], [(0, 1), (0, 2)]), "chunk 0 cannot be a delta of 2"),
    "pairs out of order": (
        manifest([ONE, chunk(3)], [FULL], [(1, 2), (0, 2)]),
        "chunk 0 cannot be a delta of 2",
    ),
    "a base of another size": (manifest([ONE], [chunk(1, "raw", 101)], [(0, 1)]), "chunk 0 cannot be a delta of 1"),
    "a base in no pack": (
        manifest([ONE], [msgspec.structs.replace(FULL, pack=1)], [(0, 1)]),
        "base 0 is impossible",
    ),
    "a delta without a digest": (
        manifest([msgspec.structs.replace(ONE, stored_digest="")], [FULL], [(0, 1)]),
        "chunk 0 is impossible",
    ),
    "a base of no bytes": (manifest([ONE], [chunk(1, "raw", 0)], [(0, 1)]), "base 0 is impossible"),
}  # fmt: skip


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_is_refused(what):
    refused(*IMPOSSIBLE[what])


def test_a_codec_of_the_future_may_have_a_base():
    """It is a newer format, which its decoder says: no damage."""
    made = manifest([chunk(0, "delta16")], [FULL], [(0, 1)])
    assert read(made) == made


def test_version_3_is_a_newer_format():
    plain = msgspec.json.encode(msgspec.structs.replace(chain(1), version=3))
    stored = zstandard.compress(plain)
    with pytest.raises(FormatError, match="version 3; this limpet reads up to 2"):
        decode_manifest(stored, blake3.blake3(stored).hexdigest())


def test_two_bases_at_one_place_are_refused():
    chunks = [chunk(number) for number in (0, 1)]
    bases = [chunk(2), chunk(2), chunk(3, "raw"), chunk(4, "raw")]
    refused(manifest(chunks, bases, [(0, 2), (1, 3), (2, 4), (3, 5)]), "one place")
