"""Bodies at the pace of whoever gets them: a sink round the connection's own, whichever way that sends."""

from registry_cache.access.pace import Pace
from registry_cache.ports.blobs import Piece
from registry_cache.web.sending import SocketSink


class PacedSink:
    """See :class:`registry_cache.ports.blobs.Sink`."""

    def __init__(self, inner: SocketSink, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    @property
    def sent_bytes(self) -> int:
        """As :class:`SocketSink`."""
        return self._inner.sent_bytes

    async def write(self, data: Piece) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        left = memoryview(data)
        while left:
            piece = left[: self._pace.piece_bytes]
            await self._pace.wait_for(len(piece))
            await self._inner.write(piece)
            left = left[len(piece) :]

    def send_file_now(self, fd: int, start: int, stop: int) -> int:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        stop = min(stop, start + self._pace.room_bytes)
        if stop <= start:
            return start
        reached = self._inner.send_file_now(fd, start, stop)
        self._pace.sent(reached - start)
        return reached

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        while start < stop:
            end = min(stop, start + self._pace.piece_bytes)
            await self._pace.wait_for(end - start)
            await self._inner.send_file(fd, start, end)
            start = end

    def close(self) -> None:
        """As :class:`SocketSink`."""
        self._inner.close()


BodySink = SocketSink | PacedSink
