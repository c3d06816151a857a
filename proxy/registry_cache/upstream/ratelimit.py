"""Upstream's limits: the quota it tells in headers, and the time it wants to be left alone after a 429.

Source: Docker Hub, "pulls". Its pull limit counts manifest GETs only; its abuse limit counts everything. A 429 to a
manifest closes the gate for manifests; blobs of images whose manifests are here go on, they cost no quota. A 429 to
anything else closes both.
"""

import datetime as dt
import email.utils
import re
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import RateLimited
from registry_cache.upstream.headers import Headers, number
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.shapes import oci_error, parsed_json

_DEFAULT_SECONDS = 60.0
_DEFAULT_MAX_SECONDS = 900.0
_MAX_SECONDS = 6 * 3600.0
_QUOTA_MAX = 10**9
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SECONDS = re.compile(rf"([+-]?{_NUMBER}(?:e[+-]?[0-9]+)?)\s*(?:s|sec|seconds)?\s*(?:,|$)", re.IGNORECASE)
# As Go writes one: 1m30s, 1.889377ms, 985.86µs. Whatever became of the micro sign on its way, it is a u here.
_DURATION = re.compile(rf"((?:{_NUMBER}(?:h|ms|m|us|ns|s))+)\s*(?:,|$)")
_PART = re.compile(rf"({_NUMBER})([a-z]+)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_IN_MESSAGE = re.compile(r"retry-after:\s*(.*)", re.IGNORECASE)
_MESSAGE_MAX_CHARACTERS = 500
# Numbers from here on are points in time, those from there on in milliseconds: 2001, in either.
_UNIX_SECONDS = 1e9
_UNIX_MILLISECONDS = 1e12
_UNIX_MAX = 1e15
# Whatever upstream says, GHCR names microseconds: it is asked once a second at most, then backing off.
_FLOOR_SECONDS = 1.0
_FLOOR_MAX_SECONDS = 60.0
# What clients are told where upstream names no time: some wait for as long as it takes, and hang.
TOLD_SECONDS = 5.0

Question = Literal["pull", "head", "other"]


class Quota(NamedTuple):
    """What the ``ratelimit-*`` headers said last."""

    limit: int
    remaining: int
    window_seconds: int
    source: str
    observed_at: float  # Unix seconds


def parse_quota(headers: Headers, redactor: Redactor) -> Quota | None:
    """The quota in ``ratelimit-limit: 100;w=21600`` and its companions; None where they are absent or make no sense."""
    said, _, window = headers.first("ratelimit-limit").partition(";w=")
    limit, remaining = _small(said), _small(headers.first("ratelimit-remaining").partition(";")[0])
    if limit is None or remaining is None:
        return None
    source = redactor.clean(headers.first("docker-ratelimit-source"))[:100]
    return Quota(limit, remaining, _small(window) or 0, source, time.time())


def _small(text: str) -> int | None:
    """A number that can be shown, and added to a time."""
    found = number(text.strip())
    return found if found is not None and found < _QUOTA_MAX else None


def parse_retry_after(headers: Headers, message: str = "") -> float | None:
    """Seconds that ``Retry-After`` names as a number, a duration or a date; None where it is none of them.

    A date is compared with the answer's own ``Date``: the clocks need not agree. Of several numbers the first counts,
    and a unit behind it is read over if it is seconds. A number too large for a wait is a Unix time, as Docker Hub's
    API names one.

    Args:
        message: the error's, which counts where the field tells nothing: GHCR has no field.
    """
    seconds = _seconds(headers.first("retry-after"), headers.first("date"))
    if seconds is None and (match := _IN_MESSAGE.search(message[:_MESSAGE_MAX_CHARACTERS])):
        seconds = _seconds(match[1], headers.first("date"))
    return seconds


def _seconds(said: str, date: str) -> float | None:
    value = _NOT_ASCII.sub("u", said)
    if match := _SECONDS.match(value):
        number = float(match[1])
        if _UNIX_SECONDS <= number < _UNIX_MAX:
            wait = number / (1000 if number >= _UNIX_MILLISECONDS else 1) - _now(date)
            return max(0.0, wait) if wait <= _MAX_SECONDS else None
        return min(max(0.0, number), _MAX_SECONDS)
    if match := _DURATION.match(value):
        return min(sum(float(part) * _UNITS[unit] for part, unit in _PART.findall(match[1])), _MAX_SECONDS)
    at = _unix_seconds(value)
    return None if at is None else min(max(0.0, at - _now(date)), _MAX_SECONDS)


def _now(date: str) -> float:
    """Unix seconds by upstream's own clock; by this one where it does not tell."""
    now = _unix_seconds(date)
    return time.time() if now is None else now


def _unix_seconds(date: str) -> float | None:
    """Of a date in one of HTTP's three forms, or in RFC 3339's; one without a zone is in UTC, whatever the host's."""
    for parsed in (email.utils.parsedate_to_datetime, dt.datetime.fromisoformat):
        try:
            at = parsed(date[:64])
            return (at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC)).timestamp()
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None


def is_limit(status: int, headers: Headers, body: bytes = b"") -> bool:
    """Whether upstream says that it is asked too much: by 429, by a 403 that names a time, by a code under another 4xx.

    Source: GitHub, "Rate limits for the REST API", on secondary ones; OCI distribution spec, "Error Codes".
    """
    if status == 429 or (status == 403 and parse_retry_after(headers) is not None):  # noqa: PLR2004 -- HTTP
        return True
    said = oci_error(body) if status // 100 == 4 else None  # noqa: PLR2004 -- HTTP
    return said is not None and said.code == "TOOMANYREQUESTS"


