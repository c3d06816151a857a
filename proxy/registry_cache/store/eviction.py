"""Room is made: first what serves nobody, then blobs, the least recently used first.

Whoever needs room gets each byte at the moment it is free, so that nobody takes what was made for another. It gives up
only when nothing is left that could go.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Literal, NamedTuple

from registry_cache.model import events
from registry_cache.model.errors import NoSpace
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import Entry, Tally
from registry_cache.runtime.threads import finish
from registry_cache.store.files import DiskSpace
from registry_cache.store.quarantine import Quarantine
from registry_cache.store.reading import Reading
from registry_cache.store.removal import REMOVED_AT_ONCE, Removal
from registry_cache.store.room import Room, Share
from registry_cache.store.shared import Shared

_PAGE = 100  # what the event loop does for each of them takes the time of a hit or two
# How long a transfer waits for another one that was refused to give its room back.
_LEAVING_SECONDS = 10.0


class Lack(NamedTuple):
    """What is missing; nothing where it is not positive."""

    cap_bytes: int
    disk_bytes: int
    disk_files: int

    @property
    def is_none(self) -> bool:
        """All is there."""
        return max(self) <= 0


def lack(room: Room, space: DiskSpace | None, more_bytes: int) -> Lack:
    """What *more_bytes* lack, beside what others have been promised and what stays free."""
    over_cap = more_bytes - room.spare_bytes
    if space is None:
        return Lack(over_cap, 0, 0)  # the write itself will tell
    over_disk = more_bytes + room.unwritten_bytes + space.min_free_bytes - space.free_bytes
    return Lack(over_cap, over_disk, space.min_free_files - space.free_files)


class Evictor:
    """See the module."""

    def __init__(self, shared: Shared, reading: Reading, removal: Removal, quarantine: Quarantine) -> None:
        self._layout = shared.layout
        self._files = shared.files
        self._index = shared.index
        self._room = shared.room
        self._rows = shared.rows
        self._reading = reading
        self._removal = removal
        self._quarantine = quarantine
        self._locks = shared.locks
        self._events = shared.events
        self._turn = asyncio.Lock()  # room is made for one after the other, in the order of asking
        self._evictions = 0
        self._left = asyncio.Event()  # a transfer has given room back

    def left(self) -> None:
        """A transfer has given room back."""
        self._left.set()

    def lacks(self, share: Share | None, size_bytes: int) -> Lack:
        """What *share* lacks to grow to *size_bytes*."""
        more_bytes = max(0, size_bytes - share.promised_bytes) if share is not None else 0
        return lack(self._room, self._files.space(), more_bytes)

    async def relieve(self) -> None:
        """Make as much room as the cap and MIN_FREE ask for, whoever needs none."""
        if not self.lacks(None, 0).is_none:
            async with self._turn:
                await finish(self._evict(None, 0))

    async def make_room(self, share: Share, size_bytes: int) -> None:
        """Promise *share* room to grow to *size_bytes*.

        Raises:
            NoSpace: nothing is left that could go.
        """
        if self.lacks(share, size_bytes).is_none and self._room.grow(share, size_bytes):
            return  # at once: no miss waits for others
        async with self._turn:
            await finish(self._make_room(share, size_bytes))

    async def _make_room(self, share: Share, size_bytes: int) -> None:
        before_bytes = share.promised_bytes
        while True:
            self._left.clear()
            before = self._evictions
            missing = await self._evict(share, size_bytes)
            if missing.is_none:
                return
            if missing.cap_bytes <= 0:
                break
            # Until a whole round finds nothing: what was read or published during the last one may go now.
            if self._evictions == before and not await self._somebody_leaves(share):
                break
        share.is_leaving = True
        self._room.shrink(share, before_bytes)
        if missing.cap_bytes > 0:
            raise NoSpace("the cap is used up by pinned blobs, open readers and other transfers")
        raise NoSpace("the filesystem has no free space to spare (MIN_FREE)")

    async def _somebody_leaves(self, share: Share) -> bool:
        """Whether another transfer that was refused gives its room back."""
        if not any(other.is_leaving for other in self._room.active if other is not share):
            return False
        try:
            async with asyncio.timeout(_LEAVING_SECONDS):
                await self._left.wait()
        except TimeoutError:
            return False
        return True

    async def _evict(self, share: Share | None, size_bytes: int) -> Lack:
        """Make room as far as it can be made; what is missing then."""
        missing = self._take(share, size_bytes)
        if missing.is_none:
            return missing
        # The disk is asked once: it may be slow to give back what was removed, and that is no reason to remove more.
        freed, reason = Tally(), "cap" if missing.cap_bytes >= missing.disk_bytes else "min_free"
        async with aclosing(self._removed(lambda: self._still_needed(missing, freed, share, size_bytes))) as removed:
            async for gone in removed:
                freed = freed.plus(gone)
                self._take(share, size_bytes)
        if freed.objects:
            self._evictions += 1
            kind: Literal["cap", "min_free"] = "cap" if reason == "cap" else "min_free"
            self._events.emit(events.Evicted(objects=freed.objects, size_bytes=freed.size_bytes, reason=kind))
        return self._take(share, size_bytes)

    def _take(self, share: Share | None, size_bytes: int) -> Lack:
        """Give *share* what is free under the cap; what it still lacks."""
        if share is not None:
            self._room.grow(share, size_bytes)
        return self.lacks(share, size_bytes)

    def _still_needed(self, missing: Lack, freed: Tally, share: Share | None, size_bytes: int) -> int:
        """How many bytes have yet to go, by what was counted; 1 for a file of any size."""
        over_cap = self.lacks(share, size_bytes).cap_bytes
        need = max(over_cap, missing.disk_bytes - freed.size_bytes)
        return max(need, 0) or int(missing.disk_files > freed.objects)

    async def _removed(self, need: Callable[[], int]) -> AsyncGenerator[Tally, None]:
        """Remove what may go, a little at a time, for as long as there is a need; what each step gave back."""
        if need():
            size_bytes = await self._quarantine.drop()
            if size_bytes:
                yield Tally(size_bytes)
        for digest in self._room.idle:
            if not need():
                return
            if self._room.is_idle(digest) and not self._locks.is_busy(digest):
                async with self._locks.hold([digest]):
                    yield await self._drop_partial(digest)
        few: list[Entry] = []
        async with aclosing(self._least_recently_used()) as entries:
            while need():
                few = await self._next_few(entries, need())
                if not few:
                    return
                digests = [entry.digest for entry in few]
                async with self._locks.hold(digests):
                    yield await self._removal.remove(digests)

    async def _drop_partial(self, digest: Digest) -> Tally:
        try:
            await self._files.remove([self._layout.partial(digest)])
        except OSError as error:
            self._events.emit(events.StorageFailed(operation="remove", reason=str(error)))
            return Tally()
        return Tally(self._room.drop(digest), 1)

    async def _next_few(self, entries: AsyncIterator[Entry], need_bytes: int) -> list[Entry]:
        """The next victims; none of them is anybody's at this moment."""
        few: list[Entry] = []
        while len(few) < REMOVED_AT_ONCE and sum(entry.size_bytes for entry in few) < need_bytes:
            entry = await anext(entries, None)
            if entry is None:
                break
            few.append(entry)
        return [entry for entry in few if not self._is_held(entry.digest)] or (
            await self._next_few(entries, need_bytes) if few else []
        )

    def _is_held(self, digest: Digest) -> bool:
        return (
            self._reading.is_read(digest)
            or self._locks.is_busy(digest)
            or self._rows.is_going(digest)
            or digest in self._index.wanted
        )

    async def _least_recently_used(self) -> AsyncGenerator[Entry, None]:
        """Unpinned rows in the order of use, also of use that is not written down yet: no write is waited for."""
        after: Entry | None = None
        used: list[tuple[float, Digest, int]] = []
        while page := await self._index.oldest(_PAGE, after):
            after = page[-1]
            for entry in page:
                at = self._index.used_at(entry.digest)
                if at is not None and at > entry.last_use:
                    heapq.heappush(used, (at, entry.digest, entry.size_bytes))
                    continue
                while used and used[0][0] <= entry.last_use:
                    yield _entry(*heapq.heappop(used))
                yield entry
        while used:
            yield _entry(*heapq.heappop(used))

    async def next_victims(self, limit: int) -> list[Entry]:
        """What would be evicted first if room were needed now."""
        found: list[Entry] = []
        async with aclosing(self._least_recently_used()) as entries:
            async for entry in entries:
                if not self._is_held(entry.digest):
                    found.append(entry)
                if len(found) == limit:
                    break
        return found


def _entry(last_use: float, digest: Digest, size_bytes: int) -> Entry:
    return Entry(digest, size_bytes, last_use)
