import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from limpet.errors import CorruptError, FormatError, UsageError
from limpet.format.choosing import CodecChooser
from limpet.format.codec import bound, decode, encode

CODECS = ["raw", "zstd", "planes2", "planes4", "planes8"]
FLOATS = {"planes2": np.float16, "planes4": np.float32, "planes8": np.float64}
codecs = st.sampled_from(CODECS)
levels = st.sampled_from([1, 3, 9])
# Random bytes never shrink; repeated and strided ones do, plane by plane.
blobs = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=40), st.integers(1, 300)),
    st.builds(
        lambda seed, size, high: np.random.default_rng(seed).integers(0, high, size, np.uint8).tobytes(),
        st.integers(0, 10**6),
        st.integers(0, 5000),
        st.sampled_from([1, 2, 16, 255]),
    ),
)


def bytes_of(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def weights(dtype=np.float32, count=1 << 18):
    return bytes_of((np.random.default_rng(0).standard_normal(count) * 0.02).astype(dtype))


def bf16_weights(count=1 << 18):
    return bytes_of(weights(np.float32, count).view("<u2")[1::2])


def decoded(codec, stored, size):
    out = np.full(size, 0xA5, np.uint8)
    decode(codec, stored, out)
    return out.tobytes()


def plain_decode(codec, stored, size):
    """The module's documentation, read with nothing but the standard library and zstandard."""
    unzstd = zstandard.ZstdDecompressor().decompress
    if codec == "raw":
        return stored
    if codec == "zstd":
        return unzstd(stored)
    width = int(codec.removeprefix("planes"))
    words = size // width
    out = bytearray(size)
    position = 4 * width
    for i, stored_size in enumerate(struct.unpack(f"<{width}I", stored[:position])):
        plane = stored[position : position + stored_size]
        out[i : words * width : width] = plane if stored_size == words else unzstd(plane)
        position += stored_size
    out[words * width :] = stored[position:]
    return bytes(out)


def frame(content, *, size=None, window=None, dictionary=0):
    """A zstd frame by hand: one raw block, a stated size of 8 bytes, and what a frame may ask for."""
    descriptor = 0xC0 | (0x20 if window is None else 0) | (0x01 if dictionary else 0)
    head = zstandard.FRAME_HEADER + bytes([descriptor])
    head += b"" if window is None else bytes([window])
    head += bytes([dictionary]) if dictionary else b""
    head += struct.pack("<Q", len(content) if size is None else size)
    return head + (1 | len(content) << 3).to_bytes(3, "little") + content


# Round trips


@given(codecs, levels, blobs)
@example("planes8", 1, b"")
@example("planes8", 1, b"1234567")
def test_any_bytes_come_back_and_never_take_more_room(codec, level, blob):
    used, stored = encode(np.frombuffer(blob, np.uint8), codec=codec, level=level)
    assert used in (codec, "raw")
    assert len(stored) <= len(blob)
    assert decoded(used, stored, len(blob)) == blob


@given(codecs, levels, blobs)
def test_the_documented_layout_is_all_a_reader_needs(codec, level, blob):
    used, stored = encode(np.frombuffer(blob, np.uint8), codec=codec, level=level)
    assert plain_decode(used, bytes(stored), len(blob)) == blob


@pytest.mark.parametrize("codec", FLOATS)
@given(
    floats=st.lists(st.floats(width=16), min_size=1, max_size=20),
    repeats=st.integers(1, 300),
    tail=st.binary(max_size=7),
)
def test_floats_come_back_bit_for_bit_with_what_follows_them(codec, floats, repeats, tail):
    raw = np.frombuffer(np.tile(np.array(floats, FLOATS[codec]), repeats).tobytes() + tail, np.uint8)
    used, stored = encode(raw, codec=codec)
    assert decoded(used, stored, raw.size) == raw.tobytes()


@pytest.mark.parametrize("codec", FLOATS)
def test_planes_are_read_by_the_documented_layout_where_some_shrink_and_some_do_not(codec):
    raw = np.concatenate([weights(FLOATS[codec], 10_000), np.frombuffer(b"!", np.uint8)])
    used, stored = encode(raw, codec=codec)
    assert used == codec
    assert plain_decode(used, bytes(stored), raw.size) == raw.tobytes()


def test_planes_that_shrink_before_ones_that_do_not_move_those_down():
    raw = np.random.default_rng(0).integers(0, 256, 40_000, np.uint8)
    raw[0::4] = 7
    raw[2::4] = 7
    used, stored = encode(raw, codec="planes4")
    assert (used, len(stored) < 20_200) == ("planes4", True)
    assert decoded(used, stored, raw.size) == raw.tobytes()


def test_memory_at_odd_addresses_is_encoded_like_any_other():
    raw = np.concatenate([np.zeros(1, np.uint8), weights()])[1:]
    used, stored = encode(raw, codec="planes4")
    assert decoded(used, stored, raw.size) == raw.tobytes()


def test_read_only_memory_can_be_encoded():
    raw = weights()
    raw.flags.writeable = False
    used, stored = encode(raw, codec="planes4")
    assert decoded(used, stored, raw.size) == raw.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_leaves_the_chunk_as_it_was(codec):
    raw = weights()
    encode(raw, codec=codec, level=3)
    assert np.array_equal(raw, weights())


@pytest.mark.parametrize("codec", FLOATS)
def test_a_chunk_decodes_into_part_of_a_larger_buffer_and_nowhere_else(codec):
    raw = weights(FLOATS[codec], 4096)
    used, stored = encode(raw, codec=codec)
    around = np.full(raw.size + 6, 0xA5, np.uint8)
    decode(used, stored, around[3:-3])
    assert bytes(around[3:-3]) == raw.tobytes()
    assert bytes(around[:3]) + bytes(around[-3:]) == b"\xa5" * 6


def test_many_threads_encode_and_decode_at_once():
    raws = [np.concatenate([weights(count=50_000), np.full(index, index, np.uint8)]) for index in range(8)]
    failures = []
    barrier = threading.Barrier(len(raws))

    def work(raw):
        barrier.wait()
        for codec in CODECS * 3:
            used, stored = encode(raw, codec=codec, level=2)
            if decoded(used, stored, raw.size) != raw.tobytes():
                failures.append((codec, raw.size))

    threads = [threading.Thread(target=work, args=(raw,)) for raw in raws]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Sizes


def ratio(raw, codec, level=1):
    return raw.size / len(encode(raw, codec=codec, level=level)[1])


@pytest.mark.parametrize(
    ("raw", "codec", "least"),
    [
        (weights(np.float32), "planes4", 1.18),
        (bf16_weights(), "planes2", 1.45),
        (weights(np.float16), "planes2", 1.17),
        (weights(np.float64), "planes8", 1.12),
    ],
    ids=["fp32", "bf16", "fp16", "fp64"],
)
def test_dense_weights_shrink_as_stated(raw, codec, least):
    assert ratio(raw, codec) > least


def test_fp32_that_holds_bf16_values_shrinks_to_less_than_half():
    raw = weights().copy()
    raw.view("<u4")[:] &= 0xFFFF0000
    assert ratio(raw, "planes4") > 2.9


def test_a_higher_level_never_takes_more_room_in_planes():
    raw = bytes_of(np.tile(np.linspace(0, 1, 1000, dtype=np.float32), 100))
    assert ratio(raw, "planes4", 9) > ratio(raw, "planes4", 1)


@pytest.mark.parametrize("codec", CODECS)
def test_what_does_not_shrink_is_a_view_of_the_very_same_memory(codec):
    raw = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    used, stored = encode(raw, codec=codec)
    assert used == "raw"
    assert np.shares_memory(np.frombuffer(stored, np.uint8), raw)


def test_what_shrinks_by_less_than_2_percent_is_stored_raw():
    raw = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    raw[:1500] = 0
    assert encode(raw, codec="zstd")[0] == "raw"
    raw[:3000] = 0
    assert encode(raw, codec="zstd")[0] == "zstd"


def test_a_small_result_does_not_keep_a_large_allocation_alive():
    stored = encode(np.zeros(1 << 20, np.uint8), codec="planes4")[1]
    owner = stored.obj if stored.obj.base is None else stored.obj.base
    assert owner.nbytes < 1000


@pytest.mark.parametrize("codec", FLOATS)
def test_noise_is_given_up_after_a_sample_of_it(codec):
    raw = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8)
    out = np.full(bound(raw.size), 0xA5, np.uint8)
    assert encode(raw, codec=codec, out=out)[0] == "raw"
    assert (out == 0xA5).all()


