"""How the bytes of a flight come: GETs from upstream, each from where the one before it broke, until all are there.

They go into the store; what it refuses goes on through memory, from the same GET.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable

from registry_cache.model import events
from registry_cache.model.errors import (
    ContentError,
    DigestMismatch,
    NoSpace,
    PeerLost,
    RangeRefused,
    RateLimited,
    RegistryCacheError,
    SizeMismatch,
    UpstreamBusy,
    UpstreamError,
)
from registry_cache.ports.blobs import Hash, Partial, Piece
from registry_cache.pull.flight import BlobBody, Flight
from registry_cache.pull.relay import Relay
from registry_cache.pull.retries import Resuming, no_to_a_range
from registry_cache.pull.runway import Runway, Runways

# A blob that cannot be stored and that nobody reads at the moment is kept open for so long.
_UNREAD_SECONDS = 5.0


class Left(UpstreamBusy):
    """Nobody reads the flight any more, and it has given its place to others."""


class Stalled(UpstreamError):
    """Nothing comes from where the flight gets its bytes, and another registry has them."""


class _Refused(Exception):
    """The store takes no more: *rest* is what it left of the piece."""

    def __init__(self, error: NoSpace, rest: bytes) -> None:
        super().__init__(str(error))
        self.error = error
        self.rest = rest


class Transfer:
    """Brings the bytes of one flight.

    Args:
        pass_by: called when the store takes no more of it; how many flights go through memory now.
    """

    def __init__(
        self,
        flight: Flight,
        runways: Runways,
        pass_by: Callable[[Flight, NoSpace], int],
    ) -> None:
        self._flight = flight
        self._runways = runways
        self._pass_by = pass_by
        self._relays = 1
        self._resuming = Resuming()
        self._spliced = False  # what is there is not of one GET of upstream

    async def bring(self) -> None:
        """All bytes of the blob, verified.

        Raises:
            Left: nobody reads it, and others wait.
            RegistryCacheError: upstream gave up, or sent something else.
        """
        while True:
            try:
                await self._bring_all()
                self._verify()
            except RegistryCacheError as error:
                if not self._start_over(error) and not self._go_elsewhere(error):
                    self._flight.is_failing = True
                    raise
            else:
                return

    @property
    def _runway(self) -> Runway:
        return self._runways[self._flight.repository.registry]

    def _verify(self) -> None:
        relay, digest = self._flight.relay, self._flight.digest
        if relay is None:
            self._partial.verify()
        elif relay.known.hexdigest() != digest.encoded:
            raise DigestMismatch(f"asked for {digest}, got {digest.algorithm}:{relay.known.hexdigest()}")

    def _start_over(self, error: RegistryCacheError) -> bool:
        """Whether the blob may be had from one GET, when it is wrong put together from several."""
        if not isinstance(error, DigestMismatch) or not self._spliced:
            return False
        if self._flight.relay is not None:
            self._flight.relay.take_back()
        self._resuming.refused, self._spliced = True, False
        self._flight.size_bytes = None if not self._flight.started.is_set() else self._flight.size_bytes
        self._resumed(0, str(error))
        return True

    def _go_elsewhere(self, error: RegistryCacheError) -> bool:
        """Whether another repository that has the blob goes on where this one has failed; the digest decides."""
        flight, is_wrong = self._flight, isinstance(error, ContentError)
        if isinstance(error, Left | NoSpace) or not flight.others or (is_wrong and flight.relay is not None):
            return False
        flight.go_on_elsewhere(error, lambda registry, client: self._runways[registry].boarding.seat(client))
        self._resuming, self._spliced = Resuming(refused=is_wrong), False
        self._resumed(0 if is_wrong else self.offset, f"{error}; it goes on from {flight.repository}")
        return True

    def _resumed(self, offset: int, reason: str) -> None:
        self._runway.retries.events.emit(
            events.FlightResumed(digest=self._flight.digest, offset=offset, attempt=1, reason=reason)
        )

    @property
    def _partial(self) -> Partial:
        if self._flight.partial is None:
            raise TypeError(self._flight)
        return self._flight.partial

    @property
    def offset(self) -> int:
        """How many bytes have come."""
        return self._flight.offset

    # --- one try after the other --------------------------------------------------------------------------------

    async def _bring_all(self) -> None:
        flight, attempt, limited_at = self._flight, 0, 0.0
        while not self._has_all():
            before = self.offset
            try:
                async with asyncio.timeout(None) as scope:
                    with _interruptible(flight, scope):
                        await self._board()
                        try:
                            await self._get_from_somewhere()
                        except UpstreamError as error:
                            # Progress earns new tries: only transfers that bring nothing use them up.
                            attempt = 1 if self.offset > before else attempt + 1
                            if attempt == 1 or not isinstance(error, RateLimited):
                                limited_at = time.monotonic()
                            await self._runway.retries.pause(
                                flight.digest,
                                self.offset,
                                attempt,
                                error,
                                begun=flight.started.is_set(),
                                limited_for_seconds=time.monotonic() - limited_at,
                            )
                        else:
                            return
            except TimeoutError:
                if not scope.expired():
                    raise
                if flight.seat is not None:
                    flight.seat.leave()
                if flight.is_diverted:
                    raise Stalled(f"{flight.repository.registry} sends next to nothing") from None
                if not flight.readers:
                    self._leave()

    def _has_all(self) -> bool:
        size = self._flight.size_bytes
        return size is not None and not self._resuming.refused and self.offset >= size

    async def _board(self) -> None:
        """Wait for a slot, as long as somebody reads."""
        flight, seat = self._flight, self._flight.seat
        while seat is not None and not seat.held:
            if not await seat.wait() and not flight.readers:
                self._leave()
        flight.boarded.set()

    def _leave(self) -> None:
        self._flight.leaving = True
        raise Left("nobody reads it any more, and others wait")

    # --- one GET ------------------------------------------------------------------------------------------------

    async def _get_from_somewhere(self) -> None:
        """As :meth:`_get`; when it was another replica that broke, somebody goes on at once, and it costs no try."""
        while True:
            try:
                await self._get()
            except PeerLost as error:
                self._resumed(self.offset, str(error))
            else:
                return

    async def _get(self) -> None:
        """One GET, from where we stand to the end of the blob."""
        flight, start = self._flight, self.offset if self._resuming.possible else 0
        flight.asked_upstream = True
        try:
            async with self._runway.source.blob(flight.repository, flight.digest, start=start) as body:
                await self._begin(body, start)
                if flight.relay is None:
                    await self._store(body)
                else:
                    await self._pass_on(flight.relay, body, body.start)
        except RegistryCacheError as error:
            if not start or not no_to_a_range(error):
                self._resuming.failed(error, asked=bool(start), brought=self.offset > start)
                raise
            self._resuming.refused = True
            await self._get()

    async def _begin(self, body: BlobBody, asked: int) -> None:
        """The headers of a GET are there."""
        flight, total, offset = self._flight, body.total_bytes, self.offset
        if body.start not in (0, offset):
            raise RangeRefused(f"upstream was asked for bytes from {asked}, and sent from {body.start}")
        if flight.size_bytes is not None and total is not None and total != flight.size_bytes:
            wrong = RangeRefused if asked else UpstreamError
            raise wrong(f"upstream announced {flight.size_bytes} bytes before, and {total} now")
        if total is not None:
            flight.size_bytes = total
        self._spliced = body.start > 0 or body.origin != "upstream"
        if flight.relay is None:
            if body.start == offset:
                self._partial.resume()
            else:
                loop = asyncio.get_running_loop()
                self._partial.restart(lambda differs: _in_loop(loop, flight.rewind, differs))
            try:
                await self._partial.expect(flight.size_bytes)
            except NoSpace as error:
                self._go_unstored(error)
        flight.begin(body.origin)

    async def _store(self, body: BlobBody) -> None:
        """From upstream into the store, in one thread; readers follow in the event loop."""
        loop, flight, partial, position = asyncio.get_running_loop(), self._flight, self._partial, body.start

        def take(piece: Piece) -> None:
            nonlocal position
            start, position = position, position + len(piece)
            _check_length(flight, position)
            try:
                partial.write(piece)
            except NoSpace as error:
                raise _Refused(error, bytes(piece[max(0, partial.offset - start) :])) from error
            loop.call_soon_threadsafe(_release, flight, partial)
            if partial.offset == len(piece):
                # The client's first byte: the event loop is awake now, and the scheduler would leave it waiting for a
                # core while this thread goes on. The first byte of an 8 MB blob came 3.8 ms after upstream's, and 3.1
                # so (p90 8.6 and 4.8). Not after every piece: on a busy host that gives time to everybody.
                os.sched_yield()

        try:
            await body.drain(take)
        except _Refused as refused:
            relay = self._go_unstored(refused.error)
            await self._hand_over(relay, refused.rest)
            await self._pass_on(relay, body, position)
        else:
            _check_end(flight, position)

    # --- what cannot be stored ----------------------------------------------------------------------------------

    def _go_unstored(self, error: NoSpace) -> Relay:
        self._relays = self._pass_by(self._flight, error)
        if self._flight.relay is None:
            raise TypeError(self._flight)
        return self._flight.relay

    async def _pass_on(self, relay: Relay, body: BlobBody, position: int) -> None:
        """Hand the rest of *body*, from *position* on, to the readers; nothing is stored."""
        again: Hash | None = hashlib.new(self._flight.digest.algorithm) if position < relay.stop else None
        while True:
            if again is None:
                await self._until_wanted(relay)
            piece = bytes(await body.read())
            if not piece:
                break
            position += len(piece)
            _check_length(self._flight, position)
            if again is not None:  # upstream began at the beginning: its readers have that already
                left = relay.stop - (position - len(piece))
                again.update(piece[:left])
                piece = piece[left:]
                if position >= relay.stop:
                    if again.hexdigest() != relay.known.hexdigest():
                        raise DigestMismatch(f"{self._flight.digest}: upstream sent two different beginnings")
                    again = None
            if piece:
                await self._hand_over(relay, piece)
        _check_end(self._flight, position)

    async def _hand_over(self, relay: Relay, piece: bytes) -> None:
        await relay.put(piece, self._relays)
        self._flight.release(relay.stop)

    async def _until_wanted(self, relay: Relay) -> None:
        """Wait for the readers. A slot is held while upstream works, not while clients dawdle."""
        flight = self._flight
        if relay.wanted and flight.readers:
            return
        if flight.seat is not None:
            flight.seat.leave()
        while not relay.wanted or not flight.readers:
            try:
                async with asyncio.timeout(None if flight.readers else _UNREAD_SECONDS):
                    await relay.stirred()
            except TimeoutError:
                if not flight.readers:
                    self._leave()
        await self._board()


class _interruptible:  # noqa: N801 -- used like a function
    """While it is entered, who wants the slot of *flight* back, or the flight elsewhere, ends *scope*."""

    def __init__(self, flight: Flight, scope: asyncio.Timeout) -> None:
        self._flight = flight
        self._seat = flight.seat
        self._scope = scope

    def __enter__(self) -> None:
        self._flight.interrupt = self._end
        if self._seat is not None:
            self._seat.interrupt = self._end
        if self._flight.is_diverted or (self._seat is not None and self._seat.claim.asked_back):  # before we were here
            self._end()

    def __exit__(self, *_: object) -> None:
        self._flight.interrupt = None
        if self._seat is not None:
            self._seat.interrupt = None

    def _end(self) -> None:
        if self._scope.expired():  # the slot is asked back, and the flight sent elsewhere, in one turn of the loop
            return
        self._scope.reschedule(asyncio.get_running_loop().time())


def _in_loop(loop: asyncio.AbstractEventLoop, change: Callable[[int], None], value: int) -> None:
    """Do *change* in the event loop, and wait until it is done. In a thread."""

    async def do() -> None:
        change(value)

    asyncio.run_coroutine_threadsafe(do(), loop).result()


def _release(flight: Flight, partial: Partial) -> None:
    flight.release(partial.offset)


def _check_length(flight: Flight, position: int) -> None:
    if flight.size_bytes is not None and position > flight.size_bytes:
        raise SizeMismatch(f"{flight.digest}: upstream sends more than the {flight.size_bytes} bytes it announced")


def _check_end(flight: Flight, position: int) -> None:
    if flight.size_bytes is not None and position < flight.size_bytes:
        raise UpstreamError(f"upstream ended the transfer at {position} of {flight.size_bytes} bytes")
