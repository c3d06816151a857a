"""The one place that sends bodies: files by sendfile, bytes by the transport, both with bounded patience.

uvloop has no ``loop.sendfile``, and aiohttp then copies. ``os.sendfile`` on a dup of the transport's socket, once the
transport's own buffer is empty, costs as little as nginx does; it was measured at a quarter of the CPU of the copy.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator

from aiohttp import web

from proxy.errors import ReadFailed
from proxy.threads import Threads

# Sent per turn of the event loop: more lets one fast client starve the others.
_TURN_BYTES = 1024 * 1024
# The kernel reads ahead at least this much, so one page of it tells of the rest.
_READAHEAD_BYTES = 128 * 1024


class ClientGone(ConnectionError):
    """The client has closed the connection, or takes nothing any more."""


class SocketSink:
    """See :class:`proxy.storage.Sink`: the connection of one response that has been prepared.

    Args:
        timeout_seconds: how long the client may go without taking a byte.
    """

    def __init__(
        self, request: web.BaseRequest, response: web.StreamResponse, *, timeout_seconds: float, threads: Threads
    ) -> None:
        self.sent_bytes = 0
        self._request = request
        self._response = response
        self._timeout_seconds = timeout_seconds
        self._threads = threads
        self._socket = -1

    async def write(self, data: bytes) -> None:
        """See :class:`proxy.storage.Sink`."""
        async with self._patience():
            await self._response.write(data)
        self.sent_bytes += len(data)

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """See :class:`proxy.storage.Sink`."""
        if self._socket < 0:
            await self._take_socket()
        while start < stop:
            count = min(stop - start, _TURN_BYTES)
            if not _is_resident(fd, start, count):
                # sendfile would block the event loop, and every client, on the disk.
                await self._threads.run(_read_in, fd, start, count)
            try:
                sent = os.sendfile(self._socket, fd, start, count)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                raise _meaning(error, start) from error
            if sent == 0:
                raise ReadFailed(f"the file ends at {start}", offset=start)
            start += sent
            self.sent_bytes += sent
            await asyncio.sleep(0)

    async def _take_socket(self) -> None:
        """Wait until the transport has sent its headers, then share its socket."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client is gone")
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(0)  # drain() waits for an empty buffer
            async with self._patience():
                await asyncio.sleep(0)
                while transport.get_write_buffer_size():
                    await self._response.drain()
                    await asyncio.sleep(0)
            transport.set_write_buffer_limits()
        if transport.is_closing():
            raise ClientGone("the client is gone")
        self._socket = os.dup(transport.get_extra_info("socket").fileno())

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._socket, _resolve, ready)
        try:
            async with self._patience():
                await ready
        finally:
            loop.remove_writer(self._socket)

    @contextlib.asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                yield
        except TimeoutError as error:
            raise ClientGone(f"the client took nothing for {self._timeout_seconds:g} s") from error

    def close(self) -> None:
        """Let go of the socket; the transport keeps its own."""
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _meaning(error: OSError, offset: int) -> Exception:
    """Whether the client or the disk failed."""
    if isinstance(error, ConnectionError) or error.errno in (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return ClientGone(f"the client is gone: {error.strerror}")
    return ReadFailed(f"reading failed at {offset}: {error.strerror}", offset=offset)


def _is_resident(fd: int, start: int, count: int) -> bool:
    """Whether the bytes are in the page cache, by looking at one page in each stretch that is read ahead."""
    page = bytearray(1)
    try:
        for offset in range(start, start + count, _READAHEAD_BYTES):
            os.preadv(fd, [page], offset, os.RWF_NOWAIT)
        os.preadv(fd, [page], start + count - 1, os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it is not; EOPNOTSUPP: nobody knows; EIO: the thread will find out
        return False
    return True


def _read_in(fd: int, start: int, count: int) -> None:
    """Bring the bytes into the page cache, and have the kernel begin with those behind them. Blocks."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, start, count * 4, os.POSIX_FADV_WILLNEED)
        os.preadv(fd, [bytearray(count)], start)
