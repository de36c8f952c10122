"""Links, pipes, sockets and devices in a run's folder: refused at once, and nothing outside of the root is touched.

Whoever may write into the folder can plant them, at every place that the store opens; reading and writing
are both tried.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.faulty import write_over
from tests.powerloss.lives import same, state_of
from tests.stores.contract import parts_of

import limpet
from limpet import LimpetError
from limpet.stores.local import LocalStore

PLACES = [
    "limpet.json",
    "writer.lock",
    "reserve",
    "tmp",
    "log",
    "log/0000000000000",
    "log/0000000000000/0000000000000002.json",
    "log/0000000000000/0000000000000004.json",  # the one that the next attempt would create
    "data",
    "data/0000000000000001",
    "PACK",
    "child",
]
RECORD = "log/0000000000000/0000000000000002.json"
PATIENCE_SECONDS = 20


def link_to_a_file(place: Path, outside: Path) -> None:
    place.symlink_to(outside / "secret")


def link_to_a_folder(place: Path, outside: Path) -> None:
    place.symlink_to(outside)


def dangling_link(place: Path, outside: Path) -> None:
    place.symlink_to(outside / "nothing")


def pipe(place: Path, outside: Path) -> None:
    os.mkfifo(place)


def socket_file(place: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(place.parent)  # their paths are short
        try:
            server.bind(place.name)
        finally:
            os.chdir(here)


def device(place: Path, outside: Path) -> None:
    try:
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root may make devices")


def hard_link(place: Path, outside: Path) -> None:
    os.link(outside / "secret", place)


QUICK = [link_to_a_folder, pipe]
KINDS = [*QUICK, link_to_a_file, dangling_link, socket_file, device, hard_link]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing of ours may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    before = (folder / "secret").stat()
    yield folder
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_bytes() == b"secret"
    assert (folder / "secret").stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run with one state, in a pack."""
    root = tmp_path / "run"
    with write_over(LocalStore(root)) as writer:
        writer.write(state_of(2), step=2, durable=True)
    return root


def plant(root: Path, at: str, kind: Callable[[Path, Path], None], outside: Path) -> None:
    """Put something foreign where the store expects its own."""
    place = next(root.rglob("*.pack")) if at == "PACK" else root / at
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    kind(place, outside)


def outcome(call: Callable[[], Awaitable[object]]) -> object:
    """What it gives or raises, before long."""
    try:
        return within_patience(call)
    except LimpetError as error:
        return error


def within_patience(call: Callable[[], Awaitable[object]]) -> object:
    async def bounded() -> object:
        return await asyncio.wait_for(call(), PATIENCE_SECONDS)

    return asyncio.run(bounded())


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=kind.__name__, marks=() if kind in QUICK else pytest.mark.heavy) for kind in KINDS],
)
@pytest.mark.parametrize("at", PLACES)
def test_what_is_planted_in_a_run_is_neither_followed_nor_waited_for(
    root: Path, outside: Path, at: str, kind: Callable[[Path, Path], None]
) -> None:
    plant(root, at, kind, outside)

    async def read() -> object:
        run = limpet.open(root)
        try:
            return await run.read_async()
        finally:
            await run.close_async()

    async def write() -> None:
        async with write_over(LocalStore(root)) as writer:
            await writer.write_async(state_of(4), step=4, durable=True)
            await writer.child("worker").write_async(state_of(6), step=6, durable=True)
            await writer.sweep_async()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        before = outcome(read)
        outcome(write)
        after = outcome(read)
    for found, steps in ((before, (2,)), (after, (2, 4))):
        assert isinstance(found, LimpetError) or any(same(found, step) for step in steps)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not hard_link], ids=lambda kind: kind.__name__)
def test_every_call_of_the_store_refuses_what_is_planted(
    root: Path, outside: Path, kind: Callable[[Path, Path], None]
) -> None:
    for at in ("log", "log/0000000000000", RECORD):
        kept = root.with_name(f"kept-{at.count('/')}")
        shutil.copytree(root, kept)
        plant(kept, at, kind, outside)
        below = "log/0000000000000/0000000000000009.json" if at != RECORD else RECORD

        async def calls(kept: Path = kept, below: str = below, at: str = at) -> None:
            store = LocalStore(kept)
            refused = [
                lambda: store.get(RECORD),
                lambda: store.get_range(RECORD, 0, 1),
                lambda: store.read_into(RECORD, 0, [memoryview(bytearray(1))]),
                lambda: store.settle(RECORD),
                lambda: store.create(below, b"mine"),
            ]
            if at != RECORD:
                refused += [lambda: store.put(below, parts_of([b"mine"])), lambda: store.delete(RECORD)]
            for call in refused:
                with pytest.raises(LimpetError):
                    await asyncio.wait_for(call(), PATIENCE_SECONDS)
            assert not any("secret" in entry.key or entry.key == RECORD for entry in await store.list(""))
            await store.close()

        asyncio.run(calls())


def test_a_lock_that_has_another_name_outside_is_locked_but_not_written_to(root: Path, outside: Path) -> None:
    plant(root, "writer.lock", hard_link, outside)
    with write_over(LocalStore(root)) as writer:
        assert same(writer.read(), 2)
        with pytest.raises(limpet.HeldError):
            write_over(LocalStore(root)).__enter__()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_files_and_folders_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with write_over(LocalStore(tmp_path / "above" / "run")) as writer:
            writer.write(state_of(2), step=2, durable=True)
            writer.write(state_of(1), step=1, durable=True)
            writer.child("worker").write(state_of(2), durable=True)
    finally:
        os.umask(before)
    for path in (tmp_path / "above").rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert (path, stat.S_IMODE(path.stat().st_mode)) == (path, expected)
