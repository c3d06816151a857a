"""Counters, fed by events. Plain integers: a hit costs a microsecond here, and Prometheus reads them later."""

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

from cachetools import LRUCache
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy import events

_HITS = ("hit", "revalidated", "stale")
_RESULTS = ("hit", "miss", "collapsed", "revalidated", "stale", "bypass", "error")
_UPSTREAM_KINDS = ("manifest_get", "manifest_head", "blob_get", "token")
_BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = 4096
_REPOSITORIES = 10_000


class _Latency:
    """Durations in seconds: the last few thousand for quantiles, all of them in buckets for Prometheus."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_SAMPLES)
        self.buckets = [0] * (len(_BUCKETS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.recent.append(seconds)
        self.buckets[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds

    def quantiles(self) -> dict[str, float | None]:
        ordered = sorted(self.recent)
        last = len(ordered) - 1
        return {f"p{q}": round(ordered[last * q // 100], 6) if ordered else None for q in (50, 90, 99)}


class Metrics:
    """What has happened since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.requests: Counter[str] = Counter()
        self.served_bytes: Counter[str] = Counter()  # by cache result
        self.received_bytes = 0
        self.upstream: Counter[str] = Counter()
        self.upstream_failures = 0
        self.happened: Counter[str] = Counter()  # by event: quarantined, flight_resumed, not_stored…
        self.evicted_objects = 0
        self.evicted_bytes = 0
        self.prefetched_bytes = 0
        self.prefetch_wasted_bytes = 0
        self.latency = {"hit": _Latency(), "miss": _Latency()}
        self.repositories: LRUCache[str, list[int]] = LRUCache(_REPOSITORIES)  # requests, bytes

    def __call__(self, event: events.Event) -> None:
        """Subscribe this to the events."""
        if isinstance(event, events.Request):
            self._request(event)
        elif isinstance(event, events.UpstreamReceived):
            self.received_bytes += event.bytes
        elif isinstance(event, events.UpstreamRequest):
            self.upstream[event.kind] += 1
            self.upstream_failures += event.status == 0 or event.status >= 500  # noqa: PLR2004 -- HTTP
        elif isinstance(event, events.Evicted):
            self.evicted_objects += event.objects
            self.evicted_bytes += event.size_bytes
        elif isinstance(event, events.Prefetched):
            self.prefetched_bytes += event.size_bytes
        elif isinstance(event, events.PrefetchWasted):
            self.prefetch_wasted_bytes += event.size_bytes
        else:
            self.happened[str(type(event).__struct_config__.tag)] += 1

    def _request(self, event: events.Request) -> None:
        result = event.cache
        self.requests[result] += 1
        self.served_bytes[result] += event.bytes
        if result in _HITS:
            self.latency["hit"].observe(event.duration_ms / 1000)
        elif result in ("miss", "collapsed"):
            self.latency["miss"].observe(event.duration_ms / 1000)
        if event.repository and result != "error":
            counts = self.repositories.get(event.repository)
            if counts is None:
                counts = self.repositories[event.repository] = [0, 0]
            counts[0] += 1
            counts[1] += event.bytes

    @property
    def from_cache_bytes(self) -> int:
        """Body bytes that cost upstream nothing."""
        return sum(self.served_bytes[result] for result in _HITS)

    @property
    def hit_ratio(self) -> float | None:
        """Hits over hits and misses; ``None`` before the first of either."""
        hits = sum(self.requests[result] for result in _HITS)
        cacheable = hits + self.requests["miss"] + self.requests["collapsed"]
        return round(hits / cacheable, 4) if cacheable else None

    def snapshot(self) -> dict[str, Any]:
        """The part of ``/_stats`` that is counted here."""
        served = self.served_bytes.total()
        top = sorted(self.repositories.items(), key=lambda item: item[1][1], reverse=True)[:20]
        return {
            "uptime_seconds": round(time.monotonic() - self.started, 3),
            "requests": {result: self.requests[result] for result in _RESULTS},
            "hit_ratio": self.hit_ratio,
            "byte_hit_ratio": round(self.from_cache_bytes / served, 4) if served else None,
            "bytes": {"served": served, "from_cache": self.from_cache_bytes, "from_upstream": self.received_bytes},
            "latency_seconds": {name: latency.quantiles() for name, latency in self.latency.items()},
            "repositories": [{"name": name, "requests": count, "bytes": size} for name, (count, size) in top],
            "prefetch": {"fetched_bytes": self.prefetched_bytes, "wasted_bytes": self.prefetch_wasted_bytes},
            "events": dict(sorted(self.happened.items())),
        }


