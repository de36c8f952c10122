"""A checkpoint that lies is refused before anything is allocated, written or run."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faulty import Faulty, Shelf, read_over, write_over
from tests.reads.crafted import Change, craft, craft_bytes, craft_record, read_commit
from tests.reads.states import big, fill

from limpet import (
    CorruptError,
    DamagedCheckpointWarning,
    FormatError,
    LimpetError,
    MismatchError,
    NotFoundError,
    UsageError,
)
from limpet.format.layout import log_key
from limpet.format.manifest import MANIFEST_BYTES_MAX
from limpet.format.record import decode_record

TB = 1 << 40


@pytest.fixture
def one(store: Faulty, shelf: Shelf) -> Shelf:
    """A run with one checkpoint, seq 2: one array of 80,000 bytes."""
    with write_over(store, compression="off") as cp:
        cp.write({"weights": np.arange(10_000, dtype=np.float64)}, step=0, durable=True)
    return shelf


def refuse(store: Faulty, error: type[LimpetError] = CorruptError, match: str | None = None) -> LimpetError:
    """Read the newest checkpoint; it must be refused, and quickly so."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with read_over(store) as run, pytest.raises(error, match=match) as caught:
        run.read(strict=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, "memory was taken for it"  # KiB
    return caught.value


def sized(**changes: Any) -> Change:
    def change(fields: dict[str, Any]) -> None:
        fields.update(changes)

    return change


def test_a_manifest_that_claims_more_than_its_chunks_hold(store: Faulty, one: Shelf) -> None:
    craft(one, 2, lambda fields: fields["buffers"][0].__setitem__(2, 10 * TB), sized(raw_bytes=10 * TB))
    refuse(store, match="lies outside the chunks")


def test_a_state_larger_than_the_memory_is_refused_before_it_is_allocated(store: Faulty, one: Shelf) -> None:
    """R9: 10 TB in chunks that each look possible."""
    chunk_bytes = 64 << 20
    count = 10 * TB // chunk_bytes

    def change(fields: dict[str, Any]) -> None:
        chunk = fields["chunks"][0]
        fields["chunks"] = [[chunk[0], chunk_bytes, "zstd", 0, 0, 100, "0" * 64]] * count
        fields["buffers"] = [[0, 0, 10 * TB]]
        fields["tree"] = _with_shape(fields["tree"], 10 * TB // 8)

    craft(one, 2, change, sized(raw_bytes=10 * TB))
    refuse(store, UsageError, match="bytes of memory")


def _with_shape(tree: Any, size: int) -> Any:
    """The tree with every shape made ``[size]``."""
    text = msgspec.json.encode(tree).replace(b"[10000]", f"[{size}]".encode())
    return msgspec.json.decode(text)


def test_a_part_of_a_state_larger_than_the_memory_can_be_read(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    with write_over(store) as cp:
        cp.write({"large": np.zeros(1 << 20), "small": np.arange(5)}, step=0, durable=True)
    monkeypatch.setattr("limpet.finding.available_bytes", lambda: 1 << 20)
    with read_over(store) as run:
        with pytest.raises(UsageError, match="memory"):
            run.read()
        assert run.read(select="small").tolist() == [0, 1, 2, 3, 4]


def test_a_chunk_above_the_limit(store: Faulty, one: Shelf) -> None:
    craft(one, 2, lambda fields: fields["chunks"][0].__setitem__(1, 1 << 30))
    refuse(store, match="chunk 0 is impossible")


def test_a_frame_that_decodes_to_more_than_it_says(store: Faulty, shelf: Shelf) -> None:
    """A bomb: 256 MiB of zeros in a few KiB, as a chunk of 80,000 bytes."""
    with write_over(store, compression="off") as cp:
        cp.write({"weights": np.arange(10_000, dtype=np.float64)}, step=0, durable=True)
    import blake3

    record, commit, manifest = read_commit(shelf, 2)
    bomb = zstandard.compress(bytes(256 << 20), 19)
    fields = msgspec.to_builtins(manifest)
    old = fields["chunks"][0]
    fields["chunks"][0] = [old[0], old[1], "zstd", 0, 0, len(bomb), blake3.blake3(bomb).hexdigest()]
    at = commit.manifest
    shelf.replace(at.key, bomb)
    commit = msgspec.structs.replace(commit, manifest=msgspec.structs.replace(at, offset=len(bomb)))
    craft_bytes(shelf, record, commit, zstandard.compress(msgspec.json.encode(fields)))
    refuse(store)


def test_a_manifest_that_is_a_bomb(store: Faulty, one: Shelf) -> None:
    record, commit, _ = read_commit(one, 2)
    craft_bytes(one, record, commit, zstandard.compress(bytes(MANIFEST_BYTES_MAX + 1)))
    refuse(store, match="at most")


def test_a_manifest_that_does_not_say_its_size(store: Faulty, one: Shelf) -> None:
    record, commit, _ = read_commit(one, 2)
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    craft_bytes(one, record, commit, stream.compress(bytes(1000)) + stream.flush())
    refuse(store)


@pytest.mark.parametrize("extra", [b"tail", zstandard.compress(b"another frame")])
def test_a_manifest_with_something_behind_it(store: Faulty, one: Shelf, extra: bytes) -> None:
    record, commit, manifest = read_commit(one, 2)
    craft_bytes(one, record, commit, zstandard.compress(msgspec.json.encode(manifest)) + extra)
    refuse(store)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"version":1}', b"[" * 100_000, b'{"version":"1"}']
)
def test_a_manifest_that_is_something_else(store: Faulty, one: Shelf, content: bytes) -> None:
    record, commit, _ = read_commit(one, 2)
    craft_bytes(one, record, commit, zstandard.compress(content))
    refuse(store)


def test_a_manifest_of_a_newer_format_names_both_versions(store: Faulty, one: Shelf) -> None:
    """R10"""
    craft(one, 2, sized(version=4, surprise=True))
    error = refuse(store, FormatError, match=r"version 4; this limpet reads up to 2")
    assert "newer limpet" in error.hint
    with pytest.raises(FormatError, match="version 4"), write_over(store) as cp:
        cp.resume(initial=0)


def test_a_record_of_a_newer_format_names_both_versions(store: Faulty, one: Shelf) -> None:
    record, _ = decode_record(one.objects[log_key(3)], 3)
    craft_record(one, record, version=5)
    refuse(store, FormatError, match=r"version 5; this limpet reads up to 1")
    before = one.objects
    with pytest.raises(FormatError, match="version 5"), write_over(store):
        pass
    assert one.objects == before


def test_a_live_record_of_a_newer_format_is_no_damage(store: Faulty, shelf: Shelf) -> None:
    fill(store, 3)
    record, _ = decode_record(shelf.objects[log_key(3)], 3)
    craft_record(shelf, record, version=5)
    with pytest.raises(FormatError, match="version 5"), read_over(store) as run:
        run.read()


def test_a_pack_name_that_leads_elsewhere(store: Faulty, one: Shelf) -> None:
    craft(one, 2, sized(packs=["../../../etc/passwd"]))
    refuse(store, match="does not name")
    assert not any("etc" in key for _, key in store.calls)


def test_a_manifest_of_another_run(store: Faulty, one: Shelf) -> None:
    craft(one, 2, sized(run="ff" * 16))
    refuse(store, match="another run")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["chunks"][0].__setitem__(4, -1),
        lambda fields: fields["chunks"][0].__setitem__(4, 1 << 40),
        lambda fields: fields["chunks"][0].__setitem__(3, 5),
        lambda fields: fields["chunks"][0].__setitem__(3, -1),
        lambda fields: fields["chunks"][0].__setitem__(5, 0),
        lambda fields: fields["chunks"][0].__setitem__(0, "zz" * 32),
        lambda fields: fields["chunks"][0].__setitem__(2, "exec"),
        lambda fields: fields["buffers"][0].__setitem__(0, -1),
        lambda fields: fields["buffers"][0].__setitem__(0, 1),
        lambda fields: fields["buffers"][0].__setitem__(1, 8),
        lambda fields: fields["buffers"][0].__setitem__(2, 79_999),
        lambda fields: fields["buffers"].append([0, 0, 80_000]),
        lambda fields: fields.__setitem__("buffers", []),
        lambda fields: fields.__setitem__("chunks", []),
        lambda fields: fields.__setitem__("packs", []),
        lambda fields: fields.__setitem__("tree", ["nd", "<f8", [10_000], 7]),
        lambda fields: fields.__setitem__("tree", ["nd", "<f8", [10_001], 0]),
        lambda fields: fields.__setitem__("tree", ["nd", "<f8", [-1], 0]),
        lambda fields: fields.__setitem__("tree", ["nd", "O", [10_000], 0]),
        lambda fields: fields.__setitem__("tree", ["os.system", "true"]),
        lambda fields: fields.__setitem__("tree", {"a": 1}),
    ],
)
def test_a_manifest_that_contradicts_itself(store: Faulty, one: Shelf, change: Change) -> None:
    craft(one, 2, change)
    refuse(store, LimpetError)


