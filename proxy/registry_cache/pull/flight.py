"""A flight: one upstream stream for one cold digest, and any number of clients that read it while it grows.

The first request starts it, later ones join it, whatever ranges they want. It lives on when its readers leave, unless
others wait for its slot; it resumes where upstream broke, and its last bytes are released only when the digest has been
verified. What the store cannot take goes to the readers through memory (:mod:`registry_cache.pull.relay`).
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from registry_cache.model.errors import ReadFailed, RegistryCacheError, UpstreamError
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import Hash, Origin, Partial, Piece, Sink
from registry_cache.pull.boarding import Seat
from registry_cache.pull.relay import Relay


class BlobBody(Protocol):
    """The body of one upstream GET; it begins at ``start``, which may be elsewhere than asked for."""

    start: int
    total_bytes: int | None
    origin: Origin  # where what is not from upstream proves wrong, upstream is asked

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
    """See the module. Made and owned by :class:`registry_cache.pull.flights.Flights`.

    ``available`` bytes may be read by anyone. ``size_bytes`` is what upstream announced, None before that or where
    upstream announced nothing. ``seat`` is None for what no client has asked for: it takes none of the clients' slots.
    ``repository`` is where its bytes come from now; ``others`` have it too, and go on when that one fails.
    """

    def __init__(self, repository: Repository, digest: Digest, *, seat: Seat | None) -> None:
        self.repository = repository
        self.others: dict[Repository, str] = {}  # and the address of the client who named it
        self.supplied_by: set[Repository] = set()  # those that have answered with it
        self.origins: set[Origin] = set()  # of what it was sent so far
        self.failures: dict[Repository, RegistryCacheError] = {}
        self.digest = digest
        self.seat = seat
        self.pays: Callable[[int], None] | None = None  # who began it: told once how many bytes are fetched
        self.interrupt: Callable[[], None] | None = None  # ends the GET that is under way
        self.is_diverted = False  # from a source that sends nothing to another one
        self.is_failing = False  # nothing else is left to try
        self._stalled: set[Repository] = set()
        self.size_bytes: int | None = None
        self.available = 0
        self.moving_since: tuple[float, int] | None = (
            None  # the first bytes that came: when (monotonic), and up to where
        )
        self.readers: set[FlightReader] = set()
        self.partial: Partial | None = None
        self.relay: Relay | None = None  # the store refused: what comes goes through memory
        self.error: RegistryCacheError | None = None
        self.complete = False
        self.leaving = False  # nobody reads it and its slot is wanted: who comes now starts another one
        self.asked_upstream = False  # it does not when an earlier run left the whole blob, only not yet published
        self.boarded = asyncio.Event()  # it has had a slot
        self.started = asyncio.Event()  # headers can go out, or it failed
        self._progress = asyncio.Event()

    def __repr__(self) -> str:
        state = "complete" if self.complete else "failed" if self.error else "flying"
        state = f"unstored, {state}" if self.unstored else state
        return f"<Flight {self.digest} {state} {self.available}/{self.size_bytes} readers={len(self.readers)}>"

    @property
    def unstored(self) -> bool:
        """Whether the store refused it."""
        return self.relay is not None

    @property
    def is_shared(self) -> bool:
        """Whether the fleet's bucket has brought all that has come: that cost upstream nothing."""
        return self.origins == {"bucket"}

    @property
    def offset(self) -> int:
        """How many bytes have come."""
        if self.relay is not None:
            return self.relay.stop
        return self.partial.offset if self.partial is not None else 0

    @property
    def over(self) -> bool:
        """No more bytes will come."""
        return self.complete or self.error is not None

    @property
    def on_its_way(self) -> bool:
        """Verified, and about to be stored: as good as a hit."""
        return self.complete and not self.unstored and self.size_bytes is not None

    def offer(self, repository: Repository, client: str) -> None:
        """*repository* has the blob as well."""
        if repository != self.repository and repository not in self.failures:
            self.others.setdefault(repository, client)

    def is_open_to(self, repository: Repository) -> bool:
        """Whether who asks for it under *repository* may join: what comes of it will be true for them as well."""
        hears = not self.is_failing or repository == self.repository or repository in self.failures
        return hears and not self.leaving

    @property
    def may_divert(self) -> bool:
        """Whether another registry has it, and has not been tried and found to send nothing either."""
        return not self.over and any(
            other.registry != self.repository.registry and other not in self._stalled for other in self.others
        )

    def divert(self) -> None:
        """Nothing comes: go on from another registry."""
        self.is_diverted = True
        if self.interrupt is not None:
            self.interrupt()

    def go_on_elsewhere(self, error: RegistryCacheError, seat: Callable[[str, str], Seat]) -> None:
        """Take the next of ``others``; who was waiting for the word of the one that failed hears it.

        Args:
            seat: a place among the slots of a registry, for a client's address.
        """
        failed = self.repository
        self.repository = min(self.others, key=lambda other: other in self._stalled)
        client = self.others.pop(self.repository)
        if self.is_diverted:  # it is slow, and may be all there is in the end
            self.is_diverted = False
            self._stalled.add(failed)
            self.others[failed] = client
        else:
            self.failures[failed] = error
            for reader in self.readers:
                if reader.repository == failed and not reader.is_proven and failed not in self.supplied_by:
                    reader.error = error
        if self.seat is not None:
            self.seat.leave()
            self.seat = seat(self.repository.registry, client)
        self.wake()

    def begin(self, origin: Origin) -> None:
        """Upstream, or *origin* for it, has answered with it: headers can go out."""
        self.supplied_by.add(self.repository)
        self.origins.add(origin)
        self._pay()
        self.started.set()
        self.wake()

    def release(self, offset: int) -> None:
        """Let readers have what is in, the bytes up to *offset*, but never the whole of an unverified blob."""
        if self.size_bytes is None:
            return  # the end is not known, so nothing can be held back: everything waits for the digest
        self.started.set()
        self._advance(min(offset, self.size_bytes - 1) if self.size_bytes else 0)

    def announce(self, size_bytes: int) -> None:
        """Upstream has told elsewhere how long the blob is whose transfer did not say it."""
        offset = self.offset
        if self.size_bytes is None and size_bytes and size_bytes >= offset:
            self.size_bytes = size_bytes
            self._pay()
            self.release(offset)

    def _advance(self, available: int) -> None:
        if available > self.available:
            if self.moving_since is None:
                self.moving_since = (time.monotonic(), available)
            self.available = available
            self.wake()

    def rewind(self, offset: int) -> None:
        """The bytes behind *offset* were not what upstream sends now: whoever has got more of them is lost."""
        for reader in self.readers:
            if reader.reaching > offset:
                reader.error = UpstreamError("what was sent of the blob so far is not what upstream has")
        self.available = min(self.available, offset)
        self.wake()

    def wake(self) -> None:
        """Something has changed for the readers."""
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    def end(self, *, error: RegistryCacheError | None = None) -> None:
        """No more bytes will come; the first reason counts."""
        if self.over:
            return
        self.error, self.complete = error, error is None
        self.boarded.set()
        self.started.set()
        self.wake()

    def pass_by(self) -> None:
        """The store does not take what comes from here on."""
        if self.partial is None:
            self.relay = Relay(0, hashlib.new(self.digest.algorithm))
        else:
            self.relay = Relay(self.partial.offset, self.partial.hashed())
        self.wake()

    def verified(self, size_bytes: int) -> None:
        """All of it is there, and is what its digest says."""
        self.size_bytes = size_bytes
        self._pay()
        self._advance(size_bytes)
        self.end()

    def _pay(self) -> None:
        # Before the client has its answer: a flight goes on without the one who began it.
        if self.pays is not None and self.size_bytes is not None and self.asked_upstream and not self.is_shared:
            self.pays(self.size_bytes)
            self.pays = None

    async def change(self) -> None:
        """Until there is more to read, or something else has changed."""
        await self._progress.wait()


