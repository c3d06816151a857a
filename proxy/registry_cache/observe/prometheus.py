"""``/metrics``: ``/_stats`` in Prometheus form. Every name is explained in ``docs/metrics.md``."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from registry_cache.access.limits import Limits
from registry_cache.model.events import REFUSAL_KINDS
from registry_cache.observe.figures import DiskFigures, FleetFigures, Stats, StoreFigures, UpstreamFigures
from registry_cache.observe.metrics import BUCKETS_SECONDS, RESULTS, Latency, Metrics

PREFIX = "registry_cache_"
_UPSTREAM_KINDS = ("manifest_get", "manifest_head", "blob_get", "blob_head", "token", "other")
# Present from the start: an increase() over a series that begins with its first event misses that event.
_EVENTS = (
    "crashed", "credential_rejected", "credential_withheld", "flight_failed", "flight_resumed", "not_stored",
    "quarantined", "storage_failed", "store_read_only", "upstream_down", "upstream_failed", "upstream_limited",
)  # fmt: skip


class PrometheusCollector(Collector):
    """Reads the plain counters when it is scraped.

    Args:
        stats: gives the whole of ``/_stats``.
    """

    def __init__(self, metrics: Metrics, stats: Callable[[], Stats]) -> None:
        self._metrics = metrics
        self._stats = stats

    def registry(self) -> CollectorRegistry:
        """A registry of its own: no global state. The process's own figures are in it too."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return registry

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client at each scrape."""
        stats = self._stats()
        yield _labelled("build_info", "The running version; always 1.", "version", [(stats.version, 1)], gauge=True)
        yield from self._requests()
        yield from self._upstream_counters()
        yield from self._removals()
        yield from _store(stats.store, stats.disk)
        yield from _upstream(stats.upstream)
        yield from _registries(stats.upstreams)
        if stats.fleet is not None:
            yield from _fleet(stats.fleet)
        yield _gauge("flights", "Transfers from upstream under way.", stats.flights)
        for name, latency in self._metrics.latency.items():
            yield _histogram(f"{name}_duration_seconds", f"Duration of a {name}, body included.", latency)

    def _requests(self) -> Iterator[Metric]:
        metrics = self._metrics
        requests = ((result, metrics.requests[result]) for result in RESULTS)
        yield _labelled("requests", "Requests to /v2/ by outcome.", "cache", requests)
        served = ((result, metrics.served_bytes[result]) for result in RESULTS)
        yield _labelled("served_bytes", "Body bytes sent to clients by outcome.", "cache", served)
        refused = ((kind, metrics.refused[kind].requests if kind in metrics.refused else 0) for kind in REFUSAL_KINDS)
        yield _labelled("refused_requests", "Requests refused whatever they asked for, by kind.", "kind", refused)
        access = CounterMetricFamily(
            PREFIX + "access", "Requests to /v2/ where there are rules, by decision.", labels=["decision", "auth"]
        )
        for labels, count in metrics.access.items():
            access.add_metric(list(labels), count)
        yield access
        limited = ((name, metrics.limited[name]) for name in Limits._fields)
        yield _labelled("limited", "Requests and connections above a limit, told once a minute.", "limit", limited)
        happened = {**dict.fromkeys(_EVENTS, 0), **metrics.happened}
        yield _labelled("events", "Other things that happened, by the event of the log.", "event", happened.items())

    def _upstream_counters(self) -> Iterator[Metric]:
        metrics = self._metrics
        requests = ((kind, metrics.upstream[kind]) for kind in _UPSTREAM_KINDS)
        yield _counter("upstream_received_bytes", "Body bytes received from upstream.", metrics.received_bytes)
        yield _labelled("upstream_requests", "Requests to upstream by kind.", "kind", requests)
        yield _counter("upstream_failures", "Requests to upstream without a usable answer.", metrics.upstream_failures)
        yield _counter("prefetched_bytes", "Bytes fetched before a client asked for them.", metrics.prefetched_bytes)
        yield _counter(
            "prefetch_wasted_bytes", "Bytes prefetched that no client asked for.", metrics.prefetch_wasted_bytes
        )

    def _removals(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _counter("evicted_objects", "Blobs and manifests evicted to make room.", metrics.evicted_objects)
        yield _counter("evicted_bytes", "Bytes evicted to make room.", metrics.evicted_bytes)
        yield _counter(
            "quarantined", "Stored blobs that were found rotten and put aside.", metrics.happened["quarantined"]
        )


def _store(store: StoreFigures, disk: DiskFigures | None) -> Iterator[Metric]:
    yield _gauge("store_size_bytes", "Content that is stored.", store.size_bytes)
    yield _gauge("store_max_size_bytes", "The cap, MAX_SIZE.", store.max_size_bytes)
    yield _gauge("store_partial_bytes", "Room promised to transfers, interrupted ones too.", store.partial_bytes)
    for name in ("blobs", "manifests", "tags"):
        yield _gauge(f"store_{name}", f"Cached {name}.", getattr(store, name))
    yield _gauge("store_quarantined", "Rotten files that are kept as evidence.", store.quarantined)
    if disk:
        yield _gauge("disk_size_bytes", "The filesystem of the cache directory.", disk.size_bytes)
        yield _gauge("disk_free_bytes", "What is free on it.", disk.free_bytes)
        yield _gauge("disk_min_free_bytes", "What stays free on it, MIN_FREE.", disk.min_free_bytes)
        yield _gauge("disk_free_files", "Inodes that are free on it; 0 where it has no bound.", disk.free_files)
        yield _gauge("disk_min_free_files", "Inodes that stay free on it, or 0.", disk.min_free_files)


def _upstream(upstream: UpstreamFigures) -> Iterator[Metric]:
    yield _gauge("upstream_reachable", "Whether upstream is held to be up.", int(upstream.reachable))
    yield _gauge(
        "upstream_limited_seconds",
        "For how long upstream wants to be left alone after a 429; 0: not at all.",
        upstream.limited_for_seconds,
    )
    if upstream.answered_at:
        yield _gauge(
            "upstream_answered_timestamp_seconds", "When upstream last answered anything.", upstream.answered_at
        )
    yield _gauge(
        "credential_rejected",
        "Whether upstream rejects the configured credential.",
        int(upstream.credential_rejected),
    )
    if quota := upstream.rate_limit:
        yield _gauge("upstream_quota_limit", "Pulls that upstream allows in a window.", quota.limit)
        yield _gauge("upstream_quota_remaining", "Pulls that are left.", quota.remaining)
        yield _gauge("upstream_quota_window_seconds", "Length of that window.", quota.window_seconds)
        yield _gauge("upstream_quota_observed_timestamp_seconds", "When upstream told it last.", quota.observed_at)


def _registries(upstreams: Mapping[str, UpstreamFigures]) -> Iterator[Metric]:
    """Each registry by itself; the families above are of all, or of the default one."""
    requests = CounterMetricFamily(
        f"{PREFIX}registry_requests", "Requests of clients for a registry's content.", labels=["registry", "cache"]
    )
    for name, figures in upstreams.items():
        for result in RESULTS:
            requests.add_metric([name, result], figures.served.get(result, 0))
    yield requests
    counters: dict[str, tuple[str, Callable[[UpstreamFigures], int]]] = {
        "served_bytes": ("Body bytes of a registry's content sent to clients.", lambda one: one.served_bytes),
        "received_bytes": ("Body bytes received from a registry.", lambda one: one.received_bytes),
        "failures": ("Requests to a registry without a usable answer.", lambda one: one.failures),
    }
    for metric, (text, read) in counters.items():
        yield _labelled(f"registry_{metric}", text, "registry", ((name, read(one)) for name, one in upstreams.items()))
    gauges: dict[str, tuple[str, Callable[[UpstreamFigures], float]]] = {
        "up": ("Whether a registry is held to be up.", lambda one: int(one.reachable)),
        "limited_seconds": ("For how long a registry wants to be left alone.", lambda one: one.limited_for_seconds),
        "credential_rejected": ("Whether a registry rejects its credential.", lambda one: int(one.credential_rejected)),
    }
    for metric, (text, value) in gauges.items():
        values = ((name, value(one)) for name, one in upstreams.items())
        yield _labelled(f"registry_{metric}", text, "registry", values, gauge=True)
    left = ((name, one.rate_limit.remaining) for name, one in upstreams.items() if one.rate_limit is not None)
    yield _labelled("registry_quota_remaining", "Pulls that a registry has left.", "registry", left, gauge=True)


def _fleet(fleet: FleetFigures) -> Iterator[Metric]:
    yield _gauge("fleet_redis_up", "Whether the fleet's Redis answers.", int(not fleet.redis_trouble))
    yield _gauge(
        "fleet_refused", "Whether the fleet has refused this replica, which runs alone.", int(bool(fleet.refusal))
    )
    versions = Counter(member.version for member in fleet.members)
    yield _labelled(
        "fleet_members", "Replicas heard of in the last half minute.", "version", versions.items(), gauge=True
    )
    yield _gauge("fleet_leases", "Blobs that this replica fetches for all now.", fleet.leases)
    how = {name: getattr(fleet, name) for name in ("led", "followed", "alone")}
    yield _labelled("fleet_fetches", "Cold blobs by how they came here.", "how", how.items())
    yield _counter("fleet_takeovers", "Blobs gone on with after another replica had died.", fleet.takeovers)
    yield _counter("fleet_peer_received_bytes", "Body bytes received from other replicas.", fleet.peer_bytes)
    yield _counter("fleet_peer_sent_bytes", "Body bytes sent to other replicas.", fleet.served_bytes)
    yield _counter("fleet_refused_requests", "Requests on the fleet's port without the key.", fleet.refused)
    if fleet.has_bucket:
        yield from _bucket(fleet)


def _bucket(fleet: FleetFigures) -> Iterator[Metric]:
    works = {"reading": int(not fleet.reading_trouble), "writing": int(not fleet.writing_trouble)}
    yield _labelled("fleet_bucket_up", "Whether the fleet's bucket works.", "part", works.items(), gauge=True)
    yield _gauge("fleet_bucket_sharing", "Blobs on their way into the bucket, or waiting for that.", fleet.sharing)
    done = {name: getattr(fleet, name) for name in ("from_bucket", "shared", "not_shared", "evicted", "rotten")}
    yield _labelled("fleet_bucket_blobs", "Blobs by what became of them in the bucket.", "what", done.items())
    yield _counter("fleet_bucket_received_bytes", "Body bytes received from the bucket.", fleet.bucket_bytes)
    yield _counter("fleet_bucket_redirects", "Clients sent to the bucket.", fleet.bucket_redirects)
    yield _counter("fleet_bucket_redirected_bytes", "Sizes of what they were sent for.", fleet.bucket_redirects_bytes)
    yield _counter("fleet_bucket_sent_bytes", "Body bytes brought into the bucket.", fleet.shared_bytes)
    yield _counter("fleet_bucket_evicted_bytes", "Bytes deleted from the bucket for room.", fleet.evicted_bytes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value)


def _labelled(name: str, text: str, label: str, values: Iterable[tuple[str, float]], *, gauge: bool = False) -> Metric:
    kind = GaugeMetricFamily if gauge else CounterMetricFamily
    family = kind(PREFIX + name, text, labels=[label])
    for value, count in values:
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, latency: Latency) -> Metric:
    total, buckets = 0, []
    for bound, count in zip([*map(str, BUCKETS_SECONDS), "+Inf"], latency.buckets, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family = HistogramMetricFamily(PREFIX + name, text)
    family.add_metric([], buckets, latency.sum_seconds)
    return family
