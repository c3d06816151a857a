"""Where a flight of a fleet gets its bytes: from the bucket, from upstream if it leads, else from who does.

Each GET is one decision. When a peer breaks or falls silent the flight asks again from where it stands, and that is the
take-over: who does not answer a HEAD either is passed over, and whoever claims first goes on with upstream.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import aiohttp

from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import LOOK, Claim, Leases, RedisDown
from registry_cache.fleet.peers import SILENCE_SECONDS, PeerGone, PeerRefuses, PeerReply, Peers, PeerSilent
from registry_cache.fleet.s3 import StoreTrouble
from registry_cache.fleet.tier import Tier, TierBody
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import BlobUnknown, PeerLost
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.blobs import Origin, Piece
from registry_cache.pull.flight import BlobBody, BlobSource
from registry_cache.runtime.threads import finish

# So many peers in a row that do not have what they should, and the replica goes to upstream by itself.
_PEERS_MAX = 4
# A peer that lives, but whose answers break at once, so often: it is as good as dead.
_FRUITLESS_MAX = 3


class Proof(Protocol):
    """What is needed of :class:`registry_cache.catalog.proof.Proof`."""

    def holds(self, repository: Repository, digest: Digest) -> bool:
        """Whether it is known in memory that *digest* is proven in *repository*."""

    async def missing(self, repository: Repository, digest: Digest) -> bool:
        """Whether upstream has to be asked before *digest* is served under *repository*."""


class Trail:
    """What a flight knows of whom it has followed."""

    def __init__(self) -> None:
        self.suspect: Claim | None = None  # it broke or fell silent, and has to be looked at
        self.direct = False  # not by way of another follower: that way broke
        self.fruitless = 0
        self.position = 0  # so far peers have brought it
        self.believed = ""  # who did
        self.is_past_bucket = False  # it has not brought what it should
        self.of_bucket: str | None = None  # what the index has of it, where all bytes so far are the bucket's
        self.is_shared = False  # it is in the bucket, or whoever leads brings it there


class PeerBody:
    """See :class:`registry_cache.pull.flight.BlobBody`: what another replica sends, as it gets it."""

    def __init__(self, reply: PeerReply, claim: Claim, trail: Trail, received: Callable[[int], None]) -> None:
        self.start = reply.start
        self.total_bytes: int | None = reply.total_bytes
        self.origin: Origin = "replica"
        self._left = reply.total_bytes - reply.start
        self._reply = reply
        self._claim = claim
        self._trail = trail
        self._received = received
        self._began = asyncio.get_running_loop().time()

    async def read(self) -> Piece:
        """See :class:`registry_cache.pull.flight.BlobBody`.

        Raises:
            PeerLost: it sends no more, for whatever reason.
        """
        if not self._left:
            return b""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                piece = await self._reply.response.content.readany()
        except TimeoutError as error:
            raise self._lost("it fell silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._lost(f"it broke: {error}") from error
        if not piece or len(piece) > self._left:
            raise self._lost("it ended early" if not piece else "it sends more than it said")
        self._left -= len(piece)
        self._received(len(piece))
        self._trail.fruitless = 0
        self._trail.position = (self.total_bytes or 0) - self._left
        self._trail.believed = self._claim.value
        return piece

    async def drain(self, take: Callable[[Piece], None]) -> None:
        """See :class:`registry_cache.pull.flight.BlobBody`."""
        while piece := await self.read():
            await finish(asyncio.to_thread(take, piece))  # it uses a file, which is closed after us

    def _lost(self, what: str) -> PeerLost:
        self._trail.suspect = self._claim
        self._trail.direct = self._reply.was_redirected
        if asyncio.get_running_loop().time() - self._began < SILENCE_SECONDS:
            self._trail.fruitless += 1
        return PeerLost(f"the replica at {self._claim.address}: {what}")

    def close(self) -> None:
        """Keep the connection if all of it has come."""
        if self._left:
            self._reply.response.close()
        else:
            self._reply.response.release()


class FleetSource:
    """A :class:`registry_cache.pull.flight.BlobSource` in front of upstream's.

    Args:
        confirm: asks upstream whether a repository has a blob; raises its no.
        trails: of all registries together, by digest.
        tier: the bucket, if there is one.
    """

    def __init__(
        self,
        source: BlobSource,
        leases: Leases,
        peers: Peers,
        *,
        confirm: Callable[[Repository, Digest], Awaitable[object]],
        proof: Proof,
        trails: dict[Digest, Trail],
        tier: Tier | None,
        counts: Counts,
        events: Events,
    ) -> None:
        self._source = source
        self._leases = leases
        self._peers = peers
        self._confirm = confirm
        self._proof = proof
        self._trails = trails
        self._tier = tier
        self._counts = counts
        self._events = events

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """See :class:`registry_cache.pull.flight.BlobSource`.

        Raises:
            BlobUnknown: upstream has just said so to another replica.
        """
        body: PeerBody | TierBody | None = None
        trail = self._trails.setdefault(digest, Trail())
        if stop is None and start < trail.position and trail.of_bucket is not None and self._tier is not None:
            self._tier.rotten(digest, trail.of_bucket, "its bytes are not those of its digest")
            trail.is_past_bucket = True
        if stop is None:
            trail.of_bucket, trail.is_shared = None, False
        if stop is None and not self._leases.holds(digest):
            if start >= trail.position:
                body = await self._followed(trail, repository, digest, start)
            else:  # who begins anew was brought something wrong, perhaps by a peer: upstream alone is believed
                with contextlib.suppress(RedisDown):
                    await self._leases.claim(repository, digest, trail.believed)
        if body is None:
            try:
                async with self._source.blob(repository, digest, start=start, stop=stop) as own:
                    yield own
            except asyncio.CancelledError:  # its slot is wanted, and it may wait long for the next one: others need not
                self._leases.release(digest)
                raise
            return
        try:
            yield body
        finally:
            body.close()

    async def _followed(
        self, trail: Trail, repository: Repository, digest: Digest, start: int
    ) -> PeerBody | TierBody | None:
        """The body from the bucket or a peer; None if upstream is to be asked."""
        lost, gone = await self._lost(trail, repository, digest), 0
        while gone < _PEERS_MAX:
            claim = await self._claim(trail, repository, digest, start, lost)
            if claim is None:
                break
            if isinstance(claim, TierBody):
                return claim
            if claim.what == "failed":
                raise BlobUnknown(claim.value)
            if claim.what == "yours":
                self._leads(digest, lost, start)
                return None
            try:
                return await self._follow(trail, claim, repository, digest, start)
            except (PeerGone, PeerRefuses) as error:
                if isinstance(error, PeerRefuses):  # another one may be where it was: no reason for all to go alone
                    self._counts.warn(str(error), self._events)
                lost, gone = claim.value, gone + 1
            except PeerSilent:  # upstream may be slow, which is no fault of the peer's: we wait with it
                trail.suspect = claim
                lost = await self._lost(trail, repository, digest)
                gone += bool(lost)
        self._counts.alone += 1
        return None

    async def _claim(
        self, trail: Trail, repository: Repository, digest: Digest, start: int, lost: str
    ) -> Claim | TierBody | None:
        """Who fetches it or has it; its body, if that is the bucket; None if nobody can tell."""
        while True:
            may_be_shared = self._tier is not None and self._tier.is_readable and not trail.is_past_bucket
            claim = None
            with contextlib.suppress(RedisDown):
                claim = await self._leases.claim(repository, digest, lost, may_be_shared=may_be_shared)
            is_known = claim is not None and claim.what == "stored"
            if may_be_shared and (claim is None or is_known or claim.value == LOOK):
                value = claim.value if claim is not None and is_known else ""
                body = await self._from_bucket(trail, value, repository, digest, start)
                if body is not None:
                    return body
            if not is_known:
                return claim

    def _leads(self, digest: Digest, lost: str, start: int) -> None:
        self._counts.led += 1
        if lost:
            self._counts.takeovers += 1
            peer = lost.rpartition("|")[2]
            self._events.emit(events.FleetTakeover(digest=digest, offset=start, peer=peer))

    async def _follow(self, trail: Trail, claim: Claim, repository: Repository, digest: Digest, start: int) -> PeerBody:
        """The body from who leads or has it.

        Raises:
            PeerGone, PeerSilent, PeerRefuses: as :meth:`.peers.Peers.get`.
        """
        reply = await self._peers.get(claim.address, repository, digest, start=start, direct=trail.direct)
        try:
            # What one replica may hand out under this name is proven for this one only if upstream has said so.
            if not reply.is_proven and await self._proof.missing(repository, digest):
                await self._confirm(repository, digest)
        except BaseException:
            reply.response.close()
            raise
        trail.is_shared = claim.what == "lead"
        self._counts.followed += 1
        return PeerBody(reply, claim, trail, self._counts.received)

    async def _from_bucket(
        self, trail: Trail, value: str, repository: Repository, digest: Digest, start: int
    ) -> TierBody | None:
        """The body from the bucket; None if that does not bring it, and in this flight it is not asked again."""
        reply = await self._tier.get(digest, start, value) if self._tier is not None else None
        if reply is None:
            trail.is_past_bucket = True
            return None
        try:
            # It is in nobody's name there.
            if await self._proof.missing(repository, digest):
                await self._confirm(repository, digest)
        except BaseException:
            reply.reply.close()
            raise
        trail.of_bucket, trail.is_shared = None if reply.start or start else value, True
        self._counts.from_bucket += 1

        def moved(position: int, count: int) -> None:
            trail.position, trail.believed = position, ""
            self._counts.bucket_bytes += count

        def lost(is_silent: bool) -> None:
            trail.is_past_bucket, trail.of_bucket = True, None
            if is_silent and self._tier is not None:
                self._tier.bucket.reading.failed(StoreTrouble("it fell silent"))

        return TierBody(reply, moved=moved, lost=lost)

    async def _lost(self, trail: Trail, repository: Repository, digest: Digest) -> str:
        """The lease of the peer that the flight has followed, if that one is not alive any more."""
        suspect, trail.suspect = trail.suspect, None
        if suspect is None:
            return ""
        if trail.fruitless < _FRUITLESS_MAX and await self._peers.lives(suspect.address, repository, digest):
            return ""
        return suspect.value
