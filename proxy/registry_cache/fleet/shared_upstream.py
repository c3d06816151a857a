"""What is asked of upstream, once for all replicas: manifests, and what tags are.

It stands before one registry's :class:`registry_cache.upstream.client.Upstream`, and answers as that would have, to
the same account: what a replica learns here is proven in the repository whose name it was sealed under, and in no
other. Bytes are hashed before they count.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator

import msgspec

from registry_cache.fleet.bucket_manifests import BucketManifests
from registry_cache.fleet.moves import Moves
from registry_cache.fleet.questions import Question, Questions, Turn
from registry_cache.fleet.sealed import Sealed
from registry_cache.fleet.source import Proof
from registry_cache.fleet.spaces import Spaces
from registry_cache.fleet.wishes import Wishes
from registry_cache.model.errors import (
    CredentialRefused,
    DigestInvalid,
    ManifestUnknown,
    RegistryCacheError,
    UpstreamError,
)
from registry_cache.model.oci import MANIFEST_MAX_BYTES, Digest, Reference, Repository
from registry_cache.pull.answers import FetchedList, FetchedManifest, ManifestHead, Upstream
from registry_cache.pull.flight import BlobBody

_TAG_KEPT_SECONDS = 30 * 86_400
_MANIFEST_KEPT_SECONDS = 600
_TAG_MAX_BYTES = 1_000
_HEAD_MAX_BYTES = 500
_LIST_KEPT_SECONDS = 86_400
_LIST_MAX_BYTES = 1_000_000
_MARK = "-"


class Head(msgspec.Struct, frozen=True):
    """See :class:`registry_cache.pull.answers.ManifestHead`; kept in Redis but for the first and the last field."""

    digest: Digest
    media_type: str
    size_bytes: int
    age_seconds: float = 0.0


class Manifest(msgspec.Struct, frozen=True):
    """See :class:`registry_cache.pull.answers.FetchedManifest`."""

    body: bytes
    media_type: str
    digest: str | None = None
    age_seconds: float = 0.0


class List(msgspec.Struct, frozen=True):
    """See :class:`registry_cache.pull.answers.FetchedList`."""

    body: bytes
    content_type: str
    link: str | None
    filters_applied: str | None
    age_seconds: float = 0.0
    trouble: RegistryCacheError | None = None


class SharedUpstream:
    """See the module; a :class:`registry_cache.pull.answers.Upstream`.

    Args:
        manifests: those in the bucket, if there is one.
        proof: of what may be had from there.
        tag_ttl_seconds: how long a tag is what it was when any replica last asked.
        no_ttl_seconds: how long upstream's no is repeated.
    """

    def __init__(
        self,
        upstream: Upstream,
        questions: Questions,
        moves: Moves,
        wishes: Wishes,
        spaces: Spaces,
        manifests: BucketManifests | None = None,
        proof: Proof | None = None,
        *,
        tag_ttl_seconds: float,
        no_ttl_seconds: float,
    ) -> None:
        self._upstream = upstream
        self._questions = questions
        self._moves = moves
        self._wishes = wishes
        self._spaces = spaces
        self._manifests = manifests
        self._proof = proof
        self._tag_ttl_seconds = tag_ttl_seconds
        self._no_ttl_seconds = no_ttl_seconds

    def __repr__(self) -> str:
        return f"<SharedUpstream {self._upstream!r}>"

    # --- manifests ----------------------------------------------------------------------------------------------

    async def manifest_head(self, reference: Reference, **options: int) -> ManifestHead:
        """See :class:`registry_cache.pull.answers.Upstream`. By digest each replica asks: that is free."""
        if reference.digest is not None:
            return await self._upstream.manifest_head(reference, **options)
        async with self._questions.turn(self._tag(reference, "head")) as turn:
            known = _known_head(turn)
            if known is not None:
                return known
            found = await self._upstream.manifest_head(reference, **options)
            if found.digest is not None and found.size_bytes:
                self._say(turn, reference, found.digest, found.media_type, found.size_bytes, found.age_seconds)
            return found

    async def manifest(self, reference: Reference) -> FetchedManifest:
        """See :class:`registry_cache.pull.answers.Upstream`."""
        if reference.digest is not None:
            return await self._by_digest(reference, reference.digest)
        async with self._questions.turn(self._tag(reference, "get")) as turn:
            known = _known_head(turn)
            if known is not None:
                with contextlib.suppress(ManifestUnknown):  # moved, and deleted: upstream says what it is now
                    named = Reference(reference.repository, known.digest)
                    found = await self._by_digest(named, known.digest, is_proven=True)
                    return Manifest(found.body, found.media_type, known.digest, known.age_seconds)
            fetched = await self._upstream.manifest(reference)
            digest = Digest.of(fetched.body)
            if fetched.digest in (None, digest):
                if self._manifests is not None:
                    self._manifests.put(digest, fetched.body, fetched.media_type)
                if turn.asked_us:
                    one = self._manifest(Reference(reference.repository, digest))
                    turn.before = one, _packed(fetched, turn.asked_us)
                self._say(turn, reference, digest, fetched.media_type, len(fetched.body), fetched.age_seconds)
            return fetched

    async def _by_digest(self, reference: Reference, digest: Digest, *, is_proven: bool = False) -> FetchedManifest:
        question = self._manifest(reference)
        async with self._questions.turn(question) as turn:
            if turn.known is not None:
                media_type, end, body = turn.known.payload.partition(b"\n")
                if end and Digest.of(body, digest.algorithm) == digest:
                    return Manifest(body, media_type.decode(errors="replace"), digest)
            is_proven = is_proven or (self._proof is not None and self._proof.holds(reference.repository, digest))
            kept = None
            if self._manifests is not None and is_proven and not question.since_us:  # what was purged is asked for anew
                kept = await self._manifests.get(digest)
            fetched = await self._upstream.manifest(reference) if kept is None else Manifest(*kept, digest)
            if kept is None and self._manifests is not None and Digest.of(fetched.body, digest.algorithm) == digest:
                self._manifests.put(digest, fetched.body, fetched.media_type)
            if turn.asked_us and Digest.of(fetched.body, digest.algorithm) == digest:
                packed = _packed(fetched, turn.asked_us)
                turn.say(packed.mark, packed.payload)
            return fetched

    def _say(
        self, turn: Turn, reference: Reference, digest: Digest, media_type: str, size_bytes: int, age_seconds: float
    ) -> None:
        turn.say(digest, msgspec.json.encode([media_type, size_bytes]), age_seconds)
        if turn.said is not None:
            turn.announced = self._moves.announcement(reference, digest, turn.said.asked_us)

    def _tag(self, reference: Reference, how: str) -> Question:
        name = self._spaces.told_reference(reference)
        return Question(
            f"t:{name}",
            f"x:{how}:{name}",
            f"q:{name}",
            self._tag_ttl_seconds,
            _TAG_KEPT_SECONDS,
            _TAG_MAX_BYTES,
            self._no_ttl_seconds,
            self._wishes.since_us(reference.repository, tag=reference.target),
        )

    def _manifest(self, reference: Reference) -> Question:
        name = self._spaces.told_reference(reference)
        return Question(
            f"m:{name}",
            f"x:get:{name}",
            f"q:{name}",
            _MANIFEST_KEPT_SECONDS,
            _MANIFEST_KEPT_SECONDS,
            MANIFEST_MAX_BYTES + _HEAD_MAX_BYTES,
            self._no_ttl_seconds,
            self._wishes.since_us(reference.repository, digest=reference.digest),
        )

    # --- what each asks for itself --------------------------------------------------------------------------------

    async def blob_head(self, repository: Repository, digest: Digest) -> int | None:
        """See :class:`registry_cache.pull.answers.Upstream`."""
        return await self._upstream.blob_head(repository, digest)

    async def listing(self, repository: Repository, path: str) -> FetchedList:
        """See :class:`registry_cache.pull.answers.Upstream`; the last answer that any replica had, where it fails."""
        question = self._list(repository, path)
        try:
            async with self._questions.turn(question) as turn:
                known = _known_list(turn)
                if known is not None:
                    return known
                found = await self._upstream.listing(repository, path)
                head = msgspec.json.encode([found.content_type, found.link, found.filters_applied])
                turn.say(_MARK, head + b"\n" + found.body)
                return found
        except (UpstreamError, CredentialRefused) as error:
            turn = await self._questions.kept(question)
            kept = _known_list(turn)
            if kept is None or (turn.known is not None and turn.known.asked_us < question.since_us):
                raise
            return msgspec.structs.replace(kept, age_seconds=turn.age_seconds, trouble=error)

    def _list(self, repository: Repository, path: str) -> Question:
        name = hashlib.sha256(f"{self._spaces.told(repository).registry}{path}".encode()).hexdigest()
        return Question(
            f"a:{name}",
            f"x:{name}",
            f"q:{name}",
            0.0,
            _LIST_KEPT_SECONDS,
            _LIST_MAX_BYTES,
            self._no_ttl_seconds,
            self._wishes.since_us(repository),
        )

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """See :class:`registry_cache.pull.flight.BlobSource`: blobs have a source of their own."""
        async with self._upstream.blob(repository, digest, start=start, stop=stop) as body:
            yield body


def _known_head(turn: Turn) -> Head | None:
    """What a tag is, by what another replica has heard."""
    if turn.known is None:
        return None
    try:
        media_type, size_bytes = msgspec.json.decode(turn.known.payload, type=tuple[str, int])
        return Head(Digest.parse(turn.known.mark), media_type, size_bytes, turn.age_seconds)
    except (msgspec.MsgspecError, UnicodeDecodeError, DigestInvalid):  # sealed by a replica of another version
        return None


def _known_list(turn: Turn) -> List | None:
    if turn.known is None:
        return None
    head, _, body = turn.known.payload.partition(b"\n")
    try:
        return List(body, *msgspec.json.decode(head, type=tuple[str, str | None, str | None]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _packed(fetched: FetchedManifest, asked_us: int) -> Sealed:
    return Sealed(asked_us, _MARK, f"{fetched.media_type}\n".encode() + fetched.body)
