"""The decision for each request: hit, revalidate, miss, stale or error.

A manifest or blob by digest is immutable: here or not. A tag is local while it is younger than its time to live; after
that one HEAD, which costs no quota, says whether it is still what it was. Upstream's failure serves the stale one,
upstream's "no" is passed on: a broken pull stays broken.
"""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, NamedTuple, TypeVar

from proxy import events
from proxy.answers import BlobAnswer, Direct, ListAnswer, ManifestAnswer, Served, Upstream
from proxy.clock import Clock
from proxy.errors import (
    CredentialRefused,
    Denied,
    DigestMismatch,
    ManifestUnknown,
    NameUnknown,
    NoSpace,
    NotCached,
    RateLimited,
    RegistryCacheError,
    Unauthorized,
    UpstreamError,
)
from proxy.events import CacheResult
from proxy.flight import Flights
from proxy.oci import Digest, Reference, Repository
from proxy.prefetch import Prefetcher
from proxy.singleflight import SingleFlight
from proxy.storage import Answer, BlobStore, Index, OpenBlob, TagEntry

T = TypeVar("T")

# After an upstream that was too slow, stale tags are served at once for this long while it is asked in the background.
_SUSPECT_SECONDS = 10.0
# Why a tag was a miss, in the log's ``detail``.
_NEW_TAG, _MOVED_TAG = "new tag", "tag moved"
_HIT, _COLLAPSED = Served("hit"), Served("collapsed")


class Policy(NamedTuple):
    """The times and choices of the settings; seconds."""

    tag_ttl_seconds: float
    stale_timeout_seconds: float
    request_timeout_seconds: float
    rate_limit_wait_seconds: float
    keep_deleted_tags: bool


