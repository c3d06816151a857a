"""Room in the bucket: one replica at a time deletes what has not been used for the longest, fleet-wide.

What is condemned stays so until the store has confirmed that it is deleted: who comes after an evictor that died goes
on with it. A reader of an object that is deleted gets the rest of it from the store, or goes on elsewhere.
"""

import asyncio

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.s3 import StoreTrouble
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.runtime.background import Background

_ROUND_SECONDS = 5.0
_FULL = 0.95
# So much of the cap may stay when room is made: what is larger than the rest never comes in again.
ENOUGH = 0.9
_AT_A_TIME = 8


class Evictor:
    """See the module.

    Args:
        cap_bytes: of the bucket.
    """

    def __init__(self, bucket: Bucket, index: TierIndex, *, cap_bytes: int, counts: Counts, bus: Events) -> None:
        self._bucket = bucket
        self._index = index
        self._cap_bytes = cap_bytes
        self._counts = counts
        self._events = bus
        self._rounds = Background("eviction of the bucket", self._round, interval_seconds=_ROUND_SECONDS, events=bus)

    def start(self) -> None:
        """Keep to the cap from now on."""
        self._rounds.start()

    async def aclose(self) -> None:
        """Let another one do it."""
        await self._rounds.aclose()

    async def _round(self) -> None:
        try:
            while await self.evict():
                pass
        except RedisDown:
            return

    async def evict(self) -> bool:
        """Delete some, if it is this replica's turn and the bucket is too full; whether there may be more to delete.

        Raises:
            RedisDown: nobody knows what is there.
        """
        turn = await self._index.turn("evict")
        is_full = turn.size_bytes > _FULL * self._cap_bytes
        if not turn.is_mine or not (is_full or turn.going) or not self._bucket.deleting.may_try:
            return False
        doomed = await self._index.condemn(int(ENOUGH * self._cap_bytes) if is_full else turn.size_bytes)
        slots = asyncio.Semaphore(_AT_A_TIME)
        failed = await asyncio.gather(*(self._delete(digest, slots) for digest in doomed))
        gone = [digest for digest, error in zip(doomed, failed, strict=True) if error is None]
        if not gone:
            if lasting := [error for error in failed if error is not None and error.is_lasting]:
                self._bucket.deleting.failed(lasting[0])  # it is of none of these alone
            return False
        freed = await self._index.gone(gone)
        self._counts.evicted += len(gone)
        self._counts.evicted_bytes += freed
        self._events.emit(events.FleetEvicted(blobs=len(gone), bytes=freed))
        return len(gone) == len(doomed)

    async def _delete(self, digest: Digest, slots: asyncio.Semaphore) -> StoreTrouble | None:
        """Why it is there still."""
        async with slots:
            if not self._bucket.deleting.may_try:  # one of these has found out
                return StoreTrouble(self._bucket.deleting.trouble)
            try:
                await self._bucket.delete(digest)
            except StoreTrouble as error:
                return error
            return None
