"""Clients that are sent to the bucket: the bytes of a large blob that is there, and not here, pass this replica by.

What they get there nobody verifies but they. So whoever comes back soon gets it from here: they may not reach the
bucket, or the object may be wrong, which a replica that reads it finds out.
"""

from collections.abc import Collection

from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.s3 import StoreTrouble
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.tier import Tier
from registry_cache.model.oci import Digest, Repository
from registry_cache.pull.answers import Place

VALID_SECONDS = 60
_COMES_BACK_SECONDS = 300


class Redirects:
    """An :class:`registry_cache.pull.answers.Elsewhere`.

    Args:
        least_bytes: smaller blobs are answered from here.
        forwarding: registries that decide for each client; nothing of them is elsewhere.
    """

    def __init__(
        self, tier: Tier, signer: Signer, *, least_bytes: int, forwarding: Collection[str], counts: Counts
    ) -> None:
        self._tier = tier
        self._signer = signer
        self._least_bytes = least_bytes
        self._forwarding = frozenset(forwarding)
        self._counts = counts

    async def has(self, repository: Repository, digest: Digest, size_bytes: int) -> bool:
        """See :class:`registry_cache.pull.answers.Elsewhere`."""
        if size_bytes < self._least_bytes or not self._may_be_there(repository):
            return False
        try:
            return bool(await self._tier.index.lend(digest, self._least_bytes))
        except RedisDown:
            return False

    async def place(self, repository: Repository, digest: Digest, client: str) -> Place | None:
        """See :class:`registry_cache.pull.answers.Elsewhere`."""
        if not self._may_be_there(repository):
            return None
        mark = self._signer.seal("redirect", client, payload=digest.encode())
        try:
            value = await self._tier.index.lend(digest, self._least_bytes, mark, _COMES_BACK_SECONDS)
            # Redis may claim too much, and the client could not go on elsewhere.
            size = await self._tier.size(digest, value) if value else None
            if size is None:
                return None
            url = self._tier.bucket.link(digest, seconds=VALID_SECONDS)
        except (RedisDown, StoreTrouble):
            return None
        self._counts.bucket_redirects += 1
        self._counts.bucket_redirects_bytes += size
        return Place(url, size)

    def _may_be_there(self, repository: Repository) -> bool:
        return self._tier.is_readable and repository.registry not in self._forwarding
