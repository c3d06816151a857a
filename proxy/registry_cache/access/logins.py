"""Whether a password is right, off the event loop, without letting a flood of wrong ones take the machine.

What was right stays so, under a keyed hash: neither passwords nor what they hash to are kept in clear.
"""

import asyncio
import hmac
import math
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from registry_cache.access.comparing import Comparison, Outcome, compare
from registry_cache.access.failures import Failures
from registry_cache.access.htpasswd import Users
from registry_cache.access.idle_process import IdleProcess
from registry_cache.model.errors import TooManyLogins
from registry_cache.runtime.singleflight import SingleFlight
from registry_cache.runtime.threads import Threads

# Since it was last used. The same password against the same hash is as right as it was; and in a flood of wrong ones
# it would have to wait with them.
_KNOWN_SECONDS = 24 * 3600.0
_KNOWN_MAX = 4096
# A core stays free of them, where there are several: what a flood of logins waits for is no hit's trouble.
_AT_ONCE = max(1, min(2, (os.cpu_count() or 1) - 1))
_UNDER_WAY_MAX = 34
# After a wrong one nobody's is compared for so many times as long as that took: a flood has a quarter of a core, in
# each of its turns.
_RESTS = 3


class Logins:
    """See the module. Whoever makes it closes it.

    Args:
        failures: shared with other ways to log in.
        now: monotonic seconds.
    """

    def __init__(
        self, users: Users, *, failures: Failures | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.users = users
        self._now = now
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, float] = OrderedDict()  # until when
        self._failures = failures or Failures(now)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._rest_until = -math.inf
        self._processes = [IdleProcess() for _ in range(_AT_ONCE)]  # that have nothing to do
        self._threads = Threads("login", _AT_ONCE)
        self._flights: SingleFlight[bool] = SingleFlight()
        self._under_way = 0

    async def verify(self, user: str, password: str, origin: str) -> bool:
        """Whether it is *user*'s password.

        Args:
            origin: of who says so.

        Raises:
            TooManyLogins: too many are wrong, or wait.
        """
        kept = self.users.hash_of(user) or b""
        key = self._key_of(user, password, kept)
        if self._is_known(key):
            return True
        self._failures.check(origin)
        is_right = (await self._flights.do(key, lambda: self._ask(user, password))).value
        if is_right and (self.users.hash_of(user) or b"") != kept:
            return await self.verify(user, password, origin)  # they have been read anew meanwhile
        if is_right:
            self._known[key] = self._now() + _KNOWN_SECONDS
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        else:
            self._failures.count(origin)
        return is_right

    def knows(self, user: str, password: str) -> bool:
        """Whether it was *user*'s password a while ago, and nothing has changed."""
        return self._is_known(self._key_of(user, password, self.users.hash_of(user) or b""))

    def _is_known(self, key: bytes) -> bool:
        until = self._known.pop(key, -math.inf)
        if until <= self._now():
            return False
        self._known[key] = self._now() + _KNOWN_SECONDS
        return True

    def _key_of(self, user: str, password: str, kept: bytes) -> bytes:
        # With what it is compared to in it: a changed password, or a user who is gone, is not known any more.
        login = b"\0".join((user.encode("utf-8", "surrogatepass"), password.encode("utf-8", "surrogatepass"), kept))
        return hmac.digest(self._key, login, "sha256")

    async def aclose(self) -> None:
        """End what runs."""
        await self._flights.aclose()
        for process in self._processes:
            await process.aclose()
        self._threads.close()

    async def _ask(self, user: str, password: str) -> bool:
        if self._under_way >= _UNDER_WAY_MAX:
            raise TooManyLogins("too many logins at once: try again")
        self._under_way += 1
        try:
            async with self._turns:
                await asyncio.sleep(self._rest_until - self._now())
                outcome = await self._compare(self.users.comparison(user, password))
                if not outcome.is_right:
                    self._rest_until = self._now() + _RESTS * outcome.cpu_seconds
                return outcome.is_right
        finally:
            self._under_way -= 1

    async def _compare(self, comparison: Comparison) -> Outcome:
        process = self._processes.pop()
        try:
            outcome = await process.compare(comparison)
            # Where others leave nothing of the machine, a thread takes its share of it.
            return outcome if outcome is not None else await self._threads.run(compare, comparison)
        finally:
            self._processes.append(process)
