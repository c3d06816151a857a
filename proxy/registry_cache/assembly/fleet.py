"""The part of this cache in a fleet, where there is one; without, nothing of it is even imported."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from registry_cache.access.networks import Networks
from registry_cache.catalog.curator import Curator
from registry_cache.catalog.proof import Proof
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import SettingsError, reason_of
from registry_cache.model.oci import Digest, Reference
from registry_cache.ports.blobs import BlobStore
from registry_cache.pull.answers import Elsewhere, Upstream
from registry_cache.pull.flight import BlobSource, Flight
from registry_cache.pull.flights import Flights
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.runtime.threads import Threads
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import RegistrySettings, registries
from registry_cache.settings.types import host_and_port
from registry_cache.store.index import SqliteIndex
from registry_cache.web.refusals import Refusals

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

if TYPE_CHECKING:
    from registry_cache.fleet.fleet import Fleet
    from registry_cache.fleet.limits import Limited
    from registry_cache.fleet.tier_opening import BucketPlace


@contextlib.asynccontextmanager
async def open_fleet(
    settings: Settings, bus: Events, store: BlobStore, index: SqliteIndex
) -> AsyncIterator["Fleet | None"]:
    """What flights need of it.

    Raises:
        SettingsError: redis-py is missing, or no certificate is in CA_FILE.
    """
    if settings.fleet_redis_url is None or settings.fleet_key_file is None:
        yield None
        return
    check_fleet(settings)
    from registry_cache.fleet import fleet  # noqa: PLC0415 -- redis-py is an extra, and a tenth of a second of start

    opened = fleet.open_fleet(
        settings.fleet_redis_url,
        password_file=settings.fleet_redis_password_file,
        key_file=settings.fleet_key_file,
        name=settings.fleet_name,
        networks=settings.fleet_peers,
        tag_ttl_seconds=max(registry.tag_ttl for registry in registries(settings).values()),
        tls_files=_tls_files(settings),
        registries={name: _asked(registry) for name, registry in registries(settings).items()},
        bucket=_bucket(settings),
        open_blob=store.open,
        bus=bus,
    )
    async with opened as replica:
        if replica.tier is not None:
            index.uses_told = replica.tier.used
        yield replica


def _bucket(settings: Settings) -> "BucketPlace | None":
    from registry_cache.fleet.tier_opening import BucketPlace  # noqa: PLC0415 -- as above

    if settings.fleet_bucket_url is None or settings.fleet_s3_credentials_file is None:
        return None
    return BucketPlace(
        settings.fleet_bucket_url,
        settings.fleet_s3_region,
        settings.fleet_s3_credentials_file,
        int(settings.fleet_max_size or 0),
        settings.ca_file,
    )


def check_fleet(settings: Settings) -> None:
    """Before anything is opened: a start that fails leaves no cache directory behind.

    Raises:
        SettingsError: redis-py is missing.
    """
    if settings.fleet_redis_url is not None:
        try:
            from registry_cache.fleet import connection  # noqa: F401, PLC0415 -- it is what needs redis-py
        except ImportError as error:
            raise SettingsError(
                "FLEET_REDIS_URL is set, but redis-py is not installed: pip install 'registry-cache[fleet]'"
            ) from error


def _tls_files(settings: Settings) -> tuple[Path, Path, Path] | None:
    if settings.fleet_tls_cert is None or settings.fleet_tls_key is None or settings.fleet_tls_ca is None:
        return None
    return settings.fleet_tls_cert, settings.fleet_tls_key, settings.fleet_tls_ca


def _asked(registry: RegistrySettings) -> str:
    """Where and as whom a registry is asked; no secret is in it, only whether there is one."""
    certificate = registry.client_cert and str(registry.client_cert)
    account = [registry.credential_helper, registry.username, certificate] if registry.has_account else []
    return json.dumps([registry.url.rstrip("/"), account, registry.may_be_shared])


def source_of(fleet: "Fleet | None", source: BlobSource, upstream: Upstream, proof: Proof) -> BlobSource:
    """Where flights get their bytes: *source*, behind the fleet if there is one."""
    return source if fleet is None else fleet.source(source, upstream.blob_head, proof)


def shared(
    fleet: "Fleet | None", registry: RegistrySettings, upstream: Upstream, proof: Proof | None = None
) -> Upstream:
    """Whom manifests and tags are asked of: *upstream*, behind the fleet if there is one."""
    if fleet is None or not registry.may_be_shared:
        return upstream
    return fleet.shared(upstream, proof, tag_ttl_seconds=registry.tag_ttl, no_ttl_seconds=registry.negative_ttl)


def elsewhere(fleet: "Fleet | None", settings: Settings) -> Elsewhere | None:
    """Where clients are sent for large blobs, if they are."""
    if fleet is None or fleet.tier is None or settings.fleet_redirect is None:
        return None
    from registry_cache.fleet.redirects import Redirects  # noqa: PLC0415 -- as above

    return Redirects(
        fleet.tier,
        fleet.signer,
        least_bytes=int(settings.fleet_redirect),
        forwarding=settings.forwarding,
        counts=fleet.counts,
    )


@contextlib.asynccontextmanager
async def following(
    fleet: "Fleet | None",
    pull_through: PullThrough,
    curator: Curator,
    upstreams: Mapping[str, "Limited"],
    forwarding: Collection[str],
) -> AsyncIterator[None]:
    """Hear what the other replicas tell, as long as this is entered; of *forwarding* nobody tells anything."""
    if fleet is None:
        yield
        return
    fleet.limits.join({name: upstream for name, upstream in upstreams.items() if name not in forwarding})

    async def moved(reference: Reference, digest: Digest, ago_seconds: float) -> None:
        if reference.repository.registry not in forwarding:
            await pull_through.moved(reference, digest, ago_seconds)

    async with fleet.following(moved, curator):
        curator.herald = fleet.wishes
        try:
            yield
        finally:
            curator.herald = None


def ended(fleet: "Fleet | None") -> Callable[[Flight], None]:
    """For each flight that is over."""
    return (lambda _: None) if fleet is None else fleet.ended


def _without(registries: Collection[str], handle: _Handler) -> _Handler:
    """*handle*, but for what is of *registries*: those decide for each client, and another replica is none."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if any(part in registries for part in unquote(request.rel_url.raw_path).split("/")):
            return web.Response(status=404)
        return await handle(request)

    return answer if registries else handle


