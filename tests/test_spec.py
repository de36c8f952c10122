"""Format 1 as ``docs/spec.md`` has it: golden files, a reader that knows nothing of limpet, and what the pages say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from tests.golden import make

import limpet
from limpet.engine.staging import Draft
from limpet.format import codec, deltas, generators, layout, manifest, nodes, record
from limpet.format.assemble import _PLANNERS
from limpet.format.inline import _ELEMENT_DECODERS
from limpet.format.leaves import FRACTION_DIGITS_MAX
from limpet.format.marker import decode_marker, encode_marker
from limpet.format.record import decode_record, encode_record
from limpet.format.registry import default_registry
from limpet.format.tree import flatten

ROOT = Path(__file__).parents[1]
SPEC = (ROOT / "docs" / "spec.md").read_text()
GOLDEN = make.FOLDER
LAST_SEQ = 22
PINNED_BYTES = 300_000


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


read_a_run = load_script(ROOT / "docs" / "read_a_run.py")
make.register()


def golden_keys():
    return sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file())


def golden_records():
    return {seq: decode_record((GOLDEN / layout.log_key(seq)).read_bytes(), seq)[0] for seq in range(1, LAST_SEQ + 1)}


def golden_commit(step):
    [found] = [each for each in golden_records().values() if each.commit is not None and each.commit.step == step]
    return found


def golden_manifest(commit):
    at = commit.manifest
    held = (GOLDEN / at.key).read_bytes() if at.key else commit.body_bytes()
    stored = held[at.offset : at.offset + at.size]
    return stored, manifest.decode_manifest(stored, at.digest)


def as_json(node):
    return msgspec.json.decode(msgspec.json.encode(node))


def content(state):
    """A state's structure and its bytes: equal for two states if, and only if, they are equal bit for bit."""
    tree = flatten(state, registry=default_registry)
    copies = []
    for buffer in tree.buffers:
        copy = np.empty(buffer.nbytes, np.uint8)
        buffer.copy_into(copy)
        copies.append(copy.tobytes())
    return as_json(tree.node), copies


def golden_state(step):
    if step == make.TORCH:
        pytest.importorskip("torch", reason="the golden checkpoint holds torch's objects")
        return make.torch_state()
    if step == make.JAX:
        pytest.importorskip("jax", reason="the golden checkpoint holds jax's objects")
        return make.jax_state()
    return make.STATES[step]()


STEPS = [
    pytest.param(step, marks=[pytest.mark.torch] * (step == make.TORCH) + [pytest.mark.jax] * (step == make.JAX))
    for step in range(1, make.SECOND + 1)
    if step != make.DIRECTORY
]


# Golden files, read by today's code


@pytest.mark.parametrize("step", STEPS)
def test_a_golden_checkpoint_is_read_bit_for_bit(step):
    expected = golden_state(step)
    if step == 2:
        expected["stateful"] = expected["stateful"].state_dict()  # without into= there is no live object to load it
    with limpet.open(GOLDEN) as run:
        assert content(run.read(at=step)) == content(expected)


def test_golden_types_come_back():
    with limpet.open(GOLDEN) as run:
        state = run.read(at=2)
    assert type(state["namedtuple"]) is make.Point
    assert type(state["dataclass"]) is make.Settings
    assert state["enums"] == [make.Mode.TRAIN, make.Access.READ | make.Access.WRITE]
    assert state["custom"] == make.Celsius(36.6)


def test_a_golden_state_is_loaded_into_a_live_object():
    meter = make.Meter()
    meter.total = 0
    with limpet.open(GOLDEN) as run:
        assert run.read(at=2, select="stateful", into=meter) is meter
    assert meter.total == 5


def test_the_golden_directory_is_restored(tmp_path):
    expected = make.directory(tmp_path / "expected")
    with limpet.open(GOLDEN) as run:
        restored = run.restore(tmp_path / "restored", at=make.DIRECTORY)
    assert listing(restored) == listing(expected)


def listing(root):
    return {
        path.relative_to(root).as_posix(): path.readlink() if path.is_symlink() else about(path)
        for path in root.rglob("*")
    }


def about(path):
    status = path.stat()
    return status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else None


# A golden run of deltas


def delta_manifests():
    """By step, of its two live checkpoints."""
    found = {}
    for seq in make.DELTA_SEQS:
        commit = decode_record((make.DELTA_FOLDER / layout.log_key(seq)).read_bytes(), seq)[0].commit
        at = commit.manifest
        held = (make.DELTA_FOLDER / at.key).read_bytes() if at.key else commit.body_bytes()
        stored = held[at.offset : at.offset + at.size]
        found[commit.step] = (stored, manifest.decode_manifest(stored, at.digest))
    return found


