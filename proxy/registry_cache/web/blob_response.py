"""Responses that carry a blob: ranges, conditional requests, and what happens when it breaks half-way."""

import functools
from collections.abc import Callable

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

from registry_cache.access.limits import Account
from registry_cache.access.pace import Pace
from registry_cache.model.errors import RangeNotSatisfiable, ReadFailed, RegistryCacheError, UpstreamError
from registry_cache.model.oci import Digest, Repository
from registry_cache.model.ranges import RANGES_MAX, ContentRange
from registry_cache.ports.blobs import OpenBlob, Sink
from registry_cache.pull.answers import BlobAnswer, Served
from registry_cache.pull.direct import Direct
from registry_cache.pull.flight import FlightReader
from registry_cache.pull.flights import Flights
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.runtime.threads import Threads
from registry_cache.web.exchange import (
    Exchange,
    blob_headers,
    client_address,
    matches_etag,
    only_if_cached,
    whose_share,
)
from registry_cache.web.pacing import BodySink, PacedSink
from registry_cache.web.parts import Plan, plan
from registry_cache.web.redirects import RedirectRule, redirect
from registry_cache.web.repeats import Repeats
from registry_cache.web.sending import SocketSink
from registry_cache.web.tls_sending import TlsSink

# Of a blob that is not stored: each part is a request upstream.
_DIRECT_PARTS_MAX = 16


