import pytest

from limpet.cli.demo.messages import (
    Failed,
    Finished,
    Pickled,
    Resumed,
    Saved,
    Settings,
    Settled,
    Stepped,
    encode,
    parse,
)

MESSAGES = [
    Resumed(12, 3, 100, 90, 80),
    Stepped(12, 0.25),
    Saved(12, 0.001),
    Settled(12, "committed", 4, 100, 90, 80),
    Pickled(0.1, 100),
    Finished("a", "b", "b", 0.9),
    Failed("no such bucket"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_line(message):
    assert parse(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_torn_line_is_no_message(message):
    line = encode(message)
    assert [parse(line[:length]) for length in range(len(line))] == [None] * len(line)


@pytest.mark.parametrize("line", ["", "null", "[]", "3", '{"kind": "else"}', '{"kind": []}', '{"kind": "stepped"}'])
def test_a_line_that_means_nothing_is_no_message(line):
    assert parse(line) is None


def test_settings_survive_their_line_and_do_not_show_credentials():
    settings = Settings("s3://b/r", 10, 5, 0, "/tmp", 8, 1, {"secret_access_key": "hush"})
    assert Settings.decode(settings.encode()) == settings
    assert "hush" not in repr(settings)


@pytest.mark.parametrize("time", [1e300, -1e300, 1e18, 253402300800.0])
def test_a_time_that_no_calendar_holds_is_shown_all_the_same(time):
    from limpet.cli.output import when

    assert when(time).endswith(" s")
