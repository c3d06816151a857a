"""A large blob over several connections, where upstream gives each less than the link could take.

A flight reads one body from its beginning, as ever. Behind it ranges are fetched ahead and handed on in their order, so
hashing, resuming and readers know nothing of it. A range that fails fails the body where it is reached; the flight then
goes on from there, by a new one.
"""

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from registry_cache.model.errors import RangeRefused, RegistryCacheError, UpstreamError
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import Piece
from registry_cache.pull.flight import BlobBody
from registry_cache.pull.retries import no_to_a_range
from registry_cache.runtime.threads import finish

# Long enough to be worth the round trips of its own GET; it is kept in memory until its turn.
SEGMENT_BYTES = 4 * 1024 * 1024
# Of all blobs of a registry together, beside the first connection of each: 36 MB in memory at most.
EXTRA_CONNECTIONS = 9
# What each further registry adds to the bound of all together: one that is slow leaves another that many.
EXTRA_FOR_ANOTHER = 3
# With less left, a GET more costs upstream more than its client gains.
WORTH_BYTES = 32 * 1024 * 1024
# A connection is watched for so long. A faster one is not what the client waits for.
_WATCHED_SECONDS = 0.25
_SLOW_BYTES_PER_SECOND = 50_000_000
_WORTH_SECONDS = 0.5


class EndableBody(BlobBody, Protocol):
    """The body of a GET that may be closed before its end."""

    def end_soon(self, least: int) -> int:
        """After how many further bytes it can be closed without many coming in vain: *least* or more."""


class EndableSource(Protocol):
    """A :class:`registry_cache.pull.flight.BlobSource` of such bodies: upstream itself."""

    def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> contextlib.AbstractAsyncContextManager[EndableBody]:
        """One GET, one try."""


class _TooSlow(Exception):
    """The first connection is what the client waits for."""