class BlobResponder:
    """Answers requests for blobs.

    Args:
        client_timeout_seconds: how long a client may go without taking a byte.
        redirects: who may be sent elsewhere; None for nobody.
        threads: for reads of files that are not in the page cache.
    """

    def __init__(
        self,
        pull_through: PullThrough,
        flights: Flights,
        *,
        client_timeout_seconds: float,
        threads: Threads,
        redirects: RedirectRule | None = None,
    ) -> None:
        self._pull_through = pull_through
        self._flights = flights
        self._client_timeout_seconds = client_timeout_seconds
        self._threads = threads
        self._redirects = redirects
        self._repeats = Repeats()

    async def respond(self, exchange: Exchange, repository: Repository, digest: Digest) -> web.StreamResponse:
        """The response to a blob request, sent to its end.

        Raises:
            RegistryCacheError: nothing has been sent.
            ConnectionError: the client has to see that the body is not whole.
        """
        exchange.reference = exchange.digest = digest
        if only_if_cached(exchange.request):
            answer = await self._pull_through.cached_blob(repository, digest)
        else:
            account = exchange.account
            answer = await self._pull_through.blob(
                repository,
                digest,
                head=exchange.request.method == "HEAD",
                client=whose_share(exchange.request.remote or "") if account is None else account.share,
                begins=None if account is None else functools.partial(self._board, account),
                may_redirect=self._redirects is not None and self._redirects.allows(exchange, digest),
            )
        try:
            exchange.check()
            exchange.served = answer.served
            if answer.place is not None:
                return redirect(repository.registry, answer.served, answer.place)
            return await self._respond(exchange, repository, digest, answer)
        finally:
            served = answer.served_so_far()
            if exchange.served is answer.served:
                exchange.served = served
            if answer.content is not None:
                answer.content.close()
                self._charge(exchange, answer, served)

    def _board(self, account: Account) -> Callable[[int], None]:
        account.board(self._flights.number_of(account.share))
        return account.received

    @staticmethod
    def _charge(exchange: Exchange, answer: BlobAnswer, served: Served) -> None:
        """Who joined a flight, or reads what was fetched ahead, has had what it was sent. Who began one has paid."""
        has_paid = isinstance(answer.content, FlightReader) and not answer.content.joined
        if exchange.account is not None and served.result in ("miss", "collapsed", "bypass") and not has_paid:
            exchange.account.received(exchange.body_bytes)

    async def _respond(
        self, exchange: Exchange, repository: Repository, digest: Digest, answer: BlobAnswer
    ) -> web.StreamResponse:
        request, content = exchange.request, answer.content
        headers = blob_headers(repository.registry, answer.served, digest, head=request.method == "HEAD")
        if matches_etag(request, digest):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        passes_by = isinstance(content, Direct) or (isinstance(content, FlightReader) and content.flight.unstored)
        parts_max = _DIRECT_PARTS_MAX if passes_by else RANGES_MAX
        try:
            chosen = plan(request, digest, answer.size_bytes, parts_max=parts_max)
        except RangeNotSatisfiable:
            await self._prove_size(content)
            raise
        exchange.open_ended = chosen.open_ended
        headers |= {**chosen.headers, "Content-Length": str(chosen.length)}
        if request.method == "HEAD" or content is None:
            return web.Response(status=chosen.status, headers=headers)
        if not isinstance(content, FlightReader | Direct) and content.body is not None:
            whole = content.body
            body = b"".join(
                piece if isinstance(piece, bytes) else whole[piece.start : piece.stop] for piece in chosen.body
            )
            exchange.body_bytes = len(body)
            self._count_repeats(exchange, chosen)
            return web.Response(status=chosen.status, body=body, headers=headers)
        response = web.StreamResponse(status=chosen.status, headers=headers)
        try:
            await self._stream(exchange, response, repository, digest, content, chosen)
        finally:
            self._count_repeats(exchange, chosen)
        return response

    @staticmethod
    async def _prove_size(content: OpenBlob | FlightReader | Direct | None) -> None:
        """The size of what is not stored is upstream's word until the digest has been verified.

        Raises:
            RegistryCacheError: that cannot be awaited, or has failed: upstream may have announced too little.
        """
        if isinstance(content, FlightReader):
            await content.landed()
            if content.flight.over:
                return
        elif not isinstance(content, Direct):
            return
        raise UpstreamError("the range starts beyond the end that upstream announces, which is not proven")

    def _count_repeats(self, exchange: Exchange, chosen: Plan) -> None:
        """An open-ended range goes on until the client hangs up: it may get more than it wanted, and that again."""
        first = chosen.body[0]
        if chosen.open_ended and isinstance(first, ContentRange):
            client, stop = client_address(exchange.request), first.start + exchange.body_bytes
            exchange.repeated_bytes = self._repeats.sent(client, exchange.digest, first.start, stop)

    async def _stream(
        self,
        exchange: Exchange,
        response: web.StreamResponse,
        repository: Repository,
        digest: Digest,
        content: OpenBlob | FlightReader | Direct,
        chosen: Plan,
    ) -> None:
        await response.prepare(exchange.request)
        exchange.body_begun = True
        sink = self.sink(exchange.request.protocol, pace=exchange.account.pace if exchange.account else None)
        try:
            for piece in chosen.body:
                if isinstance(piece, bytes):
                    await sink.write(piece)
                else:
                    trouble = await self.send(sink, repository, digest, content, piece.start, piece.stop)
                    exchange.error = exchange.error or trouble
            await response.write_eof()
        except RegistryCacheError as error:
            exchange.error = str(error)
            exchange.served = Served("error", exchange.served.upstream_seconds)
            # Never end the body as if it were whole: a truncated 200 breaks a pull for good (containerd#9552).
            raise ConnectionAbortedError(str(error)) from error
        finally:
            exchange.body_bytes = sink.sent_bytes
            sink.close()

    def sink(self, protocol: BaseProtocol, head: bytes = b"", *, pace: Pace | None = None) -> BodySink:
        """Where the next body on this connection goes, behind *head*, at a *pace*; whoever asks closes it."""
        kind = TlsSink if getattr(protocol, "is_encrypted", False) else SocketSink
        sink = kind(protocol, head, timeout_seconds=self._client_timeout_seconds, threads=self._threads)
        return sink if pace is None else PacedSink(sink, pace)

    async def send(
        self,
        sink: Sink,
        repository: Repository,
        digest: Digest,
        content: OpenBlob | FlightReader | Direct,
        start: int,
        stop: int,
    ) -> str:
        """Send the bytes [start, stop) of *content*.

        Returns:
            Why the disk could not give them, if it could not: the rest came from upstream, unseen by the client.

        Raises:
            RegistryCacheError: upstream could not give them either; the connection must not look as if they were whole.
            ConnectionError: the client is gone.
        """
        try:
            await content.send(sink, start, stop)
        except ReadFailed as error:
            await self._flights.send_direct(repository, digest, sink, error.offset, stop)
            return str(error)
        return ""
