"""Upstream, the flights that fetch from it, and the decision for each request."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from registry_cache import __version__
from registry_cache.assembly.stores import Catalog
from registry_cache.model import events
from registry_cache.pull.asking import Policy
from registry_cache.pull.flight import BlobSource, Flight
from registry_cache.pull.flights import Flights
from registry_cache.pull.parallel import EXTRA_CONNECTIONS, ParallelSource
from registry_cache.pull.prefetch import Prefetcher
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.settings.model import Settings
from registry_cache.store.disk import DiskStore
from registry_cache.store.index import SqliteIndex
from registry_cache.upstream.client import Upstream
from registry_cache.upstream.credential import Credential
from registry_cache.upstream.resilience import backoff_seconds
from registry_cache.upstream.tls import tls_context


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


@dataclass(frozen=True)
class Pulls:
    """What answers pulls."""

    upstream: Upstream
    flights: Flights
    pull_through: PullThrough


@contextlib.asynccontextmanager
async def open_pulls(
    settings: Settings, bus: events.Events, index: SqliteIndex, store: DiskStore, catalog: Catalog
) -> AsyncIterator[Pulls]:
    """Upstream and what asks it, taken down in the opposite order of building."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = build_upstream(settings, bus)
        stack.push_async_callback(upstream.aclose)
        stack.callback(upstream.interrupt)  # who was not waited for does not keep the process until READ_TIMEOUT
        flights = _flights(settings, bus, store, catalog, upstream)
        stack.push_async_callback(flights.aclose)
        prefetcher = Prefetcher(
            flights,
            catalog.manifests,
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
            proof=catalog.proof,
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
        yield Pulls(upstream, flights, pull_through)


def _flights(settings: Settings, bus: events.Events, store: DiskStore, catalog: Catalog, upstream: Upstream) -> Flights:
    def published(flight: Flight) -> None:
        if flight.asked_upstream:  # else an earlier run had brought it, under whatever name
            catalog.proof.supplied(flight.repository, flight.digest)

    source: BlobSource = upstream
    if settings.blob_connections > 1:
        source = ParallelSource(upstream, connections=settings.blob_connections)
    return Flights(
        source,
        store,
        limit=settings.max_flights,
        retries=settings.retries,
        published=published,
        backoff=backoff_seconds,
        events=bus,
    )
