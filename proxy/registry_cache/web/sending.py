"""The one place that sends bodies, files by sendfile, with bounded patience.

uvloop has no ``loop.sendfile``, and aiohttp then copies. ``os.sendfile`` on a dup of the transport's socket, once the
transport's own buffer is empty, costs as little as nginx does; it was measured at a quarter of the CPU of the copy.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

from aiohttp.base_protocol import BaseProtocol

from registry_cache.model.errors import ReadFailed
from registry_cache.ports.blobs import Piece
from registry_cache.runtime.threads import Threads

# Sent per turn of the event loop: more lets one fast client starve the others, less costs more calls a byte.
_TURN_BYTES = 2 * 1024 * 1024
# Of a file that is just coming from the disk. p99 of hits beside four such readers: 5.8 ms, and 7.3 ms with 2 MB.
_LATE_TURN_BYTES = 256 * 1024
_TOOK_NOTHING = "the client took nothing for {:g} s"


class ClientGone(ConnectionError):
    """The client has closed the connection."""


class ClientStalled(ClientGone):
    """It is still there, but has taken nothing for too long."""


class SocketSink:
    """See :class:`registry_cache.ports.blobs.Sink`: the connection of one client, for the body of one response.

    Args:
        head: of the response, if nobody else sends it; it goes before the first byte, and does not count as sent.
        timeout_seconds: how long the client may go without taking a byte.
    """

    def __init__(self, protocol: BaseProtocol, head: bytes, *, timeout_seconds: float, threads: Threads) -> None:
        self.sent_bytes = 0
        self._protocol = protocol
        self._head: Piece = head
        self._timeout_seconds = timeout_seconds
        self._threads = threads
        self._socket = -1

    async def write(self, data: Piece) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        await self._begin()
        await self._write(data)
        self.sent_bytes += len(data)

    async def _write(self, data: Piece, send: Callable[[int, Piece], int] = os.write) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[send(self._socket, left) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise ClientGone(f"the client is gone: {error.strerror}") from error

    def send_file_now(self, fd: int, start: int, stop: int) -> int:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        transport, count = self._protocol.transport, min(stop - start, _TURN_BYTES)
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return start
        if not is_resident(fd, start, count):
            return start
        sock = transport.get_extra_info("socket").fileno()  # nobody closes it before we return
        try:
            if self._head:
                self._head = self._head[_send_ahead(sock, self._head) :]
            sent = 0 if self._head else os.sendfile(sock, fd, start, count)
        except OSError:
            return start  # it is full; what is worse is met again by send_file()
        self.sent_bytes += sent
        return start + sent

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        await self._begin()
        turn = _TURN_BYTES
        while start < stop:
            count = min(stop - start, turn)
            try:
                if is_resident(fd, start, count):
                    sent = os.sendfile(self._socket, fd, start, count)
                else:
                    # It will block on the disk: in the event loop that would be every client's disk.
                    turn, count = _LATE_TURN_BYTES, min(stop - start, _TURN_BYTES)
                    sent = await self._threads.run(_sendfile_cold, self._socket, fd, start, count)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                raise _meaning(error, start) from error
            if sent == 0:
                raise ReadFailed(f"the file ends at {start}", offset=start)
            start += sent
            self.sent_bytes += sent
            if sent < count:  # the socket is full: to try again now would only say so
                await self._writable()
            elif start < stop:
                await asyncio.sleep(0)

    async def _begin(self) -> None:
        """Share the transport's socket once it has sent what it had, and send what goes before the body."""
        if self._socket < 0:
            transport = self._protocol.transport
            if transport is None or transport.is_closing():
                raise ClientGone("the client is gone")
            self._socket = os.dup(transport.get_extra_info("socket").fileno())
            while transport.get_write_buffer_size():
                await self._writable()  # for the transport, which is told so before us
                await asyncio.sleep(0)
            if transport.is_closing():
                raise ClientGone("the client is gone")
        if self._head:
            head, self._head = self._head, b""
            await self._write(head, _send_ahead)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._socket, _resolve, ready)
        # Not asyncio.timeout(): this runs hundreds of times for each large blob.
        timer = loop.call_later(self._timeout_seconds, _lose_patience, ready, self._timeout_seconds)
        try:
            await ready
        finally:
            timer.cancel()
            loop.remove_writer(self._socket)

    def close(self) -> None:
        """Let go of the socket; the transport keeps its own."""
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1


def _send_ahead(fd: int, head: Piece) -> int:
    """write() of what comes before a body, which then leaves in the same packet.

    A head that went out by itself woke the client twice: 1.8 GB/s of 1 MB hits at eight connections, and 3.9 so.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
    try:
        return sock.send(head, socket.MSG_MORE)
    finally:
        sock.detach()  # whoever opened it closes it


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _lose_patience(future: "asyncio.Future[None]", seconds: float) -> None:
    if not future.done():
        future.set_exception(ClientStalled(_TOOK_NOTHING.format(seconds)))


def _meaning(error: OSError, offset: int) -> Exception:
    """Whether the client or the disk failed."""
    if isinstance(error, ConnectionError) or error.errno in (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return ClientGone(f"the client is gone: {error.strerror}")
    return ReadFailed(f"reading failed at {offset}: {error.strerror}", offset=offset)


def is_resident(fd: int, start: int, count: int) -> bool:
    """Whether the bytes are in the page cache, by the first and the last one: a blob comes and goes in long runs."""
    page = bytearray(1)
    try:
        os.preadv(fd, [page], start, os.RWF_NOWAIT)
        os.preadv(fd, [page], start + count - 1, os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it is not; EOPNOTSUPP: nobody knows; EIO: the thread will find out
        return False
    return True


def _sendfile_cold(sock: int, fd: int, start: int, count: int) -> int:
    """sendfile that may wait for the disk, after the kernel has been told to read on behind it."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, start, count * 4, os.POSIX_FADV_WILLNEED)
    return os.sendfile(sock, fd, start, count)