class _Segment:
    """The bytes up to *stop*, from where the segment before it ends."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.pieces: deque[bytes] = deque()
        self.error: Exception | None = None
        self.changed = asyncio.Event()


class ParallelBody:
    """See the module and :class:`registry_cache.pull.flight.BlobBody`."""

    def __init__(
        self,
        source: "ParallelSource",
        repository: Repository,
        digest: Digest,
        first: EndableBody,
        opened: contextlib.AsyncExitStack,
    ) -> None:
        self.start = first.start
        self.total_bytes = first.total_bytes
        self.origin = first.origin
        self._stop = first.total_bytes or 0
        self._source = source
        self._repository = repository
        self._digest = digest
        self._first = first
        self._opened = opened  # closes the first connection
        self._position = first.start
        self._began: float | None = None
        self._first_stop = self._stop  # where the first connection's part ends
        self._assigned = self._stop  # up to here it is somebody's part
        self._segments: deque[_Segment] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._extra = 0  # connections taken from the source

    async def drain(self, take: Callable[[Piece], None]) -> None:
        """See :class:`.flight.BlobBody`. Ranges are asked for once the first connection proves slow."""
        while not self._extra:
            try:
                await self._first.drain(functools.partial(self._watched, take))
            except _TooSlow:
                self._take_more()
            else:
                return
        while piece := await self.read():
            await finish(asyncio.to_thread(take, piece))  # it uses a file, which is closed after us

    def _watched(self, take: Callable[[Piece], None], piece: Piece) -> None:
        """In a thread."""
        self._began = self._began or time.monotonic()
        self._position += len(piece)  # first: what is not taken is not read again
        take(piece)
        if self._is_slow():
            raise _TooSlow

    def _is_slow(self) -> bool:
        seconds = time.monotonic() - (self._began or 0.0)
        if seconds < _WATCHED_SECONDS:
            return False
        rate = (self._position - self.start) / seconds
        left = self._stop - self._position
        return left > WORTH_BYTES and rate < _SLOW_BYTES_PER_SECOND and left > _WORTH_SECONDS * rate

    def _take_more(self) -> None:
        """Further connections, if there are any."""
        self._extra = self._source.take()
        if self._extra:
            further = self._first.end_soon(min(SEGMENT_BYTES, self._stop - self._position))
            self._assigned = self._first_stop = self._position + further
            self._fetch_on()

    async def read(self) -> Piece:
        """See :class:`registry_cache.pull.flight.BlobBody`."""
        if self._position < self._first_stop:
            piece: Piece = await self._read_first()
        elif self._position < self._stop:
            piece = await self._read_segment()
        else:
            return b""
        self._position += len(piece)
        if self._extra:
            self._fetch_on()
        return piece

    async def _read_first(self) -> Piece:
        piece = (await self._first.read())[: self._first_stop - self._position]
        if self._position + len(piece) == self._first_stop < self._stop:
            await self._opened.aclose()
        return piece

    async def _read_segment(self) -> Piece:
        segment = self._segments[0]
        while not segment.pieces:
            if segment.error is not None:
                raise segment.error
            segment.changed.clear()
            await segment.changed.wait()
        piece = segment.pieces.popleft()
        if self._position + len(piece) == segment.stop:
            self._segments.popleft()
        return piece

    def _fetch_on(self) -> None:
        """Keep as many segments on their way, or waiting for their turn, as there are connections."""
        count = self._extra + (self._position >= self._first_stop)  # the first connection's place is free again
        while self._assigned < self._stop and len(self._segments) < count:
            start, self._assigned = self._assigned, min(self._assigned + SEGMENT_BYTES, self._stop)
            segment = _Segment(self._assigned)
            self._segments.append(segment)
            task = asyncio.create_task(self._fetch(segment, start), name=f"range {start} of {self._digest}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fetch(self, segment: _Segment, start: int) -> None:
        try:
            await self._receive(segment, start)
        except RegistryCacheError as error:
            if no_to_a_range(error):
                # Be it of the range or of the blob: the flight asks for the rest in one piece, and hears.
                self._source.ranges_work = self._source.ranges_work and not isinstance(error, RangeRefused)
                error = UpstreamError(f"upstream refused a range: {error}")
            segment.error = error
        except Exception as error:  # noqa: BLE001 -- a bug must not leave the flight waiting
            segment.error = UpstreamError(f"internal error: {error!r}")
        finally:
            segment.changed.set()

    async def _receive(self, segment: _Segment, start: int) -> None:
        position = start
        async with self._source.range(self._repository, self._digest, start, segment.stop) as body:
            if body.start != start or body.total_bytes != self.total_bytes:
                raise RangeRefused("upstream does not answer ranges with ranges: from now on one connection a blob")
            while data := await body.read():
                position += len(data)
                if position > segment.stop:
                    break  # what nobody asked for would fill the memory
                segment.pieces.append(bytes(data))  # a view would keep its whole buffer
                segment.changed.set()
        if position != segment.stop:
            raise UpstreamError(f"upstream's range goes to {position} instead of {segment.stop}")

    async def aclose(self) -> None:
        """Break off what is on its way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._source.give_back(self._extra)


class Spare:
    """Further connections that nobody has taken yet, of all registries together: a bound of the memory."""

    def __init__(self, registries: int) -> None:
        self.count = EXTRA_CONNECTIONS + EXTRA_FOR_ANOTHER * (registries - 1)


class ParallelSource:
    """A :class:`registry_cache.pull.flight.BlobSource` of another one.

    Args:
        connections: for one blob.
        spare: shared with the other registries.
    """

    def __init__(self, source: EndableSource, *, connections: int, spare: Spare) -> None:
        self.ranges_work = True
        self._source = source
        self._connections = connections
        self._shared = spare
        self._spare = EXTRA_CONNECTIONS

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """See :class:`registry_cache.pull.flight.BlobSource`."""
        async with contextlib.AsyncExitStack() as opened:
            first = await opened.enter_async_context(self._source.blob(repository, digest, start=start, stop=stop))
            if stop is not None or first.total_bytes is None:
                yield first
                return
            body = ParallelBody(self, repository, digest, first, opened)
            try:
                yield body
            finally:
                await body.aclose()

    def range(
        self, repository: Repository, digest: Digest, start: int, stop: int
    ) -> contextlib.AbstractAsyncContextManager[BlobBody]:
        """One GET of the bytes [start, stop)."""
        return self._source.blob(repository, digest, start=start, stop=stop)

    def take(self) -> int:
        """As many further connections as one blob may have, or none if they are not to be had."""
        extra = self._connections - 1
        if not self.ranges_work or extra > min(self._spare, self._shared.count):
            return 0
        self._spare -= extra
        self._shared.count -= extra
        return extra

    def give_back(self, extra: int) -> None:
        """They are closed."""
        self._spare += extra
        self._shared.count += extra
