"""Answers that are damaged, cut or refused: a read gives the newest state, bit for bit, or raises; never less."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
from tests.faults.runs import heavy_but, read_at, same, state, write_at
from tests.faults.server import Act, FaultyS3

from limpet import CorruptError, Last, LimpetError, Run, StoreError

BENT: list[Act] = ["cut", "short", "oversize", "flip"]
REFUSALS: dict[str, dict[str, Any]] = {
    "denied": {"act": "error", "status": 403, "code": "AccessDenied"},
    "expired": {"act": "error", "status": 400, "code": "ExpiredToken"},
    "skewed": {"act": "error", "status": 403, "code": "RequestTimeTooSkewed"},
    "busy": {"act": "error", "status": 503, "code": "SlowDown"},
    "broken": {"act": "error", "status": 500, "code": "InternalError"},
    "closing": {"act": "close"},
    "resetting": {"act": "reset"},
    "hanging": {"act": "hang"},
    "no bucket": {"act": "error", "status": 404, "code": "NoSuchBucket"},
}


@pytest.fixture
def saved(s3: FaultyS3) -> FaultyS3:
    """Two checkpoints, the second of which is the newest."""
    with write_at(s3, retain=Last(2)) as cp:
        cp.write(state(0), step=0, durable=True)
        cp.write(state(1), step=1, durable=True)
    s3.requests.clear()
    return s3


def reader(s3: FaultyS3) -> Run:
    return read_at(s3, reads_for=0.05, timeout=0.15)


# Bytes that differ from what is stored.


@pytest.mark.parametrize("match", ["/log/", "/data/"])
@pytest.mark.parametrize("act", BENT)
def test_a_body_that_is_bent_once_is_asked_for_again(saved: FaultyS3, act: Act, match: str) -> None:
    fault = saved.script("get", match, act, times=1)
    with reader(saved) as run:
        assert same(run.read(strict=True), 1)
    assert fault.struck == 1


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("act", heavy_but(["flip"], BENT))
def test_a_body_that_is_bent_anywhere_is_asked_for_again(saved: FaultyS3, act: Act, at: int) -> None:
    saved.script("get", "", act, times=1, skip=at)
    with reader(saved) as run:
        assert same(run.read(strict=True), 1)


@pytest.mark.parametrize("match", ["/log/", "/data/"])
@pytest.mark.parametrize("act", BENT)
def test_bodies_that_are_always_bent_are_never_a_state(saved: FaultyS3, act: Act, match: str) -> None:
    fault = saved.script("get", match, act)
    with reader(saved) as run, pytest.raises((CorruptError, StoreError)):
        run.read(strict=True)
    with reader(saved) as run, pytest.raises(LimpetError):
        run.read()
    assert fault.struck <= 40  # each object a few times


def test_an_object_that_is_replaced_while_it_is_read_is_never_a_mixture(saved: FaultyS3) -> None:
    newest_pack = saved.bucket.keys("/data/")[-1]
    saved.script("get", newest_pack, "cut_and_replace", times=1)
    with reader(saved) as run, pytest.raises((CorruptError, StoreError)):
        run.read(strict=True)
    with reader(saved) as run, pytest.warns(RuntimeWarning, match="checkpoint 3"):
        assert same(run.read(), 0)


def test_a_body_that_drips_ends_at_the_timeout(saved: FaultyS3) -> None:
    saved.script("get", "/data/", "drip")
    began = time.monotonic()
    with reader(saved) as run, pytest.raises(StoreError) as caught:
        run.read()
    assert caught.value.transient
    assert time.monotonic() - began < 5.0


# What the store does not tell.


def outcomes(s3: FaultyS3) -> list[object]:
    """What each way of asking for a state gives: a step, ``None``, or an error."""
    found: list[object] = []
    with reader(s3) as run:
        for ask in (run.read, lambda: run.resume().state, lambda: run.checkpoints()[-1]):
            try:
                answer = ask()
            except LimpetError as error:
                found.append(error)
            else:
                found.append(getattr(answer, "step", None) if not isinstance(answer, dict) else answer["step"])
    return found


def requests_of_a_read(s3: FaultyS3) -> int:
    assert outcomes(s3) == [1, 1, 1]
    return len(s3.requests)


def refuse_from_each_request_on(s3: FaultyS3, refusal: str, stride: int) -> None:
    """The refusal begins at the first request, then at a later one, and so on, until none is left to refuse."""
    for skip in range(0, requests_of_a_read(s3), stride):
        s3.script(skip=skip, **REFUSALS[refusal])
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # nor is anything passed over
            found = outcomes(s3)
        assert all(answer == 1 or isinstance(answer, StoreError) for answer in found), (skip, found)
        assert all("could not tell" in str(answer) for answer in found if answer != 1)
        s3.heal()


@pytest.mark.parametrize("refusal", heavy_but(["denied"], ["denied", "expired", "skewed", "no bucket"]))
def test_what_the_store_does_not_tell_is_never_nothing_and_never_an_older_state(saved: FaultyS3, refusal: str) -> None:
    refuse_from_each_request_on(saved, refusal, stride=1)


@pytest.mark.heavy
@pytest.mark.timeout(240)
@pytest.mark.parametrize("refusal", ["busy", "broken", "closing", "resetting", "hanging"])
def test_what_the_store_does_not_tell_for_the_moment_is_never_nothing(saved: FaultyS3, refusal: str) -> None:
    refuse_from_each_request_on(saved, refusal, stride=1)


@pytest.mark.parametrize("refusal", heavy_but(["expired", "busy", "closing", "no bucket"], REFUSALS))
@pytest.mark.parametrize("kind", ["get", "list"])
def test_a_single_kind_of_request_that_is_refused_is_never_nothing(saved: FaultyS3, kind: str, refusal: str) -> None:
    saved.script(kind, **REFUSALS[refusal])
    assert all(isinstance(answer, StoreError) for answer in outcomes(saved))


@pytest.mark.parametrize("body", ["denied", "no bucket", "not found by a proxy"])
def test_a_run_is_never_opened_over_one_that_cannot_be_read(saved: FaultyS3, body: str) -> None:
    """Not even where every answer is "not found", as of a proxy that knows no such host."""
    before = dict(saved.bucket.objects)
    saved.script(**REFUSALS.get(body, {"act": "error", "status": 404, "code": ""}))
    with pytest.raises(StoreError):
        write_at(saved, reads_for=0.1).__enter__()
    saved.heal()
    assert saved.bucket.objects == before


def test_a_host_without_a_name_is_never_nothing() -> None:
    storage = {"endpoint": "http://no-such-host.invalid", "allow_http": True, "connect_timeout": 0.5}
    with read_at(FaultyS3(), reads_for=0.05, **storage) as run:
        for ask in (run.read, run.checkpoints):
            with pytest.raises(StoreError, match="could not tell") as caught:
                ask()
            assert caught.value.transient


@pytest.mark.parametrize(
    ("refusal", "kind"), [("denied", "access"), ("expired", "access"), ("skewed", "access"), ("no bucket", "no_bucket")]
)
def test_what_a_person_must_mend_is_raised_at_once_and_says_so(saved: FaultyS3, refusal: str, kind: str) -> None:
    saved.script(**REFUSALS[refusal])
    with read_at(saved, reads_for=60.0) as run, pytest.raises(StoreError) as caught:
        run.read()
    assert (caught.value.kind, caught.value.transient) == (kind, False)
    assert caught.value.hint
    assert len(saved.requests) <= 2
