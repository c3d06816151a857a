"""The index made to agree with the bucket: objects that it does not have are adopted, entries without one forgotten.

Every week, and as soon as Redis has lost what it knew. Until then an object that the index does not have may be there
all the same, and the bucket is asked before upstream.
"""

from array import array
from bisect import bisect_left

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.s3 import StoreTrouble
from registry_cache.fleet.tier_index import TierIndex, raw
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.runtime.background import Background

_EVERY_SECONDS = 7 * 86_400.0
# How often each replica looks whether it is due. That is one question to Redis.
_LOOK_SECONDS = 10.0


class Seen:
    """Which digests have been seen, at 8 bytes each: a million of them are 8 MB. It may take one for another."""

    def __init__(self) -> None:
        self._known = array("Q")
        self._is_sorted = True

    def __len__(self) -> int:
        return len(self._known)

    def add(self, digest: Digest) -> None:
        """It is there."""
        number = self._number(digest)
        if self._known and number < self._known[-1]:  # a store lists in order, within an algorithm
            self._is_sorted = False
        self._known.append(number)

    def __contains__(self, digest: Digest) -> bool:
        if not self._is_sorted:
            self._known, self._is_sorted = array("Q", sorted(self._known)), True
        number = self._number(digest)
        place = bisect_left(self._known, number)
        return place < len(self._known) and self._known[place] == number

    @staticmethod
    def _number(digest: Digest) -> int:
        return int.from_bytes(raw(digest)[:8], "big")


class Sweeper:
    """See the module."""

    def __init__(self, bucket: Bucket, index: TierIndex, *, bus: Events) -> None:
        self._bucket = bucket
        self._index = index
        self._events = bus
        self._rounds = Background("sweep of the bucket", self._round, interval_seconds=_LOOK_SECONDS, events=bus)

    def start(self) -> None:
        """Look whether a sweep is due, from now on."""
        self._rounds.start()

    async def aclose(self) -> None:
        """A sweep that is under way is begun anew by another one."""
        await self._rounds.aclose()

    def wake(self) -> None:
        """Something is in the bucket of which the index does not know."""
        self._rounds.wake()

    async def _round(self) -> None:
        try:
            await self.sweep()
        except (RedisDown, StoreTrouble):
            return  # each has been told, and is tried again

    async def sweep(self) -> None:
        """If one is due, and no other replica does it.

        Raises:
            RedisDown, StoreTrouble: it could not be done.
        """
        if self._bucket.reading.trouble:
            return
        turn = await self._index.turn("sweep")
        if not turn.is_mine:
            return
        if not 0 <= turn.now - turn.complete_at < _EVERY_SECONDS:
            count = await self._index.recount()
            seen, adopted = await self._adopt_all()
            forgotten = await self._forget_all(seen)
            if await self._index.complete(count):
                self._events.emit(events.FleetSwept(objects=len(seen), adopted=adopted, forgotten=forgotten))
        await self._index.turn_over("sweep")

    async def _adopt_all(self) -> tuple[Seen, int]:
        seen, adopted, after = Seen(), 0, ""
        while True:
            listed, after = await self._bucket.page(after)
            found = [(self._bucket.digest(one.key), one) for one in listed]
            blobs = [(digest, one.size_bytes, one.modified_at) for digest, one in found if digest is not None]
            for digest, *_ in blobs:
                seen.add(digest)
            adopted += await self._index.shared(blobs)
            if not after:
                return seen, adopted
            await self._index.turn("sweep")

    async def _forget_all(self, seen: Seen) -> int:
        """What has come into the index since the count began may be in the bucket unseen: it is not among these."""
        cursor, count = 0, 0
        while True:
            cursor, entries = await self._index.scan(cursor)
            count += await self._index.forget([one for one in entries if one[0] not in seen])
            if not cursor:
                return count
            await self._index.turn("sweep")
