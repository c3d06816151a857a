"""Hits without aiohttp's request and response objects, handler tasks and header maps.

Clients send the same request heads again and again. A head that aiohttp has parsed once is remembered, byte for byte,
with what it asked for; when it comes again and the answer is at hand, the bytes go straight to the transport (small
content) or to the socket (files). All else takes the way through aiohttp. The decision is the same one
(:meth:`PullThrough.manifest_at_hand`), and so are headers and log line (tests/web/test_fast_path.py compares them).

CPU of the whole process for a manifest by digest, 16 connections (benchmarks/throughput.py, runs of
different days): 60 µs a request through aiohttp, 21 µs here.
"""

import functools
import time
import traceback
from typing import NamedTuple

import msgspec
from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11

from registry_cache.access.pace import Pace
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.events import CacheResult, Kind
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.ports.blobs import OpenBlob
from registry_cache.pull.answers import Served
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.web.blob_response import BlobResponder
from registry_cache.web.exchange import NOBODY, Audit, blob_headers, manifest_headers, user_agent
from registry_cache.web.pacing import BodySink
from registry_cache.web.routes import Route

HEADS_MAX = 4096
# A request with any other header may mean something else: a range, a condition, a body, an account.
_PLAIN = frozenset({hdrs.HOST, hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.ACCEPT_LANGUAGE})


class Asked(NamedTuple):
    """A request head, parsed: a manifest by reference, or a blob by digest; and what of it goes into the log."""

    method: str
    repository: Repository
    reference: Reference | None
    digest: Digest | None
    kind: Kind
    target: str
    user_agent: str


class Hit(NamedTuple):
    """What of a log line is known when a file begins to be sent; see :meth:`FastPath.log`."""

    asked: Asked
    digest: str
    served: Served
    began: float
    client: str
    audit: Audit


