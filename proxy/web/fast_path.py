"""Hits without aiohttp's request and response objects, handler tasks and header maps.

Clients send the same request heads again and again. A head that aiohttp has parsed once is remembered, byte for byte,
with what it asked for; when it comes again and the answer is at hand, the bytes go straight to the transport (small
content) or to the socket (files). All else takes the way through aiohttp. The decision is the same one
(:meth:`PullThrough.manifest_at_hand`), and so are headers and log line (tests/web/test_fast_path.py compares them).

CPU of the whole process for a manifest by digest, 16 connections (benchmarks/throughput.py, runs of
different days): 60 µs a request through aiohttp, 21 µs here.
"""

import asyncio
import functools
import socket
import time
import traceback
from typing import Any, NamedTuple

from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11

from proxy import events
from proxy.answers import Served
from proxy.errors import RegistryCacheError
from proxy.events import CacheResult
from proxy.oci import Digest, Reference, Repository
from proxy.pullthrough import PullThrough
from proxy.storage import OpenBlob
from proxy.web.blob_response import BlobResponder
from proxy.web.exchange import blob_headers, manifest_headers, user_agent
from proxy.web.sending import SocketSink

_HEADS = 4096
_HEAD_MAX_BYTES = 1024
_END = b"\r\n\r\n"
# A request with any other header may mean something else: a range, a condition, a body, an account.
_PLAIN = frozenset({hdrs.HOST, hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.ACCEPT_LANGUAGE})


class Asked(NamedTuple):
    """A request head, parsed: a manifest by reference, or a blob by digest."""

    method: str
    repository: Repository
    reference: Reference | None
    digest: Digest | None
    user_agent: str


class FastPath:
    """The heads that are known, and the answers to them that are at hand."""

    def __init__(self, pull_through: PullThrough, blobs: BlobResponder, events: events.Events) -> None:
        self._pull_through = pull_through
        self._blobs = blobs
        self._events = events
        self._asked: dict[bytes, Asked] = {}

    def learn(
        self, request: web.BaseRequest, repository: Repository, reference: Reference | None, digest: Digest | None
    ) -> None:
        """*request* asks for a manifest or a blob: remember its head, if it is a plain one."""
        protocol = request.protocol
        head = protocol.head if isinstance(protocol, Connection) else b""
        if not head or request.version != HttpVersion11 or not request.keep_alive:
            return
        if all(name.title() in _PLAIN for name in request.headers):
            if len(self._asked) >= _HEADS:
                self._asked.clear()  # somebody makes up heads; those in use come back with their next request
            self._asked[head] = Asked(request.method, repository, reference, digest, user_agent(request))

    def answer(self, head: bytes, connection: "Connection") -> "bytes | FileAnswer | None":
        """What to send for *head*, if it is known and at hand: a whole response, which is logged as sent, or a file."""
        asked = self._asked.get(head)
        if asked is None:
            return None
        began = time.perf_counter()
        wants_body = asked.method == "GET"
        if asked.reference is not None:
            manifest = self._pull_through.manifest_at_hand(asked.reference, head=not wants_body)
            if manifest is None:
                return None
            digest, served, body = manifest.digest, manifest.served, manifest.body
            start = _manifest_start(digest, manifest.media_type, manifest.size_bytes, served.result)
        elif asked.digest is not None:
            found = self._pull_through.blob_at_hand(asked.repository, asked.digest, head=not wants_body)
            if found is None:
                return None
            digest, (blob, served) = asked.digest, found
            start, body = _blob_start(digest, blob.size_bytes, served.result), blob.body
            if wants_body and body is None:
                sink = self._blobs.sink(connection, start + _end(rfc822_formatted_time()))
                return FileAnswer(self, self._blobs, sink, blob, asked, served, began, connection.peer)
            blob.close()
        else:
            return None
        if served.age_seconds is not None:
            start += b"Age: %d\r\n" % served.age_seconds
        response = start + _end(rfc822_formatted_time())
        sent = 0
        if wants_body and body is not None:
            sent = len(body)
            response += body
        self.log(asked, digest, served, sent, began, connection.peer)
        return response

    def crashed(self, error: Exception) -> None:
        """Emit what a bug looks like, from within its handler."""
        self._events.emit(events.Crashed(message=repr(error), traceback=traceback.format_exc()))

    def log(
        self,
        asked: Asked,
        digest: Digest,
        served: Served,
        sent: int,
        began: float,
        client: str,
        *,
        status: int = 200,
        error: str = "",
    ) -> None:
        """Emit the log line of an answer."""
        self._events.emit(
            events.Request(
                cache=served.result,
                kind="blob" if asked.reference is None else "manifest",
                registry=asked.repository.registry,
                repository=asked.repository.name,
                reference=digest if asked.reference is None else asked.reference.target,
                digest=digest,
                method=asked.method,
                status=status,
                bytes=sent,
                duration_ms=round((time.perf_counter() - began) * 1000, 3),
                upstream_ms=0.0,
                client=client,
                user_agent=asked.user_agent,
                error=error,
            )
        )


