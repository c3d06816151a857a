"""Requests that are refused whatever they ask for: each is counted, and many of them make one line.

Sixty lines of the same thing would push what an operator has to see off the page.
"""

import asyncio
from collections.abc import Mapping

from registry_cache.model import events
from registry_cache.model.errors import (
    BadRequest,
    CrossSite,
    Misdirected,
    MisplacedPath,
    OperatorsOnly,
    RegistryCacheError,
)
from registry_cache.model.events import RefusalKind

_TOLD_SECONDS = 60.0
_KINDS: Mapping[type[RegistryCacheError], RefusalKind] = {
    BadRequest: "malformed",
    CrossSite: "cross_site",
    Misdirected: "host",
    MisplacedPath: "path",
    OperatorsOnly: "operator",
}


def refusal_kind(error: RegistryCacheError) -> RefusalKind | None:
    """What kind of refusal *error* is, if it is one."""
    return _KINDS.get(type(error))


class Refusals:
    """Tells of refused requests: the first of a kind at once, what follows once a minute. Its maker closes it."""

    def __init__(self, events: events.Events) -> None:
        self._events = events
        self._timers: dict[RefusalKind, asyncio.TimerHandle] = {}
        self._untold: dict[RefusalKind, tuple[int, str, str]] = {}

    def count(self, kind: RefusalKind, client: str, reason: str) -> None:
        """One more.

        Args:
            client: its address.
            reason: what the client was told.
        """
        self._events.emit(events.RequestRefused(kind=kind, client=client, reason=reason))
        if kind in self._timers:
            before = self._untold.get(kind)
            self._untold[kind] = (1 if before is None else before[0] + 1, client, reason)
        else:
            self._events.emit(events.Refusals(kind=kind, requests=1, client=client, reason=reason))
            self._wait(kind)

    def close(self) -> None:
        """Tell what has not been told."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for kind in list(self._untold):
            self._tell(kind)

    def _wait(self, kind: RefusalKind) -> None:
        self._timers[kind] = asyncio.get_running_loop().call_later(_TOLD_SECONDS, self._minute_is_over, kind)

    def _minute_is_over(self, kind: RefusalKind) -> None:
        del self._timers[kind]
        if kind in self._untold:
            self._tell(kind)
            self._wait(kind)

    def _tell(self, kind: RefusalKind) -> None:
        requests, client, reason = self._untold.pop(kind)
        self._events.emit(events.Refusals(kind=kind, requests=requests, client=client, reason=reason))
