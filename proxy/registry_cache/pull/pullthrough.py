"""The decision for each request: hit, revalidate, miss, stale or error.

How it is made is in :mod:`.tags`, :mod:`.blobs` and :mod:`.lists`. Upstream's failure serves what is stale, upstream's
"no" is passed on: a broken pull stays broken.
"""

from typing import Protocol

from registry_cache.catalog.proof import Proof
from registry_cache.model.bus import Events
from registry_cache.model.clock import Clock
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.ports.blobs import BlobStore, OpenBlob
from registry_cache.ports.index import Index
from registry_cache.pull.answers import BlobAnswer, Elsewhere, ListAnswer, ManifestAnswer, Served
from registry_cache.pull.blobs import Begins, Blobs
from registry_cache.pull.flights import Flights
from registry_cache.pull.lists import Lists
from registry_cache.pull.manifest_source import ManifestSource
from registry_cache.pull.prefetch import Prefetcher
from registry_cache.pull.registry import Registries
from registry_cache.pull.tags import Tags


class ManifestAtHand(Protocol):
    """A hit that needs nothing but memory, a fresh tag or a digest. None: ask :meth:`PullThrough.manifest`."""

    def __call__(self, reference: Reference, *, head: bool) -> ManifestAnswer | None: ...


class BlobAtHand(Protocol):
    """A hit for which nothing has to be waited for; the caller closes it. None: ask :meth:`PullThrough.blob`."""

    def __call__(self, repository: Repository, digest: Digest, *, head: bool) -> tuple[OpenBlob, Served] | None: ...


class PullThrough:
    """See the module. Owns the shared upstream questions that are under way; flights and store belong to others.

    Args:
        registries: those that are served. No repository of another one is ever asked for.
        elsewhere: where clients may be sent for what is not here, if there is such a place.
    """

    def __init__(
        self,
        registries: Registries,
        *,
        store: BlobStore,
        index: Index,
        flights: Flights,
        prefetcher: Prefetcher,
        proof: Proof,
        clock: Clock,
        events: Events,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._prefetcher = prefetcher
        self._proof = proof
        self._source = ManifestSource(
            registries,
            store=store,
            index=index,
            proof=proof,
            known=lambda reference: self._tags.at_hand(reference, head=True),
            clock=clock,
            events=events,
        )
        self._tags = Tags(
            self._source,
            store=store,
            index=index,
            registries=registries,
            proof=proof,
            clock=clock,
            served=self._served,
        )
        self._blobs = Blobs(
            registries, store=store, flights=flights, prefetcher=prefetcher, proof=proof, elsewhere=elsewhere
        )
        self._lists = Lists(registries, index, clock)
        # On the path of every hit, where one more call can be measured.
        self.manifest_at_hand: ManifestAtHand = self._tags.at_hand
        self.blob_at_hand: BlobAtHand = self._blobs.at_hand

    async def aclose(self) -> None:
        """Stop asking; what has been fetched is stored first."""
        await self._lists.aclose()
        await self._blobs.aclose()
        await self._source.aclose()

    async def manifest(self, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The manifest that *reference* names; its body may be missing if *head*.

        Raises:
            RegistryCacheError: what upstream said, or that it could not be asked.
        """
        at_hand = self.manifest_at_hand(reference, head=head)
        if at_hand is not None:
            return at_hand
        answer = await self._tags.answer(reference, head=head)
        if not head and answer.body is not None:
            self._served(reference.repository, answer.digest, answer.body)
        return answer

    def _served(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """A client gets this manifest, and will ask for what it names. On the path of every hit."""
        self._proof.named(repository, digest, body)
        self._prefetcher.served(repository, digest, body)

    async def moved(self, reference: Reference, digest: Digest, ago_seconds: float) -> None:
        """Another replica has heard that a tag is *digest*: if it was something else here, it is asked for now.

        Args:
            ago_seconds: when upstream was asked.

        Raises:
            RegistryCacheError: upstream's no.
        """
        await self._tags.moved(reference, digest, ago_seconds)

    async def cached_manifest(self, reference: Reference) -> ManifestAnswer:
        """The manifest as it is known here, however old the tag; upstream is not asked.

        Raises:
            NotCached: it is not here.
        """
        return await self._tags.cached(reference)

    async def blob(
        self,
        repository: Repository,
        digest: Digest,
        *,
        head: bool,
        client: str = "",
        begins: Begins | None = None,
        may_redirect: bool = False,
    ) -> BlobAnswer:
        """The blob *digest*; nothing is fetched if *head*.

        Args:
            client: the address, or other name, that it is fetched for, if it has to be.
            begins: called before a fetch of it begins; see :data:`registry_cache.pull.blobs.Begins`.
            may_redirect: the client may be sent elsewhere for it.

        Raises:
            RegistryCacheError: what upstream said, or that it could not be asked.
        """
        return await self._blobs.blob(
            repository, digest, head=head, client=client, begins=begins, may_redirect=may_redirect
        )

    async def cached_blob(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """The blob, if it is here whole; upstream is not asked.

        Raises:
            NotCached: it is not.
        """
        return await self._blobs.cached(repository, digest)

    async def listing(self, repository: Repository, path: str) -> ListAnswer:
        """The answer to a tags/list or referrers question; the last good one while upstream is away.

        Args:
            path: path and query, as upstream understands them.
        """
        return await self._lists.listing(repository, path)

    async def cached_listing(self, repository: Repository, path: str) -> ListAnswer:
        """The last good answer to :meth:`listing`, however old; upstream is not asked.

        Raises:
            NotCached: there is none.
        """
        return await self._lists.cached(repository, path)
