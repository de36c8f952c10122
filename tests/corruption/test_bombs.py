"""Small bytes that claim to be large ones: refused before memory is taken for them (row 17).

python-zstandard allocates what a frame states, whatever maximum it is given. Each bomb is read in a process of its own,
whose highest memory is measured.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import blake3
import msgspec
import numpy as np
import pytest
import zstandard
from tests.corruption.worlds import NEWEST, make, store_of
from tests.faulty import Shelf, read_over
from tests.reads.crafted import craft_bytes, read_commit
from tests.support import run_script

from limpet import CorruptError
from limpet.format.codec import decode, encode
from limpet.format.manifest import decode_manifest

GROWTH_BYTES = 64 << 20
MAGIC = zstandard.FRAME_HEADER
RAW_BYTES = 6000
"""What the chunk of the world "raw" holds."""


def _zeros(size: int, **parameters: int) -> bytes:
    """A sound frame of so many zeros."""
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(**{"compression_level": 1, **parameters})
    )
    stream, piece = compressor.compressobj(size=size), bytes(1 << 20)
    found = [stream.compress(piece[: min(len(piece), size - done)]) for done in range(0, size, len(piece))]
    return b"".join([*found, stream.flush()])


def _header(size: int, *, window_log: int | None = None, dictionary: int = 0) -> bytes:
    """The beginning of a frame that claims ``size`` bytes, and one last, empty block (RFC 8878, 3.1.1)."""
    flags = 3 << 6 | (0 if window_log else 1 << 5) | (3 if dictionary else 0)
    window = b"" if window_log is None else bytes([(window_log - 10) << 3])
    return (
        MAGIC
        + bytes([flags])
        + window
        + (struct.pack("<I", dictionary) if dictionary else b"")
        + struct.pack("<Q", size)
        + b"\x01\0\0"
    )


def _streamed(size: int) -> bytes:
    """A frame that does not say its size."""
    stream, piece = zstandard.ZstdCompressor(write_content_size=False).compressobj(), bytes(min(size, 1 << 20))
    return b"".join([*(stream.compress(piece) for _ in range(0, size, len(piece))), stream.flush()])


def _skippable(size: int = 100) -> bytes:
    return struct.pack("<II", 0x184D2A50, size) + bytes(size)


BOMBS: dict[str, Callable[[], bytes]] = {
    "200 MB from 6 KB": lambda: _zeros(200 << 20),
    "a content size of 1 TiB": lambda: _header(1 << 40),
    "a content size of 2**64 - 1": lambda: _header(2**64 - 1),
    "a content size of 2**63": lambda: _header(1 << 63),
    "a window of 2 GiB": lambda: _header(RAW_BYTES, window_log=31),
    "a window of 2 TiB": lambda: _header(RAW_BYTES, window_log=41),
    "a dictionary": lambda: _header(RAW_BYTES, dictionary=7),
    "frames one after the other": lambda: _zeros(RAW_BYTES // 2) + _zeros(RAW_BYTES // 2),
    "a bomb behind a sound frame": lambda: _zeros(RAW_BYTES) + _zeros(200 << 20),
    "an empty frame and then a bomb": lambda: zstandard.compress(b"") + _zeros(200 << 20),
    "a skippable frame": _skippable,
    "a skippable frame and then a bomb": lambda: _skippable() + _zeros(200 << 20),
    "a skippable frame of 4 GiB": lambda: struct.pack("<II", 0x184D2A5F, 2**32 - 1) + b"x" * 100,
    "no content size": lambda: _streamed(RAW_BYTES),
    "no content size, and a bomb": lambda: _streamed(64 << 20),
    "trailing garbage": lambda: _zeros(RAW_BYTES) + b"garbage",
    "a legacy frame": lambda: struct.pack("<I", 0xFD2FB527) + bytes(100),
    "a claim of less than it holds": lambda: _zeros(200 << 20).replace(struct.pack("<I", 200 << 20), struct.pack("<I", RAW_BYTES)),
    "nothing": lambda: b"x",
    "only the magic number": lambda: MAGIC,
}  # fmt: skip


def refused_as_a_chunk(bomb: bytes) -> str:
    """Plant it as the newest checkpoint's chunk, with right digests; the message of its refusal."""
    store = store_of(make("raw")[0].objects)
    shelf = Shelf(store.store)
    record, commit, manifest = read_commit(shelf, NEWEST)
    fields = msgspec.to_builtins(manifest)
    bomb = bomb[:RAW_BYTES]  # a chunk may not take more than it holds
    fields["chunks"][0][2:] = ["zstd", 0, 0, len(bomb), blake3.blake3(bomb).hexdigest()]
    shelf.replace(commit.manifest.key, bomb)
    at = msgspec.structs.replace(commit.manifest, offset=len(bomb))
    craft_bytes(
        shelf, record, msgspec.structs.replace(commit, manifest=at), zstandard.compress(msgspec.json.encode(fields))
    )
    with read_over(store) as run, pytest.raises(CorruptError) as caught:
        run.read(strict=True)
    return str(caught.value)


