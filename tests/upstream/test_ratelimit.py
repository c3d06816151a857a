"""How long an origin that limits us is left alone."""

import email.utils
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.bus import Events
from registry_cache.model.errors import RateLimited
from registry_cache.upstream import ratelimit
from registry_cache.upstream.headers import Headers
from registry_cache.upstream.ratelimit import Gate, RateLimit, parse_quota, parse_retry_after, refusal_message
from registry_cache.upstream.redact import Redactor
from tests.hub.stand_in import reply


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return 1_700_000_000.0 + self.now

    clock = Clock()
    monkeypatch.setattr(ratelimit, "time", clock)
    return clock


def asked_in(clock, gate, seconds, said) -> int:
    """How often an impatient client gets through to an upstream that always says 429."""
    asked, until = 0, clock.now + seconds
    while clock.now < until:
        try:
            gate.check()
        except RateLimited as error:
            clock.now += max(error.retry_in_seconds, 0.001)
        else:
            asked += 1
            gate.close("no", said)
    return asked


@pytest.mark.parametrize("said", [0.0, 0.0004, 0.5, 1.0])
def test_one_request_a_second_at_most_then_backing_off(clock, said):
    assert 1 < asked_in(clock, Gate(), 10, said) <= 5
    assert asked_in(clock, Gate(), 600, said) <= 20


def test_after_the_time_one_finds_out_and_the_others_wait(clock):
    gate = Gate()
    gate.close("no", 2.0)
    clock.now += 2.0
    gate.check()
    for _ in range(5):
        with pytest.raises(RateLimited):
            gate.check()
    gate.passed()
    gate.check()
    gate.check()


def test_those_under_way_do_not_lengthen_it(clock):
    gate = Gate()
    for _ in range(50):
        gate.close("no", None)
    assert gate.closed_for_seconds == 60


def test_a_head_that_passes_is_no_proof_for_a_get(clock):
    gate = Gate()
    gate.close("no", 1.0, "pull")
    clock.now += 1
    gate.check()
    gate.passed("head")
    gate.close("no", 1.0, "pull")
    assert gate.closed_for_seconds == 2  # it goes on backing off
    clock.now += 2
    gate.passed("pull")
    gate.close("no", 1.0, "pull")
    assert gate.closed_for_seconds == 1


@pytest.mark.parametrize(("said", "told"), [(None, 5.0), (30.0, 30.0), (200.0, 200.0)])
def test_clients_are_told_what_upstream_said_else_a_few_seconds(clock, said, told):
    gate = Gate()
    gate.close("no", said)
    with pytest.raises(RateLimited) as raised:
        gate.check()
    assert raised.value.told_seconds == told


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("9" * 5000, 21600),
        ("0.0004", 0.0004),
        ("-1", 0),
        ("soon", None),
        ("", None),
        ("1e999", 21600),
        ("nan", None),
        ("1.5", 1.5),
        ("120, 60", 120),
        ("120s", 120),
        ("9" * 19 + "e5", 21600),
        ("0x10", None),
        ("٣", None),
        ("Mon, 99 Foo 2026", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("1.889377ms", 0.001889377),
        ("985.86\u00b5s", 0.00098586),
        ("985.86\u00c2\u00b5s", 0.00098586),
        ("985.86\u03bcs, allowed: 44000/minute", 0.00098586),
        ("700ns", 7e-7),
        ("5e-05", 5e-05),
        ("1m30s", 90),
        ("1m30.5s", 90.5),
        ("2h", 7200),
        ("2h0m0s", 7200),
        ("500h", 21600),
        ("9" * 5000 + "h", 21600),
        ("9" * 5000 + "x", None),
        ("1m" * 5000, 21600),
        ("1m30", None),
        ("30.", 30),
        (".5", 0.5),
    ],
)
def test_retry_after(value, seconds):
    assert parse_retry_after(Headers([("Retry-After", value)])) == (seconds and pytest.approx(seconds))