@given(st.integers(0, 99), st.integers(0, 2**32 - 1))
def test_a_plane_that_is_empty_in_a_tenth_of_the_chunk_is_always_found(start, seed):
    raw = np.random.default_rng(seed).integers(0, 256, 4 << 20, np.uint8)
    words = raw.view("<u4")
    first = words.size * start // 111
    words[first : first + words.size // 10] &= 0xFFFF00FF
    used, stored = encode(raw, codec="planes4")
    assert (used, len(stored) < raw.size * 0.98) == ("planes4", True)
    assert decoded(used, stored, raw.size) == raw.tobytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("make", [weights, bf16_weights, lambda: np.zeros(1 << 20, np.uint8)])
def test_given_memory_is_all_that_planes_are_written_to(codec, make):
    raw = make()
    around = np.full(bound(raw.size) + 6, 0xA5, np.uint8)
    used, stored = encode(raw, codec=codec, out=around[3:-3])
    assert decoded(used, stored, raw.size) == raw.tobytes()
    assert bytes(around[:3]) + bytes(around[-3:]) == b"\xa5" * 6
    assert used == "raw" or not codec.startswith("planes") or np.shares_memory(np.frombuffer(stored, np.uint8), around)


# Bad input


@pytest.mark.parametrize("codec", CODECS)
@given(st.data())
def test_every_truncation_is_refused(codec, data):
    used, stored = encode(weights(FLOATS.get(codec, np.float32), 2000), codec=codec)
    end = data.draw(st.integers(0, len(stored) - 1))
    with pytest.raises(CorruptError):
        decode(used, stored[:end], np.empty(2000 * FLOATS.get(codec, np.float32)(0).itemsize, np.uint8))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "trailing", [b"\0", b"\x28\xb5\x2f\xfd", zstandard.compress(b"more"), b"\x50\x2a\x4d\x18\0\0\0\0"]
)
def test_anything_behind_a_chunk_is_refused(codec, trailing):
    raw = weights(FLOATS.get(codec, np.float32), 2000)
    used, stored = encode(raw, codec=codec)
    with pytest.raises(CorruptError):
        decode(used, bytes(stored) + trailing, np.empty(raw.size, np.uint8))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("difference", [-8000, -4, -1, 1, 4, 10**6])
