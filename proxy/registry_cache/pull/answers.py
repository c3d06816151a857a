"""What the pull-through asks of upstream, and what it answers with."""

from typing import NamedTuple, Protocol

from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.events import CacheResult
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.ports.blobs import OpenBlob
from registry_cache.ports.names import Answer
from registry_cache.pull.direct import Direct
from registry_cache.pull.flight import BlobSource, FlightReader


class ManifestHead(Protocol):
    """See :class:`registry_cache.upstream.client.ManifestHead`."""

    @property
    def digest(self) -> Digest | None: ...
    @property
    def media_type(self) -> str: ...
    @property
    def size_bytes(self) -> int | None: ...
    @property
    def age_seconds(self) -> float: ...


class FetchedManifest(Protocol):
    """See :class:`registry_cache.upstream.client.FetchedManifest`."""

    @property
    def body(self) -> bytes: ...
    @property
    def media_type(self) -> str: ...
    @property
    def digest(self) -> str | None: ...
    @property
    def age_seconds(self) -> float: ...


class FetchedList(Protocol):
    """See :class:`registry_cache.upstream.client.FetchedList`."""

    @property
    def body(self) -> bytes: ...
    @property
    def content_type(self) -> str: ...
    @property
    def link(self) -> str | None: ...
    @property
    def filters_applied(self) -> str | None: ...
    @property
    def age_seconds(self) -> float: ...
    @property
    def trouble(self) -> RegistryCacheError | None: ...


class Upstream(BlobSource, Protocol):
    """The registry that misses are fetched from."""

    async def manifest_head(self, reference: Reference, *, attempts: int = ...) -> ManifestHead:
        """What a reference is now."""

    async def manifest(self, reference: Reference) -> FetchedManifest:
        """The manifest itself; costs quota."""

    async def blob_head(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob; None where upstream does not tell it."""

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


class Place(NamedTuple):
    """Where a blob can be had for a while by whoever has *url*: it is for the client, and for no log."""

    url: str
    size_bytes: int

    def __repr__(self) -> str:
        return f"<Place of {self.size_bytes} bytes>"


class Elsewhere(Protocol):
    """Where clients can fetch large blobs themselves: ``fleet/``."""

    async def has(self, repository: Repository, digest: Digest, size_bytes: int) -> bool:
        """Whether a client would be sent there, so that it need not be fetched ahead."""

    async def place(self, repository: Repository, digest: Digest, client: str) -> Place | None:
        """Where *client* (an address, or other name) may fetch it; None if it has to be answered here."""


class BlobAnswer(NamedTuple):
    """A blob that can be sent; ``content`` is None where only its head was asked for. Closed by whoever asked.

    ``place`` is where the client is to fetch it instead.
    """

    size_bytes: int
    content: OpenBlob | FlightReader | Direct | None
    served: Served
    place: Place | None = None

    def served_so_far(self) -> Served:
        """How it came about, as is known now: where the bucket broke off, upstream has gone on."""
        content = self.content
        if self.served.result != "shared" or not isinstance(content, FlightReader) or content.flight.is_shared:
            return self.served
        return self.served._replace(result="collapsed" if content.joined else "miss")


class ListAnswer(NamedTuple):
    """A tags list or a referrers index."""

    answer: Answer
    served: Served


def token(error: RegistryCacheError) -> str:
    """A word for the ``detail`` of ``Cache-Status``: the kind of failure."""
    public = next(kind for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
    return public.__name__
