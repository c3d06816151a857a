"""All flights: at most one a digest, so many at a time as there are slots.

A flight without readers goes on to its end while nobody waits. When somebody does, it gives its slot back after a short
grace; what has arrived is kept, and taken up when the blob is asked for again.
"""

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import ContentError, NoSpace, RegistryCacheError, UpstreamBusy, UpstreamError
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import BlobStore, Hash, OpenBlob, Partial, Sink
from registry_cache.pull.flight import Flight, FlightReader
from registry_cache.pull.runway import Runways
from registry_cache.pull.transfer import Left, Transfer

# A flight that gets less than this in that time goes on from another registry, if one has the blob.
_STALLED_SECONDS = 2.0
_STALLED_BYTES = 256 * 1024
# What the store has refused to take is not fetched ahead again for so long.
_REFUSED_SECONDS = 30.0


class Flights:
    """See the module.

    Args:
        published: called with each flight whose blob has been stored.
        ended: called with each flight that is over, however it went.
    """

    def __init__(
        self,
        runways: Runways,
        store: BlobStore,
        *,
        published: Callable[[Flight], None],
        ended: Callable[[Flight], None] = lambda _: None,
        events: Events,
    ) -> None:
        self._runways = runways
        self._store = store
        self._published = published
        self._ended = ended
        self._events = events
        self.landings = 0  # flights that have ended
        self._flights: dict[Digest, Flight] = {}
        self._tasks: dict[Flight, asyncio.Task[None]] = {}
        self._watches: dict[Flight, asyncio.TimerHandle] = {}
        self._flying: set[Flight] = set()  # those whose partial is being written
        self._refused_bytes: int | None = None  # the smallest that the store has refused lately
        self._refused_until = 0.0  # monotonic seconds, by the loop's clock

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def __repr__(self) -> str:
        return f"<Flights {list(self._flights.values())}>"

    def get(self, digest: Digest) -> Flight | None:
        """The flight of *digest*, if there is one."""
        return self._flights.get(digest)

    async def stored(self, digest: Digest) -> OpenBlob | None:
        """The blob, if it is here; None only if no flight has brought it while we looked.

        From that answer to :meth:`join` nothing may be awaited, so that no blob is ever fetched twice.
        """
        while self._flights.get(digest) is None:
            landings = self.landings
            blob = await self._store.open(digest)
            if blob is not None or landings == self.landings:
                return blob
        return None

    def join(
        self,
        repository: Repository,
        digest: Digest,
        *,
        client: str = "",
        is_proven: bool = False,
        pays: Callable[[int], None] | None = None,
    ) -> FlightReader:
        """A reader of the flight of *digest*, which is started if there is none.

        Synchronous, so that two callers never start two. The caller closes the reader.

        Args:
            client: the address that a new flight's slot counts for.
            is_proven: it may have the blob from wherever it comes; else only from *repository*, or if that has it.
            pays: told how many bytes a new flight fetches, as soon as that is known.
        """
        flight = self._flights.get(digest)
        if flight is None or not flight.is_open_to(repository):
            flight = Flight(repository, digest, seat=self._runways[repository.registry].boarding.seat(client))
            flight.pays = pays
            return self._start(flight, None, is_proven=is_proven)
        if flight.seat is not None:
            flight.seat.read(by_anyone=True)
        reader = FlightReader(self, flight, repository, joined=True, is_proven=is_proven)
        flight.offer(repository, client)
        self._watch(flight)
        if flight.relay is not None:
            flight.relay.stir()
        return reader

    def is_joined(self, repository: Repository, digest: Digest) -> bool:
        """Whether :meth:`join` would find a flight, and start none."""
        flight = self._flights.get(digest)
        return flight is not None and flight.is_open_to(repository)

    def number_of(self, client: str) -> int:
        """How many flights *client* has begun that are not over."""
        return sum(flight.seat is not None and flight.seat.claim.client == client for flight in self)

    def fetch_ahead(self, repository: Repository, digest: Digest, size_bytes: int) -> FlightReader:
        """As :meth:`join`, of a blob that no client has asked for and that has no flight: it takes no client's slot.

        Args:
            size_bytes: by the manifest's word. If the store has no room for that, upstream is not asked.
        """
        return self._start(Flight(repository, digest, seat=None), size_bytes, is_proven=True)

    def may_store(self, size_bytes: int) -> bool:
        """Whether the store has not lately refused as much."""
        refused = self._refused_bytes
        return refused is None or size_bytes < refused or asyncio.get_running_loop().time() >= self._refused_until

    def _watch(self, flight: Flight) -> None:
        """Look whether bytes come, as long as another registry has them too: who waits for that one is not held up."""
        if flight.may_divert and flight not in self._watches:
            loop = asyncio.get_running_loop()
            self._watches[flight] = loop.call_later(_STALLED_SECONDS, self._look, flight, flight.offset)

    def _look(self, flight: Flight, offset: int) -> None:
        self._watches.pop(flight, None)
        if flight.may_divert and not flight.unstored and flight.offset - offset < _STALLED_BYTES:
            flight.divert()
        self._watch(flight)

    def _start(self, flight: Flight, ahead_bytes: int | None, *, is_proven: bool) -> FlightReader:
        before = self._flights.get(flight.digest)
        self._flights[flight.digest] = flight
        self._flying.add(flight)
        reader = FlightReader(self, flight, flight.repository, joined=False, is_proven=is_proven)
        behind = self._tasks.get(before) if before is not None else None
        task = asyncio.create_task(self._fly(flight, behind, ahead_bytes), name=f"flight {flight.digest}")
        self._tasks[flight] = task
        task.add_done_callback(lambda _: self._tasks.pop(flight, None))
        return reader

    async def aclose(self) -> None:
        """Break off every flight; what has arrived is kept for the next run, what has been verified is stored."""
        tasks = dict(self._tasks)
        for flight, task in tasks.items():
            if not flight.complete:
                task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for watch in self._watches.values():
            watch.cancel()
        for runway in self._runways.values():
            runway.boarding.aclose()
        for flight in list(self._flights.values()):  # cancelled before they began
            flight.end(error=UpstreamBusy("the cache is shutting down"))
        self._flying.clear()

    # --- one flight ---------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight, behind: asyncio.Task[None] | None, ahead_bytes: int | None) -> None:
        try:
            if behind is not None:  # one that nobody read is on its way out; it writes to the same partial
                await asyncio.wait([behind])
            await self._fill(flight, ahead_bytes)
        except Left as error:
            flight.end(error=error)
        except NoSpace as error:
            self._events.emit(events.NotStored(digest=flight.digest, reason=str(error)))
            flight.end(error=UpstreamBusy(f"it was not fetched ahead: {error}"))
        except RegistryCacheError as error:
            self._events.emit(events.FlightFailed(digest=flight.digest, reason=str(error)))
            flight.end(error=error)
        except asyncio.CancelledError:
            flight.end(error=UpstreamBusy("the cache is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 -- a bug must not leave readers waiting
            self._events.emit(events.Crashed(message=f"flight {flight.digest}", traceback=traceback.format_exc()))
            flight.end(error=UpstreamError(f"internal error: {error!r}"))
        finally:
            if flight.seat is not None:
                flight.seat.leave()
            if (watch := self._watches.pop(flight, None)) is not None:
                watch.cancel()
            if self._flights.get(flight.digest) is flight:
                del self._flights[flight.digest]
            self._flying.discard(flight)
            self.landings += 1
            self._ended(flight)
            self._close_if_done(flight)

    async def _fill(self, flight: Flight, ahead_bytes: int | None) -> None:
        transfer = Transfer(flight, self._runways, self._pass_by)
        async with contextlib.AsyncExitStack() as ingest:
            try:
                partial = flight.partial = await ingest.enter_async_context(self._store.ingest(flight.digest))
                if ahead_bytes is not None:
                    await partial.expect(ahead_bytes)
            except NoSpace as error:
                if ahead_bytes is not None and len(flight.readers) <= 1:  # no client has joined: upstream is not asked
                    self._refused(ahead_bytes)
                    flight.leaving = True
                    raise
                self._pass_by(flight, error)
            try:
                if flight.partial is None or not _is_whole(flight.partial):
                    await transfer.bring()
            except ContentError:
                if flight.partial is not None:
                    await flight.partial.discard()
                raise
            if flight.seat is not None:  # a slot is for upstream's work, not for the disk's
                flight.seat.leave()
            # The client's last bytes wait for the digest, not for the disk.
            flight.verified(transfer.offset)
            if flight.partial is not None and not flight.unstored:
                await self._keep(flight, flight.partial)

    def _pass_by(self, flight: Flight, error: NoSpace) -> int:
        """The store does not take the rest of *flight*; how many flights go past it now."""
        if flight.relay is None:
            self._events.emit(events.NotStored(digest=flight.digest, reason=str(error)))
            self._refused(flight.size_bytes or 0)
            flight.pass_by()
        return sum(other.unstored for other in self._flights.values())

    async def _keep(self, flight: Flight, partial: Partial) -> None:
        """Publish a verified blob; its readers have everything they need already."""
        try:
            await partial.publish()
        except NoSpace as error:
            self._events.emit(events.NotStored(digest=flight.digest, reason=str(error)))
            self._refused(partial.offset)
        else:
            if self._refused_bytes is not None and partial.offset >= self._refused_bytes:
                self._refused_bytes = None
            self._published(flight)

    def _refused(self, size_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._refused_bytes is not None and now < self._refused_until:
            size_bytes = min(size_bytes, self._refused_bytes)
        self._refused_bytes, self._refused_until = size_bytes, now + _REFUSED_SECONDS

    # --- readers ------------------------------------------------------------------------------------------------

    async def send_direct(
        self, repository: Repository, digest: Digest, sink: Sink, start: int, stop: int, known: Hash | None = None
    ) -> None:
        """Send [start, stop) straight from upstream, storing nothing; resumes as a flight does.

        Args:
            known: the hash of what comes before *start*, if *stop* is the end of the blob: the last byte is held back
                until the digest has been verified.

        Raises:
            RegistryCacheError: upstream gave up, or sent something else.
        """
        await self._runways[repository.registry].direct.send(repository, digest, sink, start, stop, known)

    def left(self, flight: Flight) -> None:
        """A reader has gone."""
        if not flight.readers and not flight.over and flight.seat is not None:
            flight.seat.read(by_anyone=False)
            if not flight.seat.held:
                flight.seat.changed.set()
        if flight.relay is not None:
            flight.relay.stir()
        self._close_if_done(flight)

    def _close_if_done(self, flight: Flight) -> None:
        """Close the partial's file after the flight and its last reader."""
        if flight not in self._flying and not flight.readers and flight.partial is not None:
            flight.partial.close()
            flight.partial = None


def _is_whole(partial: Partial) -> bool:
    """Whether an earlier run died between the last byte and the rename."""
    if not partial.offset:
        return False
    try:
        partial.verify()
    except ContentError:
        return False
    return True