class FileAnswer:
    """A hit whose body is a file, from its first byte to its log line; whoever has it begins and finishes it."""

    def __init__(
        self,
        fast: FastPath,
        blobs: BlobResponder,
        sink: SocketSink,
        blob: OpenBlob,
        asked: Asked,
        served: Served,
        began: float,
        client: str,
    ) -> None:
        self._fast = fast
        self._blobs = blobs
        self._sink = sink
        self._blob = blob
        self._asked = asked
        self._served = served
        self._began = began
        self._client = client

    def begin(self) -> bool:
        """Send what goes without waiting; whether that was all, so that there is nothing to finish.

        A megabyte fits into a socket: sent like this it costs three quarters of what a task for it does.
        """
        if self._blob.send_now(self._sink, 0, self._blob.size_bytes) < self._blob.size_bytes:
            return False
        self._end(200)
        return True

    async def finish(self) -> bool:
        """Send the rest; whether the client has got all of it. If not, the connection is no good any more."""
        blob, sink = self._blob, self._sink
        status, error = 499, ""  # the client left before it had everything
        try:
            error = await self._blobs.send(
                sink, self._asked.repository, blob.digest, blob, sink.sent_bytes, blob.size_bytes
            )
            status = 200
        except RegistryCacheError as failure:
            error, self._served = str(failure), Served("error")
        except ConnectionError as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 -- a bug ends this connection, and is a line in the log
            self._fast.crashed(failure)
        finally:
            self._end(status, error)
        return status == 200  # noqa: PLR2004 -- HTTP

    def _end(self, status: int, error: str = "") -> None:
        self._blob.close()
        self._sink.close()
        self._fast.log(
            self._asked,
            self._blob.digest,
            self._served,
            self._sink.sent_bytes,
            self._began,
            self._client,
            status=status,
            error=error,
        )


@functools.lru_cache(maxsize=4096)
def _manifest_start(digest: Digest, media_type: str, size_bytes: int, result: CacheResult) -> bytes:
    return _start(manifest_headers(Served(result), digest, media_type), size_bytes)


@functools.lru_cache(maxsize=4096)
def _blob_start(digest: Digest, size_bytes: int, result: CacheResult) -> bytes:
    return _start(blob_headers(Served(result), digest), size_bytes)


def _start(headers: dict[str, str], size_bytes: int) -> bytes:
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {size_bytes}", ""]).encode()


@functools.lru_cache(maxsize=2)
def _end(date: str) -> bytes:
    return f"Date: {date}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n".encode()


class Connection(web.RequestHandler):
    """One client's connection: the fast path when nothing else is going on, else aiohttp's.

    Args:
        client_timeout_seconds: how long the client may leave sent bytes unacknowledged, or its window closed.
    """

    __slots__ = ("_client_timeout_seconds", "_closing", "_fast", "_held", "_sending", "_within_head", "head", "peer")

    def __init__(self, manager: web.Server, fast: FastPath, *, client_timeout_seconds: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._fast = fast
        self._client_timeout_seconds = client_timeout_seconds
        self.peer = ""  # the client's address
        self._within_head = False  # aiohttp's parser waits for the rest of one
        self._sending: asyncio.Task[None] | None = None  # a file is on its way
        self._held = b""  # what the client sent meanwhile
        self._closing = False  # when it has been sent
        self.head = b""  # of the request that aiohttp is about to handle, if it came alone and whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # The kernel drops who takes nothing: small bodies are in its hands, nobody here waits for them.
            milliseconds = max(1, int(self._client_timeout_seconds * 1000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._sending is not None:
            if data and self.transport is not None:
                self._held += data
                self.transport.pause_reading()  # this is all that is kept
            return
        if self._is_idle():
            answer = self._fast.answer(data, self)
            if isinstance(answer, FileAnswer):
                if answer.begin():
                    self._was_used()
                else:
                    self._sending = self._loop.create_task(self._finish(answer))
                return
            if answer is not None and self.transport is not None:
                self.transport.write(answer)
                self._was_used()
                return
            alone = len(data) <= _HEAD_MAX_BYTES and data.find(_END) == len(data) - len(_END)
            self.head = data if alone else b""
        elif data:
            self.head = b""  # pipelined, or in pieces
        if data:
            self._within_head = not data.endswith(_END)
        super().data_received(data)

    async def _finish(self, answer: FileAnswer) -> None:
        good = False
        try:
            good = await answer.finish()
        finally:
            self._sending = None
            if not good:
                self.force_close()
            elif self._closing:
                self.close()
            else:
                self._was_used()
        if self._held and self.transport is not None:
            held, self._held = self._held, b""
            self.transport.resume_reading()
            self.data_received(held)

    def _was_used(self) -> None:
        """aiohttp's timer looks at this before it closes an idle connection."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    def _process_keepalive(self) -> None:
        if self._sending is not None:
            self._was_used()  # how long the client may take nothing is the sender's to judge
        super()._process_keepalive()

    def close(self) -> None:
        """Close the connection once what is under way has been sent."""
        if self._sending is None:
            super().close()
        else:
            self._closing = True

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 -- aiohttp's signature
        """As aiohttp's: what is under way has *timeout* seconds to end."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=timeout)
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        if self._sending is not None:
            self._loop.call_soon(self._sending.cancel)  # once it has begun: then it closes its file, and logs
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Whether everything before has been answered and taken, so that what comes now begins a request."""
        waiter = self._waiter
        return (
            (self._request_count == 0 if waiter is None else not waiter.done())
            and not self._messages
            and not self._within_head
            and not self._paused
            and not self._upgraded
            and not self._close
            and not self._force_close
        )
