"""Bytes that change on the way to the store are found, with key and offset, by whoever reads them first (row 16)."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from tests.corruption.worlds import STATES, _same
from tests.faulty import Faulty, Shelf, read_over, write_over

from limpet import CorruptError, DamagedCheckpointWarning
from limpet.stores.base import Bytes


class Bending(Faulty):
    """A store whose puts change one bit, at a place that a seed decides; it acknowledges them as if nothing were.

    Attributes:
        seed: of the next change; ``None``: puts are sound.
        bent: the key and the byte that was changed last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seed: int | None = None
        self.bent = ("", -1)

    async def put(self, key: str, parts: AsyncIterable[Sequence[Bytes]], *, size_hint: int = 0) -> int:
        seed, self.seed = self.seed, None
        return await super().put(key, parts if seed is None else self._bend(key, parts, seed), size_hint=size_hint)

    async def _bend(self, key: str, parts: AsyncIterable[Sequence[Bytes]], seed: int) -> AsyncIterator[Sequence[Bytes]]:
        whole = bytearray(b"".join([bytes(buffer) async for part in parts for buffer in part]))
        rng = random.Random(seed)
        at = rng.randrange(len(whole))
        whole[at] ^= 1 << rng.randrange(8)
        self.bent = (key, at)
        yield [bytes(whole)]


@pytest.mark.parametrize("name", [name for name in STATES if name != "body"])
def test_a_bit_that_flipped_before_it_was_stored_is_found_with_key_and_offset(name: str) -> None:
    for seed in range(8):
        store = Bending()
        with write_over(store, compression="zstd") as cp:
            cp.write(STATES[name](0), step=0, durable=True)
            store.seed = seed
            cp.write(STATES[name](1), step=1, durable=True)
            with pytest.raises(CorruptError) as caught:
                cp.verify()
            key, at = store.bent
            assert caught.value.pack == key
            assert key in str(caught.value)
            found = re.search(r"at byte (\d+)", str(caught.value))
            assert found is not None
            assert int(found[1]) <= at
            with pytest.warns(DamagedCheckpointWarning, match="Using checkpoint 2"):
                assert _same(cp.read(), STATES[name](0))
            cp.write(STATES[name](1), step=2, durable=True)  # and what is found damaged is written anew
            assert cp.verify() is not None
            assert _same(cp.read(strict=True), STATES[name](1))


def test_a_chunk_that_was_encoded_wrong_is_found_by_its_id(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the compressor: what is stored has the right digest, and is not what was saved."""
    import limpet.engine.encode as module

    sound = module.codec.encode

    def wrong(raw: Any, **options: Any) -> Any:
        bent = raw.copy()
        bent[5] ^= 1
        return sound(bent, **options)

    with write_over(store, compression="zstd") as cp:
        cp.write(np.arange(20_000), step=0, durable=True)
        monkeypatch.setattr(module.codec, "encode", wrong)
        cp.write(np.arange(20_000) + 7, step=1, durable=True)
        monkeypatch.undo()
        with pytest.raises(CorruptError, match=r"data/.*damaged at byte 0"):
            cp.verify()
        with pytest.warns(DamagedCheckpointWarning):
            assert cp.read().tolist() == list(range(20_000))


def test_a_body_that_changed_before_its_record_was_sealed_is_found(store: Faulty, shelf: Shelf) -> None:
    from tests.reads.crafted import craft_record

    from limpet.format.record import decode_record

    with write_over(store) as cp:
        cp.write("sound", step=0, durable=True)
        cp.write("also sound", step=1, durable=True)
    record, _ = decode_record(shelf.objects[shelf.keys("log/")[2]], 3)
    commit = record.commit
    assert commit is not None
    body = commit.body[:8] + ("A" if commit.body[8] != "A" else "B") + commit.body[9:]
    craft_record(
        shelf,
        record,
        commit=type(commit)(**{**{f: getattr(commit, f) for f in commit.__struct_fields__}, "body": body}),
    )
    with read_over(store) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CorruptError, match="commit record"):
            run.read(strict=True)
        assert run.read() == "sound"
