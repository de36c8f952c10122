from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet import UsageError
from limpet.format.paths import format_path, parse_path, place

characters = st.characters(codec=None, exclude_categories=())
keys = st.recursive(
    st.text(characters) | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.binary() | st.none(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


def typed(key: object) -> object:
    return (type(key), tuple(map(typed, key))) if isinstance(key, tuple) else (type(key), repr(key))


@given(st.lists(keys, max_size=5).map(tuple))
def test_a_written_path_is_parsed_back_to_the_same_keys_of_the_same_types(path):
    assert typed(parse_path(format_path(path))) == typed(path)


@given(st.text(characters, max_size=20))
def test_any_text_is_either_a_path_or_a_usage_error(text):
    try:
        path = parse_path(text)
    except UsageError:
        return
    assert typed(parse_path(format_path(path))) == typed(path)


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ((), ""),
        (("model", "layer1.0.weight"), 'model."layer1.0.weight"'),
        (("history", 0), "history[0]"),
        ((0, "loss"), "[0].loss"),
        (("a", True), "a[True]"),
        (("a", None), "a[None]"),
        (("a", 1.0), "a[1.0]"),
        (("a", b"\x00x"), 'a[b"\\x00x"]'),
        (("a", ("x", 1)), 'a[("x", 1)]'),
        (("a", (1,)), "a[(1,)]"),
        (("a", ""), 'a.""'),
        (("True",), "True"),
        (("a", -(2**5000)), f"a[-0x{2**5000:x}]"),
    ],
)
def test_paths_are_written_so_that_people_can_type_them(path, written):
    assert format_path(path) == written
    assert parse_path(written) == path


@pytest.mark.parametrize(
    "text", ["a.", ".a", "a[", "a[0", "a[x]", "a b", 'a."b', "a[(1)]", "a]", "a[1]b", "[1e]", "a..b"]
)
def test_a_malformed_path_is_a_usage_error_that_says_where(text):
    with pytest.raises(UsageError, match=r"is not a leaf path: expected .* at character \d+"):
        parse_path(text)


def test_deep_nesting_of_tuples_in_a_path_is_refused_without_recursion():
    with pytest.raises(UsageError):
        parse_path("[" + "(" * 100_000)


def test_the_root_has_a_name_in_messages():
    assert place(()) == "the state itself"