NOW = 1_746_136_908  # of Thu, 01 May 2025 22:01:48 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (f"{NOW + 30}", 30),
        (f"{NOW + 30}.5", 30.5),
        (f"{(NOW + 30) * 1000}", 30),
        (f"{NOW - 30}", 0),
        ("1000000000", 0),
        (f"{NOW + 7 * 3600}", None),
        (f"{(NOW + 7 * 3600) * 1000}", None),
        (f"{NOW}000000", 21600),  # nobody's seconds
        ("999999999", 21600),
    ],
)
def test_a_number_that_large_is_a_date(clock, value, seconds):
    """Docker Hub's API says when, not how long."""
    date = email.utils.formatdate(NOW, usegmt=True)
    assert parse_retry_after(Headers([("Retry-After", value), ("Date", date)])) == seconds
    clock.now = NOW - 1_700_000_000.0
    assert parse_retry_after(Headers([("Retry-After", value)])) == seconds


@pytest.mark.parametrize(
    ("said", "message", "seconds"),
    [
        ("", "retry-after: 985.86\u00b5s, allowed: 44000/minute", 0.00098586),
        ("soon", "too many. Retry-After: 1m30s", 90),
        ("7", "retry-after: 1m30s", 7),
        ("", "retry-after: 40", 40),
        ("", "retry-after: soon", None),
        ("", "retry-after:" * 5000, None),
        ("", "slow down", None),
    ],
)
def test_a_time_in_the_message_counts_where_no_field_tells_one(said, message, seconds):
    """GHCR's."""
    found = parse_retry_after(Headers([("Retry-After", said)]), message)
    assert found == (seconds and pytest.approx(seconds))


async def test_a_limit_of_microseconds_is_over_in_a_second(registry):
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "retry-after: 985.86\u00b5s"}]})
    client, _ = await registry(lambda _: reply(429, body, [("Content-Type", "application/json")]))
    with pytest.raises(RateLimited) as raised:
        await client.manifest("org/app")
    assert raised.value.retry_in_seconds <= 1


def test_a_date_is_seen_from_upstreams_own_clock():
    at = time.time() + 5 * 3600  # upstream's clock is ahead
    date, later = (email.utils.formatdate(seconds, usegmt=True) for seconds in (at, at + 30))
    assert parse_retry_after(Headers([("Retry-After", later), ("Date", date)])) == 30


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize(
    "form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y", "%Y-%m-%dT%H:%M:%SZ"]
)
def test_a_date_is_read_in_every_form_wherever_the_host_is(monkeypatch, form, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        said = Headers([("Retry-After", time.strftime(form, time.gmtime(time.time() + 120)))])
        assert parse_retry_after(said) == pytest.approx(119, abs=5)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("limit", "remaining", "quota"),
    [
        ("100;w=21600", "20;w=21600", (100, 20, 21600)),
        ("100", "20", (100, 20, 0)),
        ("9" * 5000, "1", None),
        ("1", "9" * 5000, None),
        ("100;w=" + "9" * 5000, "20", (100, 20, 0)),
        ("-5", "1", None),
        ("1" + "0" * 9, "1", None),
        ("5;w=" + "9" * 18, "1", (5, 1, 0)),
        ("²", "1", None),
        ("", "", None),
    ],
)
def test_quota(limit, remaining, quota):
    found = parse_quota(Headers([("ratelimit-limit", limit), ("RateLimit-Remaining", remaining)]), Redactor())
    assert (found[:3] if found else None) == quota


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}', "slow down"),
        (b'{"message":"slow down"}', "slow down"),
        (b"slow down\n", "slow down"),
        (b'{"details":"slow down"}', "slow down"),
        (b"<html>slow down</html>", ""),
        ("zu schnell, für heute".encode("latin-1"), "zu schnell, f\ufffdr heute"),
        (b'{"message":"f\xfcr heute"}', "f\ufffdr heute"),
        (b"\x1f\x8b\x08nonsense", ""),
        (b"{" * 5000, "{" * 5000),
        (b'{"message":7}', '{"message":7}'),
        (b"", ""),
    ],
)
def test_messages(body, message):
    assert refusal_message(body) == message


@given(st.binary(), st.binary(), st.binary())
def test_any_answer_is_heeded(body, retry_after, limit):
    limits = RateLimit("https://registry.example", Redactor(), Events())
    headers = Headers([("Retry-After", retry_after), ("ratelimit-limit", limit), ("ratelimit-remaining", limit)])
    error = limits.refused(headers, refusal_message(body), "pull")
    assert error.retry_in_seconds >= 0.9
    with pytest.raises(RateLimited):
        limits.check("head")
    limits.check("other")