class FastPath:
    """The heads that are known, and the answers to them that are at hand."""

    plain = _PLAIN

    def __init__(self, pull_through: PullThrough, blobs: BlobResponder, events: Events) -> None:
        self._pull_through = pull_through
        self._blobs = blobs
        self._events = events
        self._asked: dict[bytes, Asked] = {}

    def learn(self, head: bytes, request: web.BaseRequest, route: Route) -> None:
        """*request*, which came as *head* and was let in, asks for *route*: remember it, if it is a plain one."""
        if all(name.title() in self.plain for name in request.headers):
            self._learn(head, request, route)

    def _learn(self, head: bytes, request: web.BaseRequest, route: Route) -> None:
        repository = route.repository
        if repository is None or route.kind not in ("manifest", "blob"):
            return
        if not head or request.version != HttpVersion11 or not request.keep_alive:
            return
        if len(self._asked) >= HEADS_MAX:
            self._asked.clear()  # somebody makes up heads; those in use come back with their next request
        target = route.digest if route.reference is None else route.reference.target
        self._asked[head] = Asked(
            request.method,
            repository,
            route.reference,
            route.digest,
            route.kind,
            str(target),
            user_agent(request),
        )

    def learn_refusal(
        self, head: bytes, request: web.BaseRequest, response: web.Response, event: events.Request | None
    ) -> None:
        """*request*, which came as *head*, was refused like this; nobody is here."""

    def answer(
        self, head: bytes, protocol: BaseProtocol, client: str, audit: Audit = NOBODY
    ) -> "bytes | FileAnswer | None":
        """What to send for *head*, if it is known and at hand: a whole response, which is logged as sent, or a file.

        Args:
            client: its address, for the log.
            audit: who asks, where somebody asks for that.
        """
        asked = self._asked.get(head)
        return None if asked is None else self._serve(asked, protocol, client, audit)

    def _serve(self, asked: Asked, protocol: BaseProtocol, client: str, audit: Audit) -> "bytes | FileAnswer | None":
        began = time.perf_counter()
        wants_body = asked.method == "GET"
        if asked.reference is not None:
            manifest = self._pull_through.manifest_at_hand(asked.reference, head=not wants_body)
            if manifest is None:
                return None
            served, body = manifest.served, manifest.body
            start, digest = _manifest_start(
                asked.repository.registry, manifest.digest, manifest.media_type, manifest.size_bytes, served.result
            )
        elif asked.digest is not None:
            found = self._pull_through.blob_at_hand(asked.repository, asked.digest, head=not wants_body)
            if found is None:
                return None
            blob, served = found
            start, digest = _blob_start(asked.repository.registry, asked.digest, blob.size_bytes, served.result)
            body = blob.body
            if body is None and not wants_body:
                blob.close()
            elif body is None:
                sink = self._blobs.sink(protocol, start + end_of_head(rfc822_formatted_time()), pace=self._pace(audit))
                return FileAnswer(self, self._blobs, sink, blob, Hit(asked, digest, served, began, client, audit))
        else:
            return None
        if served.age_seconds is not None:
            start += b"Age: %d\r\n" % served.age_seconds
        response = start + end_of_head(rfc822_formatted_time())
        sent = 0
        if wants_body and body is not None:
            sent = len(body)
            response += body
        self.log(asked, digest, served, began, client, audit, sent)
        return response

    def _pace(self, audit: Audit) -> Pace | None:  # noqa: ARG002 -- of who asks, where somebody asks for that
        """At which files go to them; None: as fast as they take them."""
        return None

    def crashed(self, error: Exception) -> None:
        """Emit what a bug looks like, from within its handler."""
        self._events.emit(events.Crashed(message=repr(error), traceback=traceback.format_exc()))

    def log(
        self,
        asked: Asked,
        digest: str,
        served: Served,
        began: float,
        client: str,
        audit: Audit,
        sent: int,
        status: int = 200,
        error: str = "",
    ) -> None:
        """Emit the log line of an answer of which *sent* bytes have been sent. *began*: perf_counter."""
        event = events.Request(
            cache=served.result,
            kind=asked.kind,
            registry=asked.repository.registry,
            repository=asked.repository.name,
            reference=asked.target,
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
        if audit is not NOBODY:  # apart: a call with more than 15 names takes CPython four times as long
            principal, auth, decision, rule = audit
            event = msgspec.structs.replace(event, principal=principal, auth=auth, decision=decision, rule=rule)
        self._events.emit(event)


class FileAnswer:
    """A hit whose body is a file, from its first byte to its log line; whoever has it begins and finishes it."""

    def __init__(self, fast: FastPath, blobs: BlobResponder, sink: BodySink, blob: OpenBlob, hit: Hit) -> None:
        self._fast = fast
        self._blobs = blobs
        self._sink = sink
        self._blob = blob
        self._hit = hit

    def begin(self) -> bool:
        """Send what goes without waiting; whether that was all, so that there is nothing to finish.

        A megabyte fits into a socket: sent like this it needs no task.
        """
        if self._blob.send_now(self._sink, 0, self._blob.size_bytes) < self._blob.size_bytes:
            return False
        self._end(200)
        return True

    async def finish(self) -> bool:
        """Send the rest; whether the client has got all of it. If not, the connection is no good any more."""
        blob, sink, repository = self._blob, self._sink, self._hit.asked.repository
        status, error = 499, ""  # the client left before it had everything
        try:
            error = await self._blobs.send(sink, repository, blob.digest, blob, sink.sent_bytes, blob.size_bytes)
            status = 200
        except RegistryCacheError as failure:
            status, error, self._hit = 502, str(failure), self._hit._replace(served=Served("error"))
        except ConnectionError as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 -- a bug ends this connection, and is a line in the log
            status, error, self._hit = 500, repr(failure), self._hit._replace(served=Served("error"))
            self._fast.crashed(failure)
        finally:
            self._end(status, error)
        return status == 200  # noqa: PLR2004 -- HTTP

    def _end(self, status: int, error: str = "") -> None:
        self._blob.close()
        self._sink.close()
        self._fast.log(*self._hit, self._sink.sent_bytes, status, error)


# Both with the digest as a plain string beside it, which the log's encoder takes without a call of ours.
@functools.lru_cache(maxsize=4096)
def _manifest_start(
    registry: str, digest: Digest, media_type: str, size_bytes: int, result: CacheResult
) -> tuple[bytes, str]:
    headers = manifest_headers(registry, Served(result), digest, media_type)
    return start_of_head("200 OK", headers, size_bytes), str(digest)


@functools.lru_cache(maxsize=4096)
def _blob_start(registry: str, digest: Digest, size_bytes: int, result: CacheResult) -> tuple[bytes, str]:
    return start_of_head("200 OK", blob_headers(registry, Served(result), digest), size_bytes), str(digest)


def start_of_head(status: str, headers: dict[str, str], size_bytes: int) -> bytes:
    """Of an answer, up to its date.

    Args:
        status: with its phrase.
    """
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {size_bytes}", ""]).encode()


@functools.lru_cache(maxsize=2)
def end_of_head(date: str) -> bytes:
    """The rest of it."""
    return f"Date: {date}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n".encode()
