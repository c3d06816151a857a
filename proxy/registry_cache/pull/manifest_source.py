"""Manifests from upstream: asked for once for all who want the same, verified, remembered, stored beside the answer.

A tag moves when the manifest that it now names is here. What a HEAD has said of a tag before that is only noted.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from registry_cache.catalog.proof import Proof
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.clock import Clock
from registry_cache.model.errors import CredentialRefused, DigestMismatch, HeadRefused, ManifestUnknown, NoSpace
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.ports.blobs import BlobStore
from registry_cache.ports.index import Index
from registry_cache.ports.names import TagEntry
from registry_cache.pull.answers import ManifestAnswer, ManifestHead, Served, Upstream
from registry_cache.pull.negatives import NO
from registry_cache.pull.registry import Registries
from registry_cache.runtime.singleflight import Shared, SingleFlight

T = TypeVar("T")

# Of tags whose manifest is not here yet, so many are noted.
_NOTED = 4096


class ManifestSource:
    """See the module. Owns the questions that are under way, and what is being stored.

    Args:
        known: the manifest that a reference names, if it is in memory.
    """

    def __init__(
        self,
        registries: Registries,
        *,
        store: BlobStore,
        index: Index,
        proof: Proof,
        known: Callable[[Reference], ManifestAnswer | None],
        clock: Clock,
        events: Events,
    ) -> None:
        self._registries = registries
        self._store = store
        self._index = index
        self._proof = proof
        self._known = known
        self._clock = clock
        self._events = events
        self._gets: SingleFlight[ManifestAnswer] = SingleFlight()
        self._heads: SingleFlight[TagEntry | None] = SingleFlight()
        self._noted: dict[tuple[Repository, Digest], dict[str, TagEntry]] = {}  # the oldest first
        self.storing: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Stop asking; what has been fetched is stored first."""
        await self._gets.aclose()
        await self._heads.aclose()
        await asyncio.gather(*self.storing, return_exceptions=True)

    async def _heeded(self, reference: Reference, asked_at: float, question: Callable[[], Awaitable[T]]) -> T:
        """The answer; a no to a tag forgets it, unless it was a later question that upstream said yes to."""
        registry = self._registries[reference.repository.registry]
        try:
            answer = await registry.negatives.heed(key(reference), question)
        except NO as error:
            forgets = reference.digest is None and not registry.policy.keep_deleted_tags
            if forgets and not isinstance(error, CredentialRefused):
                await self._index.forget_tag(reference.repository, reference.target, asked_at=asked_at)
            raise
        registry.asking.answered()
        return answer

    # --- HEAD ---------------------------------------------------------------------------------------------------

    async def head(self, reference: Reference, *, kept: bool = False) -> Shared[TagEntry | None]:
        """What *reference* is now, as far as a HEAD tells: None if it does not tell digest, type and length.

        Args:
            kept: there is an older answer: one try, and no waiting for a rate limit.
        """
        return await self._heads.do(reference, lambda: self._head(reference, kept=kept))

    async def _head(self, reference: Reference, *, kept: bool) -> TagEntry | None:
        asked_at = self._clock.now()
        registry = self._registries[reference.repository.registry]
        upstream = registry.upstream
        try:
            found = await self._heeded(
                reference,
                asked_at,
                lambda: (
                    _head_once(upstream, reference)
                    if kept
                    else registry.asking.patiently(lambda: upstream.manifest_head(reference))
                ),
            )
        except HeadRefused:
            return None
        digest = reference.digest or found.digest
        if digest is None or not found.size_bytes or found.media_type == "application/octet-stream":
            return None
        entry = TagEntry(digest, found.media_type, found.size_bytes, asked_at - found.age_seconds)
        self._proof.supplied(reference.repository, digest)
        if reference.digest is None:
            await self._observed(reference, entry)
        return entry

    async def _observed(self, reference: Reference, entry: TagEntry) -> None:
        """Upstream says what a tag is: so it is, unless that would lose an image that is here for one that is not."""
        before = await self._index.tag(reference.repository, reference.target)
        if before is None or before.digest == entry.digest or await self._is_here(entry.digest):
            self._in_background(self._index.put_tag(reference.repository, reference.target, entry))
            return
        self._noted.setdefault((reference.repository, entry.digest), {})[reference.target] = entry
        while len(self._noted) > _NOTED:
            del self._noted[next(iter(self._noted))]

    async def _is_here(self, digest: Digest) -> bool:
        blob = await self._store.open(digest)
        if blob is None:
            return False
        blob.close()
        return blob.media_type is not None

    # --- GET ----------------------------------------------------------------------------------------------------

    async def get(self, reference: Reference, *, kept: bool = False) -> Shared[ManifestAnswer]:
        """The manifest itself; this costs quota.

        Args:
            kept: as for :meth:`head`.
        """
        return await self._gets.do(reference, lambda: self._get(reference, kept=kept))

    async def _get(self, reference: Reference, *, kept: bool) -> ManifestAnswer:
        known = self._known(reference)
        if known is not None:  # somebody else has fetched it while we looked: a second GET would cost quota
            return known
        asked_at, registry = self._clock.now(), self._registries[reference.repository.registry]
        ask = registry.upstream.manifest
        fetched = await self._heeded(
            reference, asked_at, lambda: ask(reference) if kept else registry.asking.patiently(lambda: ask(reference))
        )
        wanted = reference.digest
        if wanted is None:
            wanted = Digest.of(fetched.body)
            if fetched.digest is not None and fetched.digest.startswith("sha256:") and fetched.digest != wanted:
                raise DigestMismatch(f"{reference}: upstream announced {fetched.digest} and sent {wanted}")
        wanted.verify(fetched.body)
        answer = ManifestAnswer(wanted, fetched.media_type, len(fetched.body), fetched.body, Served("miss"))
        self._store.remember(wanted, fetched.body, fetched.media_type)
        self._proof.supplied(reference.repository, wanted)
        tags = self._noted.pop((reference.repository, wanted), {})
        if reference.digest is None:
            # What a cache before us has kept for a while is as old here: TTLs of two tiers do not add up.
            was_so_at = asked_at - fetched.age_seconds
            tags[reference.target] = TagEntry(wanted, fetched.media_type, len(fetched.body), was_so_at)
        for tag, entry in tags.items():
            self._in_background(self._index.put_tag(reference.repository, tag, entry))
        self._in_background(self._keep(reference.repository, answer))
        return answer

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Write to the disk beside the answer: the client does not wait for it. Memory knows at once."""
        task = asyncio.create_task(work)
        self.storing.add(task)
        task.add_done_callback(self.storing.discard)

    async def _keep(self, repository: Repository, answer: ManifestAnswer) -> None:
        """Store a verified manifest."""
        body = answer.body or b""
        try:
            async with self._store.ingest(answer.digest) as partial:
                try:
                    await partial.expect(len(body))
                    partial.restart()
                    await partial.append(body)
                    partial.verify()
                    await partial.publish(answer.media_type)
                except DigestMismatch:
                    await partial.discard()
                    raise
                finally:
                    partial.close()
            self._proof.supplied(repository, answer.digest)  # also to the index, which has its row now
        except (NoSpace, DigestMismatch) as error:
            self._events.emit(events.NotStored(digest=answer.digest, reason=str(error)))
        except Exception:  # noqa: BLE001 -- the pull has succeeded; this must not be lost, nor break anything
            self._events.emit(events.Crashed(message=f"storing {answer.digest}", traceback=traceback.format_exc()))


async def _head_once(upstream: Upstream, reference: Reference) -> ManifestHead:
    """One HEAD, of a known tag. A gateway's 404 looks like a registry's: the body of a GET tells them apart."""
    try:
        return await upstream.manifest_head(reference, attempts=1)
    except ManifestUnknown as error:
        raise HeadRefused(str(error)) from error


def key(reference: Reference) -> tuple[str, Reference]:
    """What a remembered no is kept by."""
    return "manifest", reference
