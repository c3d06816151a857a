"""The port where other replicas fetch what this one is fetching, or has: never more than that.

A peer's request starts no flight and asks nothing of upstream. Who reads along reads as a client does, at its own pace.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from registry_cache.fleet.counts import Counts
from registry_cache.fleet.peers import DIRECT, PROVEN
from registry_cache.fleet.port_server import PeerConnection
from registry_cache.fleet.serving import Follower, Serving, size_of
from registry_cache.fleet.signature import ANSWER, HEADER, Signer
from registry_cache.fleet.spaces import Spaces
from registry_cache.model.errors import BlobUnknown, DigestInvalid, NameInvalid, RegistryCacheError
from registry_cache.model.oci import Digest, Repository
from registry_cache.model.ranges import ContentRange
from registry_cache.ports.blobs import OpenBlob
from registry_cache.pull.flight import FlightReader
from registry_cache.pull.flights import Flights
from registry_cache.runtime.threads import Threads
from registry_cache.web.sending import SocketSink
from registry_cache.web.tls_sending import TlsSink

_PATH = re.compile(r"/fleet/v1/([^/]{1,255})/(.{1,255})/blobs/([^/]{1,150})")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")
# Of a registry that another replica asks otherwise than this one: nothing is proven here.
_NOT_OURS = "?"
# A peer that takes nothing for so long is not waited for.
_PEER_TIMEOUT_SECONDS = 10.0


class Proof(Protocol):
    """What is needed of :class:`registry_cache.catalog.proof.Proof`."""

    async def known(self, repository: Repository, digest: Digest) -> bool:
        """Whether *digest* is proven in *repository*, as far as that can be told without upstream."""


class FleetPort:
    """See the module.

    Args:
        followers: sent the same blob at the same time; further ones are sent to those.
        now: the fleet's clock.
        takes_part: whether this replica asks the same upstream as the others; else its word proves nothing to them.
        spaces: what registries are called in the fleet.
    """

    def __init__(
        self,
        flights: Flights,
        proof: Proof,
        signer: Signer,
        *,
        followers: int,
        threads: Threads,
        now: Callable[[], float],
        counts: Counts,
        takes_part: Callable[[], bool],
        spaces: Spaces,
    ) -> None:
        self._serving = Serving(flights, followers=followers, counts=counts, takes_part=takes_part)
        self._proof = proof
        self._signer = signer
        self._threads = threads
        self._now = now
        self._counts = counts
        self._spaces = spaces

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request of a peer."""
        path, range_ = request.rel_url.raw_path, request.headers.get("Range", "")
        match = _PATH.fullmatch(path)
        if match is None or request.method not in ("GET", "HEAD"):
            return web.Response(status=404)
        peer = self._signer.address(request.headers.get(HEADER, ""), request.method, path, range_, self._now())
        if peer is None:
            self._counts.refused += 1
            return web.Response(status=401)
        if isinstance(request.protocol, PeerConnection):
            request.protocol.has_shown_the_key()
        try:
            repository, digest = (
                Repository.parse(match[2], self._spaces.heard(match[1]) or _NOT_OURS),
                Digest.parse(match[3]),
            )
        except (NameInvalid, DigestInvalid):
            return web.Response(status=400)
        asked = _RANGE.fullmatch(range_)
        follower = Follower(peer, int(asked[1]) if asked else 0)
        content = await self._serving.open(digest)
        signed = {ANSWER: self._signer.answer(request.headers[HEADER])}
        if content is None:
            return web.Response(status=404, headers=signed)
        try:
            if request.method == "HEAD":
                return web.Response(status=200, headers=signed)
            return await self._answer(request, repository, digest, content, follower, signed)
        except ConnectionError as error:
            # aiohttp's way to end a connection without a word: the peer has gone, or has to see that it is not whole.
            request.protocol.force_close()
            raise asyncio.CancelledError(str(error)) from error
        finally:
            content.close()

    async def _answer(
        self,
        request: web.BaseRequest,
        repository: Repository,
        digest: Digest,
        content: OpenBlob | FlightReader,
        follower: Follower,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        if DIRECT not in request.headers and (to := self._serving.elsewhere(digest, follower)) is not None:
            where = {"Location": f"http://{to}{request.rel_url.raw_path}"}
            return web.Response(status=307, headers=headers | where)
        with self._serving.sending(digest, follower):
            try:
                size = await size_of(content)
                if size is None:
                    return web.Response(status=503)
                is_supplied = isinstance(content, FlightReader) and repository in content.flight.supplied_by
                proven = is_supplied or await self._proof.known(repository, digest)
                return await self._send(request, content, follower, size, {**headers, PROVEN: "1" if proven else "0"})
            except RegistryCacheError as error:
                return web.Response(status=404 if isinstance(error, BlobUnknown) else 503)

    async def _send(
        self,
        request: web.BaseRequest,
        content: OpenBlob | FlightReader,
        follower: Follower,
        size: int,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        start = follower.start
        if not size:
            return web.Response(status=200, headers=headers)
        if start >= size:
            return web.Response(status=416)
        headers |= {"Content-Range": str(ContentRange(start, size, size)), "Content-Length": str(size - start)}
        response = web.StreamResponse(status=206, headers=headers)
        await response.prepare(request)
        encrypts = request.transport is not None and request.transport.get_extra_info("ssl_object") is not None
        sink = (TlsSink if encrypts else SocketSink)(
            request.protocol, b"", timeout_seconds=_PEER_TIMEOUT_SECONDS, threads=self._threads
        )
        follower.sent = lambda: sink.sent_bytes
        try:
            if not isinstance(content, FlightReader) and content.body is not None:
                await sink.write(content.body[start:])
            else:
                await content.send(sink, start, size)
            await response.write_eof()
        except RegistryCacheError as error:
            raise ConnectionAbortedError(str(error)) from error
        finally:
            self._counts.served_bytes += sink.sent_bytes
            sink.close()
        return response