def test_a_manifest_of_another_checkpoint(store: Faulty, shelf: Shelf) -> None:
    """Valid in itself, and not what was committed under this seq."""
    fill(store, 2)
    record, _, _ = read_commit(shelf, 3)
    _, other, _ = read_commit(shelf, 2)
    craft_record(shelf, record, commit=msgspec.structs.replace(other, raw_bytes=7))
    refuse(store, match="sizes")


def test_a_live_record_that_commits_nothing(store: Faulty, one: Shelf) -> None:
    record, _ = decode_record(one.objects[log_key(3)], 3)
    craft_record(one, record, live=[(1, 2)])
    with read_over(store) as run:
        assert run.read()["weights"].shape == (10_000,)
        with pytest.warns(DamagedCheckpointWarning, match="commits nothing"):
            assert [info.seq for info in run.checkpoints()] == [2]


@pytest.mark.parametrize("name", ["../outside", "/tmp/limpet-outside", "a/../../outside", "a/b", "", ".", "..", "a\0b"])
def test_a_restored_name_that_leaves_the_target(store: Faulty, shelf: Shelf, tmp_path: Path, name: str) -> None:
    """R8"""
    source = tmp_path / "source"
    source.mkdir()
    (source / "victim").write_bytes(os.urandom(20_000))
    with write_over(store) as cp:
        cp.save(source, durable=True)

    def change(fields: dict[str, Any]) -> None:
        text = msgspec.json.encode(fields["tree"]).decode()
        assert '"victim"' in text
        fields["tree"] = msgspec.json.decode(text.replace('"victim"', msgspec.json.encode(name).decode()))

    craft(shelf, 2, change)
    target = tmp_path / "target"
    with read_over(store) as run, pytest.raises(LimpetError):
        run.restore(target)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["source"], ["source", "target"])
    assert not list(target.rglob("*"))
    assert not Path("/tmp/limpet-outside").exists()


