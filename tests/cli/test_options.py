import pytest

pytest.importorskip("typer", reason="the extra 'cli'")

import typer

from limpet.cli.options import parsed_storage


def test_options_of_the_store_keep_their_text_but_for_truth_and_time():
    options = ["endpoint=http://x/?a=b", "access_key_id=123", "allow_http=True", "timeout=2.5", "token="]
    assert parsed_storage(options) == {
        "endpoint": "http://x/?a=b",
        "access_key_id": "123",
        "allow_http": True,
        "timeout": 2.5,
        "token": "",
    }


def test_no_options_are_none():
    assert parsed_storage(None) is None
    assert parsed_storage([]) is None


@pytest.mark.parametrize("option", ["endpoint", "=value", " =value", "timeout=soon"])
def test_an_option_that_is_not_key_and_value_is_a_wrong_call(option):
    with pytest.raises(typer.BadParameter):
        parsed_storage([option])
