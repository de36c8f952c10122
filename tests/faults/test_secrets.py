"""No credential comes up anywhere: not in errors, warnings, logs, events, ``repr``, records or what a store keeps."""

from __future__ import annotations

import logging
import pickle
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.faults.runs import heavy_but, read_at, state, unpaced, write_at
from tests.faults.server import SECRETS, FaultyS3, url
from tests.faulty import QUICK

import limpet
from limpet import Checkpointer, LimpetError, UsageError
from limpet.stores.urls import open_store

SIGNED = re.compile(r"AWS4-HMAC-SHA256|Signature=|[Cc]redential=|[Ss]ecurity-[Tt]oken")
"""What the headers of a request are made of, which S3 repeats in some of its errors."""
FAULTS: dict[str, dict[str, Any]] = {
    "denied": {"status": 403, "code": "AccessDenied"},
    "wrong signature": {"status": 403, "code": "SignatureDoesNotMatch"},
    "expired": {"status": 400, "code": "ExpiredToken"},
    "bad token": {"status": 400, "code": "InvalidToken"},
    "skewed": {"status": 403, "code": "RequestTimeTooSkewed"},
    "unauthorized": {"status": 401, "code": "Unauthorized"},
    "bad request": {"status": 400, "code": "AuthorizationHeaderMalformed"},
    "moved": {"status": 301, "code": "PermanentRedirect"},
    "no bucket": {"status": 404, "code": "NoSuchBucket"},
    "conflict": {"status": 409, "code": "OperationAborted"},
    "busy": {"status": 503, "code": "SlowDown"},
    "throttled": {"status": 429, "code": "TooManyRequests"},
    "broken": {"status": 500, "code": "InternalError"},
    "wrong media": {"status": 418, "code": "Teapot"},
    "closing": {"act": "close"},
    "resetting": {"act": "reset"},
    "hanging": {"act": "hang"},
    "cut": {"act": "cut"},
    "short": {"act": "short"},
    "flipped": {"act": "flip"},
    "garbled listing": {"act": "flip", "kind": "list"},
    "error in 200": {"status": 200, "code": "InternalError"},
}


class Seen(logging.Handler):
    """Everything that anybody could read: messages, warnings, tracebacks, events."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def note(self, error: BaseException) -> None:
        self.texts += [str(error), repr(error), *traceback.format_exception(error)]

    def assert_clean(self) -> None:
        assert self.texts
        text = "\n".join(self.texts)
        assert [secret for secret in SECRETS if secret in text] == []
        assert SIGNED.findall(text) == []


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    root = logging.getLogger()
    level = root.level
    root.addHandler(seen)
    root.setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield seen
        seen.texts += [str(each.message) for each in warned]
    root.removeHandler(seen)
    root.setLevel(level)
    seen.assert_clean()


def note_errors(seen: Seen, *calls: Callable[[], object]) -> None:
    for call in calls:
        try:
            seen.texts.append(repr(call()))
        except LimpetError as error:
            seen.note(error)


@pytest.mark.parametrize("fault", heavy_but(["wrong signature", "bad token", "broken", "error in 200"], FAULTS))
def test_no_fault_brings_up_a_secret(s3: FaultyS3, seen: Seen, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    storage = {"timeout": 0.2}
    with write_at(s3) as cp:
        cp.write(state(0), step=0, durable=True)
    quick = {"timing": QUICK, "reads_for": 0.05, "storage": storage, "on_error": "warn"}
    cp = write_at(s3, hooks=[lambda event: seen.texts.append(repr(event))], **quick)
    with cp:
        s3.script(**FAULTS[fault])
        seen.texts += [repr(cp), str(vars(cp))]
        note_errors(
            seen,
            lambda: cp.write(state(1), step=1).result(10),
            lambda: cp.write(state(2), step=2),
            cp.checkpoints,
            lambda: cp.delete(0),
            lambda: cp.sweep(),
            lambda: cp.close(timeout=0.5),
        )
    note_errors(seen, lambda: write_at(s3, **quick).__enter__())
    with read_at(s3, reads_for=0.05, **storage) as run:
        note_errors(seen, run.read, run.verify, run.checkpoints, lambda: run.read(at=5))
        seen.texts += [repr(run), str(vars(run))]
    shown = capfd.readouterr()
    seen.texts += [shown.out, shown.err]
    s3.heal()
    stored = b"".join(s3.bucket.objects.values())
    assert not any(secret.encode() in stored for secret in SECRETS)


def test_the_server_does_repeat_what_it_was_sent(s3: FaultyS3) -> None:
    """Or the other tests here would see nothing whatever limpet did: obstore's own error holds the body."""
    import obstore
    from obstore.exceptions import BaseError

    s3.script(**FAULTS["wrong signature"])
    store: Any = unpaced(s3)
    with pytest.raises((BaseError, PermissionError)) as caught:
        obstore.get(store._connections.requests, "a")
    assert all(secret in str(caught.value) for secret in (SECRETS[0], SECRETS[2]))
    assert "Signature=" in str(caught.value)


@pytest.mark.parametrize(
    "storage",
    [
        {"access_key_id": SECRETS[0], "secret_access_key": SECRETS[1], "nonsense": 1},
        {"secret_access_key": SECRETS[1], "region": object()},
        {"secret_access_key": SECRETS[1], "client_options": {"nonsense": 1}},
        {"secret_access_key": SECRETS[1], "endpoint": "not a url"},
        {"secret_access_key": SECRETS[1], "endpoint": "http://example.org"},
        {"access_key_id": SECRETS[0]},
    ],
)
def test_options_that_are_refused_are_not_repeated(seen: Seen, storage: dict[str, Any]) -> None:
    def use() -> str:
        store = open_store("s3://bucket/run", storage)
        return f"{store!r} {vars(store)}"

    note_errors(seen, use)


@pytest.mark.parametrize("place", [f"s3://{SECRETS[0]}:{SECRETS[1]}@bucket/run", f"s3://{SECRETS[0]}:x/run"])
def test_a_secret_in_a_url_is_not_repeated(seen: Seen, place: str) -> None:
    note_errors(seen, lambda: open_store(place))


def test_no_part_of_a_run_shows_a_secret(s3: FaultyS3, seen: Seen) -> None:
    """Debuggers and crash reports show the ``repr`` of whatever a program holds."""
    storage = s3.storage()
    elsewhere = url("elsewhere")
    with write_at(s3, name="elsewhere") as cp:
        cp.write(state(0), step=0, durable=True)
    cp = Checkpointer(url("run"), storage=storage, start_from=elsewhere)
    with cp, limpet.open(url("run"), storage=storage) as run:
        cp.resume()
        for root in (cp, run):
            things = [root, *vars(root).values()]
            things += [inner for thing in things for inner in getattr(thing, "__dict__", {}).values()]
            seen.texts += map(repr, things)


def test_neither_a_store_nor_what_holds_one_can_be_pickled(s3: FaultyS3, seen: Seen) -> None:
    with write_at(s3) as cp, read_at(s3) as run:
        for thing in (unpaced(s3), cp._store, cp, run):
            with pytest.raises((UsageError, TypeError)) as caught:
                pickle.dumps(thing)
            seen.note(caught.value)
