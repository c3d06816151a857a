"""Blob bodies, read by threads: the bulk of all bytes, and the path that measured best.

A 256 MB body over TLS into a hash and a file took 0.7 s this way, 1.0 s with aiohttp's client under uvloop and
1.4-2.0 s with httpx, each in one process on two cores: TLS, hash and write release the GIL. urllib3 brings connection
pools, proxies and TLS.
"""

import contextlib
import functools
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from proxy.errors import UpstreamError
from proxy.storage import Piece
from proxy.threads import Threads

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


class BulkReply:
    """The answer to one GET, whose body is read piece by piece. Whoever opened it closes it.

    Blocks when it is made: in a thread.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, threads: Threads, *, read_timeout_seconds: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._threads = threads
        self._read_timeout_seconds = read_timeout_seconds
        self._socket: socket.socket | None = None  # once what came with the head has been read, the rest is here
        self._left = 0  # of the body, in the socket
        self._piece_bytes = _FIRST_MAX_BYTES
        # One for all pieces: with a new one for each, 256 MB over TLS took 0.34 s of CPU to receive in place of 0.28.
        self._buffer = memoryview(b"")
        self._ahead: list[Piece] = []  # what comes next, with b"" for the end
        self._interrupted = False
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length[:9]) <= _WITH_HEAD_BYTES:
            with contextlib.suppress(UpstreamError):  # the first read() meets it again
                self._ahead.append(self._next())
                if getattr(response, "length_remaining", None) == 0:
                    self._ahead.append(b"")

    async def read(self) -> Piece:
        """The next piece of the body, empty at its end: what is there, up to 1 MiB. The one before it is overwritten.

        Raises:
            UpstreamError: the transfer broke, stalled for longer than the read timeout, or ended early.
        """
        if self._ahead:
            return self._ahead.pop(0)
        return await self._threads.run_interruptible(self._next, interrupt=self._interrupt)

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

        await self._threads.run_interruptible(receive_all, interrupt=self._interrupt)

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
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise UpstreamError(_reason(error)) from error
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

    def _interrupt(self) -> None:
        self._interrupted = True  # after a shutdown there may still be megabytes to receive
        try:
            self._response.shutdown()
        except (ValueError, OSError, RuntimeError):
            self._response.close()

    def close(self, *, reuse: bool = False) -> None:
        """Give the connection back if its body was read to the end (*reuse*), else close it."""
        if reuse:
            if self._socket is not None:  # http.client has not seen the end of the body
                self._socket.settimeout(self._read_timeout_seconds)
                self._response._fp.close()  # type: ignore[attr-defined]  # noqa: SLF001
            self._response.release_conn()
        else:
            self._response.close()


class BulkClient:
    """GETs whose bodies are read by threads.

    Args:
        connections: how many at a time; each takes a thread while it waits for bytes.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        connections: int,
        user_agent: str,
    ) -> None:
        self._read_timeout_seconds = read_timeout_seconds
        self._timeout = urllib3.Timeout(connect=connect_timeout_seconds, read=read_timeout_seconds)
        self._threads = Threads("upstream", connections)
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._tls = tls
        self._connections = connections
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    async def get(self, url: str, headers: Mapping[str, str]) -> BulkReply:
        """Send a GET; the reply comes back with its headers, and a short body. Follows nothing, retries nothing.

        Raises:
            UpstreamError: no answer.
        """

        def send() -> BulkReply:
            response = self._pool(url).request(
                "GET",
                url,
                headers={**self._headers, **headers},
                timeout=self._timeout,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            return BulkReply(response, self._threads, read_timeout_seconds=self._read_timeout_seconds)

        try:
            return await self._threads.run_or_abandon(send, dispose=lambda late: late.close())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise UpstreamError(_reason(error)) from error

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = proxy_for(url)
        pool = self._pools.get(proxy)
        if pool is None:
            options: dict[str, Any] = {"num_pools": 16, "maxsize": self._connections, "ssl_context": self._tls}
            if proxy:
                pool = urllib3.ProxyManager(proxy, proxy_ssl_context=self._tls, **options)
            else:
                pool = urllib3.PoolManager(**options)
            self._pools[proxy] = pool
        return pool

    def close(self) -> None:
        """Close the idle connections."""
        for pool in self._pools.values():
            pool.clear()
        self._threads.close()


def proxy_for(url: str) -> str | None:
    """The forward proxy for *url*, by the standard variables; None to go there directly.

    Raises:
        UpstreamError: they name one that is spoken to in another way than HTTP, or none that can be reached.
    """
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"  # as curl has it
    try:
        named = urlsplit(proxy)
        good = named.scheme in ("http", "https") and bool(named.hostname) and named.port != 0
    except ValueError:
        good = False
    if not good:  # it is not shown: it may hold a password
        raise UpstreamError(f"{parts.scheme.upper()}_PROXY is not of the form http://HOST:PORT or https://HOST:PORT")
    return proxy


def _reason(error: Exception) -> str:
    """One line that an operator can use, without the library's object addresses."""
    if isinstance(error, TimeoutError):
        return _STALLED
    while isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return _STALLED
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "the connection took longer than the connect timeout"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return str(error).rpartition(": ")[2][:300]
    return f"{type(error).__name__}: {error}"[:300]
