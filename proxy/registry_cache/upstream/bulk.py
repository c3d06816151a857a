"""Blob bodies, read by threads: the bulk of all bytes, and the path that measured best.

A 256 MB body over TLS into a hash and a file took 0.7 s this way, 1.0 s with aiohttp's client under uvloop and
1.4-2.0 s with httpx, each in one process on two cores: TLS, hash and write release the GIL. urllib3 brings connection
pools, proxies and TLS.
"""

import asyncio
import contextlib
import functools
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from registry_cache.model.errors import TransferStalled, UpstreamError
from registry_cache.ports.blobs import Piece
from registry_cache.runtime.threads import Threads
from registry_cache.upstream.addresses import AddressRefused
from registry_cache.upstream.ask import Ask, NotConnected
from registry_cache.upstream.dialling import HEADERS, Dialling
from registry_cache.upstream.forward import ForwardProxy
from registry_cache.upstream.headers import Headers, content_length
from registry_cache.upstream.judged import WHOLE
from registry_cache.upstream.reply import SHORT_MAX_BYTES, SHORT_MAX_SECONDS, drained
from registry_cache.upstream.urls import path_and_query
from registry_cache.upstream.wire import CALL, Call, OpenSockets, drop_idle, narrow, pools, window

READ_MAX_BYTES = 1024 * 1024
# A body of up to this size comes with the head, in one hop to a thread: challenges, redirects, configs.
_WITH_HEAD_BYTES = 64 * 1024
# Pieces begin small and double while they come full. The client waits for its first byte until the first piece is
# hashed and written, and an allocation keeps the event loop waiting: the first byte of an 8 MB blob came 5.6 ms later
# than from upstream itself with a first piece of 1 MiB, and 3.7 ms so.
_FIRST_MAX_BYTES = 64 * 1024
# How long a read gathers bytes behind its first ones: fewer hops between threads, and readers still see them in time.
_GATHER_SECONDS = 0.02
_STALLED = "the transfer stalled for longer than the read timeout"
_UNCONNECTED = (
    AddressRefused,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
    urllib3.exceptions.SSLError,
)
_FAILURES = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)


