"""Captures and restores without a store: what one hands over, the other takes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec
import pytest

from limpet.engine.capture import Spool, read_slice
from limpet.engine.extract import Extraction
from limpet.format.buffers import FileSlice
from limpet.types import Files

NOBODY = 65534


class Saved:
    """The payload and the buffers of one captured leaf."""

    def __init__(self, spool, leaf):
        self.spool = spool
        self.buffers = []
        payload = spool.capture(leaf, self._add)
        self.payload = msgspec.json.decode(msgspec.json.encode(payload))

    def _add(self, buffer):
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    @property
    def sizes(self):
        return [buffer.nbytes for buffer in self.buffers]

    @property
    def spooled(self):
        return [buffer.data for buffer in self.buffers if isinstance(buffer.data, FileSlice)]

    def content(self, index):
        data = self.buffers[index].data
        return bytes(read_slice(data, 0, data.size)) if isinstance(data, FileSlice) else data

    def restore(self, target=None):
        with Extraction(self.payload, self.sizes, target) as extraction:
            for file in extraction.files:
                extraction.write_whole(file.buffer, self.content(file.buffer))
            return extraction.finish()


@pytest.fixture
def spool_folder(tmp_path):
    folder = tmp_path / "spools"
    folder.mkdir()
    return folder


@pytest.fixture
def spool(spool_folder):
    spool = Spool([spool_folder])
    yield spool
    spool.close()
    assert list(spool_folder.iterdir()) == []


@pytest.fixture
def capture(spool):
    return lambda path: Saved(spool, Files(path))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def listing(root):
    """Every entry below ``root``: its kind, permission bits and content, links not followed."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        name = os.fsencode(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", os.fsencode(path.readlink()))
        elif path.is_dir():
            found[name] = ("dir", path.stat().st_mode & 0o7777)
        else:
            found[name] = ("file", path.stat().st_mode & 0o7777, path.read_bytes())
    return found


@pytest.fixture(name="listing")
def _listing():
    return listing


@pytest.fixture
def private_folder():
    """A folder of a user whom permission bits hold back."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_its_user():
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def unprivileged():
    """A context in which permission bits hold this process back."""
    return as_its_user


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "limpet-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
