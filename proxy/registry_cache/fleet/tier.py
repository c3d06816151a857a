"""The shared tier: what replicas have verified lies in a bucket for all of them. No pull needs it.

What comes from it is checked as what comes from upstream. What is in it was signed with its digest when it was put
there, so that the store itself has refused other bytes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.s3 import ObjectMissing, ObjectReply, ObjectShort, StoreTrouble
from registry_cache.fleet.shelf import Shelf
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import PeerLost, TransferStalled, UpstreamError
from registry_cache.model.oci import Digest
from registry_cache.ports.blobs import Origin, Piece
from registry_cache.runtime.background import Background

_ROUND_SECONDS = 5.0
# Used blobs that are told in one round; what is used often is told in the next one.
_TOUCHED_MAX = 100


class TierBody:
    """See :class:`registry_cache.pull.flight.BlobBody`: what the bucket sends.

    Args:
        moved: called with the position that it has reached, and how many bytes that were.
        lost: called when it sends no more before its end, with whether it was silent.
    """

    def __init__(
        self,
        reply: ObjectReply,
        *,
        moved: Callable[[int, int], None],
        lost: Callable[[bool], None],
    ) -> None:
        self.start = reply.start
        self.total_bytes: int | None = reply.total_bytes
        self.origin: Origin = "bucket"
        self._position = reply.start
        self._stop = reply.total_bytes
        self._reply = reply.reply
        self._moved = moved
        self._lost = lost

    async def read(self) -> Piece:
        """See :class:`registry_cache.pull.flight.BlobBody`.

        Raises:
            PeerLost: it sends no more, for whatever reason; somebody else goes on at once.
        """
        if self._position == self._stop:
            return b""
        with self._losing():
            piece = await self._reply.read()
            self._advance(len(piece))
        if not piece:
            self._lost(False)
            raise PeerLost("the bucket ended early")
        self._moved(self._position, len(piece))
        return piece

    async def drain(self, take: Callable[[Piece], None]) -> None:
        """See :class:`registry_cache.pull.flight.BlobBody`."""
        loop = asyncio.get_running_loop()

        def counted(piece: Piece) -> None:
            self._advance(len(piece))
            loop.call_soon_threadsafe(self._moved, self._position, len(piece))
            take(piece)

        with self._losing():
            await self._reply.drain(counted)
        if self._position != self._stop:
            self._lost(False)
            raise PeerLost("the bucket ended early")

    def _advance(self, count: int) -> None:
        if count > self._stop - self._position:
            raise UpstreamError("the bucket sends more than it said")
        self._position += count

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except TransferStalled as error:
            self._lost(True)
            raise PeerLost("the bucket fell silent") from error
        except UpstreamError as error:
            self._lost(False)
            raise PeerLost("the bucket broke") from error

    def close(self) -> None:
        """Keep the connection if all of it has come."""
        self._reply.close(reuse=self._position == self._stop)


class Tier:
    """See the module.

    Args:
        shelf: brings blobs that are here into the bucket.
    """

    def __init__(self, bucket: Bucket, index: TierIndex, shelf: Shelf, *, counts: Counts, bus: Events) -> None:
        self.bucket = bucket
        self.shelf = shelf
        self.index = index
        self._counts = counts
        self._events = bus
        self._used: dict[Digest, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.incomplete: Callable[[], None] = lambda: None  # called when the index is found to miss objects
        self._rounds = Background("shared tier", self._round, interval_seconds=_ROUND_SECONDS, events=bus)

    def __repr__(self) -> str:
        return f"<Tier {self.bucket}>"

    def start(self) -> None:
        """Look after it from now on."""
        self._rounds.start()

    async def aclose(self) -> None:
        """End what is under way."""
        await self._rounds.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_readable(self) -> bool:
        """Whether it is worth asking."""
        return not self.bucket.reading.trouble

    def used(self, digests: Collection[Digest]) -> None:
        """Clients have been answered with them from here: they are kept in the bucket as well."""
        for digest in digests:
            self._used.pop(digest, None)
            self._used[digest] = None
        while len(self._used) > 10 * _TOUCHED_MAX:
            del self._used[next(iter(self._used))]

    async def get(self, digest: Digest, start: int, value: str) -> ObjectReply | None:
        """The blob from *start* on; None if the bucket does not bring it.

        Args:
            value: what the index says of it; empty where nobody knows whether it is there.
        """
        try:
            reply = await self.bucket.get(digest, start)
        except ObjectMissing:
            if value:
                self._later(self._forget(digest, value))
            return None
        except ObjectShort as error:
            self.rotten(digest, value, str(error))
            return None
        except StoreTrouble:
            return None
        size = value.partition(":")[0]
        if reply.start not in (0, start) or (size and size != str(reply.total_bytes)):
            reply.reply.close()
            self.rotten(digest, value, f"{reply.total_bytes} bytes, {size} were shared")
            return None
        if not value:
            self.incomplete()
            self._later(self._adopt(digest, reply.total_bytes))
        return reply

    async def size(self, digest: Digest, value: str) -> int | None:
        """How large the blob is there, in bytes; None if it is not as the index says.

        Args:
            value: what the index says of it.

        Raises:
            StoreTrouble: nobody knows.
        """
        try:
            size = await self.bucket.size(digest)
        except ObjectMissing:
            self._later(self._forget(digest, value))
            return None
        except ObjectShort as error:
            self.rotten(digest, value, str(error))
            return None
        if value.partition(":")[0] != str(size):
            self.rotten(digest, value, f"{size} bytes, {value.partition(':')[0]} were shared")
            return None
        return size

    def rotten(self, digest: Digest, value: str, reason: str) -> None:
        """What is in the bucket is not what it should be: out with it."""
        self._events.emit(events.FleetObjectRotten(digest=digest, reason=reason))
        self._counts.rotten += 1
        self._later(self._remove(digest, value))

    async def _remove(self, digest: Digest, value: str) -> None:
        try:
            await self.bucket.delete(digest)
        except StoreTrouble:
            return
        await self._forget(digest, value)

    async def _forget(self, digest: Digest, value: str) -> None:
        if value:
            await self.index.forget([(digest, value)])

    async def _adopt(self, digest: Digest, size_bytes: int) -> None:
        await self.index.shared([(digest, size_bytes, None)])

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Nobody waits for it, and without Redis it is left."""

        async def do() -> None:
            try:
                await work
            except RedisDown:
                return

        task = asyncio.create_task(do(), name="shared tier")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _round(self) -> None:
        await self.bucket.look()
        used = list(self._used)[:_TOUCHED_MAX]
        try:
            await self.index.touch(used)
        except RedisDown:
            return
        for digest in used:
            self._used.pop(digest, None)
