"""A flight: one upstream stream for one cold digest, and any number of clients that read it while it grows.

The first request starts it, later ones join it, whatever ranges they want. It lives on when its readers leave, resumes
where upstream broke, and its last bytes are released only when the digest has been verified. When the store cannot take
the bytes, every reader goes on with a stream of its own.
"""

import asyncio
import contextlib
import hashlib
import os
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proxy import events
from proxy.errors import (
    ContentError,
    DigestMismatch,
    NoSpace,
    RegistryCacheError,
    SizeMismatch,
    UpstreamBusy,
    UpstreamError,
)
from proxy.oci import Digest, Repository
from proxy.storage import BlobStore, Hash, OpenBlob, Partial, Piece, Sink

# The longest pause before a broken transfer is taken up again; an origin that wants to be left alone for longer has
# failed it.
_PAUSE_MAX_SECONDS = 30.0


class BlobBody(Protocol):
    """The body of one upstream GET; it begins at ``start``, which may be elsewhere than asked for."""

    start: int
    total_bytes: int | None

    async def read(self) -> Piece:
        """The next piece, empty at the end; raises UpstreamError when the transfer breaks."""

    async def drain(self, take: Callable[[Piece], None]) -> None:
        """Hand the rest to *take*, piece by piece, in a thread; raises what it raises, and UpstreamError."""


class BlobSource(Protocol):
    """Where flights get their bytes: ``upstream/``."""

    def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[BlobBody]:
        """One GET, one try."""


