"""One replica of a fleet: what it needs to lead and to follow, opened and closed together."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

from registry_cache.fleet.bucket_manifests import BucketManifests
from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import Leases, RedisDown, prefix_of
from registry_cache.fleet.limits import SharedLimits
from registry_cache.fleet.membership import Membership
from registry_cache.fleet.moves import Moved, Moves
from registry_cache.fleet.news import News
from registry_cache.fleet.peers import Peers
from registry_cache.fleet.questions import Questions
from registry_cache.fleet.roll import Roll
from registry_cache.fleet.shared_upstream import SharedUpstream
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.source import FleetSource, Proof, Trail
from registry_cache.fleet.spaces import Spaces
from registry_cache.fleet.tier import Tier
from registry_cache.fleet.tier_opening import BucketPlace, open_tier
from registry_cache.fleet.tls import FleetTls
from registry_cache.fleet.wishes import Curator, Wishes
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import DigestMismatch
from registry_cache.model.oci import Digest, Repository
from registry_cache.observe.figures import FleetFigures
from registry_cache.ports.blobs import OpenBlob
from registry_cache.pull.answers import Upstream
from registry_cache.pull.flight import BlobSource, Flight
from registry_cache.runtime.background import Background

_LOOK_SECONDS = 5.0
_NEWS_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 3600.0  # addresses change


class Fleet:
    """See the module; made by :func:`open_fleet`."""

    def __init__(
        self,
        name: str,
        redis: FleetRedis,
        leases: Leases,
        peers: Peers,
        signer: Signer,
        tier: Tier | None,
        bus: Events,
        counts: Counts,
        *,
        tag_ttl_seconds: float,
        membership: Membership,
        spaces: Spaces,
        tls: FleetTls | None,
    ) -> None:
        self._name = name
        prefix = prefix_of(name)
        self.membership = membership
        self.spaces = spaces
        self.tls = tls
        self.wishes = Wishes(redis, signer, prefix=prefix, condemn=self._condemn, known=self._known, bus=bus)
        self.news = News(redis, prefix=prefix)
        self.limits = SharedLimits(redis, signer, prefix=prefix)
        self.questions = Questions(
            redis, signer, prefix=prefix, address=lambda: leases.address, limits=self.limits, events=bus
        )
        self.moves = Moves(redis, signer, prefix=prefix, backlog_seconds=tag_ttl_seconds, spaces=spaces, events=bus)
        self.roll = Roll(redis, signer, prefix=prefix, address=lambda: leases.address, counts=counts, events=bus)
        self.redis = redis
        self.leases = leases
        self.signer = signer
        self.tier = tier
        self.counts = counts
        self._peers = peers
        self._events = bus
        self._trails: dict[Digest, Trail] = {}
        self._stored: set[Digest] = set()

    def source(
        self, source: BlobSource, confirm: Callable[[Repository, Digest], Awaitable[object]], proof: Proof
    ) -> FleetSource:
        """*source*, asked only for what no other replica has or brings."""
        return FleetSource(
            source,
            self.leases,
            self._peers,
            confirm=confirm,
            proof=proof,
            trails=self._trails,
            tier=self.tier,
            counts=self.counts,
            events=self._events,
        )

    def shared(
        self, upstream: Upstream, proof: Proof | None = None, *, tag_ttl_seconds: float, no_ttl_seconds: float
    ) -> SharedUpstream:
        """*upstream*, asked only for what no other replica has heard from it."""
        return SharedUpstream(
            upstream,
            self.questions,
            self.moves,
            self.wishes,
            self.spaces,
            BucketManifests(self.tier, self.signer) if self.tier is not None else None,
            proof,
            tag_ttl_seconds=tag_ttl_seconds,
            no_ttl_seconds=no_ttl_seconds,
        )

    @contextlib.asynccontextmanager
    async def following(self, moved: Moved, curator: Curator) -> AsyncIterator[None]:
        """Hear what the others tell, and tell them that this replica is here, as long as this is entered."""
        self.moves.start(moved)
        listening = Background("fleet news", self._listen, interval_seconds=_NEWS_SECONDS, events=self._events)
        listening.start()
        self.wishes.start(curator)
        self.roll.start()
        try:
            yield
        finally:
            await self.roll.aclose()
            await listening.aclose()
            await self.wishes.aclose()
            await self.moves.aclose()

    async def _known(self, digests: Collection[Digest]) -> list[Digest]:
        """Those that are in the bucket."""
        return await self.tier.index.known(digests) if self.tier is not None else []

    async def _condemn(self, digests: Collection[Digest]) -> None:
        """They have been purged: they go from the bucket, too."""
        if self.tier is not None:
            self.tier.shelf.purged(digests)  # before: what comes into the index meanwhile is looked at afterwards
            await self.tier.index.purged(digests)

    async def _listen(self) -> None:
        """Hear what the others have told since. Where nobody has told anything, that is one question."""
        with contextlib.suppress(RedisDown):
            if self.redis.barred:
                await self.membership.look()
            told = await self.news.look()
            if told is not None:
                await self._hear()
                self.news.heard(told)
            await self.limits.tell()

    async def look(self) -> None:
        """Hear all that the others have told."""
        with contextlib.suppress(RedisDown):
            await self._hear()

    async def _hear(self) -> None:
        await self.membership.look()
        await self.limits.hear(patiently=True)
        await self.moves.look()
        self.wishes.wake()

    def published(self, flight: Flight) -> None:
        """Its blob is stored: others may come for it."""
        self._stored.add(flight.digest)
        trail = self._trails.get(flight.digest)
        if self.tier is not None and (trail is None or not trail.is_shared):
            self.tier.shelf.share(flight.digest)

    def ended(self, flight: Flight) -> None:
        """It is over, however it went."""
        digest = flight.digest
        is_stored = digest in self._stored
        self._stored.discard(digest)
        trail = self._trails.pop(digest, None)
        is_wrong = isinstance(flight.error, DigestMismatch)
        if is_wrong and trail is not None and trail.of_bucket is not None and self.tier is not None:
            self.tier.rotten(digest, trail.of_bucket, "its bytes are not those of its digest")
        self.leases.release(digest, flight.repository, is_stored=is_stored, error=flight.error)

    def figures(self) -> FleetFigures:
        """For ``/_stats``."""
        return FleetFigures(
            name=self._name,
            address=self.leases.address,
            redis_trouble=self.redis.trouble,
            refusal=self.membership.refusal,
            leases=len(self.leases),
            has_bucket=self.tier is not None,
            reading_trouble=self.tier.bucket.reading.trouble if self.tier else "",
            writing_trouble=self.tier.bucket.writing.trouble or self.tier.bucket.deleting.trouble if self.tier else "",
            sharing=len(self.tier.shelf) if self.tier else 0,
            members=self.roll.members(),
            **self.counts.figures(),
        )

    def locator(
        self, advertise: str | None, listen_host: str, port: int, is_peers: Callable[[str], bool]
    ) -> Background:
        """What finds out where the others reach this replica, and looks again while it does not know.

        Args:
            advertise: what the settings say.
            listen_host: the host that is listened on; empty or unspecified for all.
            is_peers: whether the others would ask an address.
        """

        async def look() -> float | None:
            host = listen_host if listen_host not in ("", "0.0.0.0", "::", "localhost") else ""  # noqa: S104
            found = advertise or (host or await self._own_address())
            if not found:
                return None
            if not advertise and not is_peers(found):
                self.counts.warn(f"{found} is in no network of FLEET_PEERS: this replica runs alone", self._events)
                return None
            if advertise is None:
                found = f"[{found}]:{port}" if ":" in found else f"{found}:{port}"
            self.leases.address = found
            return _LOOK_AGAIN_SECONDS

        return Background("fleet address", look, interval_seconds=_LOOK_SECONDS, events=self._events)

    async def _own_address(self) -> str:
        """The machine's address on its way to Redis; empty while that is not known."""
        with contextlib.suppress(OSError):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self.redis.host, self.redis.port, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, place = found[0]
            with socket.socket(family, kind, protocol) as trying:
                trying.connect(place)  # nothing is sent
                return str(trying.getsockname()[0])
        return ""


