"""What another version wrote is read if it is older, refused clearly if it is newer, and never swept (row 35)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.corruption.worlds import NEWEST, make, store_of
from tests.faulty import Shelf, read_over, write_over
from tests.golden import make as golden
from tests.reads.crafted import craft, craft_record, read_commit

import limpet
from limpet import CorruptError, FormatError, LimpetError
from limpet.format.layout import FORMAT_KEY, log_key
from limpet.format.record import decode_record

golden.register()
Damage = Callable[[Shelf], None]


def newer_marker(shelf: Shelf) -> None:
    shelf.replace(FORMAT_KEY, shelf.objects[FORMAT_KEY].replace(b'"version":1', b'"version":2'))


def newer_head(shelf: Shelf) -> None:
    record, _ = decode_record(shelf.objects[log_key(6)], 6)
    craft_record(shelf, record, version=2)


def newer_live_record(shelf: Shelf) -> None:
    record, _ = decode_record(shelf.objects[log_key(NEWEST)], NEWEST)
    craft_record(shelf, record, version=2)


def newer_manifest(shelf: Shelf) -> None:
    craft(shelf, NEWEST, lambda fields: fields.update(version=3, surprise={}))


def unknown_codec(shelf: Shelf) -> None:
    def change(fields: dict[str, Any]) -> None:
        chunk = fields["chunks"][0]
        chunk[2], chunk[6] = "lz77", chunk[0]

    craft(shelf, NEWEST, change)


NEWER: dict[str, Damage] = {
    "marker": newer_marker, "head": newer_head, "live record": newer_live_record, "manifest": newer_manifest, "codec": unknown_codec,
}  # fmt: skip


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_wrote_is_refused_and_is_no_damage(what: str) -> None:
    world = make("raw")[0]
    store = store_of(world.objects)
    NEWER[what](Shelf(store.store))
    with read_over(store) as run, pytest.raises(FormatError, match=r"version|limpet") as caught:
        run.read()
    assert "newer" in str(caught.value)


@pytest.mark.parametrize("what", NEWER)
def test_a_writer_deletes_nothing_beside_what_a_newer_version_wrote(what: str) -> None:
    """An old garbage pack lies there too: a sweep that ran would take it."""
    world = make("raw")[0]
    store = store_of(world.objects)
    shelf = Shelf(store.store)
    shelf.replace("data/0000000000000001/00000009-00000000-0000-000.pack", b"garbage of an attempt that died")
    NEWER[what](shelf)
    before = shelf.objects
    refused = False
    try:
        with write_over(store, retain=limpet.Last(1)) as cp:
            cp.write({"new": 1}, durable=True)
            if what not in ("manifest", "codec"):
                cp.sweep()
    except FormatError:
        refused = True
    gone = [key for key in before if key not in shelf.objects]
    if what in ("manifest", "codec"):  # the records say what is kept, and they are known
        assert all(key not in gone for key in shelf.keys("log/"))
    else:
        assert refused
        assert gone == []


def test_an_unknown_kind_of_node_is_refused_by_its_path() -> None:
    world = make("body")[0]
    store = store_of(make("raw")[0].objects)
    craft(Shelf(store.store), NEWEST, lambda fields: fields.update(tree=["hologram", 0]))
    with read_over(store) as run, pytest.raises(LimpetError, match="of an unknown kind"):
        run.read(strict=True)
    assert world.name == "body"


@pytest.mark.parametrize("kind", ["rollback", "", "OPEN"])
def test_a_record_of_an_unknown_kind_is_damage(kind: str) -> None:
    world = make("raw")[0]
    store = store_of(world.objects)
    record, _ = decode_record(world.objects[log_key(6)], 6)
    craft_record(Shelf(store.store), msgspec.structs.replace(record, kind=kind))  # type: ignore[arg-type]
    with read_over(store) as run, pytest.raises(CorruptError, match="log record is damaged"):
        run.read(strict=True)


def test_an_unknown_policy_keeps_a_writer_out_until_it_is_given_one() -> None:
    world = make("raw")[0]
    store = store_of(world.objects)
    shelf = Shelf(store.store)
    record, _ = decode_record(world.objects[log_key(6)], 6)
    craft_record(shelf, record, retain={"kind": "moon", "phase": 3})
    before = shelf.objects
    with read_over(store) as run:
        assert world.holds(run.read(strict=True), 1)
    with pytest.raises(FormatError, match="moon"), write_over(store) as cp:
        cp.write(1, durable=True)
    assert set(before) <= set(shelf.objects)
    with write_over(store, retain=limpet.Last(2)) as cp:
        assert world.holds(cp.resume().state, 1)


def test_the_golden_run_of_the_first_format_is_read_and_written_on(tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(golden.FOLDER, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with limpet.open(place) as run:
        infos = run.checkpoints()
        assert len(infos) >= 3
        for info in infos:
            assert run.verify(at=info) is not None
    with limpet.Checkpointer(place) as cp:
        cp.write({"more": 1}, durable=True)
        assert cp.read() == {"more": 1}
    assert {path: path.read_bytes() for path in before if path.exists() and "log" in path.parts} == {
        path: data for path, data in before.items() if "log" in path.parts
    }


def test_read_commit_finds_what_was_committed() -> None:
    """What the tests above build on."""
    world = make("raw")[0]
    _, commit, manifest = read_commit(Shelf(store_of(world.objects).store), NEWEST)
    assert commit.raw_bytes == sum(chunk.raw_bytes for chunk in manifest.chunks)
