"""What clients and operators speak to: the HTTP server, and the admin socket."""

import contextlib
import functools
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

from registry_cache.access.control import Access
from registry_cache.access.networks import LOOPBACK, Networks
from registry_cache.assembly.pulls import Pulls
from registry_cache.assembly.reports import Reports
from registry_cache.assembly.stores import Catalog
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.observe.metrics import Metrics
from registry_cache.observe.prometheus import PrometheusCollector
from registry_cache.runtime.threads import Threads
from registry_cache.settings.model import Settings
from registry_cache.settings.types import is_loopback
from registry_cache.store.index import SqliteIndex
from registry_cache.web.admin import Admin, listening
from registry_cache.web.app import OpsServer, Server
from registry_cache.web.blob_response import BlobResponder
from registry_cache.web.fast_connection import missing_attributes
from registry_cache.web.fast_path import FastPath
from registry_cache.web.gate import Gate
from registry_cache.web.guarded_fast_path import GuardedFastPath
from registry_cache.web.identity import Identity
from registry_cache.web.names import Registries
from registry_cache.web.ops import Ops
from registry_cache.web.page import Page
from registry_cache.web.redirects import RedirectRule
from registry_cache.web.refusals import Refusals
from registry_cache.web.v2 import V2


class Servers(NamedTuple):
    """For whoever listens: the pull port's, and the operators' where they have a port of their own."""

    pulls: Server
    ops: OpsServer | None


def admin_networks(settings: Settings) -> Networks | None:
    """Who may read figures and page on the pull port; None: everybody."""
    if settings.admin_networks:
        return Networks(settings.admin_networks)
    return Networks(LOOPBACK) if settings.ops_listen or settings.has_rules or settings.forwarding else None


def _redirects(settings: Settings) -> RedirectRule | None:
    """Who may be sent to the fleet's bucket."""
    if settings.fleet_redirect is None or settings.fleet_bucket_url is None:
        return None
    return RedirectRule(urlsplit(settings.fleet_bucket_url).hostname or "")


@contextlib.asynccontextmanager
async def open_servers(
    settings: Settings,
    bus: Events,
    *,
    index: SqliteIndex,
    catalog: Catalog,
    pulls: Pulls,
    reports: Reports,
    metrics: Metrics,
    access: Access | None,
) -> AsyncIterator[Servers]:
    """The HTTP servers; the admin socket listens already."""
    async with contextlib.AsyncExitStack() as stack:
        reads = Threads("read", 4)
        stack.callback(reads.close)
        refusals = Refusals(bus)
        stack.callback(refusals.close)
        gate = Gate.of(settings.hosts, is_loopback=settings.is_loopback)
        named = Registries.of(settings)
        identity = Identity(access, gate, named, public_url=settings.public_url) if access else None
        blobs = BlobResponder(
            pulls.pull_through,
            pulls.flights,
            client_timeout_seconds=settings.client_timeout,
            threads=reads,
            redirects=_redirects(settings),
        )
        v2 = V2(
            pulls.pull_through,
            index,
            blobs,
            gate=gate,
            refusals=refusals,
            registries=named,
            identity=identity,
            events=bus,
        )
        if missing := missing_attributes():
            bus.emit(events.Warned(message=f"this aiohttp has no {', '.join(missing)}: hits take the slower way"))
        prometheus = PrometheusCollector(metrics, reports.stats).registry()
        ops = functools.partial(
            Ops,
            reports.stats,
            Page(reports.page_data),
            prometheus,
            instance=reports.instance,
            refusals=refusals,
        )
        fast = FastPath(pulls.pull_through, blobs, bus)
        if access is not None:
            fast = GuardedFastPath(pulls.pull_through, blobs, bus, access)
        server = Server(
            v2,
            ops(readers=admin_networks(settings), gate=gate),
            fast,
            refusals,
            identity=identity,
            max_connections=settings.max_connections,
            client_timeout_seconds=settings.client_timeout,
        )
        ops_server = None
        if settings.ops_listen:
            ops_gate = Gate.of(settings.hosts, is_loopback=is_loopback(settings.ops_listen))
            ops_server = OpsServer(
                ops(readers=None, gate=ops_gate), refusals, client_timeout_seconds=settings.client_timeout
            )
        admin = Admin(catalog.curator, reports.full_stats, reports.about)
        await stack.enter_async_context(listening(admin, settings.cache_dir, bus))
        yield Servers(server, ops_server)