@contextlib.asynccontextmanager
async def open_fleet(
    url: str,
    *,
    password_file: Path | None,
    key_file: Path,
    name: str,
    networks: Sequence[str],
    tag_ttl_seconds: float,
    registries: Mapping[str, str],
    tls_files: tuple[Path, Path, Path] | None = None,
    bucket: BucketPlace | None = None,
    open_blob: Callable[[Digest], Awaitable[OpenBlob | None]],
    bus: Events,
) -> AsyncIterator[Fleet]:
    """The replica's part in a fleet.

    Args:
        tag_ttl_seconds: the longest that any registry's tags are served unasked.
        registries: by name, where and as whom they are asked: the same in all replicas.
        tls_files: certificate, key and authority; None for plain connections between replicas.
        open_blob: of the local store, from which the bucket is filled.

    Raises:
        SettingsError: there is no certificate in the bucket's ``ca_file``, or *tls_files* are wrong.
    """
    async with contextlib.AsyncExitStack() as stack:
        redis = FleetRedis(url, password_file=password_file, events=bus)
        stack.push_async_callback(redis.aclose)
        signer = Signer(key_file)
        spaces = Spaces(registries)
        leases = Leases(redis, signer, name=name, events=bus, spaces=spaces)
        stack.push_async_callback(leases.aclose)
        leases.start()
        counts = Counts()
        bus.subscribe(counts.upstream_received, events.UpstreamReceived)
        tls = FleetTls(*tls_files, warn=lambda text: counts.warn(text, bus)) if tls_files else None
        asking = Peers(signer, networks, address=lambda: leases.address, now=redis.now, spaces=spaces, tls=tls)
        peers = await stack.enter_async_context(asking)
        membership = Membership(redis, signer, name=name, prefix=prefix_of(name), registries=registries, events=bus)
        with contextlib.suppress(RedisDown):  # who is ready takes part, or knows why not
            await membership.look(patiently=False)
        tier = None
        if bucket is not None:
            opened = open_tier(bucket, redis, name=name, open_blob=open_blob, counts=counts, bus=bus)
            tier = await stack.enter_async_context(opened)
        fleet = Fleet(
            name,
            redis,
            leases,
            peers,
            signer,
            tier,
            bus,
            counts,
            tag_ttl_seconds=tag_ttl_seconds,
            membership=membership,
            spaces=spaces,
            tls=tls,
        )
        fleet.questions.start()
        stack.push_async_callback(fleet.questions.aclose)
        yield fleet