@contextlib.asynccontextmanager
async def open_port(
    fleet: "Fleet | None", settings: Settings, flights: Flights, proof: Proof, bus: Events
) -> AsyncIterator[None]:
    """The port for the other replicas; they can be followed from here on.

    Raises:
        OSError: FLEET_LISTEN cannot be listened on.
    """
    if fleet is None:
        yield
        return
    from registry_cache.fleet.port import FleetPort  # noqa: PLC0415 -- as above
    from registry_cache.fleet.port_server import PeerServer  # noqa: PLC0415 -- as above

    async with contextlib.AsyncExitStack() as stack:
        reads = Threads("fleet", 4)
        stack.callback(reads.close)
        port = FleetPort(
            flights,
            proof,
            fleet.signer,
            followers=settings.fleet_followers,
            threads=reads,
            now=fleet.redis.now,
            counts=fleet.counts,
            takes_part=lambda: fleet.membership.holds,
            spaces=fleet.spaces,
        )
        host, number = host_and_port(settings.fleet_listen)
        refusals = Refusals(bus)
        stack.callback(refusals.close)
        handle = _without(settings.forwarding, port.handle)
        server = PeerServer(handle, refusals, client_timeout_seconds=settings.client_timeout)
        runner = web.ServerRunner(server, shutdown_timeout=0.001)  # clients here have had their grace already
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            tls = fleet.tls.server if fleet.tls else None
            await web.TCPSite(runner, host or None, number, ssl_context=tls).start()
        except OSError as error:
            raise OSError(f"FLEET_LISTEN {settings.fleet_listen}: {reason_of(error)}") from error
        near = Networks(settings.fleet_peers)
        locator = fleet.locator(settings.fleet_advertise, host, runner.addresses[0][1], near.__contains__)
        locator.start()
        stack.push_async_callback(locator.aclose)
        bus.emit(events.FleetJoined(name=settings.fleet_name, listen=settings.fleet_listen))
        yield