def test_a_chunk_of_another_size_than_expected_is_refused(codec, difference):
    raw = weights(FLOATS.get(codec, np.float32), 2000)
    used, stored = encode(raw, codec=codec)
    size = max(raw.size + difference, 0)
    with pytest.raises(CorruptError):
        decode(used, stored, np.empty(size, np.uint8))


@given(codecs, blobs, st.data())
def test_mutated_bytes_decode_to_something_or_are_corrupt(codec, blob, data):
    used, stored = encode(np.frombuffer(blob, np.uint8), codec=codec)
    mutated = bytearray(stored)
    for _ in range(data.draw(st.integers(0, 4))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    out = np.empty(len(blob), np.uint8)
    try:
        decode(used, mutated, out)
    except CorruptError:
        assert bytes(mutated) != bytes(stored)


@pytest.mark.parametrize("codec", CODECS[1:])
@given(st.binary(max_size=200), st.integers(0, 100))
def test_arbitrary_bytes_are_corrupt_or_decode(codec, stored, size):
    out = np.empty(size, np.uint8)
    try:
        decode(codec, stored, out)
    except CorruptError:
        return
    assert plain_decode(codec, stored, size) == out.tobytes()


BOMB = zstandard.ZstdCompressor(level=1).compress(bytes(200 << 20))
BAD_FRAMES = {
    "nothing": b"",
    "a bomb": BOMB,
    "a stated size of 1 TiB": frame(b"x" * 64, size=1 << 40),
    "a stated size that is too small": frame(b"x" * 64, size=63),
    "a stated size that nothing fills": frame(b"x" * 63, size=64),
    "no stated size": zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 64),
    "a window of 2 GiB": frame(b"x" * 64, window=21 << 3),
    "a dictionary": frame(b"x" * 64, dictionary=7),
    "two frames": frame(b"x" * 32) + frame(b"x" * 32),
    "a frame twice": frame(b"x" * 64) + frame(b"x" * 64),
    "a skippable frame": b"\x50\x2a\x4d\x18" + struct.pack("<I", 64) + b"x" * 64,
    "a skippable frame first": b"\x50\x2a\x4d\x18" + struct.pack("<I", 0) + frame(b"x" * 64),
    "a legacy frame": b"\x27\xb5\x2f\xfd" + frame(b"x" * 64)[4:],
    "a reserved bit": frame(b"x" * 64)[:4] + b"\xe8" + frame(b"x" * 64)[5:],
}


