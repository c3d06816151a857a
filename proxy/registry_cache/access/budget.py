"""How often a registry is asked for logins that it has never let in: registries ban who brings too many wrong ones.

GitLab bans an address for an hour after 30 wrong logins in three minutes, Docker Hub locks an account for ten.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

from registry_cache.model.errors import TooManyLogins, UpstreamError

REQUESTS_MAX = 20
WINDOW_SECONDS = 180.0
# What one question may cost: a request to learn how the registry challenges, a token, the question, and once more.
EACH_MAX = 4
_WAITING_MAX = 64
_BUSY = "too many new logins at this registry: wait some minutes"


class Attempt:
    """One question; :meth:`count` is called before each request that it costs.

    Attributes:
        is_guess: whether nobody knows yet if the login is right.
        was_sent: the registry has seen the login, or a token that it has got. A yes before that is for everybody.
        is_right: it accepts the login, be it for something else.
    """

    def __init__(self, *, is_guess: bool) -> None:
        self.is_guess = is_guess
        self.requests = 0
        self.was_sent = False
        self.is_right = False

    @property
    def is_wrong(self) -> bool:
        """Whether the registry does not accept the login."""
        return self.was_sent and not self.is_right

    def count(self) -> None:
        """One request more.

        Raises:
            UpstreamError: it is one too many.
        """
        if self.is_guess and self.requests >= EACH_MAX:
            raise UpstreamError("upstream does not say who may pull")
        self.requests += 1


class Budget:
    """See the module. A login that turns out to be right costs nothing, and neither does one that is not sent.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._spent: deque[tuple[float, int]] = deque()  # when, how many requests
        self._total = 0
        self._under_way = 0
        self._waiting = 0
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[Attempt]:
        """One question, when there is room for all that it may cost.

        Raises:
            TooManyLogins: there is none, or too many wait.
        """
        await self._room()
        self._under_way += 1
        attempt = Attempt(is_guess=True)
        try:
            yield attempt
        finally:
            self._under_way -= 1
            if attempt.is_wrong:
                self._spent.append((self._now(), attempt.requests))
                self._total += attempt.requests
            self._wake()

    async def _room(self) -> None:
        while not self._has_room():
            if not self._under_way or self._waiting >= _WAITING_MAX:
                raise TooManyLogins(_BUSY)
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1

    def _has_room(self) -> bool:
        while self._spent and self._spent[0][0] <= self._now() - WINDOW_SECONDS:
            self._total -= self._spent.popleft()[1]
        return self._total + (self._under_way + 1) * EACH_MAX <= REQUESTS_MAX

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
