"""Bytes from upstream straight to one client, stored nowhere: what a client gets that no flight can serve."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Protocol

from registry_cache.model.errors import DigestMismatch, RegistryCacheError, UpstreamError
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import Hash, Piece, Sink
from registry_cache.pull.flight import BlobBody, BlobSource
from registry_cache.pull.retries import Resuming, Retries, no_to_a_range


class DirectStreams:
    """Sends parts of blobs as they come.

    Args:
        limit: how many upstream works for at a time. A client that takes its time holds none of these places.
    """

    def __init__(self, source: BlobSource, retries: Retries, *, limit: int) -> None:
        self._source = source
        self._retries = retries
        self._slots = asyncio.Semaphore(limit)

    async def send(
        self, repository: Repository, digest: Digest, sink: Sink, start: int, stop: int, known: Hash | None = None
    ) -> None:
        """See :meth:`registry_cache.pull.flights.Flights.send_direct`."""
        position, attempt, resuming = start, 0, Resuming()
        while position < stop:
            before, asks_range = position, resuming.possible
            try:
                async for piece in self._pieces(repository, digest, position, stop, ranges=asks_range):
                    if known is not None:
                        await asyncio.to_thread(known.update, piece)
                        if position + len(piece) == stop and known.hexdigest() != digest.encoded:
                            raise DigestMismatch(f"{digest}: upstream sent something else")
                    await sink.write(piece)
                    position += len(piece)
                if position < stop:
                    raise UpstreamError("upstream ended it early")
            except RegistryCacheError as error:
                if asks_range and no_to_a_range(error):
                    resuming.refused = True
                    continue
                resuming.failed(error, asked=asks_range, brought=position > before)
                if not isinstance(error, UpstreamError):
                    raise
                attempt = 1 if position > before else attempt + 1
                await self._retries.pause(digest, position, attempt, error, begun=True)

    async def _pieces(
        self, repository: Repository, digest: Digest, start: int, stop: int, *, ranges: bool
    ) -> AsyncIterator[Piece]:
        """The bytes [start, stop) of one upstream GET, whatever part of the blob it sends."""
        asked = {"start": start, "stop": stop} if ranges else {}
        async with contextlib.AsyncExitStack() as opened:
            async with self._slots:
                body = await opened.enter_async_context(self._source.blob(repository, digest, **asked))
            skip = start - body.start
            if skip < 0:
                raise UpstreamError("upstream sent another part of the blob than was asked for")
            left = stop - start
            while left > 0 and (data := await self._read(body)):
                piece = data[skip : skip + left]
                skip = max(0, skip - len(data))
                left -= len(piece)
                if piece:
                    yield piece

    async def _read(self, body: BlobBody) -> Piece:
        async with self._slots:
            return await body.read()


class _Streams(Protocol):
    async def send_direct(
        self, repository: Repository, digest: Digest, sink: Sink, start: int, stop: int, known: Hash | None = None
    ) -> None:
        """See :meth:`registry_cache.pull.flights.Flights.send_direct`."""


class Direct:
    """A blob that goes from upstream to one client without being stored."""

    def __init__(self, streams: _Streams, repository: Repository, digest: Digest, size_bytes: int) -> None:
        self._streams = streams
        self._repository = repository
        self._digest = digest
        self._size_bytes = size_bytes

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """Send the bytes [start, stop) to *sink*."""
        whole = (start, stop) == (0, self._size_bytes)
        known = hashlib.new(self._digest.algorithm) if whole else None
        await self._streams.send_direct(self._repository, self._digest, sink, start, stop, known)

    def close(self) -> None:
        """Nothing is held."""
