"""Counters, fed by events. Plain integers: a hit costs a microsecond here, and Prometheus reads them later."""

import re
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from typing import Any

from registry_cache.model import events
from registry_cache.model.oci import DOCKER_HUB, Repository
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

_HITS = ("hit", "revalidated", "stale")
RESULTS = ("hit", "miss", "collapsed", "revalidated", "stale", "bypass", "error")
BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = 4096
_TOP = 20
_RECENT = 50
_MISTAKES = 5
# Statuses that are the client's own doing, and upstream's no: anybody can make as many of them as they like.
_MISTAKEN = frozenset({400, 403, 404, 405, 416, 421, 499})


class Latency:
    """Durations in seconds: the last few thousand for quantiles, all of them in buckets for Prometheus."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_SAMPLES)
        self.buckets = [0] * (len(BUCKETS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.recent.append(seconds)
        self.buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds

    def quantiles(self) -> dict[str, float | None]:
        ordered = sorted(self.recent)
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


class Metrics:
    """What has happened since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.registries: defaultdict[str, OfRegistry] = defaultdict(OfRegistry)
        self.repeated_bytes = 0  # of what came from here: sent to who did not want it again
        self.happened: Counter[str] = Counter()  # by event: quarantined, flight_resumed, not_stored…
        self.evicted_objects = 0
        self.evicted_bytes = 0
        self.prefetched_bytes = 0
        self.prefetch_wasted_bytes = 0
        self.latency = {"hit": Latency(), "miss": Latency()}
        self.repositories = Uses()  # by name, with the registry where it is not Docker Hub
        self.clients = Uses()  # by address
        self.recent_misses: deque[events.Request] = deque(maxlen=_RECENT)
        self.recent_trouble: deque[events.Event] = deque(maxlen=_RECENT)  # failed requests, warnings and errors
        self.recent_mistakes: deque[events.Event] = deque(maxlen=_MISTAKES)  # what clients did wrong
        self.refused: dict[str, RefusedFigures] = {}  # by kind
        self.access: Counter[tuple[str, str]] = Counter()  # by decision and what it was proven by
        self.unstored: UnstoredFigures | None = None

    def __call__(self, event: events.Event) -> None:
        """Subscribe this to the events."""
        if isinstance(event, events.Request):
            self._request(event)
        elif isinstance(event, events.UpstreamReceived):
            self.registries[event.registry].received_bytes += event.bytes
        elif isinstance(event, events.UpstreamRequest):
            registry = self.registries[event.registry]
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
            if isinstance(event, events.NotStored):
                self._not_stored(event)
            self.happened[str(type(event).__struct_config__.tag)] += 1
            if event.level in ("warning", "error"):
                self.recent_trouble.append(event)

    def _request(self, event: events.Request) -> None:
        result, registry = event.cache, self.registries[event.registry]
        registry.requests[result] += 1
        registry.served_bytes[result] += event.bytes
        if event.decision:
            self.access[event.decision, event.auth] += 1
            if event.decision != "allow":
                return  # a client's first question of each pull, or none of its business: neither use nor trouble
        self._answered(event)

    def _answered(self, event: events.Request) -> None:
        result = event.cache
        if result in _HITS:
            if event.repeated_bytes:
                self.repeated_bytes += event.repeated_bytes
            self.latency["hit"].observe(event.duration_ms / 1000)
        elif result in ("miss", "collapsed"):
            self.latency["miss"].observe(event.duration_ms / 1000)
            if result == "miss":
                self.recent_misses.append(event)
        if event.repository and result != "error":
            is_hit = result in _HITS
            is_hub = event.registry == DOCKER_HUB
            repository = event.repository if is_hub else Repository(event.registry, event.repository).shown
            for counts in (self.repositories[repository], self.clients[event.client]):
                counts[0] += 1
                counts[1] += event.bytes
                if is_hit:
                    counts[2] += 1
                    counts[3] += event.bytes - event.repeated_bytes
        if (event.error or result == "stale") and not _OWN_COMMAND.fullmatch(event.user_agent):
            self._trouble(event)

    def _trouble(self, event: events.Request) -> None:
        if event.status not in _MISTAKEN:
            self.recent_trouble.append(event)
        elif event.detail != "refused":  # which makes one line for many
            self.recent_mistakes.append(event)

    def _not_stored(self, event: events.NotStored) -> None:
        objects = 1 if self.unstored is None else self.unstored.objects + 1
        self.unstored = UnstoredFigures(objects=objects, last_at=event.time, reason=event.reason)

    def of(self, registry: str) -> OfRegistry:
        """What has happened with one registry."""
        return self.registries[registry] if registry in self.registries else OfRegistry()

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
