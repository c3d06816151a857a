"""The body of one blob GET, wherever it begins."""

import asyncio
from collections.abc import Callable

from registry_cache.model.errors import RangeRefused, UpstreamError
from registry_cache.model.ranges import ContentRange
from registry_cache.ports.blobs import Origin, Piece
from registry_cache.upstream.bulk import BulkReply
from registry_cache.upstream.headers import content_length, is_page
from registry_cache.upstream.judged import WHOLE


class BlobBody:
    """The bytes [start, stop) of *total*, where upstream said so. A label such as ``gzip`` is no matter of ours.

    Only the digest says which bytes are right, whatever ``Content-Encoding`` calls them.
    """

    def __init__(
        self, reply: BulkReply, start: int, stop: int | None, total: int | None, received: Callable[[int], None]
    ) -> None:
        self.start = start
        self.total_bytes = total
        self.origin: Origin = "upstream"
        self._left = None if stop is None else stop - start
        self._reply = reply
        self._received = received

    @classmethod
    def of(cls, reply: BulkReply, received: Callable[[int], None], asked_start: int | None) -> "BlobBody":
        """The body of a success.

        Args:
            asked_start: of the range that was asked for; None when the whole was.

        Raises:
            RangeRefused: it is neither the part that was asked for nor the whole.
            UpstreamError: it is a part that nobody asked for.
        """
        length = content_length(reply.headers)
        if reply.status in WHOLE:
            if asked_start is not None and is_page(reply.headers):
                raise RangeRefused("upstream answered a range with a web page")
            return cls(reply, 0, length, length, received)
        span = ContentRange.parse(reply.headers.only("content-range"))
        if (
            span is None
            or span.total is None
            or span.start != (asked_start or 0)
            or (length is not None and length != span.stop - span.start)
        ):
            error = UpstreamError if asked_start is None else RangeRefused
            raise error("upstream sent a part of the blob without saying which, or another one than was asked for")
        return cls(reply, span.start, span.stop, span.total, received)

    async def read(self) -> Piece:
        """The next piece, empty at the end.

        Raises:
            UpstreamError: the transfer broke or stalled.
        """
        data = await self._reply.read()
        self._count(len(data))
        return data

    async def drain(self, take: Callable[[Piece], None]) -> None:
        """Hand the rest to *take*, piece by piece, in the thread that receives it.

        Raises:
            UpstreamError: the transfer broke or stalled; and whatever *take* raises.
        """
        loop = asyncio.get_running_loop()

        def counted(piece: Piece) -> None:
            loop.call_soon_threadsafe(self._count, len(piece))
            take(piece)

        await self._reply.drain(counted)

    def end_soon(self, least: int) -> int:
        """See :meth:`BulkReply.end_soon`."""
        return self._reply.end_soon(least)

    def _count(self, count: int) -> None:
        self._received(count)
        if self._left is not None:
            self._left -= count

    def interrupt(self) -> None:
        """End the waiting of the thread that reads, at once: :meth:`read` and :meth:`drain` fail."""
        self._reply.interrupt()

    def close(self) -> None:
        """Keep the connection if everything was read."""
        self._reply.close(reuse=self._left == 0)
