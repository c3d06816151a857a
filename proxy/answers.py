"""What the pull-through asks of upstream, and what it answers with."""

import hashlib
from typing import NamedTuple, Protocol

from proxy.events import CacheResult
from proxy.flight import BlobSource, FlightReader, Flights
from proxy.oci import Digest, Reference, Repository
from proxy.storage import Answer, OpenBlob, Sink


class ManifestHead(Protocol):
    """See :class:`proxy.upstream.client.ManifestHead`."""

    @property
    def digest(self) -> Digest | None: ...
    @property
    def media_type(self) -> str: ...
    @property
    def size_bytes(self) -> int | None: ...


class FetchedManifest(Protocol):
    """See :class:`proxy.upstream.client.FetchedManifest`."""

    @property
    def body(self) -> bytes: ...
    @property
    def media_type(self) -> str: ...
    @property
    def digest(self) -> str | None: ...


class FetchedList(Protocol):
    """See :class:`proxy.upstream.client.FetchedList`."""

    @property
    def body(self) -> bytes: ...
    @property
    def content_type(self) -> str: ...
    @property
    def link(self) -> str | None: ...
    @property
    def filters_applied(self) -> str | None: ...


class Upstream(BlobSource, Protocol):
    """The registry that misses are fetched from."""

    async def manifest_head(self, reference: Reference, *, attempts: int = ...) -> ManifestHead:
        """What a reference is now."""

    async def manifest(self, reference: Reference) -> FetchedManifest:
        """The manifest itself; costs quota."""

    async def blob_head(self, repository: Repository, digest: Digest) -> int:
        """The size of a blob."""

    async def listing(self, repository: Repository, path: str) -> FetchedList:
        """The answer to a tags/list or referrers question."""


class Served(NamedTuple):
    """How an answer came about, for the log and the ``Cache-Status`` header.

    ``age_seconds`` is set for tags served from here, ``detail`` says why a stale one was, or why a tag was a miss.
    """

    result: CacheResult
    upstream_seconds: float = 0.0
    age_seconds: float | None = None
    detail: str = ""


class ManifestAnswer(NamedTuple):
    """A manifest; ``body`` is None where only its head was asked for."""

    digest: Digest
    media_type: str
    size_bytes: int
    body: bytes | None
    served: Served


class BlobAnswer(NamedTuple):
    """A blob that can be sent; ``content`` is None where only its head was asked for. Closed by whoever asked."""

    size_bytes: int
    content: "OpenBlob | FlightReader | Direct | None"
    served: Served


class ListAnswer(NamedTuple):
    """A tags list or a referrers index."""

    answer: Answer
    served: Served


class Direct:
    """A blob that goes from upstream to one client without being stored."""

    def __init__(self, flights: Flights, repository: Repository, digest: Digest, size_bytes: int) -> None:
        self._flights = flights
        self._repository = repository
        self._digest = digest
        self._size_bytes = size_bytes

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """Send the bytes [start, stop) to *sink*."""
        whole = (start, stop) == (0, self._size_bytes)
        known = hashlib.new(self._digest.algorithm) if whole else None
        await self._flights.send_direct(self._repository, self._digest, sink, start, stop, known)

    def close(self) -> None:
        """Nothing is held."""