def test_the_frames_of_these_tests_are_good_but_for_what_they_ask():
    assert decoded("zstd", frame(b"x" * 64), 64) == b"x" * 64
    assert decoded("zstd", frame(b"x" * 64, window=16 << 3), 64) == b"x" * 64


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["zstd", "planes2"])
def test_a_bad_frame_is_refused_without_allocating(name, wrapped):
    bad = BAD_FRAMES[name]
    codec, stored, size = "zstd", bad, 64
    if wrapped:
        codec, stored, size = "planes2", struct.pack("<2I", 64, len(bad)) + bytes(64) + bad, 128
    out = np.empty(size, np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            decode(codec, stored, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_header_of_planes_that_claims_gigabytes_is_refused():
    with pytest.raises(CorruptError, match="header"):
        decode("planes4", struct.pack("<4I", *[0xFFFFFFFF] * 4) + bytes(100), np.empty(1000, np.uint8))


@pytest.mark.parametrize("codec", ["", "lz4", "planes3", "ZSTD", "zstd:3"])
def test_an_unknown_codec_was_written_by_a_newer_version(codec):
    with pytest.raises(FormatError, match="codec"):
        decode(codec, b"", np.empty(0, np.uint8))
    with pytest.raises(FormatError, match="codec"):
        encode(np.zeros(1000, np.uint8), codec=codec)


def test_importing_it_loads_no_framework():
    code = "import sys, limpet.format.codec; print({'torch', 'jax', 'ml_dtypes', 'msgspec'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


# The choice


MIB = 1 << 20


def learned(chooser, key, tried, stored_bytes, seconds=0.001):
    chooser.learn(key, tried, MIB, stored_bytes, seconds)


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("bf16", "planes2"),
        ("f2", "planes2"),
        ("f4", "planes4"),
        ("<f4", "planes4"),
        (">f8", "planes8"),
        ("c8", "planes4"),
        ("c16", "planes8"),
        ("i8", "planes8"),
        ("u2", "planes2"),
        ("i1", "zstd"),
        ("u1", "zstd"),
        ("f16", "zstd"),
        ("", "zstd"),
    ],
)
@pytest.mark.parametrize("compression", ["auto", "zstd", "zstd:7"])
def test_numbers_of_2_4_or_8_bytes_get_planes_and_everything_else_zstd(compression, dtype, codec):
    assert CodecChooser(compression).choose(dtype, MIB, "key") == codec


def test_off_is_raw():
    assert CodecChooser("off").choose("f4", MIB, "key") == "raw"


def test_what_is_too_small_to_shrink_is_not_tried():
    assert CodecChooser().choose("f4", 63, "key") == "raw"


@pytest.mark.parametrize(
    ("compression", "level"), [("auto", 1), ("off", 1), ("zstd", 1), ("zstd:1", 1), ("zstd:22", 22)]
)
def test_the_level_is_the_one_that_was_set(compression, level):
    assert CodecChooser(compression).level == level


@pytest.mark.parametrize(
    "compression",
    [
        "",
        "Auto",
        "gzip",
        "zstd:",
        "zstd:0",
        "zstd:23",
        "zstd:-1",
        "zstd: 3",
        "zstd:03",
        "zstd:fast",
        "auto:3",
        "off:1",
        3,
        None,
    ],
)
def test_any_other_setting_is_refused(compression):
    with pytest.raises(UsageError, match="compression="):
        CodecChooser(compression)


def tries_until_next(chooser, key):
    count = 0
    while chooser.choose("f4", MIB, key) == "raw":
        count += 1
    return count


def test_what_did_not_pay_rests_for_8_times_then_doubling_up_to_512():
    chooser = CodecChooser()
    rests = []
    for _ in range(8):
        learned(chooser, "a", "planes4", MIB)
        rests.append(tries_until_next(chooser, "a"))
    assert rests == [8, 16, 32, 64, 128, 256, 512, 512]