class Flight:
    """See the module. Made and owned by :class:`Flights`.

    ``available`` bytes may be read by anyone; it only grows. ``size_bytes`` is what upstream announced, None before
    that or where upstream announced nothing.
    """

    def __init__(self, repository: Repository, digest: Digest) -> None:
        self.repository = repository
        self.digest = digest
        self.size_bytes: int | None = None
        self.available = 0
        self.readers = 0
        self.partial: Partial | None = None
        self.error: RegistryCacheError | None = None
        self.unstored = False  # the store refused: readers go on by themselves
        self.complete = False
        self.asked_upstream = False  # it does not when an earlier run left the whole blob, only not yet published
        self.started = asyncio.Event()  # headers can go out, or it failed
        self._progress = asyncio.Event()

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unstored" if self.unstored else "failed" if self.error else "flying"
        return f"<Flight {self.digest} {state} {self.available}/{self.size_bytes} readers={self.readers}>"

    @property
    def over(self) -> bool:
        """No more bytes will come."""
        return self.complete or self.unstored or self.error is not None

    def advance(self, available: int) -> None:
        """Let readers have the bytes up to *available*."""
        if available > self.available:
            self.available = available
            self._wake()

    def _wake(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    def end(self, *, error: RegistryCacheError | None = None, unstored: bool = False) -> None:
        """No more bytes will come; the first reason counts."""
        if self.over:
            return
        self.error, self.unstored, self.complete = error, unstored, not (error or unstored)
        self.started.set()
        self._wake()

    async def beyond(self, offset: int) -> int:
        """How far readers may read, as soon as that is more than *offset* or the flight is over."""
        while self.available <= offset and not self.over:
            await self._progress.wait()
        return self.available


class FlightReader:
    """One client of a flight, from before its headers until it is closed."""

    def __init__(self, flights: "Flights", flight: Flight, *, joined: bool) -> None:
        self.flight = flight
        self.joined = joined
        self._flights: Flights | None = flights
        flight.readers += 1

    async def size(self) -> int | None:
        """The size of the blob in bytes, as soon as upstream has told it; None if the store refused before that.

        Raises:
            RegistryCacheError: the flight failed before it began.
        """
        await self.flight.started.wait()
        if self.flight.error is not None:
            raise self.flight.error
        return self.flight.size_bytes

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """Send the bytes [start, stop) of the blob to *sink*, following the flight as it grows.

        Raises:
            RegistryCacheError: the flight failed; the connection must not look as if the body were whole.
        """
        flight, position = self.flight, start
        while position < stop and self._flights is not None:
            available = min(await flight.beyond(position), stop)
            if available > position and flight.partial is not None:
                await flight.partial.send(sink, position, available)
                position = available
            elif flight.unstored:
                # Whoever gets the whole blob gets it verified, be it stored or not; a part of it nobody can verify.
                whole = start == 0 and stop == flight.size_bytes
                known = None
                if whole and flight.partial is not None and flight.partial.offset == position:
                    known = flight.partial.hashed()
                elif whole and position == 0:
                    known = hashlib.new(flight.digest.algorithm)
                await self._flights.send_direct(flight.repository, flight.digest, sink, position, stop, known)
                return
            else:
                raise flight.error or UpstreamError("the flight ended early")

    async def landed(self) -> None:
        """Wait for the end of the flight.

        Raises:
            RegistryCacheError: it failed.
        """
        while not self.flight.over:
            await self.flight.beyond(self.flight.available)
        if self.flight.error is not None:
            raise self.flight.error

    def close(self) -> None:
        """The client has what it wanted, or is gone; may be called twice."""
        if self._flights is not None:
            flights, self._flights = self._flights, None
            self.flight.readers -= 1
            flights.close_if_done(self.flight)


class Flights:
    """All flights: at most one a digest, at most *limit* at a time.

    Args:
        retries: how often a broken transfer is taken up again before the flight fails.
        published: called with each flight whose blob has been stored.
    """

    def __init__(
        self,
        source: BlobSource,
        store: BlobStore,
        *,
        limit: int,
        retries: int,
        published: Callable[[Flight], None],
        backoff: Callable[[int], float],
        events: events.Events,
    ) -> None:
        self._source = source
        self._store = store
        self._retries = retries
        self._published = published
        self._backoff = backoff
        self._events = events
        self._slots = asyncio.Semaphore(limit)
        self._direct_slots = asyncio.Semaphore(limit)
        self.landings = 0  # flights that have ended
        self._flights: dict[Digest, Flight] = {}
        self._tasks: dict[Flight, asyncio.Task[None]] = {}

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

    def join(self, repository: Repository, digest: Digest, *, ahead: bool = False) -> "FlightReader":
        """A reader of the flight of *digest*, which is started if there is none.

        Synchronous, so that two callers never start two. The caller closes the reader.

        Args:
            ahead: no client has asked for it: it takes none of the clients' slots.
        """
        flight = self._flights.get(digest)
        if flight is not None:
            return FlightReader(self, flight, joined=True)
        flight = self._flights[digest] = Flight(repository, digest)
        slots = contextlib.nullcontext() if ahead else self._slots
        task = asyncio.create_task(self._fly(flight, slots), name=f"flight {digest}")
        self._tasks[flight] = task
        task.add_done_callback(lambda _: self._tasks.pop(flight, None))
        return FlightReader(self, flight, joined=False)

    async def aclose(self) -> None:
        """Break off every flight; what has arrived is kept for the next run, what has been verified is stored."""
        tasks = dict(self._tasks)
        for flight, task in tasks.items():
            if not flight.complete:
                task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for flight in list(self._flights.values()):  # cancelled before they began
            flight.end(error=UpstreamBusy("the cache is shutting down"))

    async def _fly(self, flight: Flight, slots: AbstractAsyncContextManager[None]) -> None:
        try:
            async with slots:
                await self._fill(flight)
        except NoSpace as error:
            self._events.emit(events.NotStored(digest=flight.digest, reason=str(error)))
            flight.end(unstored=True)
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
            del self._flights[flight.digest]
            self.landings += 1
            self.close_if_done(flight)

    async def _fill(self, flight: Flight) -> None:
        async with self._store.ingest(flight.digest) as partial:
            flight.partial = partial
            try:
                if not _is_whole(partial):  # it is, if an earlier run died between the last byte and the rename
                    await self._transfer_all(flight, partial)
                partial.verify()
            except ContentError:
                await partial.discard()
                raise
            # The client's last bytes wait for the digest, not for the disk.
            flight.size_bytes = partial.offset
            flight.advance(partial.offset)
            flight.end()
            await self._keep(flight, partial)

    async def _transfer_all(self, flight: Flight, partial: Partial) -> None:
        """Transfers until the blob is there, each from where the one before it broke."""
        attempt = 0
        while True:
            before = partial.offset
            try:
                await self._transfer(flight, partial)
            except UpstreamError as error:
                # Progress earns new tries: only transfers that bring nothing use them up.
                attempt = 1 if partial.offset > before else attempt + 1
                await self._pause(flight.digest, partial.offset, attempt, error)
            else:
                return

    async def _pause(self, digest: Digest, offset: int, attempt: int, error: UpstreamError) -> None:
        """Wait before the next try, or raise *error* when there is none to be made."""
        seconds = max(self._backoff(attempt), error.retry_in_seconds)
        if attempt > self._retries or seconds > _PAUSE_MAX_SECONDS:
            raise error
        self._events.emit(events.FlightResumed(digest=digest, offset=offset, attempt=attempt, reason=str(error)))
        await asyncio.sleep(seconds)

    async def _keep(self, flight: Flight, partial: Partial) -> None:
        """Publish a verified blob; its readers have everything they need already."""
        try:
            await partial.publish()
        except NoSpace as error:
            self._events.emit(events.NotStored(digest=flight.digest, reason=str(error)))
        else:
            self._published(flight)

    async def _transfer(self, flight: Flight, partial: Partial) -> None:
        """One upstream GET, from where the partial stands to the end of the blob."""
        flight.asked_upstream = True
        async with self._source.blob(flight.repository, flight.digest, start=partial.offset) as body:
            total = body.total_bytes
            if flight.size_bytes is not None and total != flight.size_bytes:
                raise UpstreamError(f"upstream announced {flight.size_bytes} bytes before, and {total} now")
            position = body.start
            if position != partial.offset:
                if position != 0:
                    raise UpstreamError(f"upstream was asked for bytes from {partial.offset}, sent from {position}")
                partial.restart()
            flight.size_bytes = total
            await partial.expect(total)
            if total is not None:
                flight.started.set()
            await self._copy(flight, partial, body, position)

    async def _copy(self, flight: Flight, partial: Partial, body: BlobBody, position: int) -> None:
        """From upstream into the store, in one thread; readers follow in the event loop."""
        loop, total = asyncio.get_running_loop(), flight.size_bytes

        def take(piece: Piece) -> None:
            nonlocal position
            position += len(piece)
            if total is not None and position > total:
                raise SizeMismatch(f"{flight.digest}: upstream sends more than the {total} bytes it announced")
            partial.write(piece)
            loop.call_soon_threadsafe(self._release, flight, partial)
            if partial.offset == len(piece):
                # The client's first byte: the event loop is awake now, and the scheduler would leave it waiting for a
                # core while this thread goes on. The first byte of an 8 MB blob came 3.8 ms after upstream's, and 3.1
                # so (p90 8.6 and 4.8). Not after every piece: on a busy host that gives time to everybody.
                os.sched_yield()

        await body.drain(take)
        if total is not None and position < total:
            raise UpstreamError(f"upstream ended the transfer at {position} of {total} bytes")

    @staticmethod
    def _release(flight: Flight, partial: Partial) -> None:
        """Let readers have what is in, but never the whole of an unverified blob."""
        size = flight.size_bytes
        if size is None:
            return  # the end is not known, so nothing can be held back: everything waits for the digest
        flight.started.set()
        flight.advance(min(partial.offset, size - 1) if size else 0)

    # --- readers ------------------------------------------------------------------------------------------------

    async def send_direct(
        self,
        repository: Repository,
        digest: Digest,
        sink: Sink,
        start: int,
        stop: int,
        known: Hash | None = None,
    ) -> None:
        """Send [start, stop) straight from upstream, storing nothing; resumes as a flight does.

        Args:
            known: the hash of what comes before *start*, if *stop* is the end of the blob: the last byte is held back
                until the digest has been verified.

        Raises:
            RegistryCacheError: upstream gave up, or sent something else.
        """
        position, attempt = start, 0
        async with self._direct_slots:
            while position < stop:
                before = position
                try:
                    async for piece in self._pieces(repository, digest, position, stop):
                        if known is not None:
                            await asyncio.to_thread(known.update, piece)
                            if position + len(piece) == stop and known.hexdigest() != digest.encoded:
                                raise DigestMismatch(f"{digest}: upstream sent something else")
                        await sink.write(piece)
                        position += len(piece)
                    if position < stop:
                        await self._pause(digest, position, attempt + 1, UpstreamError("upstream ended it early"))
                except UpstreamError as error:
                    attempt = 1 if position > before else attempt + 1
                    await self._pause(digest, position, attempt, error)

    async def _pieces(self, repository: Repository, digest: Digest, start: int, stop: int) -> AsyncIterator[Piece]:
        """The bytes [start, stop) of one upstream GET, whatever part of the blob it sends."""
        async with self._source.blob(repository, digest, start=start, stop=stop) as body:
            skip = start - body.start
            if skip < 0:
                raise UpstreamError("upstream sent another part of the blob than was asked for")
            left = stop - start
            while left > 0 and (data := await body.read()):
                piece = data[skip : skip + left]
                skip = max(0, skip - len(data))
                left -= len(piece)
                yield piece

    def close_if_done(self, flight: Flight) -> None:
        """Close the partial's file after the flight and its last reader."""
        landed = self._flights.get(flight.digest) is not flight
        if landed and not flight.readers and flight.partial is not None:
            flight.partial.close()
            flight.partial = None


def _is_whole(partial: Partial) -> bool:
    if not partial.offset:
        return False
    try:
        partial.verify()
    except ContentError:
        return False
    return True