class PrometheusCollector(Collector):
    """``/_stats`` in Prometheus form.

    Args:
        stats: gives the whole of ``/_stats``.
    """

    def __init__(self, metrics: Metrics, stats: "Any") -> None:
        self._metrics = metrics
        self._stats = stats

    def registry(self) -> CollectorRegistry:
        """A registry of its own: no global state."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client at each scrape."""
        metrics, stats = self._metrics, self._stats()
        prefix = "registry_cache_"
        yield _labelled(prefix + "requests", "Requests to /v2/ by outcome.", "cache", stats["requests"].items())
        yield _labelled(
            prefix + "served_bytes",
            "Body bytes sent to clients by outcome.",
            "cache",
            ((result, metrics.served_bytes[result]) for result in _RESULTS),
        )
        yield CounterMetricFamily(
            prefix + "upstream_received_bytes", "Body bytes received from upstream.", metrics.received_bytes
        )
        yield _labelled(
            prefix + "upstream_requests",
            "Requests to upstream by kind.",
            "kind",
            ((kind, metrics.upstream[kind]) for kind in (*_UPSTREAM_KINDS, "blob_head", "other")),
        )
        yield CounterMetricFamily(
            prefix + "upstream_failures", "Requests to upstream without a usable answer.", metrics.upstream_failures
        )
        yield _labelled(prefix + "events", "Other things that happened.", "event", metrics.happened.items())
        yield CounterMetricFamily(prefix + "evicted_objects", "Blobs evicted.", metrics.evicted_objects)
        yield CounterMetricFamily(prefix + "evicted_bytes", "Bytes evicted.", metrics.evicted_bytes)
        yield CounterMetricFamily(
            prefix + "prefetched_bytes", "Bytes fetched before a client asked for them.", metrics.prefetched_bytes
        )
        yield CounterMetricFamily(
            prefix + "prefetch_wasted_bytes",
            "Bytes prefetched that no client asked for.",
            metrics.prefetch_wasted_bytes,
        )
        for name in ("size_bytes", "max_size_bytes", "partial_bytes", "blobs", "manifests", "tags", "quarantined"):
            yield GaugeMetricFamily(prefix + "store_" + name, f"Store: {name}.", stats["store"][name])
        yield GaugeMetricFamily(prefix + "flights", "Transfers from upstream under way.", stats["flights"])
        yield GaugeMetricFamily(
            prefix + "upstream_reachable", "Whether upstream is held to be up.", int(stats["upstream"]["reachable"])
        )
        yield GaugeMetricFamily(
            prefix + "credential_rejected",
            "Whether upstream rejects the configured credential.",
            int(stats["upstream"]["credential_rejected"]),
        )
        quota = stats["upstream"]["rate_limit"]
        if quota:
            yield GaugeMetricFamily(prefix + "upstream_quota_limit", "Pulls that upstream allows.", quota["limit"])
            yield GaugeMetricFamily(prefix + "upstream_quota_remaining", "Pulls that are left.", quota["remaining"])
        for name, latency in metrics.latency.items():
            yield _histogram(f"{prefix}{name}_duration_seconds", f"Duration of a {name}, body included.", latency)


def _labelled(name: str, text: str, label: str, values: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values:
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, latency: _Latency) -> Metric:
    total, buckets = 0, []
    for bound, count in zip([*map(str, _BUCKETS_SECONDS), "+Inf"], latency.buckets, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets, latency.sum_seconds)
    return family