class BulkReply:
    """The answer to one GET, whose body is read piece by piece. Whoever opened it closes it.

    Blocks when it is made: in a thread.
    """

    def __init__(
        self,
        response: urllib3.BaseHTTPResponse,
        threads: Threads,
        *,
        url: str,
        call: Call,
        read_timeout_seconds: float,
        explain: Callable[[Exception], str],
    ) -> None:
        self.url = url
        self.status = response.status
        self.headers = Headers(response.headers.items())
        self._explain = explain
        self._connection = getattr(response, "connection", None)
        self._response = response
        self._call = call
        self._threads = threads
        self._read_timeout_seconds = read_timeout_seconds
        self._socket: socket.socket | None = None  # once what came with the head has been read, the rest is here
        self._left = 0  # of the body, in the socket
        self._ends_soon = False  # upstream is not let send behind what is left
        self._piece_bytes = _FIRST_MAX_BYTES
        # One for all pieces: with a new one for each, 256 MB over TLS took 0.34 s of CPU to receive in place of 0.28.
        self._buffer = memoryview(b"")
        self._ahead: list[Piece] = []  # what comes next, with b"" for the end
        self._interrupted = False
        length = content_length(self.headers)
        if length is not None and length <= _WITH_HEAD_BYTES:
            self._read_ahead()

    def _read_ahead(self) -> None:
        """What comes of a short body with the head."""
        is_content = self.status in WHOLE or self.status == 206  # noqa: PLR2004 -- HTTP
        if not is_content:
            # A challenge or redirect counts without its body, which matters to the connection only; another error too.
            is_due = self.status < 400 or self.status == 401  # noqa: PLR2004 -- HTTP
            sock = getattr(self._connection, "sock", None)
            if not is_due or sock is None:
                return
            sock.settimeout(min(SHORT_MAX_SECONDS, self._read_timeout_seconds))
        with contextlib.suppress(UpstreamError):  # the first read() meets it again
            self._ahead.append(self._next())
            if getattr(self._response, "length_remaining", None) == 0:
                self._ahead.append(b"")

    async def read(self) -> Piece:
        """The next piece of the body, empty at its end: what is there, up to 1 MiB. The one before it is overwritten.

        Raises:
            UpstreamError: the transfer broke, stalled for longer than the read timeout, or ended early.
        """
        if self._ahead:
            return self._ahead.pop(0)
        return await self._threads.run_interruptible(self._next, interrupt=self.interrupt)

    async def drain(self, take: Callable[[Piece], None]) -> None:
        """Hand the rest of the body to *take*, piece by piece, in the thread that receives it.

        256 MB over TLS into a hash and a file took 0.68 s so, and 0.84 s with pieces that went by the event loop to
        another thread (CPU 0.73 and 0.93 s).

        Raises:
            UpstreamError: as :meth:`read`; and whatever *take* raises.
        """

        def receive_all() -> None:
            while not self._interrupted and (piece := self._ahead.pop(0) if self._ahead else self._next()):
                take(piece)

        await self._threads.run_interruptible(receive_all, interrupt=self.interrupt)

    def _next(self) -> Piece:
        try:
            if self._socket is not None:
                return self._receive(self._socket)
            # The first piece goes out alone: on a slow upstream the client would wait for its first byte by the
            # gathering. A body whose length is not known is read like this to its end.
            piece = self._response.read1(self._piece_bytes, decode_content=False)
            left = getattr(self._response, "length_remaining", None)
            if piece and left and not getattr(self._response, "chunked", True):
                self._socket, self._left = getattr(self._response.connection, "sock", None), left
        except _FAILURES as error:
            kind = TransferStalled if _is_stall(error) else UpstreamError
            raise kind(self._explain(error)) from error
        return piece

    def _receive(self, sock: socket.socket) -> Piece:
        """What has arrived, from the socket into the buffer.

        256 MB over TLS cost the thread 0.33 s of CPU by urllib3's way and 0.2 s by this one. No more than
        what arrives soon: a read that waited for a full buffer would hold bytes back from clients.
        """
        size = min(self._piece_bytes, self._left)
        if not size:
            return b""
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        piece = self._buffer[:size]
        receive: Callable[[memoryview], int] = sock.recv_into
        if isinstance(sock, ssl.SSLSocket):  # whose recv_into() is two more calls for each record of 16 KB
            receive = functools.partial(sock.read, size)  # type: ignore[assignment]
        sock.settimeout(self._read_timeout_seconds)
        if self._ends_soon and self._left <= window(sock):
            narrow(sock)
        count = receive(piece)
        if not count:
            raise UpstreamError(f"upstream ended the transfer {self._left} bytes early")
        if count < size:
            until = time.monotonic() + _GATHER_SECONDS
            sock.settimeout(_GATHER_SECONDS)
            # What goes wrong meanwhile goes wrong again in the next read, and this piece is kept.
            with contextlib.suppress(OSError):
                while count < size and time.monotonic() < until and (more := receive(piece[count:])):
                    count += more
        self._left -= count
        if count == self._piece_bytes:
            self._piece_bytes = min(2 * count, READ_MAX_BYTES)
        return piece[:count]

    def end_soon(self, least: int) -> int:
        """The connection will be closed before the end of the body, with little of it under way. Not while it is read.

        Returns:
            After how many further bytes: *least*, or more where they are under way already.
        """
        if isinstance(self._socket, socket.socket):
            self._ends_soon = True
            self._left = min(self._left, max(least, window(self._socket)))
            return self._left
        return least

    def interrupt(self) -> None:
        """End the waiting of whichever thread reads the body, at once and from any thread."""
        self._interrupted = True  # after a shutdown there may still be megabytes to receive
        if self._response.connection is not None:  # else it is others' already
            self._call.interrupt()

    async def read_small(self, limit: int) -> bytes:
        """See :class:`registry_cache.upstream.reply.Reply`: the body is small when it is an error."""
        body = bytearray()
        while len(body) < limit and (piece := await self.read()):
            body += piece
        return bytes(body[:limit])

    async def aclose(self) -> None:
        """See :class:`registry_cache.upstream.reply.Reply`."""
        length = content_length(self.headers)
        is_kept = getattr(self._connection, "sock", None) is not None  # else it ends with this answer
        is_short = length is not None and length <= SHORT_MAX_BYTES
        self.close(reuse=is_kept and is_short and await drained(self))

    def close(self, *, reuse: bool = False) -> None:
        """Give the connection back if its body was read to the end (*reuse*), else close it.

        Where no length was announced, the last byte is not the end.
        """
        if reuse and not self._interrupted and content_length(self.headers) is not None:
            if self._socket is not None:  # http.client has not seen the end of the body
                self._socket.settimeout(self._read_timeout_seconds)
                self._response._fp.close()  # type: ignore[attr-defined]  # noqa: SLF001
            if self._connection is not None:
                self._connection.idle_since = time.monotonic()
            self._response.release_conn()
        else:
            self._response.close()