def test_golden_deltas_are_read_bit_for_bit():
    with limpet.open(make.DELTA_FOLDER) as run:
        assert [info.seq for info in run.checkpoints()] == make.DELTA_SEQS
        for info in run.checkpoints():
            assert run.verify(info).info == info
            assert content(run.read(at=info)) == content(make.trained(info.step))


def test_the_page_reads_golden_deltas():
    assert read_a_run.read(make.DELTA_FOLDER) == plainly(make.trained(make.DELTA_SECOND))


def test_golden_deltas_hold_every_codec_and_chains_of_several_depths():
    _, decoded = delta_manifests()[make.LAST_TRAINED]
    assert {chunk.codec for chunk in decoded.chunks} == set(deltas.DELTAS)
    assert {chunk.codec for chunk in decoded.bases} >= set(codec.PLANES)
    assert manifest.depth(decoded) == [4, 2, 4]


def test_golden_deltas_go_on_in_a_second_attempt_with_the_chains_of_the_first():
    before, after = (delta_manifests()[step][1] for step in (make.LAST_TRAINED, make.DELTA_SECOND))
    assert (after.chunks, after.deltas) == (before.chunks, before.deltas)


def test_golden_manifests_of_deltas_are_encoded_to_the_same_json():
    for stored, decoded in delta_manifests().values():
        assert decoded.version == 2
        again, _ = manifest.encode_manifest(decoded)
        assert zstandard.decompress(again) == zstandard.decompress(stored)