def test_a_restored_link_that_leaves_the_target(store: Faulty, shelf: Shelf, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(os.urandom(20_000))
    (source / "link").symlink_to("data")
    with write_over(store) as cp:
        cp.save(source, durable=True)

    def change(fields: dict[str, Any]) -> None:
        tree = msgspec.json.encode(fields["tree"])
        position = tree.index(b'"link"')
        bent = tree[:position] + tree[position:].replace(b'"data"', b'"../../outside"')
        if bent == tree:
            bent = tree[:position].replace(b'"data"', b'"../../outside"') + tree[position:]
        assert bent != tree
        fields["tree"] = msgspec.json.decode(bent)

    craft(shelf, 2, change)
    with read_over(store) as run, pytest.raises(LimpetError):
        run.restore(tmp_path / "target")
    assert not (tmp_path / "outside").exists()


def test_a_mismatch_names_leaf_shapes_and_dtypes_and_changes_nothing(store: Faulty) -> None:
    """R11"""
    with write_over(store) as cp:
        cp.write({"w": np.zeros((3, 4), np.float32), "b": np.zeros(4, np.float32), "n": 1}, durable=True)
    into = {"w": np.ones((4, 3), np.float32), "b": np.ones(4, np.float16), "n": 1}
    with read_over(store) as run, pytest.raises(MismatchError) as caught:
        run.read(into=into)
    text = str(caught.value)
    for part in ("w", "(3, 4)", "(4, 3)", "b", "float32", "float16"):
        assert part in text
    assert into["w"].all()
    assert into["b"].all()


def test_a_mismatch_names_missing_and_additional_leaves(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write({"old": 1, "both": 2}, durable=True)
    with read_over(store) as run, pytest.raises(MismatchError, match=r"(?s)old.*new|new.*old"):
        run.read(into={"new": 1, "both": 2})


def test_a_mismatch_is_no_damage_and_does_not_fall_back(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write({"w": np.zeros(4)}, step=0, durable=True)
        cp.write({"w": np.zeros(5)}, step=1, durable=True)
        with pytest.raises(MismatchError):
            cp.resume(into={"w": np.zeros(4)})


def test_a_leaf_that_is_not_there_is_not_found_and_says_what_is_near(store: Faulty) -> None:
    with write_over(store) as cp:
        cp.write({"model": {"weight": 1}}, durable=True)
        with pytest.raises(NotFoundError, match=r"model\.weihgt") as caught:
            cp.read(select="model.weihgt")
        assert "model.weight" in caught.value.hint


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_manifest_gives_the_state_or_an_error_of_ours(edits: list[tuple[int, int]]) -> None:
    store, shelf = _template()
    record, commit, manifest = read_commit(shelf, 2)
    text = bytearray(msgspec.json.encode(manifest))
    for at, value in edits:
        text[at % len(text)] = value
    craft_bytes(shelf, record, commit, zstandard.compress(bytes(text)))
    with read_over(store) as run:
        try:
            run.read(strict=True)
        except LimpetError:
            return


_made: list[dict[str, bytes]] = []


def _template() -> tuple[Faulty, Shelf]:
    """A fresh store with the same small run in it."""
    store = Faulty()
    if not _made:
        with write_over(store) as cp:
            cp.write({**big(0), "nested": [1, (2.5, None), {"x": b"y"}]}, step=0, durable=True)
        _made.append(Shelf(store.store).objects)
    shelf = Shelf(store.store)
    for key, data in _made[0].items():
        shelf.replace(key, data)
    return store, shelf