def refusal_message(body: bytes) -> str:
    """What an error says, in any of its forms: registry errors, ``{"message"}``, plain text."""
    parsed = parsed_json(body)
    if isinstance(parsed, dict):
        errors = parsed.get("errors")
        first = errors[0] if isinstance(errors, list) and errors else parsed
        for name in ("message", "details", "detail"):
            if isinstance(first, dict) and isinstance(first.get(name), str) and first[name].strip():
                return str(first[name])
    text = " ".join(body.decode(errors="replace").split())
    return "" if text.startswith("<") or body.startswith(b"\x1f\x8b") else text  # a page, a compressed one


class Gate:
    """Closed for a while after a 429; then one request a second finds out whether the limit is over."""

    def __init__(self) -> None:
        self._closed_until = 0.0  # monotonic seconds
        self._next_try_at = 0.0
        self._times = 0
        self._question: Question = "other"
        self._message = ""
        self._said = False  # upstream named the time

    @property
    def closed_for_seconds(self) -> float:
        """Until something may be asked again; 0 when it may now."""
        return max(0.0, self._closed_until - time.monotonic())

    def check(self) -> None:
        """Let a request pass; raise RateLimited while the gate is closed."""
        now = time.monotonic()
        wait = max(self._closed_until, self._next_try_at if self._times else 0.0) - now
        if wait > 0:
            raise self._refusal(wait)
        if self._times:  # the limit may be over: this one finds out, and the others wait for it
            self._next_try_at = now + _FLOOR_SECONDS

    def refusal(self) -> RateLimited:
        """The error to raise right after it was closed."""
        return self._refusal(self.closed_for_seconds)

    def _refusal(self, wait: float) -> RateLimited:
        told = wait if self._said else min(wait, TOLD_SECONDS)
        return RateLimited(self._message, retry_in_seconds=wait, told_seconds=told)

    def close(self, message: str, said_seconds: float | None, question: Question = "other") -> float:
        """Close it for the time upstream named, else for a minute, doubling; returns the seconds."""
        now = time.monotonic()
        if now >= self._closed_until:  # those that were under way when it closed tell nothing new
            self._times += 1
        doubled = 2.0 ** min(max(self._times - 1, 0), 10)
        if said_seconds is None:
            seconds = min(_DEFAULT_SECONDS * doubled, _DEFAULT_MAX_SECONDS)
        else:
            seconds = max(said_seconds, min(_FLOOR_SECONDS * doubled, _FLOOR_MAX_SECONDS))
        self._message, self._said, self._question = message, said_seconds is not None, question
        self._closed_until = max(self._closed_until, now + seconds)
        return self._closed_until - now

    def hold(self, message: str, seconds: float, *, said: bool) -> bool:
        """Another of the same account was refused: closed for *seconds*; whether that was news."""
        until = time.monotonic() + min(seconds, _MAX_SECONDS)
        if until <= self._closed_until + _FLOOR_SECONDS:
            return False
        is_news = not self.closed_for_seconds
        self._message, self._said, self._closed_until = message, said, until
        self._times = max(self._times, 1)  # afterwards one finds out, as where it was refused itself
        return is_news

    def refusal_left(self) -> tuple[str, float, bool]:
        """What is told to others: upstream's words, for how many seconds from now, and whether it has named them."""
        return self._message, self.closed_for_seconds, self._said

    def passed(self, question: Question = "other") -> None:
        """Upstream answered: the limit is over. A HEAD proves that for HEADs only, since it costs no quota."""
        if time.monotonic() >= self._closed_until and question in ("pull", self._question):
            self._times = 0


class RateLimit:
    """The limits of one origin."""

    def __init__(self, origin: str, redactor: Redactor, events: Events) -> None:
        self._origin = origin
        self._redactor = redactor
        self._events = events
        self.pulls = Gate()
        self.requests = Gate()
        self.quota: Quota | None = None
        self.closed: Callable[[], None] = lambda: None  # called when upstream has closed a gate

    def __repr__(self) -> str:
        return f"<RateLimit {self._origin}>"

    def hear(self, gate: Gate, message: str, seconds: float, *, said: bool) -> None:
        """Another of the same account was refused."""
        if gate.hold(message, seconds, said=said):
            self._limited(seconds, message)

    def check(self, question: Question) -> None:
        """Raise RateLimited while upstream wants to be left alone."""
        self.requests.check()
        if question != "other":
            self.pulls.check()

    def observe(self, headers: Headers, question: Question) -> None:
        """Take note of an answer that is no limit."""
        self.requests.passed()
        if question != "other":
            self.pulls.passed(question)
        if quota := parse_quota(headers, self._redactor):
            self.quota = quota
            limit, remaining, window, source, _ = quota
            self._events.emit(
                events.QuotaObserved(limit=limit, remaining=remaining, window_seconds=window, source=source)
            )

    def refused(self, headers: Headers, message: str, question: Question) -> RateLimited:
        """Take note of a limit (:func:`is_limit`); the error to raise."""
        if quota := parse_quota(headers, self._redactor):
            self.quota = quota
        gate = self.pulls if question != "other" else self.requests
        seconds = gate.close(message, parse_retry_after(headers, message), question)
        self._limited(seconds, message)
        self.closed()
        return gate.refusal()

    def _limited(self, seconds: float, message: str) -> None:
        self._events.emit(events.UpstreamLimited(origin=self._origin, retry_after_seconds=seconds, message=message))
