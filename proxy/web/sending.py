"""The one place that sends bodies, files by sendfile, with bounded patience.

uvloop has no ``loop.sendfile``, and aiohttp then copies. ``os.sendfile`` on a dup of the transport's socket, once the
transport's own buffer is empty, costs as little as nginx does; it was measured at a quarter of the CPU of the copy.
"""

import asyncio
import contextlib
import errno
import os
import socket

from aiohttp.base_protocol import BaseProtocol

from proxy.errors import ReadFailed
from proxy.storage import Piece
from proxy.threads import Threads

# Sent per turn of the event loop: more lets one fast client starve the others, less costs more calls a byte.
_TURN_BYTES = 2 * 1024 * 1024
_PROBE_BYTES = 512 * 1024
_TOOK_NOTHING = "the client took nothing for {:g} s"


class ClientGone(ConnectionError):
    """The client has closed the connection, or takes nothing any more."""


class SocketSink:
    """See :class:`proxy.storage.Sink`: the connection of one client, for the body of one response.

    Args:
        timeout_seconds: how long the client may go without taking a byte.
    """

    def __init__(self, protocol: BaseProtocol, *, timeout_seconds: float, threads: Threads) -> None:
        self.sent_bytes = 0
        self._protocol = protocol
        self._timeout_seconds = timeout_seconds
        self._threads = threads
        self._socket: socket.socket | None = None

    async def write_head(self, head: bytes) -> None:
        """Send the head of the response, if nobody else has; the body follows at once. It does not count as sent."""
        await self._send(head, socket.MSG_MORE)

    async def write(self, data: Piece) -> None:
        """See :class:`proxy.storage.Sink`."""
        self.sent_bytes += await self._send(data, 0)

    async def _send(self, data: Piece, flags: int) -> int:
        sock = self._socket or await self._take_socket()
        left = memoryview(data)
        while left:
            try:
                left = left[sock.send(left, flags) :]
            except BlockingIOError:
                await self._writable(sock)
            except OSError as error:
                raise ClientGone(f"the client is gone: {error.strerror}") from error
        return len(data)

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """See :class:`proxy.storage.Sink`."""
        sock = self._socket or await self._take_socket()
        while start < stop:
            count = min(stop - start, _TURN_BYTES)
            try:
                if _is_resident(fd, start, count):
                    sent = os.sendfile(sock.fileno(), fd, start, count)
                else:
                    # It will block on the disk: in the event loop that would be every client's disk.
                    sent = await self._threads.run(_sendfile_cold, sock.fileno(), fd, start, count)
            except BlockingIOError:
                await self._writable(sock)
                continue
            except OSError as error:
                raise _meaning(error, start) from error
            if sent == 0:
                raise ReadFailed(f"the file ends at {start}", offset=start)
            start += sent
            self.sent_bytes += sent
            if sent < count:  # the socket is full: to try again now would only say so
                await self._writable(sock)
            else:
                await asyncio.sleep(0)

    async def _take_socket(self) -> socket.socket:
        """Wait until the transport has sent its headers, then share its socket."""
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client is gone")
        if transport.get_write_buffer_size():
            await self._drained(transport)
        shared = transport.get_extra_info("socket")
        self._socket = socket.socket(shared.family, shared.type, shared.proto, os.dup(shared.fileno()))
        return self._socket

    async def _drained(self, transport: asyncio.WriteTransport) -> None:
        transport.set_write_buffer_limits(0)  # the protocol is then paused until the buffer is empty
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.sleep(0)
                while transport.get_write_buffer_size():
                    await self._protocol._drain_helper()  # noqa: SLF001 -- as aiohttp's own writer does
                    await asyncio.sleep(0)
        except TimeoutError as error:
            raise ClientGone(_TOOK_NOTHING.format(self._timeout_seconds)) from error
        transport.set_write_buffer_limits()
        if transport.is_closing():
            raise ClientGone("the client is gone")

    async def _writable(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(sock.fileno(), _resolve, ready)
        # Not asyncio.timeout(): this runs hundreds of times for each large blob.
        timer = loop.call_later(self._timeout_seconds, _lose_patience, ready, self._timeout_seconds)
        try:
            await ready
        finally:
            timer.cancel()
            loop.remove_writer(sock.fileno())

    def close(self) -> None:
        """Let go of the socket; the transport keeps its own."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _lose_patience(future: "asyncio.Future[None]", seconds: float) -> None:
    if not future.done():
        future.set_exception(ClientGone(_TOOK_NOTHING.format(seconds)))


def _meaning(error: OSError, offset: int) -> Exception:
    """Whether the client or the disk failed."""
    if isinstance(error, ConnectionError) or error.errno in (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return ClientGone(f"the client is gone: {error.strerror}")
    return ReadFailed(f"reading failed at {offset}: {error.strerror}", offset=offset)


def _is_resident(fd: int, start: int, count: int) -> bool:
    """Whether the bytes are in the page cache, by looking at some of the pages: a blob comes and goes in long runs."""
    page = bytearray(1)
    try:
        for offset in range(start, start + count, _PROBE_BYTES):
            os.preadv(fd, [page], offset, os.RWF_NOWAIT)
        os.preadv(fd, [page], start + count - 1, os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it is not; EOPNOTSUPP: nobody knows; EIO: the thread will find out
        return False
    return True


def _sendfile_cold(sock: int, fd: int, start: int, count: int) -> int:
    """sendfile that may wait for the disk, after the kernel has been told to read on behind it."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, start, count * 4, os.POSIX_FADV_WILLNEED)
    return os.sendfile(sock, fd, start, count)
