"""Whether any replica has told something: one question each half second, in place of one for each kind of news.

Who tells writes the time under one key, in the same script. Whoever sees another time than before hears everything.
"""

import asyncio

from registry_cache.fleet.leases import Redis
from registry_cache.fleet.scripts import NEWS_MAX_BYTES, PREFACE

NEWS = "news"  # the key
# What has no news renews this replica's part, and so comes round while that counts (membership.CLAIM_MS).
_ALL_SECONDS = 10.0

# KEYS: news. What is there, and the time.
_NEWS = (
    PREFACE
    + f"""
local now = redis.call('TIME')
return {{kept(KEYS[1], {NEWS_MAX_BYTES}) or '', now[1], now[2]}}
"""
)


class News:
    """See the module.

    Args:
        prefix: of all keys of the fleet.
    """

    def __init__(self, redis: Redis, *, prefix: str) -> None:
        self._redis = redis
        self._key = prefix + NEWS
        self._heard: bytes | None = None  # None: everything has to be heard
        self._heard_at = 0.0  # monotonic seconds

    def __repr__(self) -> str:
        return f"<News of {self._heard!r}>"

    async def look(self) -> bytes | None:
        """What to call :meth:`heard` with once everything has been heard; None where there is nothing new.

        Raises:
            RedisDown: not now; then something may be missed, and all is to be heard next time.
        """
        before, self._heard = self._heard, None
        told, seconds, microseconds = await self._redis.run(_NEWS, [self._key], [], patiently=True)
        self._redis.told(int(seconds), int(microseconds))
        if told != before or asyncio.get_running_loop().time() - self._heard_at >= _ALL_SECONDS:
            return bytes(told)
        self._heard = before
        return None

    def heard(self, told: bytes) -> None:
        """All that there was at *told* has been heard."""
        self._heard, self._heard_at = told, asyncio.get_running_loop().time()
