"""Which chunks to try as differences: where the chain is short, and where it paid."""

from __future__ import annotations

import pytest

from limpet.format.choosing import DeltaChooser, delta_codec
from limpet.format.deltas import DEPTH_MAX


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("bf16", "delta2"),
        ("f2", "delta2"),
        ("<f4", "delta4"),
        (">i8", "delta8"),
        ("c8", "delta4"),
        ("u1", None),
        ("", None),
    ],
)
def test_words_of_two_four_or_eight_bytes_have_a_codec_of_differences(dtype: str, codec: str | None) -> None:
    assert delta_codec(dtype) == codec


def test_a_delta_may_take_four_fifths_of_what_the_place_takes_in_full() -> None:
    assert DeltaChooser().most_bytes(0, 0, 1000) == 800


def test_the_last_delta_of_the_longest_chain_is_no_base() -> None:
    chooser = DeltaChooser()
    assert chooser.most_bytes(0, DEPTH_MAX - 1, 1000) == 800
    assert chooser.most_bytes(0, DEPTH_MAX, 1000) == 0


def rest_of(chooser: DeltaChooser) -> int:
    """How often the place is stored in full before a delta is tried again."""
    return next(count for count in range(1000) if chooser.most_bytes("place", 0, 1000))


def test_a_place_where_it_did_not_pay_rests_longer_and_longer_until_it_pays() -> None:
    chooser = DeltaChooser()
    rests = []
    for paid in (False, False, False, True, False):
        chooser.learn("place", paid=paid, raw_bytes=1000, full_bytes=1000)
        rests.append(rest_of(chooser))
    assert rests == [8, 16, 32, 0, 8]


def test_places_rest_each_by_itself() -> None:
    chooser = DeltaChooser()
    chooser.learn("place", paid=False, raw_bytes=1000, full_bytes=1000)
    assert (chooser.most_bytes("place", 0, 1000), chooser.most_bytes("other", 0, 1000)) == (0, 800)


def test_a_place_that_took_next_to_nothing_in_full_does_not_rest() -> None:
    chooser = DeltaChooser()
    chooser.learn("place", paid=False, raw_bytes=1000, full_bytes=20)
    assert rest_of(chooser) == 0
