"""Requests that are refused whatever they ask for: each is counted, and many of them make one line.

Sixty lines of the same thing would push what an operator has to see off the page.
"""

from collections.abc import Mapping
from typing import NamedTuple

from registry_cache.access.rules import Auth, Principal
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    BadRequest,
    CrossSite,
    LimitReached,
    Misdirected,
    MisplacedPath,
    OperatorsOnly,
    RegistryCacheError,
)
from registry_cache.model.events import RefusalKind
from registry_cache.model.units import well_formed
from registry_cache.web.tally import Tally

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


class _Whose(NamedTuple):
    principal: str
    auth: Auth
    limit: str = ""


# Who makes up addresses is told of as one.
_OTHERS = _Whose("others", "none")


class Refusals:
    """Tells of refused requests: the first of a kind at once, what follows once a minute. Its maker closes it."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._kinds: Tally[RefusalKind, tuple[str, str]] = Tally(self._tell_kind)
        self._denied: Tally[_Whose, str] = Tally(self._tell_denied, others=_OTHERS)
        self._limited: Tally[_Whose, str] = Tally(self._tell_limited, others=_OTHERS)

    def count(self, kind: RefusalKind, client: str, reason: str) -> None:
        """One more.

        Args:
            client: its address.
            reason: what the client was told.
        """
        self._events.emit(events.RequestRefused(kind=kind, client=client, reason=reason))
        self._kinds.count(kind, (client, reason))

    def denied(self, principal: Principal, repository: str) -> None:
        """No rule lets *principal* pull that."""
        self._denied.count(_Whose(principal.name, principal.auth), repository)

    def limited(self, principal: Principal, error: LimitReached) -> None:
        """*principal* has had what a limit gives it."""
        self._limited.count(_Whose(principal.name, principal.auth, error.limit), str(error))

    def close(self) -> None:
        """Tell what has not been told."""
        self._kinds.close()
        self._denied.close()
        self._limited.close()

    def _tell_kind(self, kind: RefusalKind, requests: int, last: tuple[str, str]) -> None:
        client, reason = last
        self._events.emit(events.Refusals(kind=kind, requests=requests, client=client, reason=reason))

    def _tell_denied(self, whose: _Whose, requests: int, repository: str) -> None:
        self._events.emit(
            events.AccessDenied(
                principal=whose.principal, auth=whose.auth, requests=requests, repository=well_formed(repository)
            )
        )

    def _tell_limited(self, whose: _Whose, requests: int, reason: str) -> None:
        self._events.emit(events.Limited(**whose._asdict(), requests=requests, reason=reason))
