"""Rights that a registry itself decides, by the login that a client has there.

What it has said yes to counts for some minutes, for that login and that repository. While it cannot be asked, the last
yes counts for a while longer; who has none waits for it. What it has said no to looks like what does not exist.

Nothing is written down, and no login is kept in clear (:mod:`.client_login`).
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple, Protocol

from registry_cache.access.budget import Attempt, Budget
from registry_cache.access.client_login import ClientLogin
from registry_cache.access.failures import Failures
from registry_cache.model.errors import UpstreamError
from registry_cache.model.oci import Repository
from registry_cache.runtime.singleflight import SingleFlight

_ALLOWS_MAX = 10_000
_NOES_MAX = 10_000
_NO_SECONDS = 30.0
# After a yes of before has helped out, the registry is left alone for so long.
_AGAIN_SECONDS = 30.0
# A login that the registry has accepted is no guess any more.
_KNOWN_SECONDS = 3600.0
_KNOWN_MAX = 4096
_HELD_SECONDS = 180.0
# What began with a yes may have to be gone on with after it, by a GET that the registry judges anew.
_OVER_SECONDS = 3600.0
_WRONG_OF_A_USER, _WRONG_OF_AN_ADDRESS = 5, 10


class Wanted(NamedTuple):
    """What is asked for: it is what the registry is asked about.

    Attributes:
        kind: ``manifest``, ``blob``, or a list's.
        target: tag or digest; empty for lists.
    """

    repository: Repository
    kind: str
    target: str = ""


class Asked(Protocol):
    """The registry: :class:`registry_cache.upstream.as_clients.AsClients`."""

    async def lets_in(self, login: ClientLogin, wanted: Wanted, attempt: Attempt) -> bool:
        """Whether *login* may have that.

        Args:
            attempt: counts the requests, and is told whether the login is right.

        Raises:
            UpstreamError: it does not say.
        """

    async def knows(self, login: ClientLogin, attempt: Attempt) -> bool:
        """Whether it accepts *login* at all."""


class _Allow:
    """A yes; times are monotonic seconds."""

    __slots__ = ("login", "said_at", "until")

    def __init__(self, login: ClientLogin, said_at: float, until: float) -> None:
        self.login = login
        self.said_at = said_at
        self.until = until


class Forwarding:
    """See the module: one registry's. Whoever makes it closes it, and sets :attr:`registry`.

    Args:
        allow_seconds: how long a yes counts.
        stale_seconds: how long it counts while the registry cannot be asked, from when it was said.
        patience_seconds: how long the registry is waited for; and where there is a yes of before.
        now: monotonic seconds.
    """

    registry: Asked

    def __init__(
        self,
        *,
        allow_seconds: float,
        stale_seconds: float,
        patience_seconds: tuple[float, float],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allow_seconds = allow_seconds
        self._kept_seconds = max(allow_seconds, stale_seconds)
        self._patience = patience_seconds
        self._now = now
        self._allows: OrderedDict[tuple[ClientLogin, Repository], _Allow] = OrderedDict()  # the oldest yes first
        self._of: dict[Repository, OrderedDict[ClientLogin, _Allow]] = {}
        self._noes: OrderedDict[tuple[ClientLogin, Wanted], float] = OrderedDict()  # until when; the oldest first
        self._known: OrderedDict[ClientLogin, float] = OrderedDict()
        self._questions: SingleFlight[bool] = SingleFlight()
        self._budget = Budget(now)
        self._users = Failures(now, most=_WRONG_OF_A_USER, seconds=_HELD_SECONDS, whose="of this user")
        self._addresses = Failures(now, most=_WRONG_OF_AN_ADDRESS, seconds=_HELD_SECONDS)

    def __repr__(self) -> str:
        return f"<Forwarding {len(self._allows)} allows, {len(self._noes)} noes>"

    async def aclose(self) -> None:
        """Stop asking."""
        await self._questions.aclose()

    # --- what is known --------------------------------------------------------------------------------------------

    def at_hand(self, login: ClientLogin, repository: Repository) -> bool:
        """Whether it is known now that *login* may pull from *repository*. On the path of every hit."""
        allow = self._allows.get((login, repository))
        if allow is not None and self._now() < allow.until:
            return True
        if login.is_nobody:
            return False
        allow = self._allows.get((login.nobody, repository))  # what is open to everybody is open to any login
        return allow is not None and self._now() < allow.until

    def stands(self, login: ClientLogin, repository: Repository) -> bool:
        """Whether the registry has not taken back what it said, since it was looked at."""
        return (login, repository) in self._allows or (login.nobody, repository) in self._allows

    def of(self, repository: Repository) -> Iterator[ClientLogin]:
        """As whom to fetch from *repository*: who may pull, as far as is known, and last asked for it, comes first.

        Then come those whose yes has been over for a while: the registry judges them with what they are sent with.
        """
        now = self._now()
        known = [allow for allow in reversed(self._of.get(repository, {}).values()) if not self._is_gone(allow, now)]
        yield from (allow.login for allow in sorted(known, key=lambda one: now >= one.said_at + self._kept_seconds))

    def _is_gone(self, allow: _Allow, now: float) -> bool:
        return now >= allow.said_at + self._kept_seconds + _OVER_SECONDS

    def refused(self, login: ClientLogin, repository: Repository) -> None:
        """The registry does not let *login* in any more."""
        self._forget((login, repository))

    def forget_all(self) -> None:
        """Ask the registry anew, about everybody."""
        self._allows.clear()
        self._of.clear()
        self._noes.clear()

    def forget_old(self) -> None:
        """Let go of what has been over for a while."""
        now = self._now()
        while self._allows:
            key, allow = next(iter(self._allows.items()))
            if not self._is_gone(allow, now):
                break
            self._forget(key)
        while self._noes and next(iter(self._noes.values())) <= now:
            self._noes.popitem(last=False)

    def _forget(self, key: tuple[ClientLogin, Repository]) -> None:
        login, repository = key
        if self._allows.pop(key, None) is not None:
            those = self._of[repository]
            del those[login]
            if not those:
                del self._of[repository]

    # --- what is not ----------------------------------------------------------------------------------------------

    async def allows(self, login: ClientLogin, wanted: Wanted, origin: str) -> bool:
        """Whether *login* may have *wanted*; the registry is asked where that is not known.

        Args:
            origin: of who asks.

        Raises:
            TooManyLogins: it is not asked: too many logins were wrong.
            UpstreamError: it does not say, and has said nothing lately.
        """
        allow = self._allows.get((login, wanted.repository))
        if allow is not None and self._now() < allow.until:
            self._of[wanted.repository].move_to_end(login)
            return True
        if self.at_hand(login, wanted.repository):
            return True
        if self._now() < self._noes.get((login, wanted), 0.0):
            return False
        is_usable = allow is not None and self._now() < allow.said_at + self._kept_seconds
        try:
            async with asyncio.timeout(self._patience[is_usable]):
                return (await self._questions.do((login, wanted), lambda: self._ask(login, wanted, origin))).value
        except (UpstreamError, TimeoutError) as error:
            if allow is not None and is_usable and self.stands(login, wanted.repository):
                allow.until = min(self._now() + _AGAIN_SECONDS, allow.said_at + self._kept_seconds)
                return True
            if isinstance(error, TimeoutError):
                raise UpstreamError("upstream did not say in time who may pull this") from error
            raise

    async def knows(self, login: ClientLogin, origin: str) -> bool:
        """Whether the registry accepts *login*.

        Raises:
            TooManyLogins, UpstreamError: as :meth:`allows`.
        """
        if self._is_known(login):
            return True
        try:
            async with asyncio.timeout(self._patience[False]):
                return (await self._questions.do((login, None), lambda: self._try(login, origin))).value
        except TimeoutError as error:
            raise UpstreamError("upstream did not say in time whether it knows this login") from error

    async def _try(self, login: ClientLogin, origin: str) -> bool:
        async with self._guess(login, origin) as attempt:
            attempt.is_right = await self.registry.knows(login, attempt)
            return attempt.is_right

    async def _ask(self, login: ClientLogin, wanted: Wanted, origin: str) -> bool:
        """Of a login that is known to be right, and without one, it is asked at once; any other may be a guess."""
        if login.is_nobody or self._is_known(login):
            attempt = Attempt(is_guess=False)
            is_let_in = await self.registry.lets_in(login, wanted, attempt)
            if not is_let_in and not attempt.is_right:
                self._known.pop(login, None)  # from now on it is asked about like any other
        else:
            async with self._guess(login, origin) as attempt:
                is_let_in = await self.registry.lets_in(login, wanted, attempt)
        # A yes that came before the login was sent is for everybody: others' logins are not asked about again.
        is_for_all = is_let_in and not attempt.was_sent
        self._note(login.nobody if is_for_all else login, wanted, is_let_in=is_let_in)
        return is_let_in

    @contextlib.asynccontextmanager
    async def _guess(self, login: ClientLogin, origin: str) -> AsyncIterator[Attempt]:
        self._users.check(login.user_id)
        self._addresses.check(origin)
        async with self._budget.attempt() as attempt:
            yield attempt
            if attempt.is_right:
                self._know(login)
            elif attempt.was_sent:
                self._users.count(login.user_id)
                self._addresses.count(origin)

    def _note(self, login: ClientLogin, wanted: Wanted, *, is_let_in: bool) -> None:
        now = self._now()
        self.forget_old()
        if not is_let_in:
            self._noes.pop((login, wanted), None)
            self._noes[login, wanted] = now + _NO_SECONDS
            if len(self._noes) > _NOES_MAX:
                self._noes.popitem(last=False)
            return
        key = (login, wanted.repository)
        self._forget(key)
        allow = self._allows[key] = _Allow(login, now, now + self._allow_seconds)
        self._of.setdefault(wanted.repository, OrderedDict())[login] = allow
        if len(self._allows) > _ALLOWS_MAX:
            self._forget(next(iter(self._allows)))

    def _is_known(self, login: ClientLogin) -> bool:
        return self._now() < self._known.get(login, 0.0)

    def _know(self, login: ClientLogin) -> None:
        self._known.pop(login, None)
        self._known[login] = self._now() + _KNOWN_SECONDS
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
