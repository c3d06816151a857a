"""How much one principal may have, and how much it has had. The clock is given; only its pace makes anybody wait.

Each has an account of its own: a login, else a certificate, else an address. Who makes up addresses gets one account
for each of its networks, and the oldest go; users and certificates are not theirs to push out.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from registry_cache.access.networks import is_loopback, network_of
from registry_cache.access.pace import Pace
from registry_cache.access.rules import Auth, Principal, Who
from registry_cache.model.errors import LimitReached
from registry_cache.model.units import counted

_HOUR, _DAY = 3600.0, 86_400.0
# A pull asks for everything at once, and then for nothing for a while.
_BURST_SECONDS = 10.0
# Of flights and connections nobody knows when one ends.
_SOON_SECONDS = 5.0
_ACCOUNTS_MAX = 4096  # of each way to be known
_PRINCIPALS_MAX = 16_384


class Limits(NamedTuple):
    """What each of those that they are for may have; None: any number.

    Attributes:
        requests_per_second: on average; ten seconds' worth may come at once.
        cold_bytes_per_day: bytes that had to come from upstream for it.
        counted_pulls_per_hour: manifests fetched from upstream for it, which registries count.
        flights: blobs fetched from upstream for it at the same time.
        connections: open at the same time.
        bytes_per_second: of bodies, from here or from upstream, over all its connections; a second's worth may come at
            once.
    """

    requests_per_second: float | None = None
    cold_bytes_per_day: int | None = None
    counted_pulls_per_hour: int | None = None
    flights: int | None = None
    connections: int | None = None
    bytes_per_second: int | None = None


class _Window:
    """What has been used since it was first used, in so many seconds."""

    __slots__ = ("_ends_at", "_seconds", "used")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at = 0.0
        self.used = 0

    def left_seconds(self, now: float) -> float:
        """Until it begins anew; it does, if that is over."""
        if now >= self._ends_at:
            self.used, self._ends_at = 0, now + self._seconds
        return self._ends_at - now

    def use(self, amount: int, now: float) -> None:
        self.left_seconds(now)
        self.used += amount


class Account:
    """What one principal has had.

    Args:
        name: of the principal, for texts.
        share: by what its flights are told from others'.
        now: monotonic seconds.
        sleep: as :func:`asyncio.sleep`.
    """

    __slots__ = ("_bytes", "_connections", "_full_at", "_limits", "_now", "_pulls", "name", "pace", "share")

    def __init__(
        self,
        limits: Limits,
        name: str,
        share: str,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        rate = limits.bytes_per_second
        self.pace = None if rate is None else Pace(rate, now=now, sleep=sleep)
        self._limits = limits
        self._now = now
        self.name = name
        self.share = share
        self._full_at = 0.0  # when all of the burst may come again
        self._bytes = _Window(_DAY)
        self._pulls = _Window(_HOUR)
        self._connections = 0

    @property
    def is_used(self) -> bool:
        """Whether it must not be forgotten: connections are counted back."""
        return self._connections > 0

    def may_ask(self) -> bool:
        """Whether a request may come now; :meth:`asked` counts it."""
        return self._early_seconds(self._now()) <= 0

    def asked(self) -> None:
        """A request has come."""
        if self._limits.requests_per_second is not None:
            now = self._now()
            self._full_at = max(self._full_at, now) + 1 / self._limits.requests_per_second

    def ask(self) -> None:
        """A request has come: count it.

        Raises:
            LimitReached: it came too early, and is not counted.
        """
        early = self._early_seconds(self._now())
        if early > 0:
            rate = self._limits.requests_per_second
            raise self._reached("requests_per_second", f"{rate:g} requests a second", early)
        self.asked()

    def pulled(self, number: int = 1) -> None:
        """So many manifests are fetched; fewer than none where it was not done after all."""
        self._pulls.use(number, self._now())
        self._pulls.used = max(0, self._pulls.used)

    def pulls_used_up(self) -> LimitReached | None:
        """What to say where no manifest may be fetched; None where one may, which :meth:`pulled` counts."""
        limit, left = self._limits.counted_pulls_per_hour, self._pulls.left_seconds(self._now())
        if limit is None or self._pulls.used < limit:
            return None
        return self._reached("counted_pulls_per_hour", f"{counted(limit, 'pull')} from upstream an hour", left)

    def bytes_used_up(self) -> LimitReached | None:
        """What to say where nothing may be fetched; None where it may, of which :meth:`received` counts the bytes."""
        limit, left = self._limits.cold_bytes_per_day, self._bytes.left_seconds(self._now())
        if limit is None or self._bytes.used < limit:
            return None
        return self._reached("cold_bytes_per_day", f"{limit} bytes from upstream a day", left)

    def board(self, flights: int) -> None:
        """A blob is about to be fetched, beside so many *flights* of its.

        Raises:
            LimitReached: it must not be.
        """
        used_up = self.bytes_used_up()
        if used_up is not None:
            raise used_up
        if self._limits.flights is not None and flights >= self._limits.flights:
            raise self._reached(
                "flights", f"{counted(self._limits.flights, 'blob')} from upstream at a time", _SOON_SECONDS
            )

    def received(self, size_bytes: int) -> None:
        """So many bytes had to come from upstream for it."""
        self._bytes.use(size_bytes, self._now())

    async def keep_pace(self, size_bytes: int) -> None:
        """Wait until so many bytes may go to it, which count from now on."""
        if self.pace is not None and size_bytes:
            await self.pace.wait_for(size_bytes)

    def connected(self) -> None:
        """A connection was made: count it, until :meth:`disconnected`.

        Raises:
            LimitReached: it is one too many, and is not counted.
        """
        limit = self._limits.connections
        if limit is not None and self._connections >= limit:
            raise self._reached("connections", f"{limit} connections at a time", _SOON_SECONDS)
        self._connections += 1

    def disconnected(self) -> None:
        """A connection that was counted has ended."""
        self._connections -= 1

    def _early_seconds(self, now: float) -> float:
        rate = self._limits.requests_per_second
        if rate is None:
            return 0.0
        burst = max(1.0, rate * _BURST_SECONDS)
        return self._full_at - now - (burst - 1) / rate

    def _reached(self, limit: str, text: str, seconds: float) -> LimitReached:
        return LimitReached(f"the limit of {self.name} is {text}", limit=limit, retry_in_seconds=seconds)


class Accounts:
    """The accounts of all.

    Args:
        limits: in order; the first whose conditions hold for a principal count for it.
        now: monotonic seconds.
        sleep: as :func:`asyncio.sleep`.
    """

    def __init__(
        self,
        limits: Sequence[tuple[Who, Limits]],
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._limits = limits
        self._now = now
        self._of: dict[Principal, Account | None] = {}  # what hits look into
        self._accounts: dict[Auth, OrderedDict[tuple[str, int], Account]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._accounts.values()))

    def of(self, principal: Principal) -> Account | None:
        """*principal*'s; None where nothing is limited."""
        try:
            return self._of[principal]
        except KeyError:
            if len(self._of) >= _PRINCIPALS_MAX:
                self._of.clear()
            found = self._of[principal] = self._found(principal.proven)  # anybody can make up a login at a registry
            return found

    def _found(self, principal: Principal) -> Account | None:
        for number, (who, limits) in enumerate(self._limits):
            if who.is_for(principal):
                return self._account(principal, number, limits)
        return None

    def _account(self, principal: Principal, number: int, limits: Limits) -> Account:
        name = principal.name if principal.auth != "none" else _share(principal.address)
        those = self._accounts.setdefault(principal.auth, OrderedDict())
        key = (name, number)  # the same user may have others from another network
        account = those.get(key)
        if account is None:
            if len(those) >= _ACCOUNTS_MAX:
                self._forget_one(those)
            account = those[key] = Account(limits, name, f"{principal.auth}:{number}:{name}", self._now, self._sleep)
        those.move_to_end(key)
        return account

    def _forget_one(self, those: OrderedDict[tuple[str, int], Account]) -> None:
        key = next((key for key, account in those.items() if not account.is_used), next(iter(those)))
        del those[key]


def _share(address: str) -> str:
    """Whom an address counts for: everybody has all of loopback to choose from."""
    return "127.0.0.1" if is_loopback(address) else network_of(address)
