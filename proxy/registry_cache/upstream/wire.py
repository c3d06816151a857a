"""urllib3's connections, as blobs need them: exact request lines, checked addresses, fresh sockets.

urllib3 rewrites a URL before it sends it, its :mod:`http.client` takes a 103 for the answer and a hundred header lines
for an attack, and neither looks at an address before it connects.
"""

import contextlib
import email.errors
import http.client
import queue
import socket
import threading
import time
from contextvars import ContextVar
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.util.connection import create_connection
from urllib3.util.ssltransport import SSLTransport

from registry_cache.upstream.addresses import AddressRefused, AddressRules
from registry_cache.upstream.transport import HEADER_LINES_MAX

# Bounded by the length of the lines all the same; the default of 100 is no limit that registries know.
http.client._MAXHEADERS = HEADER_LINES_MAX  # type: ignore[attr-defined]  # noqa: SLF001 -- there is no other way

IDLE_MAX_SECONDS = 30.0
_NARROW_BYTES = 512 * 1024
_EARLY_MAX = 20
_HEAD_MAX_BYTES = 1024 * 1024
_KEEPALIVE: list[tuple[int, int, int | bytes]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class Call:
    """One request on its way through urllib3, for the connection that carries it.

    Args:
        target: what stands in the request line.
    """

    def __init__(self, target: str, addresses: AddressRules, open_sockets: "OpenSockets") -> None:
        self.target = target
        self.addresses = addresses
        self.connected = False  # it has a connection of its own, not one that was kept
        self.interrupted = False
        self._open_sockets = open_sockets
        self._socket: socket.socket | None = None

    def opened(self, sock: Any) -> None:
        """It goes by the new *sock*."""
        if (plain := below(sock)) is not None:
            self._open_sockets.add(plain)
        self.goes_by(sock)

    def goes_by(self, sock: Any) -> None:
        """It goes by *sock* from now on."""
        self._socket = below(sock)
        if self.interrupted:  # the other thread has looked too early
            self.interrupt()

    def interrupt(self) -> None:
        """End the waiting of its thread, at once and from any thread: nobody waits for the answer."""
        self.interrupted = True
        if (sock := self._socket) is not None:
            shut(sock)


CALL: ContextVar[Call] = ContextVar("CALL")


class OpenSockets:
    """Every socket that a thread may be waiting for; :meth:`shut` ends their waiting from any thread."""

    def __init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def add(self, sock: socket.socket) -> None:
        """It has been opened."""
        with self._lock:
            self._sockets = {kept for kept in [*self._sockets, sock] if kept.fileno() >= 0}

    def shut(self) -> None:
        """Nothing will come any more."""
        for sock in list(self._sockets):
            shut(sock)


def shut(sock: socket.socket) -> None:
    """End both directions of *sock* under whoever reads it; TLS is not told, it would wait for the other side."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def below(sock: Any) -> socket.socket | None:
    """The socket itself, be it below TLS that runs in a forward proxy's TLS."""
    sock = sock.socket if isinstance(sock, SSLTransport) else sock
    return sock if isinstance(sock, socket.socket) else None


def window(sock: socket.socket) -> int:
    """How many bytes the other side may have under way, or the kernel have here, unread."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def narrow(sock: socket.socket) -> None:
    """Make its :func:`window` half a megabyte at most. What is under way beyond that may have to be sent again."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES // 2)  # the kernel doubles it


class _Head:
    """Lines of an answer's head; its end is a blank line, and nothing else is."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left_bytes = _HEAD_MAX_BYTES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        if not line:
            raise http.client.RemoteDisconnected("the connection ended before an answer")
        self._left_bytes -= len(line)
        if self._left_bytes < 0:
            raise http.client.HTTPException(f"the head of the answer is longer than {_HEAD_MAX_BYTES} bytes")
        return line


_PARTS_MISSING = (email.errors.StartBoundaryNotFoundDefect, email.errors.MultipartInvariantViolationDefect)


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        """Read the head; one that is cut short, or not made of fields, is no answer."""
        file, self.fp = self.fp, _Head(self.fp)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file
        # The parser looks for parts in an answer that calls itself multipart, and misses them: only the head was read.
        if any(not isinstance(defect, _PARTS_MISSING) for defect in self.msg.defects):
            raise http.client.HTTPException("the head of the answer is broken")

    def _read_status(self) -> tuple[str, int, str]:
        """The status of the answer itself: 100, 102 and 103 come before it (RFC 9110, section 15.2)."""
        for _ in range(_EARLY_MAX + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == 101:  # noqa: PLR2004 -- HTTP
                return version, status, reason
            http.client._read_headers(self.fp)  # type: ignore[attr-defined]  # noqa: SLF001
        raise http.client.HTTPException(f"more than {_EARLY_MAX} answers came before an answer that is one")


class _Wire(HTTPConnection):
    response_class = _Response
    idle_since: float | None = None

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        CALL.get().goes_by(self.sock)  # a kept connection's
        super().putrequest(method, CALL.get().target or url, *args, **kwargs)

    def _tunnel(self) -> None:
        CALL.get().opened(self.sock)
        super()._tunnel()

    @property
    def is_connected(self) -> bool:
        idle = self.idle_since is not None and time.monotonic() - self.idle_since > IDLE_MAX_SECONDS
        return not idle and super().is_connected

    def _new_conn(self) -> socket.socket:
        call = CALL.get()
        call.connected = True
        sock = super()._new_conn() if self.proxy else self._checked(call)
        call.opened(sock)
        return sock

    def _checked(self, call: Call) -> socket.socket:
        """A connection to the first address that may be, and can be, connected to."""
        failure: OSError = OSError("the name has no address")
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, 0, socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise NewConnectionError(self, f"Failed to resolve: {error}") from error
        for *_, address in found:
            if call.interrupted:
                break
            try:
                call.addresses.check(self.host, str(address[0]))
                sock = create_connection(
                    (str(address[0]), self.port),
                    self.timeout,
                    source_address=self.source_address,
                    socket_options=_KEEPALIVE,
                )
            except AddressRefused as error:
                failure = failure if isinstance(failure, ConnectionError) else error
            except OSError as error:
                failure = error
            else:
                return sock
        if isinstance(failure, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from failure
        raise NewConnectionError(self, f"Failed to connect: {failure}") from failure


class _TlsWire(_Wire, HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        CALL.get().opened(self.sock)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Wire


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsWire


class _PoolManager(urllib3.PoolManager):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


class _ProxyManager(urllib3.ProxyManager):
    def __init__(self, proxy_url: str, **options: Any) -> None:
        super().__init__(proxy_url, **options)
        self.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


def pools(proxy_url: str | None, **options: Any) -> urllib3.PoolManager:
    """Connections to the origins themselves, or through the forward proxy at *proxy_url*."""
    return _PoolManager(**options) if proxy_url is None else _ProxyManager(proxy_url, **options)


def drop_idle(pool: HTTPConnectionPool) -> None:
    """Close the connections that *pool* keeps; it goes on with new ones."""
    places, kept = pool.pool, []
    if places is None:
        return
    with contextlib.suppress(queue.Empty):
        while True:
            kept.append(places.get(block=False))
    for connection in kept:
        if connection is not None:
            connection.close()
        with contextlib.suppress(queue.Full):
            places.put(None, block=False)  # its place
