"""The whole cache, put together from what the other modules of this package build."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry_cache.assembly.faces import open_servers
from registry_cache.assembly.fleet import check_fleet
from registry_cache.assembly.guards import Guard, check_users, open_certificates, open_guard
from registry_cache.assembly.pulls import open_pulls
from registry_cache.assembly.reports import Identity, Reports
from registry_cache.assembly.stores import open_catalog, open_store
from registry_cache.assembly.unlisted import Unlisted
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.observe.history import History
from registry_cache.observe.metrics import Metrics
from registry_cache.observe.quota import QuotaLog
from registry_cache.pull.flights import Flights
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries
from registry_cache.store.disk import DiskStore
from registry_cache.store.index import SqliteIndex
from registry_cache.upstream.client import Upstream
from registry_cache.web.app import OpsServer, Server
from registry_cache.web.certificates import Certificates

if TYPE_CHECKING:
    from registry_cache.fleet.fleet import Fleet


@dataclass(frozen=True)
class Proxy:
    """A cache that is ready to serve."""

    server: Server
    ops_server: OpsServer | None
    certificates: Certificates | None
    guard: Guard | None
    pull_through: PullThrough
    store: DiskStore
    index: SqliteIndex
    upstreams: Mapping[str, Upstream]
    unlisted: Unlisted
    flights: Flights
    metrics: Metrics
    identity: Identity
    fleet: "Fleet | None"

    @property
    def upstream(self) -> Upstream:
        """The default registry's."""
        return next(iter(self.upstreams.values()))

    def interrupt(self) -> None:
        """End every transfer from a registry at once."""
        for upstream in (*self.upstreams.values(), *self.unlisted.alive.values()):
            upstream.interrupt()

    def reload(self) -> None:
        """Read again what may change while the cache runs."""
        for each in (self.certificates, self.guard):
            if each is not None:
                each.reload()
        for upstream in self.upstreams.values():
            upstream.reload()


@contextlib.asynccontextmanager
async def open_proxy(settings: Settings, bus: Events) -> AsyncIterator[Proxy]:
    """Build the cache, and take it down again in the opposite order.

    Raises:
        StoreError: the cache directory cannot be used.
        SettingsError: what a setting names cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        check_users(settings)
        check_fleet(settings)
        certificates = await stack.enter_async_context(open_certificates(settings, bus))
        metrics = Metrics(registries(settings))
        bus.subscribe(metrics)
        index, store = await stack.enter_async_context(open_store(settings, bus, is_kept=False))
        guard = await stack.enter_async_context(open_guard(settings, bus))
        history = History(index, metrics.counts, index.clock.now, bus)
        history.start()
        quota = QuotaLog(settings.default_registry)
        bus.subscribe(quota, events.QuotaObserved)
        stack.push_async_callback(history.aclose)
        catalog = await stack.enter_async_context(open_catalog(settings, bus, index, store))
        pulls = await stack.enter_async_context(
            open_pulls(settings, bus, index, store, catalog, guard.access if guard else None)
        )
        identity = Identity()
        reports = Reports(
            settings,
            identity=identity,
            metrics=metrics,
            history=history,
            quota=quota,
            listings=catalog.listings,
            index=index,
            store=store,
            upstreams=pulls.upstreams,
            unlisted=pulls.unlisted,
            flights=pulls.flights,
            fleet=pulls.fleet.figures if pulls.fleet else None,
        )
        servers = await stack.enter_async_context(
            open_servers(
                settings,
                bus,
                index=index,
                catalog=catalog,
                pulls=pulls,
                reports=reports,
                metrics=metrics,
                access=guard.access if guard else None,
            )
        )
        if certificates is not None:
            certificates.others_count = servers.pulls.forget_certificates
        yield Proxy(
            *servers,
            certificates,
            guard,
            pulls.pull_through,
            store,
            index,
            pulls.upstreams,
            pulls.unlisted,
            pulls.flights,
            metrics,
            identity,
            pulls.fleet,
        )
