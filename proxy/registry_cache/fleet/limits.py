"""Upstream's limits, known to all replicas as soon as one has met them: gates after a 429, and what is left of a quota.

They are of an account, or, without one, of an address: what upstream has called another source is not taken over.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec

from registry_cache.fleet import question_scripts as scripts
from registry_cache.fleet.leases import Redis, RedisDown
from registry_cache.fleet.news import NEWS
from registry_cache.fleet.sealed import Sealed, opened
from registry_cache.fleet.signature import Signer
from registry_cache.upstream.ratelimit import Quota, RateLimit

_QUOTA_KEPT_MS = 6 * 3_600_000
_GATE_MAX_SECONDS = 6 * 3600.0
_MESSAGE_MAX_CHARACTERS = 300
_MARK = "-"


class Limited(Protocol):
    """A registry that limits: :class:`registry_cache.upstream.client.Upstream`."""

    limits: RateLimit


class SharedLimits:
    """See the module.

    Args:
        prefix: of all keys of the fleet.
    """

    def __init__(self, redis: Redis, signer: Signer, *, prefix: str) -> None:
        self._redis = redis
        self._signer = signer
        self._prefix = prefix
        self._limits: dict[str, RateLimit] = {}
        self._told: dict[str, float] = {}  # names in Redis, and what was last told or heard: Unix seconds
        self._telling: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<SharedLimits of {len(self._limits)}>"

    def join(self, upstreams: Mapping[str, Limited]) -> None:
        """Share the limits of these, by the names of their registries."""
        for registry, upstream in upstreams.items():
            self._limits[registry] = upstream.limits
            upstream.limits.closed = self._closed

    async def settled(self) -> None:
        """What has been met has been told."""
        await asyncio.gather(*self._telling, return_exceptions=True)

    def _closed(self) -> None:
        task = asyncio.create_task(self.tell(), name="telling the fleet of a limit")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def hear(self, *, patiently: bool) -> None:
        """Hear what others have met.

        Raises:
            RedisDown: not now.
        """
        names = [name for name, _, _ in self._all()]
        if not names:
            return
        values = await self._redis.run(scripts.LIMITS, [self._prefix + name for name in names], [], patiently=patiently)
        for (name, limits, kind), value in zip(list(self._all()), values, strict=False):
            said = opened(self._signer, name, value)
            if said is not None:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    self._heard(name, limits, kind, said)

    def _all(self) -> Iterator[tuple[str, RateLimit, str]]:
        for registry, limits in self._limits.items():
            for kind in ("pulls", "requests", "quota"):
                yield (f"quota:{registry}" if kind == "quota" else f"gate:{kind}:{registry}"), limits, kind

    def _heard(self, name: str, limits: RateLimit, kind: str, said: Sealed) -> None:
        at = said.asked_us / 1e6
        if kind == "quota":
            limit, remaining, window, source = msgspec.json.decode(said.payload, type=tuple[int, int, int, str])
            observed_at = at - self._ahead()
            is_newer = limits.quota is None or observed_at > limits.quota.observed_at + 0.001
            if is_newer and _is_same(limits, source):
                limits.quota = Quota(limit, remaining, window, source, observed_at)
                self._told[name] = observed_at
            return
        message, named, source = msgspec.json.decode(said.payload, type=tuple[str, bool, str])
        seconds = min(at - self._redis.now(), _GATE_MAX_SECONDS)
        if seconds > 0 and _is_same(limits, source):
            limits.hear(limits.pulls if kind == "pulls" else limits.requests, message, seconds, said=named)
            self._told[name] = at

    async def tell(self) -> None:
        """Tell what is new here: a gate at once, a quota for whoever looks."""
        for name, limits, kind in self._all():
            news = self._news(limits, kind)
            if news is None or news.asked_us / 1e6 <= self._told.get(name, 0.0) + 1.0:
                continue
            kept_ms = _QUOTA_KEPT_MS
            if kind != "quota":
                kept_ms = max(1, int(news.asked_us / 1e3 - self._redis.now() * 1e3))
            keys = [self._prefix + one for one in ([name] if kind == "quota" else [name, NEWS])]
            args: list[Any] = [news.seal(self._signer, name), kept_ms]
            with contextlib.suppress(RedisDown):
                await self._redis.run(scripts.LATEST, keys, args, patiently=True)
                self._told[name] = news.asked_us / 1e6

    def _news(self, limits: RateLimit, kind: str) -> Sealed | None:
        source = limits.quota.source if limits.quota is not None else ""
        if kind == "quota":
            if limits.quota is None:
                return None
            limit, remaining, window, source, observed_at = limits.quota
            payload = msgspec.json.encode([limit, remaining, window, source])
            return Sealed(int((observed_at + self._ahead()) * 1e6), _MARK, payload)
        message, seconds, named = (limits.pulls if kind == "pulls" else limits.requests).refusal_left()
        if not seconds:
            return None
        payload = msgspec.json.encode([message[:_MESSAGE_MAX_CHARACTERS], named, source])
        return Sealed(int((self._redis.now() + seconds) * 1e6), _MARK, payload)

    def _ahead(self) -> float:
        """So much later it is for the fleet than here, in seconds."""
        return self._redis.ahead_seconds


def _is_same(limits: RateLimit, source: str) -> bool:
    """Whether a limit of *source* is one of ours, as far as upstream has said."""
    ours = limits.quota.source if limits.quota is not None else ""
    return not (source and ours) or source == ours