def test_what_did_not_pay_rests_alone():
    chooser = CodecChooser()
    learned(chooser, "a", "planes4", MIB)
    assert (chooser.choose("f4", MIB, "a"), chooser.choose("f4", MIB, "b")) == ("raw", "planes4")


def test_what_paid_again_starts_over():
    chooser = CodecChooser()
    for _ in range(3):
        learned(chooser, "a", "planes4", MIB)
        tries_until_next(chooser, "a")
    learned(chooser, "a", "planes4", MIB // 2)
    assert tries_until_next(chooser, "a") == 0
    learned(chooser, "a", "planes4", MIB)
    assert tries_until_next(chooser, "a") == 8


def test_chunks_that_were_stored_raw_unasked_teach_nothing():
    chooser = CodecChooser()
    learned(chooser, "a", "raw", MIB)
    assert chooser.choose("f4", MIB, "a") == "planes4"


def chooser_with(compression="auto", *, ratio, encode_rate, store_rate, threads=1):
    chooser = CodecChooser(compression, threads=threads)
    learned(chooser, "seen", "planes4", int(MIB / ratio), MIB / encode_rate)
    chooser.observe_store(MIB, MIB / store_rate)
    return chooser


@given(st.floats(1.03, 20), st.floats(1e7, 1e10), st.floats(1e6, 1e11), st.integers(1, 4))
def test_the_codec_steps_aside_exactly_where_the_store_is_faster(ratio, encode_rate, store_rate, threads):
    stored = int(MIB / ratio)
    chooser = chooser_with(ratio=ratio, encode_rate=encode_rate, store_rate=store_rate, threads=threads)
    raw_seconds, coded_seconds = MIB / store_rate, max(MIB / encode_rate / threads, stored / store_rate)
    if abs(raw_seconds - coded_seconds) > 1e-6 * raw_seconds:
        expected = "raw" if raw_seconds < coded_seconds else "planes4"
        assert chooser.choose("f4", MIB, "new") == expected


def test_a_fast_store_does_not_stop_a_codec_that_was_asked_for():
    chooser = chooser_with("zstd", ratio=1.2, encode_rate=5e8, store_rate=1e10)
    assert chooser.choose("f4", MIB, "new") == "planes4"


@pytest.mark.parametrize(("store_rate", "codec"), [(1e10, "raw"), (1e8, "zstd")])
def test_a_codec_that_was_not_measured_is_taken_for_an_ordinary_one(store_rate, codec):
    chooser = chooser_with(ratio=1.2, encode_rate=5e8, store_rate=store_rate)
    assert chooser.choose("", MIB, "new") == codec


def test_a_store_that_was_not_measured_stops_nothing():
    chooser = CodecChooser()
    learned(chooser, "seen", "planes4", MIB // 2, 100.0)
    assert chooser.choose("f4", MIB, "new") == "planes4"


@pytest.mark.parametrize(("setting", "awaits"), [("auto", True), ("off", False), ("zstd", False)])
def test_only_auto_waits_to_hear_of_the_store(setting, awaits):
    chooser = CodecChooser(setting)
    assert chooser.awaits_store == awaits
    chooser.observe_store(MIB, 0.001, durable=False)
    assert not chooser.awaits_store


def test_what_is_durable_says_more_of_a_store_than_what_is_on_its_way():
    chooser = CodecChooser()
    chooser.observe_store(MIB, MIB / 1e10, durable=False)
    assert chooser.choose("f4", MIB, "new") == "raw"
    chooser.observe_store(MIB, MIB / 1e8)
    chooser.observe_store(100 * MIB, 100 * MIB / 1e10, durable=False)
    assert chooser.choose("f4", MIB, "new") == "planes4"


def test_one_chunk_in_64_is_encoded_all_the_same():
    chooser = chooser_with(ratio=1.2, encode_rate=5e8, store_rate=1e10)
    tried = [chooser.choose("f4", MIB, key) for key in range(640)]
    assert tried.count("planes4") == 10


def test_a_store_that_became_slow_brings_the_codec_back():
    chooser = chooser_with(ratio=1.2, encode_rate=5e8, store_rate=1e10)
    for _ in range(20):
        chooser.observe_store(MIB, MIB / 2e7)
    assert chooser.choose("f4", MIB, "new") == "planes4"
