"""One replica of the simulation: the real flights, leases, source, peers and serving; store and network are made up."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp

from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.fleet import Fleet
from registry_cache.fleet.leases import Leases
from registry_cache.fleet.peers import DIRECT, PROVEN, Peers
from registry_cache.fleet.serving import Follower, Serving, size_of
from registry_cache.fleet.signature import ANSWER, HEADER, Signer
from registry_cache.fleet.spaces import Spaces
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Digest, Repository
from registry_cache.pull.flights import Flights
from registry_cache.pull.runway import Runway
from tests.fleet.simulation.network import Link, Network, RedisServer

REGISTRY = "docker.io"
REPOSITORY = Repository(REGISTRY, "library/image")
NAME = "simulated"
_NOTHING = memoryview(bytes(64_000_000))
_RANGE = re.compile(r"bytes=(\d+)-")
_SLOTS = 100


class Pipe:
    """The sink of a reader: what goes to it crosses the network piece by piece.

    Args:
        up, down: None where both are on one machine.
    """

    def __init__(
        self,
        network: Network,
        up: Link | None,
        down: Link | None,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.sent_bytes = 0
        self._network = network
        self._links = up, down
        self._arrived = arrived

    async def take(self, start: int, stop: int) -> None:
        """The bytes [start, stop)."""
        up, down = self._links
        while start < stop:
            left = stop - start
            count = left if up is None or down is None else await self._network.carry(up, down, left)
            start += count
            self.sent_bytes += count
            self._arrived(count)


class Blob:
    """A stored one; see :class:`registry_cache.ports.blobs.OpenBlob`."""

    body = media_type = None

    def __init__(self, digest: Digest, size_bytes: int) -> None:
        self.digest, self.size_bytes = digest, size_bytes

    async def send(self, sink: Pipe, start: int, stop: int) -> None:
        await sink.take(start, stop)

    def close(self) -> None:
        """Nothing is open."""


class Partial:
    """See :class:`registry_cache.ports.blobs.Partial`: how much has come of a blob, and nothing of it."""

    def __init__(self, store: "Store", digest: Digest) -> None:
        self.offset = 0
        self._store = store
        self._digest = digest

    async def expect(self, size_bytes: int | None) -> None:
        """There is room."""

    def write(self, data: memoryview) -> None:
        self.offset += len(data)

    def restart(self, differs: object = None) -> None:
        raise AssertionError("nothing is ever wrong here")

    def resume(self) -> None:
        """From where it stands."""

    def verify(self) -> None:
        assert self.offset == self._store.sizes[self._digest]

    async def publish(self, media_type: str | None = None) -> None:
        self._store.blobs[self._digest] = Blob(self._digest, self.offset)

    async def send(self, sink: Pipe, start: int, stop: int) -> None:
        await sink.take(start, stop)

    def close(self) -> None:
        """Nothing is open."""


class Store:
    """See :class:`registry_cache.ports.blobs.BlobStore`."""

    def __init__(self, sizes: Mapping[Digest, int]) -> None:
        self.sizes = sizes
        self.blobs: dict[Digest, Blob] = {}

    async def open(self, digest: Digest) -> Blob | None:
        return self.blobs.get(digest)

    @contextlib.asynccontextmanager
    async def ingest(self, digest: Digest) -> AsyncIterator[Partial]:
        yield Partial(self, digest)


class Response:
    """As much of :class:`aiohttp.ClientResponse` as is asked for: the body as it arrives."""

    content_length = None

    def __init__(self, host: str, status: int, headers: Mapping[str, str]) -> None:
        self.host, self.status, self.headers = host, status, headers
        self.content = self
        self.request_info = SimpleNamespace(headers={})
        self.sending: asyncio.Task[None] | None = None
        self._waiting: asyncio.Event = asyncio.Event()
        self._bytes = 0
        self._is_over = self._is_broken = False

    def arrived(self, count: int) -> None:
        self._bytes += count
        self._waiting.set()

    def end(self, *, broken: bool = False) -> None:
        self._is_over, self._is_broken = True, broken
        self._waiting.set()

    async def readany(self) -> memoryview:
        while not self._bytes and not self._is_over:
            self._waiting.clear()
            await self._waiting.wait()
        if not self._bytes and self._is_broken:
            raise aiohttp.ClientPayloadError("the connection is gone")
        count, self._bytes = min(self._bytes, len(_NOTHING)), max(0, self._bytes - len(_NOTHING))
        return _NOTHING[:count]

    def close(self) -> None:
        if self.sending is not None:
            self.sending.cancel()

    def release(self) -> None:
        """The connection is kept."""


class Upstream:
    """The registry, as all replicas see it: one link, and what has been asked of it."""

    def __init__(self, network: Network, rate: float, sizes: Mapping[Digest, int]) -> None:
        self.network, self.link, self.sizes = network, Link(rate), sizes
        self.gets: dict[Digest, list[int]] = {digest: [] for digest in sizes}  # where each began


class UpstreamBody:
    """See :class:`registry_cache.pull.flight.BlobBody`."""

    origin = "upstream"

    def __init__(self, replica: "Replica", upstream: Upstream, digest: Digest, start: int) -> None:
        self.start, self.total_bytes = start, upstream.sizes[digest]
        self._left = self.total_bytes - start
        self._replica, self._upstream = replica, upstream

    async def drain(self, take: Callable[[memoryview], None]) -> None:
        up, down = self._upstream.link, self._replica.down
        with up.used(), down.used():
            while self._left:
                count = await self._upstream.network.carry(up, down, self._left)
                await self._replica.alive()
                self._left -= count
                self._replica.bus.emit(events.UpstreamReceived(bytes=count))
                take(_NOTHING[:count])


class UpstreamSource:
    """See :class:`registry_cache.pull.flight.BlobSource`: upstream, as one replica asks it."""

    def __init__(self, replica: "Replica", upstream: Upstream) -> None:
        self._replica, self._upstream = replica, upstream

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[UpstreamBody]:
        await self._replica.alive()
        self._upstream.gets[digest].append(start)
        await self._upstream.network.cross()
        yield UpstreamBody(self._replica, self._upstream, digest, start)


class Proof:
    """Whatever one replica may hand out, all may: one repository is pulled."""

    async def missing(self, repository: Repository, digest: Digest) -> bool:
        return False


class Replica:
    """See the module.

    Args:
        reach: the replica at an address; None where nobody is.
    """

    def __init__(
        self,
        number: int,
        network: Network,
        redis: RedisServer,
        upstream: Upstream,
        signer: Signer,
        *,
        rate: float,
        followers: int,
        epoch: float,
        reach: Callable[[str], "Replica | None"],
    ) -> None:
        self.number, self.network = number, network
        self.address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:5001"
        self.up, self.down = Link(rate), Link(rate)
        self.bus, self.counts = Events(), Counts()
        self.bus.subscribe(self.counts.upstream_received, events.UpstreamReceived)
        self.is_dead = False
        self._reach = reach
        self._signer = signer
        self._sending: set[Response] = set()
        loop, spaces = asyncio.get_running_loop(), Spaces()
        self.redis = FleetRedis(
            "redis://none",
            password_file=None,
            events=self.bus,
            client=redis.client(lambda: not self.is_dead),
            clock=lambda: epoch + loop.time(),
        )
        self.leases = Leases(self.redis, signer, name=NAME, events=self.bus, spaces=spaces)
        self.leases.address = self.address
        self.peers = Peers(
            signer, ["10.0.0.0/8"], address=lambda: self.address, now=self.redis.now, session=lambda: Session(self)
        )
        self.fleet = Fleet(
            NAME, self.redis, self.leases, self.peers, signer, None, self.bus, self.counts,
            tag_ttl_seconds=60, membership=None, spaces=spaces, tls=None,
        )  # fmt: skip
        source = self.fleet.source(UpstreamSource(self, upstream), _never, Proof())
        runway = Runway.of(
            source, limit=_SLOTS, retries=5, backoff=lambda n: 0.5 * n, rate_limit_wait_seconds=0, events=self.bus
        )
        self.store = Store(upstream.sizes)
        self.flights = Flights(
            {REGISTRY: runway}, self.store, published=self.fleet.published, ended=self.fleet.ended, events=self.bus
        )
        self.serving = Serving(self.flights, followers=followers, counts=self.counts, takes_part=lambda: True)

    async def start(self) -> None:
        await self.peers.__aenter__()
        self.leases.start()

    async def alive(self) -> None:
        """Nothing goes on after death."""
        if self.is_dead:
            await asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """All its connections break, and nobody hears of it again."""
        self.is_dead = True
        for response in list(self._sending):
            response.close()
            response.end(broken=True)

    # --- what others are answered, as by registry_cache.fleet.port ------------------------------------------------

    async def request(self, method: str, path: str, headers: Mapping[str, str], to: "Replica") -> Response:
        """One request of *to*, as soon as its head is there."""
        range_ = headers["Range"]
        peer = self._signer.address(headers[HEADER], method, path, range_, self.redis.now())
        if peer is None:
            return Response(self.address, 401, {})
        digest = Digest.parse(path.rpartition("/")[2])
        follower = Follower(peer, int(_RANGE.fullmatch(range_)[1]))
        content = await self.serving.open(digest)
        if content is None:
            return Response(self.address, 404, {})
        signed = {ANSWER: self._signer.answer(headers[HEADER])}
        elsewhere = None if DIRECT in headers else self.serving.elsewhere(digest, follower)
        if method == "HEAD" or elsewhere is not None:
            content.close()
            if elsewhere is None:
                return Response(self.address, 200, signed)
            return Response(self.address, 307, signed | {"Location": f"http://{elsewhere}{path}"})
        response = Response(self.address, 503, {})
        head = asyncio.get_running_loop().create_future()
        response.sending = asyncio.create_task(self._send(response, digest, content, follower, to, signed, head))
        try:
            await asyncio.shield(head)
        except asyncio.CancelledError:
            response.close()
            raise
        return response

    async def _send(
        self,
        response: Response,
        digest: Digest,
        content: Any,
        follower: Follower,
        to: "Replica",
        signed: dict[str, str],
        head: "asyncio.Future[None]",
    ) -> None:
        pipe = Pipe(self.network, self.up, to.down, response.arrived)
        follower.sent = lambda: pipe.sent_bytes
        self._sending.add(response)
        try:
            with self.serving.sending(digest, follower):
                size = await size_of(content)
                response.status = 206
                response.headers = signed | {
                    PROVEN: "1",
                    "Content-Range": f"bytes {follower.start}-{size - 1}/{size}",
                }
                head.set_result(None)
                with self.up.used(), to.down.used():
                    await content.send(pipe, follower.start, size)
                response.end()
        except RegistryCacheError:
            response.end(broken=True)
        finally:
            self.counts.served_bytes += pipe.sent_bytes
            self._sending.discard(response)
            content.close()
            if not head.done():
                head.set_result(None)

    # --- what a client gets --------------------------------------------------------------------------------------

    async def send(self, digest: Digest, sink: Pipe, client: str) -> None:
        """The whole blob to *sink*: a hit, or as it comes."""
        blob = await self.flights.stored(digest)
        if blob is not None:
            await blob.send(sink, 0, blob.size_bytes)
            return
        reader = self.flights.join(REPOSITORY, digest, client=client, is_proven=True)
        try:
            size = await reader.size()
            await reader.send(sink, 0, size)
        finally:
            reader.close()


class Session:
    """See :class:`registry_cache.fleet.peers.Session`: of one replica to all the others."""

    def __init__(self, of: Replica) -> None:
        self._of = of

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], allow_redirects: bool, ssl: object
    ) -> Response:
        address, _, path = url.removeprefix("http://").partition("/")
        await self._of.network.cross()
        to = self._of._reach(address)
        if to is None or to.is_dead:
            raise aiohttp.ClientConnectionError("nobody is there")
        response = await to.request(method, f"/{path}", headers, self._of)
        response.request_info = SimpleNamespace(headers=headers)
        await self._of.network.cross()
        return response

    async def close(self) -> None:
        """Nothing is open."""


async def _never(repository: Repository, digest: Digest) -> None:
    raise AssertionError("all is proven")