def test_a_golden_run_of_deltas_goes_on(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(make.DELTA_FOLDER, run)
    with limpet.Checkpointer(run) as cp:
        assert content(cp.resume().state) == content(make.trained(make.DELTA_SECOND))
        cp.write({"on": True}, step=6, durable=True)
        assert [info.step for info in cp.checkpoints()] == [make.DELTA_SECOND, 6]
    assert read_a_run.read(run) == {"on": True}


def test_the_golden_run_is_whole():
    with limpet.open(GOLDEN) as run:
        infos = run.checkpoints()
        for info in infos:
            assert run.verify(info).info == info
        assert [info.seq for info in infos] == [*range(3, 16), 20, 21]
        assert [info.step for info in infos] == [*range(1, make.SECOND + 1), None]
        assert [info.step for info in infos if info.pinned] == [1, 4]
        assert {info.time for info in infos} == {make.TIME}
        assert run.read() == "without a step"
        assert run.child(make.CHILD).read() == {"items": 3}


def test_a_golden_run_goes_on(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(GOLDEN, run)
    with limpet.Checkpointer(run) as cp:
        assert cp.resume().state == "without a step"
        cp.write({"on": True}, step=15, durable=True)
        assert len(cp.checkpoints()) == 16  # the recorded policy, Last(50), is still in force
        assert cp.latest.epoch == LAST_SEQ + 1
    assert read_a_run.read(run) == {"on": True}


def test_golden_files_are_small_and_hold_every_kind():
    records = golden_records().values()
    assert sum((GOLDEN / key).stat().st_size for key in golden_keys()) < PINNED_BYTES
    assert {each.kind for each in records} == {"open", "commit", "edit", "close"}
    manifests = [golden_manifest(each.commit)[1] for each in records if each.commit]
    assert {chunk.codec for each in manifests for chunk in each.chunks} == {"raw", "zstd", *codec.PLANES}
    tags = set().union(*(tags_of(each.tree) for each in manifests))
    assert set(_PLANNERS) | {"hex"} == tags | {"pickle"}  # unpickling runs code: no file of ours asks for it


def tags_of(node):
    """Every string that stands first in a list, and so every tag."""
    found = set()
    if isinstance(node, list) and node:
        found |= {node[0]} if isinstance(node[0], str) else set()
        found |= set().union(*(tags_of(child) for child in node))
    return found & (set(_PLANNERS) | {"hex"})


# Golden files, written by today's code


def test_every_golden_key_is_one_that_today_builds():
    def rebuilt(key):
        if (seq := layout.parse_log_key(key)) is not None:
            return layout.log_key(seq)
        if (name := layout.parse_pack_key(key)) is not None:
            return layout.pack_key(name)
        return layout.FORMAT_KEY

    child = layout.child_prefix(make.CHILD) + "/"
    for key in golden_keys():
        below = key.removeprefix(child)
        assert rebuilt(below) == below


def test_golden_records_are_encoded_to_the_same_bytes():
    for seq, found in golden_records().items():
        assert encode_record(found)[0] == (GOLDEN / layout.log_key(seq)).read_bytes()


def test_golden_records_are_chained():
    records = golden_records()
    for seq in range(2, LAST_SEQ + 1):
        assert records[seq].prev == record.Prev(seq - 1, encode_record(records[seq - 1])[1])


def test_golden_manifests_are_encoded_to_the_same_json():
    for found in golden_records().values():
        if found.commit is not None:
            stored, decoded = golden_manifest(found.commit)
            again, _ = manifest.encode_manifest(decoded)  # zstd's own bytes may differ from one version to the next
            assert zstandard.decompress(again) == zstandard.decompress(stored)


def test_the_golden_marker_is_encoded_to_the_same_bytes():
    for folder, name in ((GOLDEN, ""), (GOLDEN / layout.child_prefix(make.CHILD), make.CHILD)):
        data = (folder / "limpet.json").read_bytes()
        marker = decode_marker(data, "here")
        assert encode_marker(marker.run, name) == data


@pytest.mark.parametrize("step", STEPS)
def test_a_golden_state_is_laid_out_as_it_was(step):
    """The same tree, the same buffers, cut into the same chunks: or nothing would be found again in older packs."""
    state = golden_state(step)
    found = golden_manifest(golden_commit(step).commit)[1]
    tree = flatten(state, registry=default_registry)
    plan = Draft.of(tree).plan
    assert as_json(tree.node) == found.tree
    assert plan.buffers == found.buffers
    assert [chunk.raw_bytes for chunk in plan.chunks] == [chunk.raw_bytes for chunk in found.chunks]
    whole = b"".join(content(state)[1])
    assert sum(chunk.raw_bytes for chunk in found.chunks) == len(whole)
    if len(found.buffers) == len(found.chunks) == 1:
        assert found.chunks[0].id == blake3(whole).hexdigest()


@pytest.mark.parametrize("name", ["raw", "zstd", *codec.PLANES])
def test_golden_chunks_of_every_codec_decode(name):
    seen = 0
    for found in golden_records().values():
        if found.commit is None:
            continue
        _, decoded = golden_manifest(found.commit)
        for chunk in decoded.chunks:
            pack = decoded.packs[chunk.pack]
            if chunk.codec != name or not pack:
                continue
            stored = (GOLDEN / pack).read_bytes()[chunk.offset : chunk.offset + chunk.stored_bytes]
            raw = np.empty(chunk.raw_bytes, np.uint8)
            codec.decode(name, stored, raw)
            assert blake3(raw.data).hexdigest() == chunk.id
            seen += 1
    assert seen


# Fixed inputs

RUN = "0123456789abcdef" * 2
PACK = "data/0000000000000001/00000002-9f3a0c44-0000-000.pack"
FIXED = record.Record(
    version=1,
    run=RUN,
    seq=7,
    epoch=1,
    kind="commit",
    nonce="f" * 32,
    owner="o",
    time=1.5,
    writer=record.Writer("h", 2, "limpet 0"),
    retain={"kind": "last", "n": 3},
    prev=record.Prev(6, "a" * 64),
    live=[(2, 2), (5, 7)],
    pinned=[(2, 2)],
    quarantined=[4],
    commit=record.Commit(
        record.ManifestAt(PACK, 10, 20, "b" * 64), [record.PackUse(PACK, 30)], 5, 25, 30, 1, {"loss": 0.5}
    ),
    note={"start_from": "runs/41@5000"},
)
FIXED_INNER = (
    f'{{"version":1,"run":"{RUN}","seq":7,"epoch":1,"kind":"commit","nonce":"{"f" * 32}","owner":"o","time":1.5,'
    '"writer":{"host":"h","pid":2,"library":"limpet 0"},"retain":{"kind":"last","n":3},'
    f'"prev":{{"seq":6,"digest":"{"a" * 64}"}},"live":[[2,2],[5,7]],"pinned":[[2,2]],"quarantined":[4],'
    f'"commit":{{"manifest":{{"key":"{PACK}","offset":10,"size":20,"digest":"{"b" * 64}"}},"packs":[["{PACK}",30]],'
    '"raw_bytes":5,"stored_bytes":25,"new_bytes":30,"step":1,"meta":{"loss":0.5},"body":""},'
    '"note":{"start_from":"runs/41@5000"}}'
)


def test_a_record_has_exactly_these_bytes():
    digest = blake3(FIXED_INNER.encode()).hexdigest()
    data = f'{{"digest":"{digest}","record":{FIXED_INNER}}}'.encode()
    assert encode_record(FIXED) == (data, digest)
    assert decode_record(data, 7) == (FIXED, digest)


def test_a_manifest_has_exactly_this_json():
    made = manifest.Manifest(
        1,
        RUN,
        "1/2",
        ["nd", "<f4", [2], 0],
        [manifest.BufferAt(0, 0, 8)],
        [manifest.ChunkAt("c" * 64, 8, "raw", 0, 0, 8)],
        [""],
    )
    stored, digest = manifest.encode_manifest(made)
    assert digest == blake3(stored).hexdigest()
    assert zstandard.decompress(stored).decode() == (
        f'{{"version":1,"run":"{RUN}","save":"1/2","tree":["nd","<f4",[2],0],"buffers":[[0,0,8]],'
        f'"chunks":[["{"c" * 64}",8,"raw",0,0,8,""]],"packs":[""]}}'
    )


def test_keys_and_marker_have_exactly_these_bytes():
    assert layout.log_key(7) == "log/0000000000000/0000000000000007.json"
    assert layout.log_key(1_234_567) == "log/0000000001234/0000000001234567.json"
    assert layout.pack_key(layout.PackName(1, 2, "9f3a0c44", 0, 0)) == PACK
    assert layout.child_prefix("shard-3") == "child/4c863e2bcf3a6c808df8d3a1408ca38d"
    assert encode_marker(RUN, "x") == f'{{"format":"limpet","version":1,"run":"{RUN}","name":"x"}}'.encode()


# The page that reads a run without limpet


def test_the_page_reads_every_golden_checkpoint():
    for seq, found in golden_records().items():
        if found.commit is None:
            continue
        tree, buffers = read_a_run.read_buffers(GOLDEN, read_a_run.read_record(GOLDEN, seq)["commit"])
        assert tree == golden_manifest(found.commit)[1].tree
        assert [len(buffer) for buffer in buffers] == [at.nbytes for at in golden_manifest(found.commit)[1].buffers]
        read_a_run.plain(tree, buffers)


def test_the_page_gives_plain_python():
    def read(step):
        return read_a_run.plain(*read_a_run.read_buffers(GOLDEN, read_a_run.read_record(GOLDEN, step + 2)["commit"]))

    expected = make.scalars()
    scalars = read(1)
    for name in ("none", "bools", "ints", "complex", "text", "bytes"):
        assert scalars[name] == expected[name]
    assert str(scalars["floats"]) == str(expected["floats"])
    assert scalars["stream"] == b"from its position"
    containers = read(2)
    assert containers["keys"] == make.containers()["keys"]
    assert containers["namedtuple"] == {"x": 1, "y": "two"}
    assert containers["custom"] == 36.6
    assert containers["stateful"] == {"total": 5}
    assert read(5)["w"] == ("<f8", (3000,), make.STATES[5]()["w"].tobytes())
    files = {"none": b"", "not utf-8 \udcff": b"name", "sub/data.bin": bytes(range(256))}
    assert read(make.DIRECTORY) == files


def test_the_page_runs_as_it_says():
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "docs" / "read_a_run.py", GOLDEN],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "without a step\n"


def test_the_page_needs_nothing_of_limpet_and_no_numpy():
    code = (
        "import runpy, sys; sys.modules.update(limpet=None, numpy=None);"
        f"read = runpy.run_path({str(ROOT / 'docs' / 'read_a_run.py')!r})['read'];"
        f"print(read({str(GOLDEN)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "without a step\n"


def test_the_page_says_that_there_is_nothing(tmp_path):
    assert read_a_run.read(tmp_path) is None
    with limpet.Checkpointer(tmp_path / "run"):
        pass
    assert read_a_run.read(tmp_path / "run") is None


arrays = st.builds(
    lambda kind, shape, seed, order: np.array(
        np.random.default_rng(seed).integers(0, 100, shape), dtype=kind, order=order
    ),
    st.sampled_from(["<f2", "<f4", "<f8", ">i4", "u1", "<i8", "?", "<c8"]),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.integers(0, 9),
    st.sampled_from("CF"),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.text(st.characters(), max_size=3),
    st.binary(max_size=5000),
    arrays,
)
keys = st.one_of(st.text(max_size=5), st.integers(), st.binary(max_size=3), st.tuples(st.booleans(), st.none()))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


def plainly(value):
    """What the page is to make of a state."""
    if isinstance(value, dict):
        return {key: plainly(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plainly, value))
    if isinstance(value, np.ndarray):
        is_fortran = value.ndim > 1 and value.flags.fnc
        return value.dtype.str, value.shape, value.tobytes("A"), *(["F"] if is_fortran else [])
    return value


@pytest.fixture(scope="module")
def endless_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endless") / "run"
    with limpet.Checkpointer(folder, retain=limpet.Last(1), compression="zstd") as cp:
        yield cp, folder


@pytest.mark.leaks(reason="the run is open for as long as the module")
@given(states)
def test_the_page_reads_what_limpet_wrote(endless_run, state):
    cp, folder = endless_run
    cp.write(state, durable=True)
    assert repr(read_a_run.read(folder)) == repr(plainly(state))


def test_the_page_reads_large_and_shared_chunks(tmp_path):
    state = {"big": np.arange(3 << 20, dtype="<f4"), "same": np.zeros(2 << 20, "<f4"), "n": 1}
    with limpet.Checkpointer(tmp_path, compression="zstd") as cp:
        cp.write(state, durable=True)
        cp.write({**state, "n": 2}, durable=True)
        assert cp.latest.new_bytes < 4096
    assert read_a_run.read(tmp_path) == plainly({**state, "n": 2})


def test_the_page_refuses_flipped_bits_anywhere_in_a_chain(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(make.DELTA_FOLDER, run)
    needed = [use.key for use in decode_record((run / layout.log_key(6)).read_bytes(), 6)[0].commit.packs]
    for number in range(40):
        path = run / needed[number % len(needed)]
        data = path.read_bytes()
        position = number * 997 % (len(data) - 2000)  # not its manifest, which later ones do not need
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            read_a_run.read(run)
        path.write_bytes(data)
    assert read_a_run.read(run) == plainly(make.trained(make.DELTA_SECOND))


def test_the_page_refuses_every_flipped_bit(tmp_path):
    run = tmp_path / "run"
    with limpet.Checkpointer(run, compression="zstd") as cp:
        cp.write({"w": make.noise("<f4", 6000)}, durable=True)
    pack = next(run.glob("data/*/*.pack"))
    for path, every in ((run / layout.log_key(3), 1), (run / layout.log_key(2), 1), (pack, 97)):
        data = path.read_bytes()
        for position in range(0, len(data), every):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
            with pytest.raises((ValueError, KeyError)):
                read_a_run.read(run)
        path.write_bytes(data)
    assert read_a_run.read(run) == plainly({"w": make.noise("<f4", 6000)})


# What the pages say


@pytest.mark.parametrize("tag", sorted({*_PLANNERS, *_ELEMENT_DECODERS}))
def test_the_spec_has_a_line_for_every_tag(tag):
    assert re.search(rf'`\["{tag}"', SPEC), f"docs/spec.md does not say what a {tag!r} node is"


@pytest.mark.parametrize(
    "kind",
    [
        record.Record,
        record.Commit,
        record.ManifestAt,
        record.Prev,
        record.Writer,
        manifest.Manifest,
        manifest.BufferAt,
        manifest.ChunkAt,
    ],
)
def test_the_spec_names_every_field(kind):
    missing = [field for field in kind.__struct_fields__ if f"`{field}`" not in SPEC]
    assert missing == []


def test_the_spec_names_every_codec():
    assert [name for name in ("raw", "zstd", *codec.PLANES, *deltas.DELTAS) if f"`{name}`" not in SPEC] == []


def test_the_spec_has_the_limits_that_the_code_has():
    rows = dict(re.findall(r"^\| (\S[^|]*?) \| ([\d,]+)", SPEC, re.MULTILINE))
    stated = {name: int(number.replace(",", "")) for name, number in rows.items()}
    assert stated == {
        "a record file, bytes": record.RECORD_BYTES_MAX,
        "`meta` as JSON, bytes": record.META_BYTES_MAX,
        "a body before base64, bytes": record.INLINE_BYTES_MAX,
        "packs of a checkpoint": record.PACKS_MAX,
        "live checkpoints": record._SEQS_MAX,
        "a manifest before compression, bytes": manifest.MANIFEST_BYTES_MAX,
        "a chunk's raw bytes": manifest.CHUNK_BYTES_MAX,
        "buffers of a checkpoint": manifest._BUFFERS_MAX,
        "levels of a tree": nodes.MAX_DEPTH,
        "keys of one dict, or elements of one set, with one hash": nodes._MAX_OF_ONE_HASH,
        "hex digits of a part of a fraction": FRACTION_DIGITS_MAX,
        "bits of a generator's seeds, together": generators._SEED_BITS_MAX,
        "size or offset": record._BYTES_MAX,
        "a seq": layout.MAX_SEQ,
    }


def test_the_example_in_the_spec_is_a_record():
    [block] = re.findall(r"^```json\n(.*?)^```", SPEC, re.MULTILINE | re.DOTALL)
    inner = json.loads(block)["record"]
    found = msgspec.convert(inner, record.Record)
    decode_record(encode_record(found)[0], found.seq)
