"""What a reference to a manifest is answered with: hit, revalidated, miss, stale, or upstream's no.

A manifest by digest is immutable: here or not. A tag is local while it is younger than its time to live and its
manifest is here; after that one HEAD, which costs no quota, says whether it is still what it was. If it has moved, the
old image stays until the new manifest is here, so that no HEAD names what the GET behind it cannot have.
"""

from collections.abc import Callable

from registry_cache.catalog.proof import Proof
from registry_cache.model.clock import Clock
from registry_cache.model.errors import (
    ContentError,
    CredentialRefused,
    NotCached,
    RegistryCacheError,
    UpstreamError,
)
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.ports.blobs import BlobStore
from registry_cache.ports.index import Index
from registry_cache.ports.names import TagEntry
from registry_cache.pull.answers import ManifestAnswer, Served, token
from registry_cache.pull.asking import Timer
from registry_cache.pull.manifest_source import ManifestSource, key
from registry_cache.pull.negatives import NO
from registry_cache.pull.registry import Registries, Registry

# Why a tag was a miss, in the log's ``detail``.
_NEW_TAG, _MOVED_TAG = "new tag", "tag moved"
_HIT = Served("hit")


class Tags:
    """See the module.

    Args:
        proof: of what may be handed out under which name.
        served: called with each manifest whose body goes to a client from memory.
    """

    def __init__(
        self,
        source: ManifestSource,
        *,
        store: BlobStore,
        index: Index,
        registries: Registries,
        proof: Proof,
        clock: Clock,
        served: Callable[[Repository, Digest, bytes], None],
    ) -> None:
        self._source = source
        self._store = store
        self._index = index
        self._registries = registries
        self._proof = proof
        self._clock = clock
        self._served = served

    # --- what is here -------------------------------------------------------------------------------------------

    def at_hand(self, reference: Reference, *, head: bool) -> ManifestAnswer | None:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.manifest_at_hand`."""
        digest, served = reference.digest, _HIT
        if digest is None:
            entry = self._index.tag_at_hand(reference.repository, reference.target)
            if entry is None:
                return None
            age = self._clock.now() - entry.fetched_at
            if not 0 <= age < self._registries[reference.repository.registry].policy.tag_ttl_seconds:
                return None
            digest, served = entry.digest, Served("hit", age_seconds=age)
        blob = self._store.at_hand(digest)
        if blob is None:
            return None
        if blob.media_type is None or blob.body is None:
            blob.close()
            return None
        if served is not _HIT:
            self._proof.admits_tagged(reference.repository, digest)
        elif not self._proof.admits(reference.repository, digest):
            return None  # its content is in memory: there is nothing to close
        if not head:
            self._served(reference.repository, digest, blob.body)
        return ManifestAnswer(digest, blob.media_type, blob.size_bytes, blob.body, served)

    async def cached(self, reference: Reference) -> ManifestAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.cached_manifest`."""
        digest, served = reference.digest, _HIT
        if digest is None and (entry := await self._index.tag(reference.repository, reference.target)) is not None:
            age = self._age(entry)
            digest, served = entry.digest, Served("hit", age_seconds=age)
            if not self._is_fresh(reference, entry):
                served = Served("stale", age_seconds=age, detail="only-if-cached")
        stored = await self._stored(digest) if digest is not None else None
        if stored is None or (
            reference.digest is not None and await self._proof.missing(reference.repository, reference.digest)
        ):
            raise NotCached(f"{reference} is not cached")
        return stored._replace(served=served)

    async def _stored_tag(self, repository: Repository, entry: TagEntry) -> ManifestAnswer | None:
        stored = await self._stored(entry.digest)
        if stored is not None:
            self._proof.admits_tagged(repository, entry.digest)
        return stored

    async def _stored(self, digest: Digest) -> ManifestAnswer | None:
        blob = await self._store.open(digest)
        if blob is None:
            return None
        try:
            if blob.media_type is None or blob.body is None:
                return None  # stored as a blob, and nobody has said that it is a manifest
            return ManifestAnswer(digest, blob.media_type, blob.size_bytes, blob.body, _HIT)
        finally:
            blob.close()

    def _of(self, reference: Reference) -> Registry:
        return self._registries[reference.repository.registry]

    def _is_fresh(self, reference: Reference, entry: TagEntry) -> bool:
        return 0 <= self._clock.now() - entry.fetched_at < self._of(reference).policy.tag_ttl_seconds

    def _age(self, entry: TagEntry) -> float:
        return max(0.0, self._clock.now() - entry.fetched_at)

    # --- what is not --------------------------------------------------------------------------------------------

    async def answer(self, reference: Reference, *, head: bool) -> ManifestAnswer:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.manifest`."""
        timer = Timer()
        if reference.digest is not None:
            stored = await self._stored(reference.digest)
            if stored is None:
                return await self._cold(reference, timer, head=head)
            return await self._proven(reference, reference.digest, stored, timer)
        entry = await self._index.tag(reference.repository, reference.target)
        if entry is None:
            return _because(_NEW_TAG, await self._cold(reference, timer, head=head))
        stored = await self._stored_tag(reference.repository, entry)
        if stored is None:
            return await self._lost(reference, entry, timer, head=head)
        if self._is_fresh(reference, entry):
            return stored._replace(served=Served("hit", age_seconds=self._age(entry)))
        return await self._revalidated(reference, entry, stored, timer)

    async def _proven(
        self, reference: Reference, digest: Digest, stored: ManifestAnswer, timer: Timer
    ) -> ManifestAnswer:
        """What is here, if it belongs to the repository that it is asked for of: where that is not known, one HEAD."""
        if not await self._proof.missing(reference.repository, digest):
            self._proof.admits(reference.repository, digest)
            return stored
        found = (
            await self._of(reference).asking.ask(timer, key(reference), lambda: self._source.head(reference))
        ).value
        if found is None:  # a HEAD does not tell
            return await self._fetched(reference, timer)
        return stored._replace(served=Served("revalidated", timer.seconds))

    async def _cold(self, reference: Reference, timer: Timer, *, head: bool) -> ManifestAnswer:
        """Nothing of it is here."""
        if head:
            found = (
                await self._of(reference).asking.ask(timer, key(reference), lambda: self._source.head(reference))
            ).value
            if found is not None:
                served = Served("miss", timer.seconds)
                return ManifestAnswer(found.digest, found.media_type, found.size_bytes, None, served)
        return await self._fetched(reference, timer)

    async def _fetched(self, reference: Reference, timer: Timer, *, kept: bool = False) -> ManifestAnswer:
        """From upstream, once for all who ask."""
        answer, joined = await self._of(reference).asking.ask(
            timer, key(reference), lambda: self._source.get(reference, kept=kept), kept=kept
        )
        return answer._replace(served=Served("collapsed" if joined else "miss", timer.seconds))

    async def _lost(self, reference: Reference, entry: TagEntry, timer: Timer, *, head: bool) -> ManifestAnswer:
        """The tag is known, and its manifest is not here (any more): what upstream says now counts."""
        if not head and self._is_fresh(reference, entry):
            try:
                return await self._fetched(Reference(reference.repository, entry.digest), timer)
            except NO as error:
                if isinstance(error, CredentialRefused):
                    raise
        return _because(_NEW_TAG, await self._cold(reference, timer, head=head))

    async def _revalidated(
        self, reference: Reference, entry: TagEntry, stored: ManifestAnswer, timer: Timer
    ) -> ManifestAnswer:
        """Ask upstream whether an expired tag, whose manifest is *stored*, is still what it was."""
        try:
            found = (
                await self._of(reference).asking.ask(
                    timer, key(reference), lambda: self._source.head(reference, kept=True), kept=True
                )
            ).value
            newest = await self._index.tag(reference.repository, reference.target)
            if found is not None and newest is not None and newest.fetched_at > found.fetched_at:
                found = newest  # asked later, and answered before
            if found is None or found.digest != entry.digest:
                moved = await self._moved(reference, found, timer)
                if moved.digest != entry.digest:
                    return _because(_MOVED_TAG, moved)
        except NO as error:
            if not isinstance(error, CredentialRefused) and not self._of(reference).policy.keep_deleted_tags:
                raise
            return self._stale(entry, stored, error, timer)
        except (UpstreamError, ContentError) as error:
            return self._stale(entry, stored, error, timer)
        age = 0.0 if found is None else self._age(found)
        return stored._replace(served=Served("revalidated", timer.seconds, age_seconds=age))

    async def moved(self, reference: Reference, digest: Digest, ago_seconds: float) -> None:
        """See :meth:`registry_cache.pull.pullthrough.PullThrough.moved`."""
        entry = await self._index.tag(reference.repository, reference.target)
        if entry is None or entry.digest == digest or entry.fetched_at >= self._clock.now() - ago_seconds:
            return
        stored = await self._stored(entry.digest)
        if stored is not None:
            await self._revalidated(reference, entry, stored, Timer())

    async def _moved(self, reference: Reference, found: TagEntry | None, timer: Timer) -> ManifestAnswer:
        """The manifest that a tag has moved to; also for a HEAD, whose client will ask for what it hears of."""
        if found is not None:
            stored = await self._stored_tag(reference.repository, found)
            if stored is not None:
                return stored._replace(served=Served("miss", timer.seconds))
            try:
                return await self._fetched(Reference(reference.repository, found.digest), timer, kept=True)
            except NO as error:
                if isinstance(error, CredentialRefused):
                    raise
        return await self._fetched(reference, timer, kept=True)  # HEAD does not tell, or tells what is gone already

    def _stale(
        self, entry: TagEntry, stored: ManifestAnswer, error: RegistryCacheError, timer: Timer
    ) -> ManifestAnswer:
        return stored._replace(served=Served("stale", timer.seconds, age_seconds=self._age(entry), detail=token(error)))


def _because(reason: str, answer: ManifestAnswer) -> ManifestAnswer:
    """*answer*; if it is a miss, for this reason."""
    if answer.served.result not in ("miss", "collapsed"):
        return answer
    return answer._replace(served=answer.served._replace(detail=reason))
