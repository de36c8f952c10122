"""Whatever a payload says, a restore writes below its target or not at all."""

import os
import shutil

from hypothesis import given, settings
from hypothesis import strategies as st

from limpet.engine.extract import Extraction
from limpet.errors import CorruptError, UsageError

NAMES = ["a", "b", "c", "planted", "outside", "new", "0", "lock", {"b": "/w=="}]
TARGETS = ["a", "b/c", "../a", "..", ".", "planted", "planted/precious", "../planted/new"]
BAD = [
    *("..", ".", "", "/", "../outside", "/tmp", "a/b", "\0", {"b": "Li4="}, {"b": "Li4vb3V0c2lkZQ=="}, {"b": "?"}),
    *("../../outside", "a/../../outside", "planted/..", 0o4755, -1, 2**63, 7, None, [], {}),
]
names = st.sampled_from(NAMES)
modes = st.sampled_from([0o700, 0o755, 0o000, 0o444])


@st.composite
def payloads(draw):
    """Trees that are right (but for names that may clash), and trees with one thing wrong."""
    count = draw(st.integers(0, 3))
    parents = st.integers(0, count)
    contents = draw(st.permutations([[0, None], [1, 0], [2, 1], [2, 2]]))[: draw(st.integers(0, 3))]
    dirs = [[draw(st.integers(0, index)), draw(names), draw(modes), 0] for index in range(count)]
    files = [[draw(parents), draw(names), draw(modes), 0, *content] for content in contents]
    links = [[draw(parents), draw(names), draw(st.sampled_from(TARGETS))] for _ in range(draw(st.integers(0, 2)))]
    rows = [*dirs, *files, *links]
    if rows and draw(st.booleans()):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(BAD))
    return {"root": [0o700, 0], "dirs": dirs, "files": files, "links": links}


SIZES = [1, 2, 2]
OWN_LINKS = ("planted", "a")


def world(root):
    """A folder outside, and a target with things planted in it."""
    outside, target = root / "outside", root / "target"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    target.mkdir()
    (target / "planted").symlink_to(outside)
    (target / "a").symlink_to(outside / "precious")
    (target / "b").hardlink_to(outside / "precious")
    return outside, target


def state(root):
    return {
        path: (path.lstat().st_mode, None if path.is_symlink() or path.is_dir() else path.read_bytes())
        for path in [root, *root.parent.glob("*"), *root.rglob("*")]
        if path.name != "target"
    }


@settings(max_examples=300)
@given(payload=payloads())
def test_nothing_outside_the_target_is_touched(tmp_path_factory, payload):
    root = tmp_path_factory.mktemp("hostile")
    outside, target = world(root)
    before = state(outside)
    try:
        with Extraction(payload, SIZES, target) as extraction:
            for file in extraction.files:
                extraction.write_whole(file.buffer, b"x" * file.size)
            extraction.finish()
    except (CorruptError, UsageError):
        pass
    assert state(outside) == before
    for path in target.rglob("*"):
        assert not path.name.startswith(".limpet-restore")
        assert not path.is_symlink() or path.name in OWN_LINKS or not os.path.isabs(path.readlink())
    shutil.rmtree(root)
