"""Upstream, the flights that fetch from it, and the decision for each request."""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry_cache.access.control import Access
from registry_cache.assembly.fleet import elsewhere, ended, following, open_fleet, open_port, shared, source_of
from registry_cache.assembly.stores import Catalog
from registry_cache.assembly.unlisted import Lent, OnDemand, Unlisted
from registry_cache.catalog.proof import Proof
from registry_cache.model.bus import Events
from registry_cache.model.registry_patterns import RegistryPatterns
from registry_cache.pull.answers import Upstream as Asked
from registry_cache.pull.asking import Policy
from registry_cache.pull.flight import BlobSource, Flight
from registry_cache.pull.flights import Flights
from registry_cache.pull.parallel import EXTRA_CONNECTIONS, ParallelSource, Spare
from registry_cache.pull.prefetch import Prefetcher
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.pull.registry import Registry
from registry_cache.pull.runway import Runway
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import RegistrySettings, registries, unlisted_registry
from registry_cache.store.disk import DiskStore
from registry_cache.store.index import SqliteIndex
from registry_cache.upstream.as_clients import AsClients
from registry_cache.upstream.client import Upstream
from registry_cache.upstream.resilience import backoff_seconds

if TYPE_CHECKING:
    from registry_cache.fleet.fleet import Fleet


def build_upstream(
    registry: RegistrySettings, prefetch_concurrency: int, bus: Events, access: Access | None = None
) -> Upstream:
    """The upstream of *registry*; whoever builds it closes it.

    Args:
        access: who decides, where the registry does.
    """
    # Flights, as many direct streams, what is fetched ahead, and further connections of large blobs.
    connections = 2 * registry.max_flights + prefetch_concurrency + EXTRA_CONNECTIONS
    if access is not None and registry.forwards:
        forwarding = access.forwards[registry.name]
        forwarding.registry = asked = AsClients(registry, connections=connections, events=bus, let_in=forwarding)
        return asked
    return Upstream(registry, connections=connections, events=bus)


@dataclass(frozen=True)
class Pulls:
    """What answers pulls; the upstreams by the names of their registries, the default one first."""

    upstreams: Mapping[str, Upstream]
    unlisted: Unlisted
    flights: Flights
    pull_through: PullThrough
    fleet: "Fleet | None"


@contextlib.asynccontextmanager
async def open_pulls(
    settings: Settings,
    bus: Events,
    index: SqliteIndex,
    store: DiskStore,
    catalog: Catalog,
    access: Access | None,
) -> AsyncIterator[Pulls]:
    """The upstreams and what asks them, taken down in the opposite order of building."""
    async with contextlib.AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(settings, bus, store, index))
        served = registries(settings)
        upstreams: dict[str, Upstream] = {}
        for name, registry in served.items():
            upstream = upstreams[name] = build_upstream(registry, settings.prefetch_concurrency, bus, access)
            stack.push_async_callback(upstream.aclose)
            stack.callback(upstream.interrupt)  # who was not waited for does not keep the process until READ_TIMEOUT
        unlisted = _unlisted(settings, bus)
        stack.push_async_callback(unlisted.aclose)
        stack.callback(unlisted.interrupt)
        spare = Spare(len(served))

        def made(registry: RegistrySettings, upstream: Upstream | Lent) -> Runway:
            return _runway(registry, upstream, spare, bus, fleet, catalog.proof)

        def runway(name: str) -> Runway:
            return made(unlisted_registry(settings, name), Lent(unlisted, name))

        def asked(name: str) -> Registry:
            registry = unlisted_registry(settings, name)
            return _registry(registry, shared(fleet, registry, Lent(unlisted, name), catalog.proof), lambda: None)

        runways = {name: made(registry, upstreams[name]) for name, registry in served.items()}
        flights = Flights(
            OnDemand(runways, runway, unlisted.allowed),
            store,
            published=_published(catalog.proof, fleet, settings.forwarding),
            ended=ended(fleet),
            events=bus,
        )
        stack.push_async_callback(flights.aclose)
        await stack.enter_async_context(open_port(fleet, settings, flights, catalog.proof, bus))
        sent_to = elsewhere(fleet, settings)
        prefetcher = Prefetcher(
            flights,
            catalog.manifests,
            concurrency=settings.prefetch_concurrency,
            without={name for name, registry in served.items() if not registry.prefetch},
            # What is only likely to be asked for does not push out much of what was.
            max_bytes=min(settings.prefetch_max_size, settings.max_size // 4),
            events=bus,
            elsewhere=sent_to,
        )
        stack.push_async_callback(prefetcher.aclose)
        listed = {name: _listed(registry, upstreams[name], fleet, catalog.proof) for name, registry in served.items()}
        pull_through = PullThrough(
            OnDemand(listed, asked, unlisted.allowed),
            store=store,
            index=index,
            flights=flights,
            prefetcher=prefetcher,
            proof=catalog.proof,
            clock=index.clock,
            events=bus,
            elsewhere=sent_to,
        )
        stack.push_async_callback(pull_through.aclose)
        await stack.enter_async_context(following(fleet, pull_through, catalog.curator, upstreams, settings.forwarding))
        yield Pulls(upstreams, unlisted, flights, pull_through, fleet)


def _unlisted(settings: Settings, bus: Events) -> Unlisted:
    def build(name: str) -> Upstream:
        return build_upstream(unlisted_registry(settings, name), settings.prefetch_concurrency, bus)

    return Unlisted(RegistryPatterns(settings.allow_unlisted), build)


def _listed(registry: RegistrySettings, upstream: Upstream, fleet: "Fleet | None", proof: Proof) -> Registry:
    return _registry(registry, shared(fleet, registry, upstream, proof), lambda: upstream.auth.credential_rejected)


def _registry(registry: RegistrySettings, upstream: Asked, account: Callable[[], Hashable]) -> Registry:
    policy = Policy(
        tag_ttl_seconds=registry.tag_ttl,
        stale_timeout_seconds=registry.stale_timeout,
        request_timeout_seconds=registry.request_timeout,
        rate_limit_wait_seconds=registry.rate_limit_wait,
        # What one client's login does not find may be there for another one's.
        negative_ttl_seconds=0.0 if registry.forwards else registry.negative_ttl,
        keep_deleted_tags=registry.keep_deleted_tags,
    )
    return Registry(upstream, policy, account)


def _runway(
    registry: RegistrySettings,
    upstream: Upstream | Lent,
    spare: Spare,
    bus: Events,
    fleet: "Fleet | None",
    proof: Proof,
) -> Runway:
    source: BlobSource = upstream
    if registry.blob_connections > 1:
        source = ParallelSource(upstream, connections=registry.blob_connections, spare=spare)
    return Runway.of(
        source_of(fleet if registry.may_be_shared else None, source, upstream, proof),
        limit=registry.max_flights,
        retries=registry.retries,
        backoff=backoff_seconds,
        rate_limit_wait_seconds=registry.rate_limit_wait,
        events=bus,
        direct=source,
    )


def _published(proof: Proof, fleet: "Fleet | None", forwarding: Collection[str]) -> Callable[[Flight], None]:
    def published(flight: Flight) -> None:
        if fleet is not None and any(where.registry not in forwarding for where in flight.supplied_by):
            fleet.published(flight)
        for repository in flight.supplied_by:  # none where an earlier run had brought it, under whatever name
            proof.supplied(repository, flight.digest)

    return published