def refused_as_a_manifest(bomb: bytes) -> str:
    """Plant it as the newest checkpoint's manifest."""
    store = store_of(make("raw")[0].objects)
    shelf = Shelf(store.store)
    record, commit, _ = read_commit(shelf, NEWEST)
    craft_bytes(shelf, record, commit, bomb)
    with read_over(store) as run, pytest.raises(CorruptError) as caught:
        run.read(strict=True)
    return str(caught.value)


def refused_in_a_plane(bomb: bytes) -> None:
    """Put it in the place of the last plane of a chunk of byte planes."""
    raw = np.random.default_rng(1).normal(0, 0.02, 100_000).astype("f4").view(np.uint8)
    used, stored = encode(raw, codec="planes4")
    assert used == "planes4"
    sizes = struct.unpack_from("<4I", stored)
    data = struct.pack("<4I", *sizes[:3], len(bomb)) + bytes(stored[16 : 16 + sum(sizes[:3])]) + bomb
    with pytest.raises(CorruptError):
        decode("planes4", data, np.empty(raw.size, np.uint8))


def highest_memory(names: list[str]) -> int:
    """In a process of its own: read the bombs everywhere; how much the highest memory grew, in bytes."""
    import resource

    bombs = [BOMBS[name]() for name in names]
    refused_as_a_chunk(b"x")
    refused_as_a_manifest(b"x")
    refused_in_a_plane(b"x")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in bombs:
        for plant in (refused_as_a_chunk, refused_as_a_manifest, refused_in_a_plane):
            plant(bomb)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_no_bomb_takes_more_memory_than_its_chunk_may() -> None:
    """All bombs, as chunks, as manifests and in planes. A manifest may hold 64 MiB, so one of those must not parse."""
    script = """
        import json, sys
        from tests.corruption.test_bombs import BOMBS, highest_memory
        print(json.dumps(highest_memory(json.loads(sys.argv[1]))))
    """
    done = run_script(script, json.dumps(list(BOMBS)), timeout=100.0)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) <= GROWTH_BYTES, f"{json.loads(done.stdout) >> 20} MiB"


@pytest.mark.parametrize(
    ("bomb", "says"),
    [
        ("200 MB from 6 KB", "209715200"),
        ("a content size of 1 TiB", "1099511627776"),
        ("a window of 2 GiB", "window of 2147483648"),
        ("a dictionary", "dictionary 7"),
        ("a skippable frame", "does not begin as a zstd frame does"),
    ],
)
def test_the_refusal_says_what_the_frame_claims(bomb: str, says: str) -> None:
    data = BOMBS[bomb]()
    for message in (refused_as_a_chunk(data), refused_as_a_manifest(data)):
        assert says in message


def test_a_manifest_above_its_limit_is_refused_by_its_header() -> None:
    stored = _zeros((64 << 20) + 1)
    with pytest.raises(CorruptError, match="at most 67108864"):
        decode_manifest(stored, blake3.blake3(stored).hexdigest())
