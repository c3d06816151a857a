"""The list of what is cached, for those who look often: made at most every few seconds, once for all who look."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from registry_cache.model.contents import Listing
from registry_cache.model.errors import RegistryCacheError
from registry_cache.runtime.singleflight import SingleFlight

# A list is taken again for so long, and for so many times as long as it took: it costs a twentieth of a core at most.
_FRESH_SECONDS = 5.0
_FRESH_TIMES = 20
# Who looks waits for so long; then the last list has to do, if there is one.
_PATIENCE_SECONDS = 2.0


class Known(NamedTuple):
    """A list, and how old it is (seconds)."""

    listing: Listing
    age_seconds: float


class Listings:
    """Whoever makes it calls :meth:`aclose`.

    Args:
        take: makes the list.
        patience_seconds: how long who looks waits for a new one.
    """

    def __init__(self, take: Callable[[], Awaitable[Listing]], *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._take = take
        self._patience_seconds = patience_seconds
        self._taking: SingleFlight[None] = SingleFlight()
        self._last: Listing | None = None
        self._taken_at = 0.0
        self._fresh_until = 0.0

    async def get(self) -> Known | None:
        """What is cached, as it was a few seconds ago; None while that is not known yet, or cannot be."""
        if time.monotonic() >= self._fresh_until:
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await self._taking.do(None, self._renew)
            except (TimeoutError, RegistryCacheError):
                pass  # the last one has to do; an index in trouble is told of elsewhere
        return None if self._last is None else Known(self._last, time.monotonic() - self._taken_at)

    async def _renew(self) -> None:
        began = time.monotonic()
        listing = await self._take()
        now = time.monotonic()
        self._last, self._taken_at = listing, now
        self._fresh_until = now + max(_FRESH_SECONDS, (now - began) * _FRESH_TIMES)

    async def aclose(self) -> None:
        """Stop what is under way."""
        await self._taking.aclose()
