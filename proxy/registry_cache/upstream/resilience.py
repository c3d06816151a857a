"""When to ask an origin again that did not answer: backoff with jitter, and a circuit breaker."""

import contextlib
import math
import random
import time
from collections.abc import Iterator

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import OriginDown

_FAILURES_TO_OPEN = 3
_OPEN_SECONDS = 1.0
_OPEN_MAX_SECONDS = 30.0


def backoff_seconds(attempt: int, *, base_seconds: float = 0.2, cap_seconds: float = 10.0) -> float:
    """How long to wait before attempt number *attempt* + 1: doubling, with half of it random.

    The random half keeps a crowd of clients from coming back at the same moment.
    """
    ceiling = min(cap_seconds, base_seconds * 2.0 ** min(attempt - 1, 30))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter


class Breaker:
    """Leaves an origin alone that is down, and tries it again by itself.

    Closed: everything passes. Open: nothing does, for a time that doubles. Half-open: one request may try; its outcome
    closes the breaker or opens it for longer. What may be the fault of what was asked for opens nothing: it makes the
    origin suspect, and a probe finds out.
    """

    def __init__(self, origin: str, events: Events) -> None:
        self.origin = origin
        self._events = events
        self._failures = 0
        self._opened_times = 0
        self._open_until = 0.0  # monotonic seconds
        self._probe_since: float | None = None
        self._reason = ""
        self.asked_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Breaker {self.origin} {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether the origin is held to be down."""
        return self._opened_times > 0

    @property
    def is_well(self) -> bool:
        """Whether nothing has failed since the last good answer."""
        return not self._failures

    @property
    def is_suspect(self) -> bool:
        """Whether so much has failed since the last good answer that it may be down."""
        return self._failures >= _FAILURES_TO_OPEN

    @property
    def retry_in_seconds(self) -> float:
        """Until the next request may pass; 0 when it may now."""
        return max(0.0, self._open_until - time.monotonic())

    @contextlib.contextmanager
    def passing(self) -> Iterator["Breaker"]:
        """Let a request pass that reports how it went; one that is cancelled leaves its place to the next.

        Raises:
            OriginDown: it may not pass.
        """
        self.check()
        mine = self._probe_since
        try:
            yield self
        finally:
            if mine is not None and self._probe_since == mine:  # nobody will hear how it went
                self._probe_since = None

    def check(self) -> None:
        """Let a request pass, or not.

        Raises:
            OriginDown: it may not.
        """
        if not self.is_open:
            return
        wait = self.retry_in_seconds
        now = time.monotonic()
        # A probe that never reports back (cancelled, stuck) must not keep the breaker shut for ever.
        probing = self._probe_since is not None and now - self._probe_since < _OPEN_MAX_SECONDS
        if wait > 0 or probing:
            raise OriginDown(
                f"{self.origin} is down ({self._reason}); it is tried again in {math.ceil(wait) or 1} s",
                retry_in_seconds=wait or 1.0,
            )
        self._probe_since = now

    def succeeded(self) -> None:
        """The origin gave an answer that makes sense, be it an error of the client's."""
        if self.is_open:
            self._events.emit(events.UpstreamUp(origin=self.origin))
        self._failures = self._opened_times = 0
        self._open_until = 0.0
        self._probe_since = None

    def doubted(self, *, gravely: bool) -> None:
        """A request got no usable answer, and what it asked for may be why: others may get theirs.

        Args:
            gravely: it counts as several.
        """
        self._failures += _FAILURES_TO_OPEN if gravely else 1
        self._probe_since = None

    def failed(self, reason: str, *, quiet: bool = False, pause_seconds: float = 0.0) -> None:
        """The origin gave no usable answer.

        Args:
            quiet: nobody is told that it is still down; they know.
            pause_seconds: what it named itself: if it is held to be down, then for no less.
        """
        self._failures += 1
        self._reason = reason
        probed, self._probe_since = self._probe_since is not None, None
        if probed or (self.is_suspect and not self.is_open):
            quiet = quiet and self.is_open
            self._opened_times += 1
            seconds = backoff_seconds(self._opened_times, base_seconds=_OPEN_SECONDS, cap_seconds=_OPEN_MAX_SECONDS)
            seconds = max(seconds, pause_seconds)
            self._open_until = time.monotonic() + seconds
            if quiet:
                return
            self._events.emit(events.UpstreamDown(origin=self.origin, reason=reason, retry_in_seconds=seconds))