class _Timer:
    """Adds up the time a request waits for upstream."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


class PullThrough:
    """See the module. Owns the shared upstream questions that are under way; flights and store belong to others."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        store: BlobStore,
        index: Index,
        flights: Flights,
        prefetcher: Prefetcher,
        policy: Policy,
        clock: Callable[[], Clock],
        events: events.Events,
    ) -> None:
        self._upstream = upstream
        self._store = store
        self._index = index
        self._flights = flights
        self._prefetcher = prefetcher
        self._policy = policy
        self._clock = clock
        self._events = events
        self._manifests: SingleFlight[ManifestAnswer] = SingleFlight()
        self._heads: SingleFlight[TagEntry | None] = SingleFlight()
        self._lists: SingleFlight[Answer] = SingleFlight()
        self._storing: set[asyncio.Task[None]] = set()
        self._suspect_until = 0.0  # monotonic seconds

    async def aclose(self) -> None:
        """Stop asking; what has been fetched is stored first."""
        for shared in (self._manifests, self._heads, self._lists):
            await shared.aclose()
        await asyncio.gather(*self._storing, return_exceptions=True)

    # --- manifests ----------------------------------------------------------------------------------------------

    async def manifest(self, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The manifest that *reference* names; its body only if *head* is false.

        Raises:
            RegistryCacheError: what upstream said, or that it could not be asked.
        """
        at_hand = self.manifest_at_hand(reference, head=head)
        if at_hand is not None:
            return at_hand
        answer = await self._manifest(reference, head=head)
        if not head and answer.body is not None:
            self._prefetcher.served(reference.repository, answer.digest, answer.body)
        return answer

    def manifest_at_hand(self, reference: Reference, *, head: bool) -> ManifestAnswer | None:
        """A hit that needs nothing but memory, a fresh tag or a digest. None: ask :meth:`manifest`."""
        digest, served = reference.digest, _HIT
        if digest is None:
            entry = self._index.tag_at_hand(reference.repository, reference.target)
            if entry is None or not self._is_fresh(entry):
                return None
            served = Served("hit", age_seconds=self._clock().now() - entry.fetched_at)
            if head:
                return ManifestAnswer(entry.digest, entry.media_type, entry.size_bytes, None, served)
            digest = entry.digest
        blob = self._store.at_hand(digest)
        if blob is None:
            return None
        if blob.media_type is None or blob.body is None:
            blob.close()
            return None
        self._index.link(reference.repository, digest)
        if not head:
            self._prefetcher.served(reference.repository, digest, blob.body)
        return ManifestAnswer(digest, blob.media_type, blob.size_bytes, blob.body, served)

    async def _manifest(self, reference: Reference, *, head: bool) -> ManifestAnswer:
        timer = _Timer()
        if reference.digest is not None:
            return await self._by_digest(reference, reference.digest, timer, head=head)
        entry = await self._index.tag(reference.repository, reference.target)
        if entry is None:
            return await self._cold_tag(reference, timer, head=head)
        if self._is_fresh(entry):
            age = self._clock().now() - entry.fetched_at
            return await self._from_entry(reference, entry, Served("hit", age_seconds=age), timer, head=head)
        return await self._revalidated(reference, entry, timer, head=head)

    async def cached_manifest(self, reference: Reference) -> ManifestAnswer:
        """The manifest as it is known here, however old the tag; upstream is not asked.

        Raises:
            NotCached: it is not here.
        """
        digest, served = reference.digest, Served("hit")
        if digest is None and (entry := await self._index.tag(reference.repository, reference.target)) is not None:
            age = max(0.0, self._clock().now() - entry.fetched_at)
            digest, served = entry.digest, Served("hit", age_seconds=age)
            if not self._is_fresh(entry):
                served = Served("stale", age_seconds=age, detail="only-if-cached")
        stored = await self._stored_manifest(reference.repository, digest) if digest is not None else None
        if stored is None:
            raise NotCached(f"{reference} is not cached")
        return stored._replace(served=served)

    async def _by_digest(self, reference: Reference, digest: Digest, timer: _Timer, *, head: bool) -> ManifestAnswer:
        stored = await self._stored_manifest(reference.repository, digest)
        if stored is not None:
            return stored
        if head:
            found = await self._ask(timer, lambda: self._upstream.manifest_head(reference))
            return ManifestAnswer(digest, found.media_type, found.size_bytes or 0, None, Served("miss", timer.seconds))
        return await self._fetch(reference, timer)

    async def _stored_manifest(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        blob = await self._store.open(digest)
        if blob is None:
            return None
        try:
            if blob.media_type is None or blob.body is None:
                return None  # stored as a blob, and nobody has said that it is a manifest
            self._index.link(repository, digest)
            return ManifestAnswer(digest, blob.media_type, blob.size_bytes, blob.body, Served("hit"))
        finally:
            blob.close()

    async def _cold_tag(self, reference: Reference, timer: _Timer, *, head: bool) -> ManifestAnswer:
        if head:
            entry = (await self._ask(timer, lambda: self._heads.do(reference, lambda: self._head(reference)))).value
            if entry is not None:
                served = Served("miss", timer.seconds, detail=_NEW_TAG)
                return ManifestAnswer(entry.digest, entry.media_type, entry.size_bytes, None, served)
        return _because(_NEW_TAG, await self._fetch(reference, timer))

    async def _revalidated(self, reference: Reference, entry: TagEntry, timer: _Timer, *, head: bool) -> ManifestAnswer:
        """Ask upstream whether an expired tag is still what it was."""
        try:
            with timer.running():
                fresh = await self._ask_head(reference)
        except (ManifestUnknown, NameUnknown, Unauthorized, Denied) as error:
            if isinstance(error, CredentialRefused) or self._policy.keep_deleted_tags:
                return await self._stale(reference, entry, error, timer, head=head)
            await self._index.forget_tag(reference.repository, reference.target)
            raise
        except UpstreamError as error:
            return await self._stale(reference, entry, error, timer, head=head)
        if fresh is None:  # upstream does not name digests in answers to HEAD
            return await self._fetch(reference, timer)
        if fresh.digest == entry.digest:
            served = Served("revalidated", timer.seconds, age_seconds=0.0)
            return await self._from_entry(reference, fresh, served, timer, head=head)
        served = Served("miss", timer.seconds, detail=_MOVED_TAG)
        return _because(_MOVED_TAG, await self._from_entry(reference, fresh, served, timer, head=head))

    async def _ask_head(self, reference: Reference) -> TagEntry | None:
        """HEAD under the short deadline; the question goes on when nobody waits for it any more."""
        patience = self._policy.stale_timeout_seconds if time.monotonic() >= self._suspect_until else 0.0
        try:
            async with asyncio.timeout(patience):
                fresh = (await self._heads.do(reference, lambda: self._head(reference, attempts=1))).value
        except TimeoutError as error:
            self._suspect_until = time.monotonic() + _SUSPECT_SECONDS
            raise UpstreamError("upstream is slow to confirm the tag") from error
        self._suspect_until = 0.0
        return fresh

    async def _head(self, reference: Reference, *, attempts: int = 3) -> TagEntry | None:
        found = await self._upstream.manifest_head(reference, attempts=attempts)
        if found.digest is None or found.size_bytes is None:
            return None
        entry = TagEntry(found.digest, found.media_type, found.size_bytes, self._clock().now())
        self._in_background(self._index.put_tag(reference.repository, reference.target, entry))
        return entry

    async def _stale(
        self, reference: Reference, entry: TagEntry, error: RegistryCacheError, timer: _Timer, *, head: bool
    ) -> ManifestAnswer:
        age = max(0.0, self._clock().now() - entry.fetched_at)
        served = Served("stale", timer.seconds, age_seconds=age, detail=_token(error))
        return await self._from_entry(reference, entry, served, timer, head=head)

    async def _from_entry(
        self, reference: Reference, entry: TagEntry, served: Served, timer: _Timer, *, head: bool
    ) -> ManifestAnswer:
        """Answer with what the tag is known to be; its manifest is fetched if it is not here."""
        if head:
            return ManifestAnswer(entry.digest, entry.media_type, entry.size_bytes, None, served)
        by_digest = Reference(reference.repository, entry.digest)
        answer = await self._by_digest(by_digest, entry.digest, timer, head=False)
        if answer.served.result != "hit":
            return answer
        return answer._replace(served=served)

    async def _fetch(self, reference: Reference, timer: _Timer) -> ManifestAnswer:
        """Get a manifest from upstream, once for all who ask."""
        answer, joined = await self._ask(
            timer, lambda: self._manifests.do(reference, lambda: self._fetch_once(reference))
        )
        return answer._replace(served=Served("collapsed" if joined else "miss", timer.seconds))

    async def _fetch_once(self, reference: Reference) -> ManifestAnswer:
        known = self.manifest_at_hand(reference, head=False)
        if known is not None:  # somebody else has fetched it while we looked: a second GET would cost quota
            return known
        fetched = await self._patiently(lambda: self._upstream.manifest(reference))
        wanted = reference.digest
        if wanted is None:
            wanted = Digest.of(fetched.body)
            if fetched.digest is not None and fetched.digest.startswith("sha256:") and fetched.digest != wanted:
                raise DigestMismatch(f"{reference}: upstream announced {fetched.digest} and sent {wanted}")
        wanted.verify(fetched.body)
        answer = ManifestAnswer(wanted, fetched.media_type, len(fetched.body), fetched.body, Served("miss"))
        self._store.remember(wanted, fetched.body, fetched.media_type)
        if reference.digest is None:
            entry = TagEntry(wanted, fetched.media_type, len(fetched.body), self._clock().now())
            self._in_background(self._index.put_tag(reference.repository, reference.target, entry))
        self._in_background(self._keep(reference.repository, answer))
        return answer

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Write to the disk beside the answer: the client does not wait for it. Memory knows at once."""
        task = asyncio.create_task(work)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    def _is_fresh(self, entry: TagEntry) -> bool:
        return 0 <= self._clock().now() - entry.fetched_at < self._policy.tag_ttl_seconds

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
            self._index.link(repository, answer.digest)
        except (NoSpace, DigestMismatch) as error:
            self._events.emit(events.NotStored(digest=answer.digest, reason=str(error)))
        except Exception:  # noqa: BLE001 -- the pull has succeeded; this must not be lost, nor break anything
            self._events.emit(events.Crashed(message=f"storing {answer.digest}", traceback=traceback.format_exc()))

    # --- blobs --------------------------------------------------------------------------------------------------

    async def blob(self, repository: Repository, digest: Digest, *, head: bool) -> BlobAnswer:
        """The blob *digest*; nothing is fetched if *head*.

        Raises:
            RegistryCacheError: what upstream said, or that it could not be asked.
        """
        blob = await self._flights.stored(digest)
        if blob is not None:
            return BlobAnswer(blob.size_bytes, blob, self._stored_as(repository, digest, head=head))
        timer = _Timer()
        if head:
            return await self._blob_head(repository, digest, timer)
        reader = self._flights.join(repository, digest)
        ahead = reader.joined and self._prefetcher.asked(repository, digest)
        if not reader.joined:
            self._prefetcher.missed(repository, digest)
        if reader.flight.complete and reader.flight.size_bytes is not None:  # verified, and on its way to the disk
            return BlobAnswer(reader.flight.size_bytes, reader, Served("collapsed" if ahead else "hit"))
        try:
            size = await self._ask(timer, reader.size)
            if reader.flight.unstored:
                if size is None:
                    size = await self._ask(timer, lambda: self._upstream.blob_head(repository, digest))
                reader.close()
                return BlobAnswer(
                    size, Direct(self._flights, repository, digest, size), Served("bypass", timer.seconds)
                )
        except BaseException:
            reader.close()
            raise
        if size is None:
            reader.close()
            raise UpstreamError("upstream did not say how long the blob is")
        result: CacheResult = "collapsed" if reader.joined else "miss"
        if not reader.flight.asked_upstream:  # an earlier run died between the last byte and the rename
            result = "hit"
        return BlobAnswer(size, reader, Served(result, timer.seconds))

    def blob_at_hand(self, repository: Repository, digest: Digest, *, head: bool) -> tuple[OpenBlob, Served] | None:
        """A hit for which nothing has to be waited for; the caller closes it. None: ask :meth:`blob`."""
        blob = self._store.at_hand(digest)
        if blob is None:
            return None
        return blob, self._stored_as(repository, digest, head=head)

    def _stored_as(self, repository: Repository, digest: Digest, *, head: bool) -> Served:
        self._index.link(repository, digest)
        # What was fetched ahead cost upstream its bytes: its first request is no hit.
        ahead = not head and self._prefetcher.asked(repository, digest)
        return _COLLAPSED if ahead else _HIT

    async def cached_blob(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """The blob, if it is here whole; upstream is not asked.

        Raises:
            NotCached: it is not.
        """
        flight = self._flights.get(digest)
        if flight is not None and flight.complete and flight.size_bytes is not None:  # on its way to the disk
            return BlobAnswer(flight.size_bytes, self._flights.join(repository, digest), Served("hit"))
        blob = await self._store.open(digest)
        if blob is None:
            raise NotCached(f"{digest} is not cached")
        self._index.link(repository, digest)
        return BlobAnswer(blob.size_bytes, blob, Served("hit"))

    async def _blob_head(self, repository: Repository, digest: Digest, timer: _Timer) -> BlobAnswer:
        flight = self._flights.get(digest)
        size = flight.size_bytes if flight is not None else None
        if flight is not None and flight.complete and size is not None:  # as for GET
            return BlobAnswer(size, None, Served("hit"))
        if size is None:
            size = await self._ask(timer, lambda: self._upstream.blob_head(repository, digest))
        return BlobAnswer(size, None, Served("miss", timer.seconds))

    # --- lists --------------------------------------------------------------------------------------------------

    async def listing(self, repository: Repository, path: str) -> ListAnswer:
        """The answer to a tags/list or referrers question; the last good one while upstream is away.

        Args:
            path: path and query, as upstream understands them.
        """
        timer = _Timer()
        key = f"{repository.registry}{path}"
        try:
            answer, joined = await self._ask(
                timer, lambda: self._lists.do(key, lambda: self._list_once(repository, path, key))
            )
        except (UpstreamError, CredentialRefused) as error:
            kept = await self._index.answer(key)
            if kept is None:
                raise
            age = max(0.0, self._clock().now() - kept.fetched_at)
            return ListAnswer(kept, Served("stale", timer.seconds, age_seconds=age, detail=_token(error)))
        return ListAnswer(answer, Served("collapsed" if joined else "miss", timer.seconds))

    async def _list_once(self, repository: Repository, path: str, key: str) -> Answer:
        found = await self._upstream.listing(repository, path)
        answer = Answer(found.body, found.content_type, found.link, found.filters_applied, self._clock().now())
        await self._index.put_answer(key, answer)
        return answer

    # --- asking upstream ----------------------------------------------------------------------------------------

    async def _ask(self, timer: _Timer, question: Callable[[], Awaitable[T]]) -> T:
        """Wait for upstream no longer than a client waits for its first byte."""
        seconds = self._policy.request_timeout_seconds
        try:
            with timer.running():
                async with asyncio.timeout(seconds):
                    return await question()
        except TimeoutError as error:
            raise UpstreamError(f"upstream did not answer within {seconds:g} s") from error

    async def _patiently(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask again when a rate limit passes soon: an error would send dockerd to Hub with the host's own address."""
        until = time.monotonic() + self._policy.rate_limit_wait_seconds
        while True:
            try:
                return await question()
            except RateLimited as error:
                if time.monotonic() + error.retry_in_seconds > until:
                    raise
                await asyncio.sleep(error.retry_in_seconds)


def _because(reason: str, answer: ManifestAnswer) -> ManifestAnswer:
    """*answer*; if it is a miss, for this reason."""
    if answer.served.result not in ("miss", "collapsed"):
        return answer
    return answer._replace(served=answer.served._replace(detail=reason))


def _token(error: RegistryCacheError) -> str:
    """A word for the ``detail`` of ``Cache-Status``: the kind of failure."""
    return type(error).__name__
