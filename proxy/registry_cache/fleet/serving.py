"""What others are sent of what this replica is fetching or has, and to whom further ones are sent.

A peer's request starts no flight and asks nothing of upstream.
"""

import contextlib
from collections.abc import Callable, Iterator

from registry_cache.fleet.counts import Counts
from registry_cache.model.errors import UpstreamBusy
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import Hash, OpenBlob, Sink
from registry_cache.pull.flight import Flight, FlightReader
from registry_cache.pull.flights import Flights


class _Tower:
    """See :class:`registry_cache.pull.flight.Tower`: for peers upstream is not asked."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights

    def left(self, flight: Flight) -> None:
        """As for any reader."""
        self._flights.left(flight)

    async def send_direct(
        self, repository: Repository, digest: Digest, sink: Sink, start: int, stop: int, known: Hash | None = None
    ) -> None:
        """Never."""
        del repository, sink, start, stop, known
        raise UpstreamBusy(f"{digest} is not stored here")


class Follower:
    """One that is sent a blob right now, from *start* on.

    Attributes:
        sent: how many bytes have gone to it.
    """

    def __init__(self, address: str, start: int) -> None:
        self.address = address
        self.start = start
        self.sent: Callable[[], int] = lambda: 0

    @property
    def offset(self) -> int:
        """How many bytes it has."""
        return self.start + self.sent()


class Serving:
    """See the module.

    Args:
        followers: sent the same blob at the same time; further ones are sent to those.
        takes_part: whether this replica asks the same upstream as the others; else they get nothing of it.
    """

    def __init__(self, flights: Flights, *, followers: int, counts: Counts, takes_part: Callable[[], bool]) -> None:
        self._flights = flights
        self._followers = followers
        self._counts = counts
        self._takes_part = takes_part
        self._tower = _Tower(flights)
        self._sending: dict[Digest, list[Follower]] = {}

    def __repr__(self) -> str:
        return f"<Serving {sum(map(len, self._sending.values()))} followers of {len(self._sending)} blobs>"

    async def open(self, digest: Digest) -> OpenBlob | FlightReader | None:
        """What is here, or on its way to be; whoever has it closes it."""
        if not self._takes_part():
            return None
        blob = await self._flights.stored(digest)
        flight = self._flights.get(digest)
        if blob is not None or flight is None or flight.unstored or flight.leaving or flight.error is not None:
            return blob
        if flight.seat is not None:
            flight.seat.read(by_anyone=True)
        return FlightReader(self._tower, flight, flight.repository, joined=True, is_proven=True)

    def elsewhere(self, digest: Digest, follower: Follower) -> str | None:
        """The address of one that is ahead of *follower*, if there are as many already as are sent it from here."""
        others = self._sending.get(digest, [])
        if len(others) < self._followers:
            return None
        ahead = [one for one in others if one.offset > follower.start and one.address != follower.address]
        if not ahead:
            return None
        # Spread over those that have been sent nobody yet, as well as chance can.
        self._counts.redirected += 1
        return ahead[self._counts.redirected % len(ahead)].address

    @contextlib.contextmanager
    def sending(self, digest: Digest, follower: Follower) -> Iterator[None]:
        """While it is entered, *follower* is one of those that are sent *digest*."""
        others = self._sending.setdefault(digest, [])
        others.append(follower)
        try:
            yield
        finally:
            others.remove(follower)
            if not others:
                self._sending.pop(digest, None)


async def size_of(content: OpenBlob | FlightReader) -> int | None:
    """In bytes; None if it is not to be had here after all."""
    if not isinstance(content, FlightReader):
        return content.size_bytes
    if await content.size() is None:
        await content.landed()
    return None if content.flight.unstored else content.flight.size_bytes
