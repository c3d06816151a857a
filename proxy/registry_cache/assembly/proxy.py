"""The one place that builds concrete things and puts them together."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from registry_cache import __version__
from registry_cache.assembly.reports import Identity, Reports
from registry_cache.catalog.curator import Curator
from registry_cache.catalog.manifests import ManifestReader, OpaqueManifests
from registry_cache.catalog.proof import Proof
from registry_cache.model import events
from registry_cache.model.oci import DOCKER_HUB
from registry_cache.observe.history import History
from registry_cache.observe.metrics import Metrics
from registry_cache.observe.prometheus import PrometheusCollector
from registry_cache.pull.asking import Policy
from registry_cache.pull.flight import BlobSource, Flight
from registry_cache.pull.flights import Flights
from registry_cache.pull.parallel import EXTRA_CONNECTIONS, ParallelSource
from registry_cache.pull.prefetch import Prefetcher
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.runtime.threads import Threads
from registry_cache.settings.model import Settings
from registry_cache.store.disk import DiskStore
from registry_cache.store.index import ANSWERS_MAX_BYTES, SqliteIndex
from registry_cache.store.lock import DirectoryLock
from registry_cache.store.scrub import Scrubber
from registry_cache.upstream.client import Upstream
from registry_cache.upstream.credential import Credential
from registry_cache.upstream.resilience import backoff_seconds
from registry_cache.upstream.tls import tls_context
from registry_cache.web.admin import Admin, listening
from registry_cache.web.app import Server
from registry_cache.web.blob_response import BlobResponder
from registry_cache.web.fast_connection import missing_attributes
from registry_cache.web.fast_path import FastPath
from registry_cache.web.gate import Gate
from registry_cache.web.ops import Ops
from registry_cache.web.page import Page
from registry_cache.web.refusals import Refusals
from registry_cache.web.v2 import V2


@dataclass(frozen=True)
class Proxy:
    """A cache that is ready to serve."""

    server: Server
    pull_through: PullThrough
    store: DiskStore
    index: SqliteIndex
    upstream: Upstream
    flights: Flights
    metrics: Metrics
    identity: Identity


@contextlib.asynccontextmanager
async def open_proxy(settings: Settings, bus: events.Events) -> AsyncIterator[Proxy]:
    """Build the cache, and take it down again in the opposite order.

    Raises:
        StoreError: the cache directory cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics()
        bus.subscribe(metrics)
        index, store = await stack.enter_async_context(open_store(settings, bus))
        history = History(index, metrics.counts, index.clock.now, bus)
        history.start()
        stack.push_async_callback(history.aclose)
        opaque = OpaqueManifests(bus)
        manifests = ManifestReader(opaque)
        stack.push_async_callback(manifests.aclose)
        proof = Proof(index, store, manifests, is_required=bool(settings.username and settings.password_file))
        curator = Curator(store, index, opaque, proof, cap_bytes=int(settings.max_size), events=bus)
        await curator.start()
        stack.push_async_callback(curator.aclose)
        scrubber = Scrubber(store, index, bytes_per_second=settings.scrub_rate, events=bus)
        scrubber.start()
        stack.push_async_callback(scrubber.aclose)
        upstream = build_upstream(settings, bus)
        stack.push_async_callback(upstream.aclose)
        stack.callback(upstream.interrupt)  # who was not waited for does not keep the process until READ_TIMEOUT

        def published(flight: Flight) -> None:
            if flight.asked_upstream:  # else an earlier run had brought it, under whatever name
                proof.supplied(flight.repository, flight.digest)

        source: BlobSource = upstream
        if settings.blob_connections > 1:
            source = ParallelSource(upstream, connections=settings.blob_connections)
        flights = Flights(
            source,
            store,
            limit=settings.max_flights,
            retries=settings.retries,
            published=published,
            backoff=backoff_seconds,
            events=bus,
        )
        stack.push_async_callback(flights.aclose)
        prefetcher = Prefetcher(
            flights,
            manifests,
            concurrency=settings.prefetch_concurrency,
            # What is only likely to be asked for does not push out much of what was.
            max_bytes=min(settings.prefetch_max_size, settings.max_size // 4),
            events=bus,
        )
        stack.push_async_callback(prefetcher.aclose)
        pull_through = PullThrough(
            upstream=upstream,
            store=store,
            index=index,
            flights=flights,
            prefetcher=prefetcher,
            proof=proof,
            policy=Policy(
                tag_ttl_seconds=settings.tag_ttl,
                stale_timeout_seconds=settings.stale_timeout,
                request_timeout_seconds=settings.request_timeout,
                rate_limit_wait_seconds=settings.rate_limit_wait,
                negative_ttl_seconds=settings.negative_ttl,
                keep_deleted_tags=settings.keep_deleted_tags,
            ),
            clock=index.clock,
            account=lambda: upstream.auth.credential_rejected,
            events=bus,
        )
        stack.push_async_callback(pull_through.aclose)
        reads = Threads("read", 4)
        stack.callback(reads.close)

        identity = Identity()
        reports = Reports(
            settings,
            identity=identity,
            metrics=metrics,
            history=history,
            index=index,
            store=store,
            upstream=upstream,
            flights=flights,
        )
        blobs = BlobResponder(pull_through, flights, client_timeout_seconds=settings.client_timeout, threads=reads)
        gate, refusals = Gate.of(settings.hosts, is_loopback=settings.is_loopback), Refusals(bus)
        stack.callback(refusals.close)
        v2 = V2(
            pull_through,
            index,
            blobs,
            gate=gate,
            refusals=refusals,
            registries=frozenset({DOCKER_HUB}),
            events=bus,
        )
        if missing := missing_attributes():
            bus.emit(events.Warned(message=f"this aiohttp has no {', '.join(missing)}: hits take the slower way"))
        prometheus = PrometheusCollector(metrics, reports.stats).registry()
        server = Server(
            v2,
            Ops(reports.stats, Page(reports.page_data), prometheus, gate=gate, refusals=refusals),
            FastPath(pull_through, blobs, bus),
            refusals,
            max_connections=settings.max_connections,
            client_timeout_seconds=settings.client_timeout,
        )
        await stack.enter_async_context(
            listening(Admin(curator, reports.full_stats, reports.about), settings.cache_dir, bus)
        )
        yield Proxy(server, pull_through, store, index, upstream, flights, metrics, identity)


@contextlib.asynccontextmanager
async def open_store(settings: Settings, bus: events.Events) -> AsyncIterator[tuple[SqliteIndex, DiskStore]]:
    """What is cached, for this process alone.

    Raises:
        StoreLocked: another process has it.
        StoreError: the cache directory cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        lock = DirectoryLock(settings.cache_dir)
        stack.callback(lock.release)
        if lock.warning:
            bus.emit(events.Warned(message=lock.warning))
        index = SqliteIndex(
            settings.cache_dir / "index.sqlite3",
            events=bus,
            answers_max_bytes=min(ANSWERS_MAX_BYTES, settings.max_size // 20),
        )
        await index.start()
        stack.push_async_callback(index.aclose)
        store = DiskStore(
            settings.cache_dir,
            cap_bytes=settings.max_size,
            min_free_bytes=settings.min_free,
            index=index,
            events=bus,
        )
        await store.start()
        stack.push_async_callback(store.aclose)
        yield index, store


def build_upstream(settings: Settings, bus: events.Events) -> Upstream:
    """The upstream that *settings* name; whoever builds it closes it."""
    credential = None
    if settings.username and settings.password_file:
        credential = Credential(settings.username, settings.password_file)
    return Upstream(
        settings.upstream,
        tls=tls_context(settings.ca_file),
        credential=credential,
        trusted_realms=settings.trusted_realms,
        anonymous_fallback=settings.anonymous_fallback,
        private_hosts=settings.private_hosts,
        connect_timeout_seconds=settings.connect_timeout,
        read_timeout_seconds=settings.read_timeout,
        # Flights, as many direct streams, what is fetched ahead, and further connections of large blobs.
        connections=2 * settings.max_flights + settings.prefetch_concurrency + EXTRA_CONNECTIONS,
        user_agent=f"registry-cache/{__version__}",
        events=bus,
    )
