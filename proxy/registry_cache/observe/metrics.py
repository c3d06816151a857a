"""Counters, fed by events. Plain integers, added up when Prometheus or the page reads them."""

import re
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import Any

from registry_cache.model import events
from registry_cache.model.oci import Repository
from registry_cache.observe.figures import (
    AllRepositories,
    ByteFigures,
    ClientFigures,
    PrefetchFigures,
    RefusedFigures,
    RepositoryFigures,
    UnstoredFigures,
)
from registry_cache.observe.history import Counts
from registry_cache.observe.uses import Uses

# What all registries together are called that nobody has listed: how many there are is up to clients.
UNLISTED = "unlisted"
_HITS = ("hit", "shared", "revalidated", "stale")
RESULTS = ("hit", "miss", "collapsed", "shared", "revalidated", "stale", "bypass", "error")
BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = 4096
_TOP = 20
_RECENT = 50
_MISTAKES = 5
# Combinations of registry, repository, client and result between two times of adding them up.
_TALLIES_MAX = 1024
# Statuses that are the client's own doing, and upstream's no: anybody can make as many of them as they like.
_MISTAKEN = frozenset({400, 403, 404, 405, 416, 421, 499})


class Latency:
    """Durations: the last few thousand for quantiles, all of them in buckets for Prometheus.

    They are sorted into the buckets many at a time, and when somebody looks.
    """

    def __init__(self) -> None:
        self._new: list[float] = []  # milliseconds
        self._recent: deque[float] = deque(maxlen=_SAMPLES)  # seconds, as all below
        self._buckets = [0] * (len(BUCKETS_SECONDS) + 1)
        self._sum_seconds = 0.0

    def observe(self, milliseconds: float) -> None:
        self._new.append(milliseconds)
        if len(self._new) >= _SAMPLES:
            self._sort()

    def _sort(self) -> None:
        new = [milliseconds / 1000 for milliseconds in self._new]
        self._new.clear()
        self._recent.extend(new)
        self._sum_seconds += sum(new)
        for seconds in new:
            self._buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1

    @property
    def buckets(self) -> list[int]:
        """How many there were, by bucket; the last one is for those beyond."""
        self._sort()
        return self._buckets

    @property
    def sum_seconds(self) -> float:
        """All of them together."""
        self._sort()
        return self._sum_seconds

    def quantiles(self) -> dict[str, float | None]:
        self._sort()
        ordered = sorted(self._recent)
        last = len(ordered) - 1
        return {f"p{q}": round(ordered[last * q // 100], 6) if ordered else None for q in (50, 90, 99)}


class OfRegistry:
    """What has happened with one registry since the start."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()  # of clients, by cache result
        self.served_bytes: Counter[str] = Counter()  # by cache result
        self.upstream: Counter[str] = Counter()  # requests made to it, by kind
        self.failures = 0
        self.received_bytes = 0


# The program's own commands, such as warm: what they meet is told where they run.
_OWN_COMMAND = re.compile(r"registry-cache/\S+ \((?:warm|verify|doctor)\)")


class _Tally:
    """Requests that differ in nothing that is counted apart."""

    __slots__ = ("bytes", "repeated_bytes", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.repeated_bytes = 0


class Metrics:
    """What has happened since the start.

    A request is counted in one place, by everything that figures tell apart: a hit costs one look-up here. Whoever
    reads the figures adds it up (:meth:`_settle`).

    Args:
        listed: the registries that are counted apart; without it, each.
    """

    def __init__(self, listed: Iterable[str] | None = None) -> None:
        self._listed = None if listed is None else frozenset(listed)
        self.started = time.monotonic()
        self._tallies: dict[tuple[str, str, str, events.CacheResult, str], _Tally] = {}  # see _request()
        self._registries: defaultdict[str, OfRegistry] = defaultdict(OfRegistry)
        self._repeated_bytes = 0
        self.happened: Counter[str] = Counter()  # by event: quarantined, flight_resumed, not_stored…
        self.evicted_objects = 0
        self.evicted_bytes = 0
        self.prefetched_bytes = 0
        self.prefetch_wasted_bytes = 0
        self._hits, self._misses = Latency(), Latency()
        self.latency = {"hit": self._hits, "miss": self._misses}
        self._repositories = Uses()
        self._clients = Uses()
        self.recent_misses: deque[events.Request] = deque(maxlen=_RECENT)
        self.recent_trouble: deque[events.Event] = deque(maxlen=_RECENT)  # failed requests, warnings and errors
        self.recent_mistakes: deque[events.Event] = deque(maxlen=_MISTAKES)  # what clients did wrong
        self.refused: dict[str, RefusedFigures] = {}  # by kind
        self._access: Counter[tuple[str, str]] = Counter()
        self.limited: Counter[str] = Counter()  # requests and connections, by limit
        self.unstored: UnstoredFigures | None = None

    def __call__(self, event: events.Event) -> None:
        """Subscribe this to the events."""
        if isinstance(event, events.Request):
            self._request(event)
        elif isinstance(event, events.UpstreamReceived):
            self._registry(event.registry).received_bytes += event.bytes
        elif isinstance(event, events.UpstreamRequest):
            registry = self._registry(event.registry)
            registry.upstream[event.kind] += 1
            registry.failures += event.status == 0 or event.status >= 500  # noqa: PLR2004 -- HTTP
        elif isinstance(event, events.Evicted):
            self.evicted_objects += event.objects
            self.evicted_bytes += event.size_bytes
        elif isinstance(event, events.Prefetched):
            self.prefetched_bytes += event.size_bytes
        elif isinstance(event, events.PrefetchWasted):
            self.prefetch_wasted_bytes += event.size_bytes
        elif isinstance(event, events.RequestRefused):
            before = self.refused.get(event.kind)
            self.refused[event.kind] = RefusedFigures(
                requests=1 if before is None else before.requests + 1,
                last_at=event.time,
                client=event.client,
                reason=event.reason,
            )
        else:
            self._happened(event)

    def _happened(self, event: events.Event) -> None:
        if isinstance(event, events.NotStored):
            self._not_stored(event)
        elif isinstance(event, events.Limited):
            self.limited[event.limit] += event.requests
        self.happened[str(type(event).__struct_config__.tag)] += 1
        if event.level in ("warning", "error"):
            self.recent_trouble.append(event)

    def _request(self, event: events.Request) -> None:
        result = event.cache
        if event.decision not in ("", events.ALLOWED):
            # A client's first question of each pull, or none of its business: neither use nor trouble.
            self._access[event.decision, event.auth] += 1
            self._count(self._registry(event.registry), result, 1, event.bytes)
            return
        try:
            tally = self._tallies[event.registry, event.repository, event.client, result, event.auth]
        except KeyError:
            tally = self._new_tally((event.registry, event.repository, event.client, result, event.auth))
        tally.requests += 1
        tally.bytes += event.bytes
        if result in _HITS:
            tally.repeated_bytes += event.repeated_bytes
            # The bucket costs upstream nothing, and takes its time as upstream does.
            (self._misses if result == "shared" else self._hits).observe(event.duration_ms)
        elif result in ("miss", "collapsed"):
            self._misses.observe(event.duration_ms)
            if result == "miss":
                self.recent_misses.append(event)
        if (event.error or result == "stale") and not _OWN_COMMAND.fullmatch(event.user_agent):
            self._trouble(event)

    def _new_tally(self, key: tuple[str, str, str, events.CacheResult, str]) -> _Tally:
        if len(self._tallies) >= _TALLIES_MAX:
            self._settle()
        tally = self._tallies[key] = _Tally()
        return tally

    def _settle(self) -> None:
        """Add up what has been counted since the last time."""
        tallies, self._tallies = self._tallies, {}
        for (registry, repository, client, result, auth), tally in tallies.items():
            if auth:
                self._access[events.ALLOWED, auth] += tally.requests
            self._count(self._registry(registry), result, tally.requests, tally.bytes)
            self._repeated_bytes += tally.repeated_bytes
            if not repository or result == "error":
                continue
            for counts in (self._repositories[Repository(registry, repository).shown], self._clients[client]):
                counts[0] += tally.requests
                counts[1] += tally.bytes
                if result in _HITS:
                    counts[2] += tally.requests
                    counts[3] += tally.bytes - tally.repeated_bytes

    def _registry(self, name: str) -> OfRegistry:
        return self._registries[name if self._listed is None or name in self._listed else UNLISTED]

    @staticmethod
    def _count(registry: OfRegistry, result: events.CacheResult, requests: int, size_bytes: int) -> None:
        registry.requests[result] += requests
        registry.served_bytes[result] += size_bytes

    def _trouble(self, event: events.Request) -> None:
        if event.status not in _MISTAKEN:
            self.recent_trouble.append(event)
        elif event.detail != "refused":  # which makes one line for many
            self.recent_mistakes.append(event)

    def _not_stored(self, event: events.NotStored) -> None:
        objects = 1 if self.unstored is None else self.unstored.objects + 1
        self.unstored = UnstoredFigures(objects=objects, last_at=event.time, reason=event.reason)

    @property
    def registries(self) -> dict[str, OfRegistry]:
        """What has happened with each of them."""
        self._settle()
        return self._registries

    @property
    def repositories(self) -> Uses:
        """By name, with the registry where it is not Docker Hub."""
        self._settle()
        return self._repositories

    @property
    def access(self) -> Counter[tuple[str, str]]:
        """Requests where there are rules, by decision and by what it was proven by."""
        self._settle()
        return self._access

    @property
    def clients(self) -> Uses:
        """By address."""
        self._settle()
        return self._clients

    @property
    def repeated_bytes(self) -> int:
        """Of what came from here: sent to who did not want it again."""
        self._settle()
        return self._repeated_bytes

    def of(self, registry: str) -> OfRegistry:
        """What has happened with one registry."""
        return self.registries.get(registry) or OfRegistry()

    @property
    def requests(self) -> Counter[str]:
        """Of clients, by cache result."""
        return sum((registry.requests for registry in self.registries.values()), Counter())

    @property
    def served_bytes(self) -> Counter[str]:
        """Body bytes sent to clients, by cache result."""
        return sum((registry.served_bytes for registry in self.registries.values()), Counter())

    @property
    def upstream(self) -> Counter[str]:
        """Requests made upstream, by kind."""
        return sum((registry.upstream for registry in self.registries.values()), Counter())

    @property
    def upstream_failures(self) -> int:
        """Requests made upstream without a usable answer."""
        return sum(registry.failures for registry in self.registries.values())

    @property
    def received_bytes(self) -> int:
        """Body bytes that arrived from upstream."""
        return sum(registry.received_bytes for registry in self.registries.values())

    def trouble(self) -> list[events.Event]:
        """What an operator may want to look at, the oldest first: nothing that clients do pushes the rest out."""
        return sorted([*self.recent_trouble, *self.recent_mistakes], key=lambda event: event.time)

    @property
    def from_cache_bytes(self) -> int:
        """Body bytes that cost upstream nothing, and that somebody wanted."""
        served = self.served_bytes
        return sum(served[result] for result in _HITS) - self.repeated_bytes

    def counts(self) -> Counts:
        """Everything so far, as the history keeps it."""
        requests = self.requests
        return Counts(
            hits=sum(requests[result] for result in _HITS),
            misses=requests["miss"] + requests["collapsed"],
            errors=requests["error"],
            cached_bytes=self.from_cache_bytes,
            served_bytes=self.served_bytes.total(),
            received_bytes=self.received_bytes,
            evicted_bytes=self.evicted_bytes,
        )

    @property
    def hit_ratio(self) -> float | None:
        """Hits over hits and misses; ``None`` before the first of either."""
        ratio = self.counts().hit_ratio
        return None if ratio is None else round(ratio, 4)

    def snapshot(self) -> dict[str, Any]:
        """The fields of :class:`registry_cache.observe.figures.Stats` that are counted here."""
        served, requests = self.served_bytes.total(), self.requests
        wanted = served - self.repeated_bytes
        return {
            "uptime_seconds": round(time.monotonic() - self.started, 3),
            "requests": {result: requests[result] for result in RESULTS},
            "hit_ratio": self.hit_ratio,
            "byte_hit_ratio": round(self.from_cache_bytes / wanted, 4) if wanted else None,
            "bytes": ByteFigures(served=served, from_cache=self.from_cache_bytes, from_upstream=self.received_bytes),
            "latency_seconds": {name: latency.quantiles() for name, latency in self.latency.items()},
            "repositories": [
                RepositoryFigures(name=name, **use._asdict()) for name, use in self.repositories.top(_TOP)
            ],
            "all_repositories": AllRepositories(count=len(self.repositories), **self.repositories.total()._asdict()),
            "clients": [ClientFigures(address=name, **use._asdict()) for name, use in self.clients.top(_TOP)],
            "prefetch": PrefetchFigures(fetched_bytes=self.prefetched_bytes, wasted_bytes=self.prefetch_wasted_bytes),
            "refused": dict(self.refused),
            "unstored": self.unstored,
            "events": dict(sorted(self.happened.items())),
        }