class BulkClient:
    """GETs whose bodies are read by threads.

    Args:
        connections: how many at a time; each takes a thread while it waits for bytes.
    """

    def __init__(self, dialling: Dialling, *, connections: int) -> None:
        self._dialling = dialling
        self._timeout = urllib3.Timeout(connect=dialling.connect_timeout_seconds, read=dialling.read_timeout_seconds)
        self._threads = Threads("upstream", connections)
        self._connections = connections
        self._sockets = OpenSockets()
        self._pools: dict[tuple[ForwardProxy | None, ssl.SSLContext], urllib3.PoolManager] = {}

    async def send(self, ask: Ask) -> BulkReply:
        """Send a GET; the reply comes back with its headers, and a short body. Follows nothing.

        A connection that was kept and has died meanwhile is not held against upstream: a fresh one is tried at once.

        Raises:
            UpstreamError: no answer.
        """
        try:
            self._dialling.addresses.check_url(ask.url)
            proxy = self._dialling.proxy(ask.url)
            if proxy is not None and proxy.username is not None:
                self._dialling.redactor.learn_login(proxy.username, proxy.password)
            forwards = proxy is not None and ask.url.startswith("http:")
            target = ask.url if forwards else path_and_query(ask.url)
            call = Call(target, self._dialling.addresses, self._sockets)
            headers = {**HEADERS, **ask.headers, **(proxy.headers if proxy and forwards else {})}
            # The sockets' own timeout is of each read: a head that trickles in would never end.
            async with asyncio.timeout(self._dialling.answer_timeout_seconds):
                return await self._threads.run_or_abandon(
                    functools.partial(self._get, call, ask.url, headers, proxy),
                    interrupt=call.interrupt,
                    dispose=lambda late: late.close(),
                )
        except TimeoutError as error:
            raise UpstreamError("upstream took too long to answer") from error
        except _FAILURES as error:
            kind = NotConnected if isinstance(error, _UNCONNECTED) else UpstreamError
            raise kind(self._explain(error)) from error

    def _get(self, call: Call, url: str, headers: Mapping[str, str], proxy: ForwardProxy | None) -> BulkReply:
        """In a thread."""
        CALL.set(call)
        if call.interrupted:  # while it was in the queue
            raise UpstreamError("nobody waits for the answer")
        try:
            return self._once(call, url, headers, proxy)
        except (urllib3.exceptions.ProtocolError, OSError):
            if call.connected or call.interrupted:
                raise
            drop_idle(self._pool(url, proxy))  # what else was kept for this origin is as old
            return self._once(call, url, headers, proxy)

    def _once(self, call: Call, url: str, headers: Mapping[str, str], proxy: ForwardProxy | None) -> BulkReply:
        response = self._pool(url, proxy).urlopen(
            "GET",
            url if call.target == url else "/",  # the line is written by the connection, exactly
            headers=headers,
            timeout=self._timeout,
            redirect=False,
            assert_same_host=False,  # a proxy's pool is for any host
            retries=False,
            preload_content=False,
            decode_content=False,
        )
        return BulkReply(
            response,
            self._threads,
            url=url,
            call=call,
            read_timeout_seconds=self._dialling.read_timeout_seconds,
            explain=self._explain,
        )

    def _pool(self, url: str, proxy: ForwardProxy | None) -> urllib3.HTTPConnectionPool:
        tls = self._dialling.tls_for(url)
        manager = self._pools.get((proxy, tls))
        if manager is None:
            options: dict[str, Any] = {"num_pools": 16, "maxsize": self._connections, "ssl_context": tls}
            if proxy is not None:
                options |= {"proxy_ssl_context": self._dialling.tls, "proxy_headers": proxy.headers}
            manager = self._pools[proxy, tls] = pools(proxy.url if proxy else None, **options)
        parts = urlsplit(url)
        return manager.connection_from_host(parts.hostname, parts.port, parts.scheme)

    def _explain(self, error: Exception) -> str:
        return self._dialling.redactor.clean(_reason(error))[:300]

    def interrupt(self) -> None:
        """End the waiting of every thread: what is under way fails at once."""
        self._sockets.shut()

    def close(self) -> None:
        """Close the idle connections."""
        for manager in self._pools.values():
            manager.clear()
        self._threads.close()


def _is_stall(error: Exception) -> bool:
    return isinstance(error, TimeoutError | urllib3.exceptions.ReadTimeoutError)


def _reason(error: Exception) -> str:
    """One line that an operator can use, without the library's object addresses."""
    if isinstance(error, AddressRefused) or isinstance(error.__cause__, AddressRefused):
        return str(error if isinstance(error, AddressRefused) else error.__cause__)
    while isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    if _is_stall(error):
        return _STALLED
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "the connection took longer than the connect timeout"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return str(error).rpartition(": ")[2]
    return f"{type(error).__name__}: {error}"
