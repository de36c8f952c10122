import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from limpet.errors import CorruptError, FormatError
from limpet.format.codec import bound
from limpet.format.deltas import DELTAS, decode_delta, encode_delta

WIDTHS = sorted(DELTAS.values())
widths = st.sampled_from(WIDTHS)


def bytes_of(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def trained(dtype, count, seed=0, rate=1e-4):
    """Weights, and the same a step later."""
    random = np.random.default_rng(seed)
    before = (random.standard_normal(count) * 0.02).astype(dtype)
    return bytes_of(before), bytes_of((before + random.standard_normal(count) * rate).astype(dtype))


def decoded(codec, stored, base):
    out = np.full(base.size, 0xA5, np.uint8)
    decode_delta(codec, stored, base, out)
    return out.tobytes()


def plain_decode(width, stored, base):
    """What docs/spec.md says, with nothing but integers and zstandard."""
    count, position, planes = len(base) // width, 4 * width, []
    for index in range(width):
        size = int.from_bytes(stored[4 * index : 4 * index + 4], "little")
        plane = stored[position : position + size]
        planes.append(plane if size == count else zstandard.decompress(plane))
        position += size
    words = []
    for index, digits in enumerate(zip(*planes, strict=True)):
        base_word = int.from_bytes(base[index * width : (index + 1) * width], "little")
        coded = int.from_bytes(bytes(digits), "little")
        bias = int.from_bytes(b"\x80" * width, "little")
        words.append(((coded + base_word - bias) % 256**width).to_bytes(width, "little"))
    return b"".join(words) + stored[position:]


@st.composite
def pairs(draw):
    """Two equally long runs of bytes: of anything, or of what differs little."""
    base = np.frombuffer(
        draw(
            st.one_of(
                st.binary(max_size=200),
                st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=40), st.integers(1, 100)),
            )
        ),
        np.uint8,
    )
    if draw(st.booleans()):
        return np.frombuffer(draw(st.binary(min_size=base.size, max_size=base.size)), np.uint8), base
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    steps = random.integers(0, draw(st.sampled_from([1, 2, 5, 256])), base.size) * (random.random(base.size) < 0.3)
    return (base + steps).astype(np.uint8), base


@given(widths, st.sampled_from([1, 3, 9]), pairs())
@example(8, 1, (np.zeros(7, np.uint8), np.ones(7, np.uint8)))
def test_any_bytes_come_back_from_any_base(width, level, pair):
    raw, base = pair
    stored = encode_delta(raw, base, width=width, level=level)
    if stored is None:
        return
    assert len(stored) < raw.size
    assert decoded(f"delta{width}", stored, base) == raw.tobytes()
    assert plain_decode(width, bytes(stored), base.tobytes()) == raw.tobytes()


@pytest.mark.parametrize("width", WIDTHS)
@given(st.data())
def test_words_at_both_ends_of_their_range_come_back(width, data):
    """Differences that wrap around, over and over, so that they shrink and are kept."""
    limits = st.sampled_from(
        [0, 1, 0x7F, 0x80, 0xFF, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1]
    )
    words = np.array(data.draw(st.lists(limits, min_size=2, max_size=6)), f"<u{width}")
    base_words = np.array(data.draw(st.lists(limits, min_size=words.size, max_size=words.size)), f"<u{width}")
    raw, base = bytes_of(np.tile(words, 300)), bytes_of(np.tile(base_words, 300))
    stored = encode_delta(raw, base, width=width)
    assert stored is not None
    assert decoded(f"delta{width}", stored, base) == raw.tobytes()
    assert plain_decode(width, bytes(stored), base.tobytes()) == raw.tobytes()


@pytest.mark.parametrize(("width", "dtype"), [(2, "<f2"), (4, "<f4"), (8, "<f8")])
def test_weights_of_a_later_step_take_less_room_than_in_full(width, dtype):
    base, raw = trained(dtype, 1 << 18)
    stored = encode_delta(raw, base, width=width, out=np.empty(bound(raw.size), np.uint8))
    assert stored is not None
    assert decoded(f"delta{width}", stored, base) == raw.tobytes()


def test_small_steps_of_bf16_weights_shrink_to_less_than_a_quarter():
    base, raw = (bytes_of(each.view("<u2")[1::2]) for each in trained("<f4", 1 << 20))
    stored = encode_delta(raw, base, width=2)
    assert stored is not None
    assert len(stored) * 4 < raw.size


def test_scattered_rows_shrink_to_what_changed():
    random = np.random.default_rng(0)
    base = (random.standard_normal((4000, 128)) * 0.02).astype("<f2")
    raw = base.copy()
    rows = random.choice(4000, 40, replace=False)
    raw[rows] = (random.standard_normal((40, 128)) * 0.02).astype("<f2")
    stored = encode_delta(bytes_of(raw), bytes_of(base), width=2)
    assert stored is not None
    assert len(stored) * 50 < raw.nbytes
    assert decoded("delta2", stored, bytes_of(base)) == raw.tobytes()


def test_noise_is_refused():
    random = np.random.default_rng(0)
    raw, base = (random.integers(0, 256, 4 << 20, np.uint8) for _ in range(2))
    for width in WIDTHS:
        assert encode_delta(raw, base, width=width) is None


def test_memory_at_odd_addresses_is_encoded_like_any_other():
    base, raw = (np.concatenate([np.zeros(1, np.uint8), each])[1:] for each in trained("<f4", 10_000))
    stored = encode_delta(raw, base, width=4)
    assert stored is not None
    assert decoded("delta4", stored, base) == raw.tobytes()


def test_neither_chunk_nor_base_is_written_to():
    base, raw = trained("<f2", 1 << 20)
    base.flags.writeable = raw.flags.writeable = False
    stored = encode_delta(raw, base, width=2)
    assert stored is not None
    assert decoded("delta2", stored, base) == raw.tobytes()


def test_two_results_do_not_share_memory():
    base, raw = trained("<f2", 1 << 18)
    first = encode_delta(raw, base, width=2)
    second = encode_delta(base, raw, width=2)
    assert first is not None
    assert second is not None
    assert decoded("delta2", first, base) == raw.tobytes()
    assert decoded("delta2", second, raw) == base.tobytes()


@pytest.mark.parametrize(
    "change", [lambda stored: stored[:-1], lambda stored: stored + b"\0", lambda stored: stored[:7]]
)
def test_stored_bytes_of_another_length_are_damage(change):
    base, raw = trained("<f2", 1000)
    stored = encode_delta(raw, base, width=2)
    assert stored is not None
    with pytest.raises(CorruptError):
        decoded("delta2", change(bytes(stored)), base)


@pytest.mark.parametrize("codec", ["raw", "planes2", "delta3", "delta16", ""])
def test_an_unknown_codec_is_a_newer_format(codec):
    with pytest.raises(FormatError, match="newer version"):
        decoded(codec, b"", np.zeros(2, np.uint8))
