"""Runs whose checkpoints are deltas from those before, made from ordinary ones by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import blake3
import msgspec
import numpy as np
from tests.faulty import Faulty, Shelf, write_over
from tests.reads.crafted import craft_record, read_commit

from limpet import Last
from limpet.format.codec import decode
from limpet.format.deltas import DELTAS, decode_delta, encode_delta
from limpet.format.manifest import ChunkAt, Manifest, encode_manifest, version_for
from limpet.format.record import PackUse


def trained(step: int) -> dict[str, Any]:
    """Weights that change a little from step to step, or every other: in chunks of their own, and small ones that share one."""
    random = np.random.default_rng(0)
    weights = (random.standard_normal(200_000) * 0.02).astype("<f2")
    small = (random.standard_normal(3000) * 0.02).astype("<f2")
    for _ in range(step):
        weights = (weights + random.standard_normal(weights.size) * 1e-4).astype("<f2")
        small = (small + random.standard_normal(small.size) * 1e-4).astype("<f2")
    now_and_then = (np.arange(150_000) % 1000 + step // 2).astype("<u2")
    return {"weights": weights, "now and then": now_and_then, "small": small, "more": small[:500].copy()}


def same(found: Any, step: int) -> bool:
    """Whether ``found`` is, bit for bit, ``trained(step)``."""
    return bool(found.keys() == trained(step).keys()) and all(
        found[name].tobytes() == array.tobytes() for name, array in trained(step).items()
    )


def fill(store: Faulty, count: int, **settings: Any) -> None:
    """Commit the states of steps 0 to ``count - 1`` as checkpoints 2 on, each but the first as deltas from the last."""
    settings = {"compression": "off", "retain": Last(100), **settings}
    with write_over(store, **settings) as cp:
        for step in range(count):
            cp.write(trained(step), step=step, durable=True)
    shelf = Shelf(store.store)
    for seq in range(3, count + 2):
        chain(shelf, seq)


def content(shelf: Shelf, manifest: Manifest, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The raw bytes of a chunk or base, as the format says that they are found."""
    at = [*manifest.chunks, *manifest.bases][index]
    stored = shelf.objects[manifest.packs[at.pack]][at.offset : at.offset + at.stored_bytes]
    raw = np.empty(at.raw_bytes, np.uint8)
    if at.codec in DELTAS:
        decode_delta(at.codec, stored, content(shelf, manifest, dict(manifest.deltas)[index]), raw)
    else:
        decode(at.codec, stored, raw)
    return raw


@dataclass(eq=False)
class Link:
    """A chunk, the pack that it lies in, and what it is a delta of."""

    at: ChunkAt
    pack: str
    base: Link | None

    @property
    def depth(self) -> int:
        return 0 if self.base is None else self.base.depth + 1


def links(manifest: Manifest) -> list[Link]:
    """The chunks of a checkpoint."""
    entries, base_of = [*manifest.chunks, *manifest.bases], dict(manifest.deltas)
    made: dict[int, Link] = {}
    for index in reversed(range(len(entries))):
        base = made[base_of[index]] if index in base_of else None
        made[index] = Link(entries[index], manifest.packs[entries[index].pack], base)
    return [made[index] for index in range(len(manifest.chunks))]


def with_chunks(manifest: Manifest, tops: list[Link]) -> Manifest:
    """``manifest``, of these chunks."""
    bases: dict[Link, None] = {}
    for link in tops:
        while link.base is not None:
            link = link.base
            bases[link] = None
    every = [*tops, *sorted(bases, key=lambda link: -link.depth)]
    packs = list(dict.fromkeys(link.pack for link in every))
    at = [msgspec.structs.replace(link.at, pack=packs.index(link.pack)) for link in every]
    deltas = [(index, every.index(link.base)) for index, link in enumerate(every) if link.base is not None]
    return msgspec.structs.replace(
        manifest,
        version=version_for(deltas),
        chunks=at[: len(tops)],
        packs=packs,
        bases=at[len(tops) :],
        deltas=deltas,
    )


def chain(shelf: Shelf, seq: int) -> None:
    """Make the chunks of checkpoint ``seq`` deltas of those of the checkpoint before it; what is as it was is referred to."""
    _, base_commit, base = read_commit(shelf, seq - 1)
    record, commit, manifest = read_commit(shelf, seq)
    key = commit.manifest.key
    pack, tops = b"", []
    for index, (chunk, link) in enumerate(zip(manifest.chunks, links(base), strict=True)):
        if chunk.id == link.at.id:
            tops.append(link)
            continue
        stored = encode_delta(content(shelf, manifest, index), content(shelf, base, index), width=2)
        assert stored is not None
        digest = blake3.blake3(stored).hexdigest()
        at = ChunkAt(chunk.id, chunk.raw_bytes, "delta2", 0, len(pack), len(stored), digest)
        tops.append(Link(at, key, link))
        pack += stored
    made = with_chunks(manifest, tops)
    stored, digest = encode_manifest(made)
    shelf.replace(key, pack + stored)
    sizes = {use.key: use.size for use in base_commit.packs} | {key: len(pack) + len(stored)}
    changed = msgspec.structs.replace(
        commit,
        manifest=msgspec.structs.replace(commit.manifest, offset=len(pack), size=len(stored), digest=digest),
        packs=[PackUse(name, sizes[name]) for name in dict.fromkeys([*made.packs, key])],
        stored_bytes=sum(at.stored_bytes for at in {*made.chunks, *made.bases}) + len(stored),
    )
    craft_record(shelf, record, commit=changed)
