"""Bodies for clients that speak TLS: through the transport, which encrypts them, and never past it to the socket."""

import asyncio
import contextlib
import os
import select

from registry_cache.model.errors import ReadFailed
from registry_cache.ports.blobs import Piece
from registry_cache.web.sending import ClientGone, SocketSink, is_resident

# Encrypted at a time. Above what uvloop keeps before it writes (64 KiB), so that each goes out at once; it bounds
# what a client that takes nothing can hold here.
_PIECE_BYTES = 128 * 1024
# Looked for in the page cache at a time: a blob comes and goes in long runs.
_LOOK_BYTES = 2 * 1024 * 1024
# Per turn of the event loop: about what 2 MB cost without encryption.
_TURN_BYTES = 512 * 1024


class TlsSink(SocketSink):
    """See the module; :class:`SocketSink` for the rest. The socket is only asked whether it would take something."""

    async def write(self, data: Piece) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        left = memoryview(data)
        while left:
            await self._ready()
            self._encrypt(bytes(left[:_PIECE_BYTES]))
            left = left[_PIECE_BYTES:]

    def send_file_now(self, fd: int, start: int, stop: int) -> int:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        transport, count = self._protocol.transport, min(stop - start, _PIECE_BYTES)
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return start
        if not is_resident(fd, start, count):
            return start
        try:
            data = os.pread(fd, count, start)
        except OSError:
            return start  # met again by send_file()
        self._encrypt(data)
        return start + len(data)

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        turn, looked_to, late = 0, start, False
        while start < stop:
            await self._ready()
            if start >= looked_to:
                looked_to = min(stop, start + _LOOK_BYTES)
                late = not is_resident(fd, start, looked_to - start)
            data = await self._read(fd, start, min(stop - start, _PIECE_BYTES), late=late)
            if not data:
                raise ReadFailed(f"the file ends at {start}", offset=start)
            self._encrypt(data)
            start += len(data)
            turn += len(data)
            if turn >= _TURN_BYTES:
                turn = 0
                await asyncio.sleep(0)

    async def _read(self, fd: int, start: int, count: int, *, late: bool) -> bytes:
        try:
            return await self._threads.run(_read_cold, fd, start, count) if late else os.pread(fd, count, start)
        except OSError as error:
            raise ReadFailed(f"reading failed at {start}: {error.strerror}", offset=start) from error

    def _encrypt(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client is gone")
        head, self._head = self._head, b""
        transport.write(bytes(head) + data if head else data)
        self.sent_bytes += len(data)

    async def _ready(self) -> None:
        """Return once the kernel would take more, and nothing encrypted waits in front of it.

        Raises:
            ClientGone: it has taken nothing for too long, or has left.
        """
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client is gone")
        if self._socket < 0:
            self._socket = os.dup(transport.get_extra_info("socket").fileno())
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLOUT)
        while transport.get_write_buffer_size() or not self._poll.poll(0):
            await self._writable()  # for the transport, which is told so before us
            await asyncio.sleep(0)
            if transport.is_closing():
                raise ClientGone("the client is gone")


def _read_cold(fd: int, start: int, count: int) -> bytes:
    """A read that may wait for the disk, after the kernel has been told to read on behind it."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, start, count * 16, os.POSIX_FADV_WILLNEED)
    return os.pread(fd, count, start)
