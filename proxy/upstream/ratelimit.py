"""Upstream's limits: the quota it tells in headers, and the time it wants to be left alone after a 429.

Source: Docker Hub, "pulls". Its pull limit counts manifest GETs only; its abuse limit counts everything. A 429 to a
manifest closes the gate for manifests; blobs of images whose manifests are here go on, they cost no quota. A 429 to
anything else closes both.
"""

import email.utils
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from proxy import events
from proxy.errors import RateLimited

_DEFAULT_SECONDS = 60.0
_MAX_SECONDS = 6 * 3600.0


class Quota(NamedTuple):
    """What the ``ratelimit-*`` headers said last."""

    limit: int
    remaining: int
    window_seconds: int
    source: str
    observed_at: float  # Unix seconds


def parse_quota(headers: Mapping[str, str]) -> Quota | None:
    """The quota in ``ratelimit-limit: 100;w=21600`` and its companions; None where they are absent or make no sense."""
    limit, _, window = headers.get("ratelimit-limit", "").partition(";w=")
    remaining = headers.get("ratelimit-remaining", "").partition(";")[0]
    if not (limit.isdecimal() and remaining.isdecimal()):
        return None
    seconds = int(window) if window.isdecimal() else 0
    return Quota(int(limit), int(remaining), seconds, headers.get("docker-ratelimit-source", "")[:100], time.time())


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a ``Retry-After`` header, which is a number or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(min(int(value.strip()[:9]), _MAX_SECONDS))
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, at - time.time()), _MAX_SECONDS)


def refusal_message(body: bytes) -> str:
    """What a 429 says, in any of its forms: registry errors, ``{"message"}``, plain text."""
    try:
        parsed = msgspec.json.decode(body)
        if isinstance(parsed, dict):
            errors = parsed.get("errors")
            first = errors[0] if isinstance(errors, list) and errors else parsed
            if isinstance(first, dict) and isinstance(first.get("message"), str):
                return str(first["message"])[:500]
    except msgspec.MsgspecError:
        pass
    return body[:500].decode(errors="replace").strip() or "too many requests"


class Gate:
    """Closed for a while after a 429."""

    def __init__(self) -> None:
        self._closed_until = 0.0  # monotonic seconds
        self._times = 0
        self._message = ""

    @property
    def closed_for_seconds(self) -> float:
        """Until something may be asked again; 0 when it may now."""
        return max(0.0, self._closed_until - time.monotonic())

    def check(self) -> None:
        """Raise RateLimited while the gate is closed."""
        wait = self.closed_for_seconds
        if wait > 0:
            raise RateLimited(self._message, retry_in_seconds=wait)

    def close(self, message: str, retry_after_seconds: float | None) -> float:
        """Close it for the time upstream named, else for a minute, doubling; returns the seconds."""
        self._times += 1
        if retry_after_seconds is None:
            retry_after_seconds = min(_DEFAULT_SECONDS * 2 ** min(self._times - 1, 4), 900.0)
        self._message = message
        self._closed_until = max(self._closed_until, time.monotonic() + retry_after_seconds)
        return self.closed_for_seconds

    def passed(self) -> None:
        """Upstream answered: the limit is over."""
        self._times = 0


class RateLimit:
    """The limits of one origin."""

    def __init__(self, origin: str, events: events.Events) -> None:
        self._origin = origin
        self._events = events
        self.pulls = Gate()
        self.requests = Gate()
        self.quota: Quota | None = None

    def check(self, *, is_pull: bool) -> None:
        """Raise RateLimited while upstream wants to be left alone."""
        self.requests.check()
        if is_pull:
            self.pulls.check()

    def observe(self, headers: Mapping[str, str], *, is_pull: bool) -> None:
        """Take note of an answer that is no 429."""
        self.requests.passed()
        if is_pull:
            self.pulls.passed()
        if quota := parse_quota(headers):
            self.quota = quota
            limit, remaining, window, source, _ = quota
            self._events.emit(
                events.QuotaObserved(limit=limit, remaining=remaining, window_seconds=window, source=source)
            )

    def refused(self, headers: Mapping[str, str], body: bytes, *, is_pull: bool) -> RateLimited:
        """Take note of a 429; the error to raise."""
        if quota := parse_quota(headers):
            self.quota = quota
        message = refusal_message(body)
        gate = self.pulls if is_pull else self.requests
        seconds = gate.close(message, parse_retry_after(headers.get("retry-after")))
        self._events.emit(events.UpstreamLimited(origin=self._origin, retry_after_seconds=seconds, message=message))
        return RateLimited(message, retry_in_seconds=seconds)
