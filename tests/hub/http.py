"""A small HTTP/1.1 server that can break the protocol on purpose.

aiohttp's server keeps every response well formed. Faults such as a body that is longer than its Content-Length
need the bytes of the connection itself, so the look-alike writes them itself.
"""

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

MAX_REQUEST_BODY_BYTES = 1 << 20
CATCH_UP_SECONDS = 0.1
UNSENT_MAX_BYTES = 64 * 1024


@dataclass
class Request:
    """What a client asked, with lower-case header names; repeated headers are joined with commas."""

    method: str
    target: str
    headers: dict[str, str]
    peer: str
    body: bytes = b""

    @cached_property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def authorization(self) -> tuple[str, str]:
        """Scheme in lower case and the rest, both empty without the header."""
        scheme, _, rest = self.headers.get("authorization", "").partition(" ")
        return scheme.lower(), rest.strip()


@dataclass(frozen=True)
class FileBody:
    """A part of a file, read while it is sent: no blob is ever held in memory."""

    path: Path
    start: int
    size_bytes: int


@dataclass
class Answer:
    """What a service wants to say; faults change it on its way out."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileBody = b""

    @property
    def size_bytes(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.size_bytes


class Connection:
    """One client connection: paced sending, waiting, and rude ways to end it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._socket = writer.get_extra_info("socket")
        self._send_at = 0.0

    async def send(self, data: bytes, *, bytes_per_second: float = 0) -> None:
        """Write *data*; with a rate, wait until the bytes sent so far have earned their time.

        With a rate, what is counted as sent is on its way, but for this much: the kernel would take megabytes more.
        """
        if bytes_per_second:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_MAX_BYTES)
        self.writer.write(data)
        await self.writer.drain()
        if bytes_per_second:
            now = asyncio.get_running_loop().time()
            # Late wake-ups are caught up with, idle time is not saved up.
            self._send_at = (self._send_at if now - self._send_at < CATCH_UP_SECONDS else now) + len(
                data
            ) / bytes_per_second
            await asyncio.sleep(max(0.0, self._send_at - now))

    async def pause(self, seconds: float | None, released: asyncio.Event) -> None:
        """Wait for *seconds* (None: for ever) or until *released*.

        Raises:
            ConnectionResetError: the client left meanwhile.
        """
        gone = asyncio.ensure_future(self.reader.read(1))
        release = asyncio.ensure_future(released.wait())
        try:
            await asyncio.wait({gone, release}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ConnectionResetError("the client left while the look-alike kept it waiting")
        finally:
            for waiter in (gone, release):
                waiter.cancel()
            await asyncio.gather(gone, release, return_exceptions=True)

    async def flush(self) -> None:
        """Wait until the client's kernel has every byte, so that a reset takes away nothing that was sent."""
        with contextlib.suppress(TimeoutError, OSError):
            # A client that does not read would keep us here for ever.
            async with asyncio.timeout(2):
                while self.writer.transport.get_write_buffer_size() or self._unacknowledged_bytes():
                    await asyncio.sleep(0.001)

    def _unacknowledged_bytes(self) -> int:
        fd = self._socket.fileno()
        if fd < 0:
            return 0  # the client has left, and the socket is closed
        size: int = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0]
        return size

    async def finish(self) -> None:
        """Close in good order: what was sent arrives, then TLS's goodbye."""
        self.writer.close()
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(10):
                await self.writer.wait_closed()

    def abort(self, *, reset: bool = False) -> None:
        """Close without a TLS goodbye: the client sees FIN, or RST with *reset*."""
        with contextlib.suppress(OSError):  # closed already
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                self.writer.transport.abort()
            except AttributeError:
                # CPython 3.11.2: a TLS transport that waits for the client's goodbye cannot be aborted.
                self._socket.shutdown(socket.SHUT_RDWR)


async def read_request(reader: asyncio.StreamReader, peer: str) -> Request | None:
    """Return the next request of a connection, or None when the client is done."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, _, target = first.rpartition(" ")[0].partition(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    length = int(headers.get("content-length", 0))
    if length > MAX_REQUEST_BODY_BYTES:
        return None
    body = await reader.readexactly(length)
    return Request(method, target, headers, peer, body)


def render_head(status: int, headers: dict[str, str]) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


Exchange = Callable[[Request, Connection], Awaitable[bool]]


class Listener:
    """One socket of the look-alike. It can be stopped and started again on the same port.

    Args:
        exchange: answers one request; returns whether the connection lives on.
        contexts: server-side TLS by certificate ("trusted", "unknown_ca"); None means plain http.
    """

    def __init__(
        self, host: str, port: int, exchange: Exchange, contexts: Callable[[str], ssl.SSLContext] | None
    ) -> None:
        self.host = host
        self._exchange = exchange
        self._contexts = contexts
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved = self._reserve(port)
        self.port: int = self._reserved.getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self._contexts else 'http'}://{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        return self._server is not None

    @property
    def connections(self) -> int:
        return len(self._tasks)

    async def start(self, *, unknown_ca: bool = False) -> None:
        """Listen; with *unknown_ca* the certificate comes from a CA that nobody trusts."""
        if self._server is not None:
            return
        context = self._contexts("unknown_ca" if unknown_ca else "trusted") if self._contexts else None
        self._server = await asyncio.start_server(self._accept, sock=self._reserved, ssl=context, backlog=512)

    async def stop(self) -> None:
        """Refuse connections and cut those that are open; the port stays ours."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        await self.disconnect()
        self._reserved = self._reserve(self.port)

    async def close(self) -> None:
        await self.stop()
        self._reserved.close()

    async def disconnect(self) -> None:
        """Cut every open connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reserve(self, port: int) -> socket.socket:
        # Bound but not listening: connections are refused and nobody else can take the port meanwhile.
        # The protocol is named because asyncio turns off Nagle's delays only for sockets that say they are TCP.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, port))
        return sock

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        peer = writer.get_extra_info("peername")[0]
        try:
            while request := await read_request(reader, peer):
                if not await self._exchange(request, connection):
                    await connection.finish()
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left, or a fault cut the connection
        finally:
            connection.abort()
