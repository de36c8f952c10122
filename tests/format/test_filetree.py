import copy
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.errors import CorruptError
from limpet.format.filetree import (
    DEPTH_MAX,
    Directory,
    File,
    FileTree,
    Link,
    RawName,
    Root,
    decode_file_tree,
    encode_file_tree,
    is_inward,
    name_bytes,
    to_name,
)

TREE = FileTree(
    Root(0o755, 1),
    [Directory(0, "sub", 0o700, 2), Directory(1, to_name(b"\xff"), 0o555, -3)],
    [File(0, "a", 0o644, 4, 7, 0), File(2, "b", 0o600, 5, 0, None)],
    [Link(2, "c", "../../a")],
)
SIZES = [7]
PLAIN = {
    "root": [0o755, 1],
    "dirs": [[0, "sub", 0o700, 2], [1, {"b": "/w=="}, 0o555, -3]],
    "files": [[0, "a", 0o644, 4, 7, 0], [2, "b", 0o600, 5, 0, None]],
    "links": [[2, "c", "../../a"]],
}


def test_a_tree_is_plain_json_and_comes_back():
    assert encode_file_tree(TREE) == PLAIN
    assert decode_file_tree(PLAIN, SIZES) == TREE


def test_a_single_file_has_no_root():
    tree = FileTree(None, [], [File(0, "a", 0o644, 4, 7, 0)], [])
    assert decode_file_tree(encode_file_tree(tree), SIZES) == tree


@given(st.binary(min_size=1, max_size=20))
def test_every_name_survives(raw):
    assert name_bytes(to_name(raw)) == raw
    assert isinstance(to_name(raw), RawName) == (raw.decode("utf-8", "replace").encode() != raw)


def changed(table, index, column, value):
    payload = copy.deepcopy(PLAIN)
    payload[table][index][column] = value
    return payload


def extended(table, *entries):
    payload = copy.deepcopy(PLAIN)
    payload[table].extend(entries)
    return payload


NAMES = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../x",
    "a/b",
    "a\0b",
    "x" * 256,
    "é" * 128,
    "\ud800",
    {"b": "Li4="},
    {"b": "YS9i"},
]
OUTWARD = ["", "/", "/etc/passwd", "../../..", "../../../a", "a/..", "../a/..", "a\0", "./../../../x", "x" * 4096]
HOSTILE = {
    **{f"dir {name!a:.20}": changed("dirs", 1, 1, name) for name in NAMES},
    **{f"file {name!a:.20}": changed("files", 0, 1, name) for name in NAMES},
    **{f"link {name!a:.20}": changed("links", 0, 1, name) for name in NAMES},
    **{f"link to {target!a:.20}": changed("links", 0, 2, target) for target in OUTWARD},
    "a link up from the root": changed("links", 0, 0, 0),
    "its own parent": changed("dirs", 0, 0, 1),
    "a cycle": changed("dirs", 0, 0, 2),
    "a parent that is not there": changed("files", 0, 0, 3),
    "a link's parent that is not there": changed("links", 0, 0, 3),
    "a negative parent": changed("files", 0, 0, -1),
    "a huge parent": changed("files", 0, 0, 2**70),
    "a set-uid bit": changed("files", 0, 2, 0o4755),
    "a negative mode": changed("dirs", 0, 2, -1),
    "a mode that is a bool": changed("files", 0, 2, True),
    "a mode that is a float": changed("files", 0, 2, 0.5),
    "a time beyond 64 bits": changed("files", 0, 3, 2**63),
    "a time that is not a number": changed("files", 0, 3, float("nan")),
    "another size": changed("files", 0, 4, 8),
    "a negative size": changed("files", 0, 4, -7),
    "a size without a buffer": changed("files", 0, 5, None),
    "a buffer that is not there": changed("files", 0, 5, 1),
    "a buffer from the end": changed("files", 0, 5, -1),
    "a buffer for nothing": changed("files", 1, 5, 0),
    "a buffer twice": extended("files", [0, "again", 0o644, 4, 7, 0]),
    "a file twice": extended("files", [2, "b", 0o600, 5, 0, None]),
    "a file and a directory": extended("files", [0, "sub", 0o600, 5, 0, None]),
    "a file and a link": extended("files", [2, "c", 0o600, 5, 0, None]),
    "a link and a directory": extended("links", [0, "sub", "a"]),
    "a link as a parent of files": extended("files", [-1, "x", 0o600, 5, 0, None]),
    "a field more": changed("files", 0, slice(6, 6), [1]),
    "a field less": changed("files", 0, slice(5, 6), []),
    "a name that is a number": changed("files", 0, 1, 7),
    "a name that is no base64": changed("files", 0, 1, {"b": "%"}),
    "an unknown key": {**PLAIN, "exec": "rm -rf"},
    "a missing table": {key: table for key, table in PLAIN.items() if key != "links"},
    "a file with other entries": {**PLAIN, "root": None},
    "a file that is not there": {"root": None, "dirs": [], "files": [], "links": []},
    "nothing": None,
    "a list": [],
    "text": "../x",
    "too deep": {**PLAIN, "links": [], "dirs": [[index, "d", 0o700, 0] for index in range(DEPTH_MAX + 1)]},
    "very deep": {**PLAIN, "links": [], "dirs": [[index, "d", 0o700, 0] for index in range(100_000)]},
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_tree_is_refused(payload):
    with pytest.raises(CorruptError):
        decode_file_tree(payload, SIZES)


@pytest.mark.parametrize("target", ["a", "./a", "sub//x/", "../x", "../../a", "../..", ".", "...", "a..b/..c"])
def test_a_link_that_stays_inside_is_accepted(target):
    decode_file_tree(changed("links", 0, 2, target), SIZES)


steps = st.lists(st.sampled_from(["..", "a", "b", "c", "d", ".", ""]), max_size=5).map("/".join)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/d/a", "d/d/b"]), steps))
def test_inward_links_never_combine_into_a_way_out(tmp_path_factory, links):
    root = tmp_path_factory.mktemp("links") / "root"
    (root / "d" / "d").mkdir(parents=True)
    inward = {name for name, target in links.items() if is_inward(os.fsencode(target), name.count("/"))}
    for name in inward:
        (root / name).symlink_to(links[name])
    for name in inward:
        assert Path(os.path.realpath(root / name)).is_relative_to(root) or is_loop(root / name)


def is_loop(path):
    """Python resolves a loop by leaving it as it is; the system does not resolve it at all."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