class Tower(Protocol):
    """What a reader needs of :class:`registry_cache.pull.flights.Flights`."""

    def left(self, flight: Flight) -> None:
        """A reader has gone."""

    async def send_direct(
        self, repository: Repository, digest: Digest, sink: Sink, start: int, stop: int, known: Hash | None = None
    ) -> None:
        """See :meth:`registry_cache.pull.flights.Flights.send_direct`."""


class FlightReader:
    """One client of a flight, from before its headers until it is closed."""

    def __init__(
        self, tower: Tower, flight: Flight, repository: Repository, *, joined: bool, is_proven: bool = False
    ) -> None:
        self.flight = flight
        self.repository = repository
        self.joined = joined
        self.is_proven = is_proven  # it may have the blob, whatever its repository's upstream says now
        self.reaching = 0  # so far it has been sent bytes, or is being
        self.error: RegistryCacheError | None = None
        self._tower: Tower | None = tower
        flight.readers.add(self)

    async def boarded(self, patience_seconds: float) -> bool:
        """Whether the flight gets its turn within that time."""
        try:
            async with asyncio.timeout(patience_seconds):
                await self.flight.boarded.wait()
        except TimeoutError:
            return False
        return True

    async def size(self) -> int | None:
        """The size of the blob in bytes, as soon as upstream has answered; None if it did not tell it.

        Raises:
            RegistryCacheError: the flight failed before it began.
        """
        while not self.flight.started.is_set() and self.error is None:
            await self.flight.change()
        self._check()
        return self.flight.size_bytes

    def _check(self) -> None:
        """Raise what went wrong, in the words of the reader's own repository."""
        if self.error is not None:
            raise self.error
        if self.flight.error is not None:
            raise self.flight.failures.get(self.repository, self.flight.error)

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """Send the bytes [start, stop) of the blob to *sink*, following the flight as it grows.

        Raises:
            RegistryCacheError: the flight failed; the connection must not look as if the body were whole.
        """
        flight, position = self.flight, start
        while position < stop and self._tower is not None:
            relay = flight.relay
            if relay is not None and position >= relay.began and not relay.reaches(position):
                await self._alone(self._tower, sink, position, stop)
                return
            if relay is not None:
                relay.read(position)  # so that it knows how far its readers are
            if position < flight.available:
                position = await self._send_some(sink, position, min(flight.available, stop))
            elif flight.over:
                self._check()
                raise UpstreamError("the flight ended early")
            else:
                await flight.change()
            if self.error is not None:
                raise self.error

    async def _send_some(self, sink: Sink, position: int, stop: int) -> int:
        """Send some of [position, stop), which is there; where the rest begins."""
        flight, relay = self.flight, self.flight.relay
        self.reaching = max(self.reaching, stop)
        if relay is not None and position >= relay.began:
            piece = relay.read(position)[: stop - position]
            await sink.write(piece)
            return position + len(piece)
        if relay is not None:
            stop = min(stop, relay.began)
        if flight.partial is None:
            raise UpstreamError("the flight has no bytes any more")
        try:
            await flight.partial.send(sink, position, stop)
        except ReadFailed:
            if self.error is not None:
                raise self.error from None
            raise
        return stop

    async def _alone(self, tower: Tower, sink: Sink, start: int, stop: int) -> None:
        """Go on with a stream of its own."""
        # Whoever gets the whole blob from one stream gets it verified; of a part of it nobody can say anything.
        whole = start == 0 and stop == self.flight.size_bytes
        known = hashlib.new(self.flight.digest.algorithm) if whole else None
        await tower.send_direct(self.repository, self.flight.digest, sink, start, stop, known)

    async def landed(self) -> None:
        """Wait until the flight has ended, or is known not to be stored.

        Raises:
            RegistryCacheError: it failed.
        """
        while not self.flight.over and not self.flight.unstored and self.error is None:
            await self.flight.change()
        self._check()

    def close(self) -> None:
        """The client has what it wanted, or is gone; may be called twice."""
        if self._tower is not None:
            tower, self._tower = self._tower, None
            self.flight.readers.discard(self)
            tower.left(self.flight)
