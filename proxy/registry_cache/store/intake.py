"""What comes in: transfers and imports, from the promise of room to the file in its place and its row."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from registry_cache.model import events
from registry_cache.model.errors import IndexRefused, NoSpace
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import BlobEntry, Tally
from registry_cache.runtime.threads import finish
from registry_cache.store.condition import Condition
from registry_cache.store.eviction import Evictor, lack
from registry_cache.store.partial import DiskPartial, refused
from registry_cache.store.row_writer import tally
from registry_cache.store.shared import Shared


class Intake:
    """See the module."""

    def __init__(self, shared: Shared, evictor: Evictor, condition: Condition, *, step_bytes: int) -> None:
        self._layout = shared.layout
        self._files = shared.files
        self._index = shared.index
        self._room = shared.room
        self._rows = shared.rows
        self._locks = shared.locks
        self._evictor = evictor
        self._condition = condition
        self._events = shared.events
        self._step_bytes = step_bytes
        self._under_way: dict[Digest, bool] = {}  # and whether the operator has purged it since

    @property
    def under_way(self) -> int:
        """How many ingests are."""
        return len(self._under_way)

    def is_under_way(self, digest: Digest) -> bool:
        """Whether *digest* is being written."""
        return digest in self._under_way

    def purged(self, digests: Iterable[Digest]) -> None:
        """What is on its way in of these is not stored: it was asked for before the operator purged it."""
        for digest in digests:
            if digest in self._under_way:
                self._under_way[digest] = True

    @contextlib.asynccontextmanager
    async def ingest(self, digest: Digest) -> AsyncIterator[DiskPartial]:
        """See :class:`registry_cache.ports.blobs.BlobStore`.

        Raises:
            NoSpace: it is being written already, or the disk does not give what it took. What it does not take is
                found by the partial's first expect() or append().
        """
        if digest in self._under_way:
            raise NoSpace(f"{digest} is being written already")
        self._under_way[digest] = False
        try:
            async with self._locks.hold([digest]):  # what was left of it may just be on its way out
                is_left = self._room.is_idle(digest)
                partial = self._partial(digest)
            try:
                await self._begin(partial, is_left=is_left)
                yield partial
            finally:
                await finish(self._leave(partial))
        finally:
            del self._under_way[digest]

    def _partial(self, digest: Digest) -> DiskPartial:
        return DiskPartial(
            Path(self._layout.partial(digest)),
            files=self._files,
            share=self._room.begin(digest),
            step_bytes=self._step_bytes,
            admit=self._admit,
            reserve=self._reserve,
            publish=self._publish,
            discard=self._discard,
        )

    async def _begin(self, partial: DiskPartial, *, is_left: bool) -> None:
        if not (is_left and await partial.take_up()):
            partial.open_soon()

    async def _leave(self, partial: DiskPartial) -> None:
        """Keep what has arrived for the next ingest, and no more room than it takes."""
        await partial.settle()
        if not partial.ended:
            if partial.share.written_bytes:
                self._room.leave(partial.share)
            else:
                await self._discard(partial)
        self._evictor.left()

    async def _admit(self, partial: DiskPartial, size_bytes: int) -> None:
        """Raise NoSpace if *size_bytes* can never be stored: nothing is evicted for what does not fit all the same."""
        await self._condition.ready()
        room, more_bytes = self._room, size_bytes - partial.share.promised_bytes
        if size_bytes > room.cap_bytes:
            raise NoSpace(f"{size_bytes} bytes are more than the cap of {room.cap_bytes}")
        if lack(room, self._files.space(), more_bytes).disk_bytes > room.stored.size_bytes + room.droppable_bytes:
            raise NoSpace("the filesystem is too full, even with nothing cached on it (MIN_FREE)")
        if more_bytes > room.spare_bytes:
            pinned_bytes = (await self._index.pin_summary(0)).size_bytes
            if size_bytes > room.cap_bytes - pinned_bytes:
                raise NoSpace(f"{size_bytes} bytes do not fit beside the {pinned_bytes} that are pinned")

    async def _reserve(self, partial: DiskPartial, size_bytes: int) -> None:
        """Promise *partial* room to grow to *size_bytes*, evicting what has to go."""
        await self._condition.ready()
        if size_bytes > self._room.cap_bytes:
            raise NoSpace(f"{size_bytes} bytes are more than the cap of {self._room.cap_bytes}")
        await self._evictor.make_room(partial.share, size_bytes)

    async def _publish(self, partial: DiskPartial, media_type: str | None) -> None:
        # Used when its last byte came, not when a slow disk has it: order of use is the order of requests.
        now = self._index.clock.now()
        entry = BlobEntry(partial.digest, partial.offset, media_type, now, verified_at=now)
        try:
            await self._files.sync(partial.fd)
            await finish(self._make_blob(partial, entry))
        except (OSError, IndexRefused, NoSpace) as error:
            self._condition.tell()
            await self._discard(partial)
            if isinstance(error, OSError):
                raise refused(error) from error
            raise NoSpace(str(error)) from error
        self._events.emit(events.BlobStored(digest=partial.digest, size_bytes=partial.offset))

    async def _make_blob(self, partial: DiskPartial, entry: BlobEntry) -> None:
        async with self._locks.hold([entry.digest]):
            if self._under_way[entry.digest]:
                raise NoSpace("it was purged while it came")
            target = self._layout.blob(entry.digest)
            came = await self._place(entry, lambda: self._files.place(str(partial.path), target))
            partial.ended = True
            self._room.publish(partial.share, came)
            self._rows.placed(entry.digest)
        self._index.placed(entry)

    async def adopt(self, entry: BlobEntry, place: Callable[[Path], None]) -> None:
        """Take in content that was verified where it is; nothing is evicted for it.

        Args:
            place: puts the file at the path that it is given, as it is meant to stay: nothing here ever writes to it.

        Raises:
            NoSpace: not without evicting something.
            OSError: *place* cannot do it.
        """
        await self._condition.counted()
        if entry.size_bytes > self._spare_bytes(on_disk=False):
            raise NoSpace("there is no room under the cap, or the filesystem is too full (MIN_FREE)")
        await finish(self._adopt(entry, functools.partial(place, Path(self._layout.blob(entry.digest)))))

    async def _adopt(self, entry: BlobEntry, place: Callable[[], None]) -> None:
        self._room.promise(entry.size_bytes)
        try:
            async with self._locks.hold([entry.digest]):
                came = await self._place(entry, lambda: self._files.put(self._layout.blob(entry.digest), place))
                self._room.store(came)
                self._rows.placed(entry.digest)
        except IndexRefused as error:
            raise NoSpace(str(error)) from error
        finally:
            self._room.promise(-entry.size_bytes)
        self._index.placed(entry)

    async def _place(self, entry: BlobEntry, place: Callable[[], Awaitable[None]]) -> Tally:
        """The row, then the file: dying in between, the index claims too much, never too little. Under the lock.

        Returns:
            What that adds to blobs/, for the caller to count, who then says that the row is placed.

        Raises:
            IndexRefused: there is neither.
            OSError: there is no file; its row goes again, unless it is that of an older file.
        """
        came = await self._rows.add(entry)
        try:
            await place()
        except OSError:
            is_here = await self.is_here(entry.digest)
            self._rows.placed(entry.digest)  # and no sooner: meanwhile the row would count as a file
            if is_here:
                self._room.store(came)
            else:
                row = tally(entry.size_bytes, entry.media_type)
                self._room.remove(row.minus(came))  # an older file, which was counted, went
                self._rows.forget({entry.digest: row})
            raise
        return came

    async def is_here(self, digest: Digest) -> bool:
        """Whether there is a file for *digest*; where the disk does not say, there may be."""
        try:
            return await self._files.identify(self._layout.blob(digest)) is not None
        except OSError as error:
            await self._index.raise_doubt(f"{digest}: {error.strerror}")
            return True  # nobody knows: to count too much does no harm

    async def _discard(self, partial: DiskPartial) -> None:
        partial.ended = True
        await finish(self._remove_partial(partial))

    async def _remove_partial(self, partial: DiskPartial) -> None:
        try:
            await self._files.remove([str(partial.path)])
        except OSError as error:
            self._events.emit(events.StorageFailed(operation="remove", reason=str(error)))
            self._room.leave(partial.share)  # what is there counts
        else:
            self._room.discard(partial.share)
        self._evictor.left()

    async def spare_bytes(self, *, on_disk: bool) -> int:
        """How many bytes may come in without anything having to go, once what is here has been counted.

        Args:
            on_disk: they are to be written; else they are on the disk already, and take nothing of it.
        """
        await self._condition.counted()
        return self._spare_bytes(on_disk=on_disk)

    def _spare_bytes(self, *, on_disk: bool) -> int:
        missing = lack(self._room, self._files.space(), 0)
        spare, on_filesystem = -missing.cap_bytes, -missing.disk_bytes
        if self._files.space() is not None and (on_disk or on_filesystem < 0):
            spare = min(spare, on_filesystem)
        return max(0, spare)
