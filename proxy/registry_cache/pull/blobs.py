"""Blobs: a hit, or a reader of the flight that brings them, or a stream past the store."""

from collections.abc import Callable

from registry_cache.catalog.proof import Proof
from registry_cache.model.errors import NotCached, UpstreamError
from registry_cache.model.events import CacheResult
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import BlobStore, OpenBlob
from registry_cache.pull.answers import BlobAnswer, Elsewhere, Place, Served
from registry_cache.pull.asking import Timer
from registry_cache.pull.direct import Direct
from registry_cache.pull.flight import FlightReader
from registry_cache.pull.flights import Flights
from registry_cache.pull.prefetch import Prefetcher
from registry_cache.pull.registry import Registries
from registry_cache.runtime.singleflight import SingleFlight

# A client whose flight has had no slot for so long gets the blob past the flights: its own patience may end at 30 s.
_BOARDING_SECONDS = 10.0
# Called before a fetch begins; what it raises keeps it from that. What it gives is told how many bytes are fetched.
Begins = Callable[[], Callable[[int], None]]
HIT = Served("hit")


class Blobs:
    """See the module. Owns the questions that are under way; the flights belong to others."""

    def __init__(
        self,
        registries: Registries,
        *,
        store: BlobStore,
        flights: Flights,
        prefetcher: Prefetcher,
        proof: Proof,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._registries = registries
        self._store = store
        self._flights = flights
        self._prefetcher = prefetcher
        self._proof = proof
        self._elsewhere = elsewhere
        self._heads: SingleFlight[int | None] = SingleFlight()

    async def aclose(self) -> None:
        """Stop asking."""
        await self._heads.aclose()

    def at_hand(self, repository: Repository, digest: Digest, *, head: bool) -> tuple[OpenBlob, Served] | None:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.blob_at_hand`."""
        blob = self._store.at_hand(digest)
        if blob is None:
            return None
        if not self._proof.admits(repository, digest):
            blob.close()
            return None
        return blob, self._stored_as(repository, digest, head=head)

    def _stored_as(self, repository: Repository, digest: Digest, *, head: bool) -> Served:
        # What was fetched ahead cost somebody its bytes: its first request is no hit of what was here.
        ahead = None if head else self._prefetcher.asked(repository, digest)
        return HIT if ahead is None else Served(ahead)

    async def cached(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.cached_blob`."""
        if await self._proof.missing(repository, digest):
            raise NotCached(f"{digest} is not cached")
        flight = self._flights.get(digest)
        if flight is not None and flight.on_its_way:
            return BlobAnswer(flight.size_bytes or 0, self._flights.join(repository, digest), HIT)
        blob = await self._store.open(digest)
        if blob is None:
            raise NotCached(f"{digest} is not cached")
        self._proof.admits(repository, digest)
        return BlobAnswer(blob.size_bytes, blob, HIT)

    async def blob(
        self,
        repository: Repository,
        digest: Digest,
        *,
        head: bool,
        client: str,
        begins: Begins | None = None,
        may_redirect: bool = False,
    ) -> BlobAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.blob`."""
        timer = Timer()
        blob = await self._proven(repository, digest, timer)
        if blob is None and may_redirect:
            place = await self._place(repository, digest, client)
            if place is not None:
                return BlobAnswer(place.size_bytes, None, Served("shared", detail="redirected"), place)
            blob = await self._proven(repository, digest, timer)  # it may have come meanwhile
        if blob is not None:
            served = self._stored_as(repository, digest, head=head)
            if timer.seconds:  # upstream was asked whose it is
                served = Served("revalidated", timer.seconds)
            return BlobAnswer(blob.size_bytes, blob, served)
        if head:
            return await self._head(repository, digest, timer)
        if self._flights.get(digest) is None:
            self._registries[repository.registry].negatives.check(_key(repository, digest))
        is_new = begins is not None and not self._flights.is_joined(repository, digest)
        pays = begins() if begins is not None and is_new else None
        is_proven = self._proof.allows(repository, digest)
        reader = self._flights.join(repository, digest, client=client, is_proven=is_proven, pays=pays)
        return await self._read(repository, digest, reader, timer)

    async def _read(self, repository: Repository, digest: Digest, reader: FlightReader, timer: Timer) -> BlobAnswer:
        """The answer of *reader*, which is closed if it is not needed for that."""
        try:
            answer = await self._answer(repository, digest, reader, timer)
            if not reader.flight.asked_upstream:  # an earlier run has left it whole, for whomever
                await self._confirm(repository, digest, timer)
        except BaseException:
            reader.close()
            raise
        if answer.content is not reader:
            reader.close()
        return answer

    async def _proven(self, repository: Repository, digest: Digest, timer: Timer) -> OpenBlob | None:
        """As :meth:`Flights.stored`, once it is proven that *repository* has what is here or in flight.

        The flight of the same repository is proof enough: it hears upstream's no for all who wait for it.
        """
        while True:
            blob = await self._flights.stored(digest)
            flight = self._flights.get(digest)
            is_own = blob is None and (flight is None or repository == flight.repository)
            if is_own or self._proof.admits(repository, digest):
                return blob
            if blob is not None:
                blob.close()
            await self._confirm(repository, digest, timer)

    async def _place(self, repository: Repository, digest: Digest, client: str) -> Place | None:
        """Where *client* may fetch it: what is under way here comes from here, and what is not proven is asked for."""
        if self._elsewhere is None or self._flights.get(digest) is not None:
            return None
        if await self._proof.missing(repository, digest):
            return None
        return await self._elsewhere.place(repository, digest, client)

    async def _confirm(self, repository: Repository, digest: Digest, timer: Timer) -> None:
        """Have it proven that *repository* has *digest*; upstream is asked where it is not known.

        Raises:
            RegistryCacheError: upstream's no, or that it could not be asked.
        """
        if await self._proof.missing(repository, digest):
            await self._asked_head(repository, digest, timer)

    async def _answer(self, repository: Repository, digest: Digest, reader: FlightReader, timer: Timer) -> BlobAnswer:
        flight = reader.flight
        ahead = self._prefetcher.asked(repository, digest) if reader.joined else None
        if not reader.joined:
            self._prefetcher.missed(repository, digest)
        if flight.on_its_way:
            return BlobAnswer(flight.size_bytes or 0, reader, HIT if ahead is None else Served(ahead))
        with timer.running():
            boarded = await reader.boarded(_BOARDING_SECONDS)
        if not boarded:
            size = await self._size(repository, digest, timer)
            return BlobAnswer(size, Direct(self._flights, repository, digest, size), Served("bypass", timer.seconds))
        # Whoever waits for the same flight hears the same; the one who began it asks for all.
        registry, key = self._registries[repository.registry], _key(repository, digest)
        announced = await registry.asking.ask(timer, key, lambda: registry.negatives.heed(key, reader.size))
        if repository in flight.supplied_by:
            self._proof.vouched(repository, digest)
        if announced is None:
            announced = await self._unannounced(repository, digest, reader, timer)
        result: CacheResult = "collapsed" if reader.joined else "miss"
        if flight.unstored:
            result = "bypass"
        elif not flight.asked_upstream:  # an earlier run died between the last byte and the rename
            result = "hit"
        elif flight.is_shared:
            result = "shared"
        return BlobAnswer(announced, reader, Served(result, timer.seconds))

    async def _unannounced(self, repository: Repository, digest: Digest, reader: FlightReader, timer: Timer) -> int:
        """The size of a blob whose transfer does not tell it: a HEAD may, else the end does."""
        flight = reader.flight
        try:
            flight.announce(await self._size(repository, digest, timer))
        except UpstreamError:
            if flight.unstored:
                raise
        if flight.size_bytes is None:
            with timer.running():
                await reader.landed()
        if flight.size_bytes is None:
            raise UpstreamError("upstream did not say how long the blob is")
        return flight.size_bytes

    async def _size(self, repository: Repository, digest: Digest, timer: Timer) -> int:
        size = await self._asked_head(repository, digest, timer)
        if size is None:
            raise UpstreamError("upstream does not say how long the blob is")
        return size

    async def _asked_head(self, repository: Repository, digest: Digest, timer: Timer) -> int | None:
        """Upstream has it under that name; its size, if a HEAD tells."""
        registry, key = self._registries[repository.registry], _key(repository, digest)

        async def head() -> int | None:
            size = await registry.negatives.heed(
                key, lambda: registry.asking.patiently(lambda: registry.upstream.blob_head(repository, digest))
            )
            registry.asking.answered()
            self._proof.supplied(repository, digest)  # before the question ends: who comes behind it need not ask
            return size

        return (await registry.asking.ask(timer, key, lambda: self._heads.do(key, head))).value

    async def _head(self, repository: Repository, digest: Digest, timer: Timer) -> BlobAnswer:
        flight = self._flights.get(digest)
        size = flight.size_bytes if flight is not None else None
        if flight is not None and size is not None and flight.on_its_way:  # as for GET
            return BlobAnswer(size, None, HIT)
        if size is None:
            size = await self._size(repository, digest, timer)
        return BlobAnswer(size, None, Served("miss", timer.seconds))


def _key(repository: Repository, digest: Digest) -> tuple[str, Repository, Digest]:
    return "blob", repository, digest
