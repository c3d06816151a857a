"""What the cache tells of itself: the figures, the page's data, and who it is."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from registry_cache import __version__
from registry_cache.assembly.unlisted import Unlisted
from registry_cache.catalog.listings import Listings
from registry_cache.observe.figures import (
    DiskFigures,
    FleetFigures,
    FullStats,
    NextEviction,
    PinFigures,
    QuotaFigures,
    Stats,
    StoreFigures,
    Transfer,
    UpstreamFigures,
)
from registry_cache.observe.history import History, total
from registry_cache.observe.metrics import RESULTS, UNLISTED, Metrics, OfRegistry
from registry_cache.observe.quota import QuotaLog
from registry_cache.pull.flight import Flight
from registry_cache.pull.flights import Flights
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries
from registry_cache.store.disk import DiskStore
from registry_cache.store.index import SqliteIndex
from registry_cache.upstream.client import Upstream
from registry_cache.web.views import PageData

_PINS_SHOWN = 20
_VICTIMS_SHOWN = 10
_REQUESTS_SHOWN = ("manifest_get", "manifest_head", "blob_get", "token")


def _folder() -> str:
    with contextlib.suppress(OSError):
        return str(Path.cwd())
    return ""


@dataclass
class Identity:
    """Which cache this is: what answers on a mirror's address can be told from another one.

    ``address`` and ``config``, the settings file, are set by whoever listens. ``folder`` is where relative paths of the
    settings begin; empty where that has been removed.
    """

    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    address: str = ""
    config: str = ""
    folder: str = field(default_factory=_folder)


class Reports:
    """Reads the parts of a running cache; changes nothing."""

    def __init__(
        self,
        settings: Settings,
        *,
        identity: Identity,
        metrics: Metrics,
        history: History,
        quota: QuotaLog,
        listings: Listings,
        index: SqliteIndex,
        store: DiskStore,
        upstreams: Mapping[str, Upstream],
        unlisted: Unlisted,
        flights: Flights,
        fleet: Callable[[], FleetFigures] | None,
    ) -> None:
        self._settings = settings
        self._served = registries(settings)
        self._identity = identity
        self._metrics = metrics
        self._history = history
        self._quota = quota
        self._listings = listings
        self._index = index
        self._store = store
        self._registries = registries(settings)
        self._upstreams = upstreams
        self._unlisted = unlisted
        self._flights = flights
        self._fleet = fleet

    @property
    def instance(self) -> str:
        """Which cache this is."""
        return self._identity.instance

    def stats(self) -> Stats:
        """``GET /_stats``."""
        return Stats(**self._stats())

    async def full_stats(self) -> FullStats:
        """The admin interface's ``/stats``."""
        pins = await self._index.pin_summary(0)
        spans = await self._history.spans()
        return FullStats(
            **self._stats(),
            history={name: total(steps)._asdict() for name, steps in spans.items()},
            pins=PinFigures(number=pins.number, size_bytes=pins.size_bytes),
            next_evictions=await self._next_evictions(),
            largest_bytes=await self._index.largest_bytes(),
        )

    async def page_data(self) -> PageData:
        """Everything that the page shows."""
        spans = await self._history.spans()
        images = await self._listings.get()
        now = time.time()
        return PageData(
            now=now,
            index_now=self._index.clock.now(),
            stats=self.stats(),
            spans=spans,
            quota=self._quota.steps(now),
            images=images,
            repositories=self._metrics.repositories.everything(),
            clients=self._metrics.clients.everything(),
            misses=tuple(self._metrics.recent_misses),
            trouble=tuple(self._metrics.trouble()),
            pins=await self._index.pin_summary(_PINS_SHOWN),
            settings=self._settings,
        )

    def about(self) -> dict[str, Any]:
        """The admin interface's ``/about``."""
        return {**asdict(self._identity), "version": __version__, "settings": self._settings.model_dump(mode="json")}

    def _stats(self) -> dict[str, Any]:
        disk = self._store.space()
        upstreams = {name: self._upstream_figures(name) for name in self._upstreams}
        if self._unlisted.allowed:
            upstreams[UNLISTED] = self._unlisted_figures()
        return {
            **self._metrics.snapshot(),
            "version": __version__,
            "instance": self._identity.instance,
            "host": self._identity.host,
            "store": self._store_figures(),
            "disk": DiskFigures(**disk._asdict()) if disk else None,
            "upstream": upstreams[self._settings.default_registry],
            "upstreams": upstreams,
            "flights": len(self._flights),
            "transfers": [_transfer(flight) for flight in self._flights],
            "fleet": self._fleet() if self._fleet else None,
        }

    def _store_figures(self) -> StoreFigures:
        totals = self._store.totals()
        return StoreFigures(
            **totals._asdict(),
            max_size_bytes=int(self._settings.max_size),
            evicted_objects=self._metrics.evicted_objects,
            evicted_bytes=self._metrics.evicted_bytes,
        )

    def _upstream_figures(self, registry: str) -> UpstreamFigures:
        upstream, counted = self._upstreams[registry], self._metrics.of(registry)
        quota = upstream.limits.quota
        down = upstream.breakers.down
        limited_for_seconds, limited_elsewhere = upstream.limited
        return UpstreamFigures(
            reachable=not down,
            down=down,
            answered_at=upstream.answered_at,
            credential_rejected=upstream.auth.credential_rejected,
            limited_for_seconds=round(limited_for_seconds, 1),
            limited_elsewhere=limited_elsewhere,
            aliases=list(self._served[registry].aliases),
            rate_limit=QuotaFigures(**quota._asdict()) if quota else None,
            has_account=self._registries[registry].has_account,
            **_counted(counted),
        )

    def _unlisted_figures(self) -> UpstreamFigures:
        """Of all of them together: how many there are is up to clients."""
        alive = self._unlisted.alive.values()
        limits = ((*one.limited, one.origin) for one in alive)
        limited_for_seconds, limited_elsewhere, origin = max(limits, default=(0.0, "", ""))
        return UpstreamFigures(
            reachable=True,  # a client can name one that does not exist
            down=[origin for one in alive for origin in one.breakers.down],
            answered_at=max((one.answered_at for one in alive if one.answered_at is not None), default=None),
            credential_rejected=False,
            limited_for_seconds=round(limited_for_seconds, 1),
            limited_elsewhere=(limited_elsewhere or origin) if limited_for_seconds else "",
            aliases=list(self._settings.allow_unlisted),
            rate_limit=None,
            has_account=False,
            **_counted(self._metrics.of(UNLISTED)),
        )

    async def _next_evictions(self) -> list[NextEviction]:
        victims = await self._store.next_victims(_VICTIMS_SHOWN)
        names = await self._index.repositories_of([victim.digest for victim in victims])
        return [
            NextEviction(**victim._asdict(), repositories=[where.shown for where in names.get(victim.digest, [])])
            for victim in victims
        ]


def _counted(counted: OfRegistry) -> dict[str, Any]:
    return {
        "requests": {kind: counted.upstream[kind] for kind in _REQUESTS_SHOWN},
        "failures": counted.failures,
        "received_bytes": counted.received_bytes,
        "served": {result: counted.requests[result] for result in RESULTS},
        "served_bytes": counted.served_bytes.total(),
    }


def _transfer(flight: Flight) -> Transfer:
    rate = 0.0
    if flight.moving_since is not None:
        since, arrived_before = flight.moving_since
        # What came with the first piece came in no time.
        rate = max(0, flight.available - arrived_before) / max(time.monotonic() - since, 0.001)
    size = flight.size_bytes
    return Transfer(
        repository=flight.repository.shown,
        digest=str(flight.digest),
        received_bytes=flight.available,
        size_bytes=size,
        readers=len(flight.readers),
        bytes_per_second=round(rate, 1),
        seconds_left=round((size - flight.available) / rate, 1) if rate and size is not None else None,
    )
