"""Verified content by digest, within a byte cap: the parts of the store put together.

What is where is in ``layout.py``. Who has how many bytes is in ``room.py``, changed on the event loop under no await.
Files are changed by threads (``files.py``), each digest's by one at a time (``locks.py``); its row is written before
the file comes and deleted after it went (``row_writer.py``).
"""

import asyncio
import contextlib
import errno
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path

from registry_cache.model import events
from registry_cache.model.contents import Parts
from registry_cache.model.errors import DigestInvalid, IndexRefused, NoSpace, StoreError
from registry_cache.model.oci import MANIFEST_MAX_BYTES, Digest
from registry_cache.ports.storage import BlobEntry, Entry, Index, StoreTotals, Tally
from registry_cache.runtime.background import Background
from registry_cache.runtime.threads import finish
from registry_cache.store.eviction import Evictor, lack
from registry_cache.store.files import DiskFiles, DiskSpace, Files, Inode, parts_of
from registry_cache.store.layout import FOLDERS, Layout
from registry_cache.store.locks import Locks
from registry_cache.store.partial import STEP_BYTES, DiskPartial, refused
from registry_cache.store.quarantine import Quarantine
from registry_cache.store.reading import DiskBlob, Reading, Rot
from registry_cache.store.reconciliation import Reconciler
from registry_cache.store.removal import Removal
from registry_cache.store.room import Room
from registry_cache.store.row_writer import RowWriter, tally

_PURGE_PAGE = 100  # transfers that end meanwhile need not wait for the whole of a large purge
_MAINTENANCE_SECONDS = 5.0
# How long a transfer waits for the count after a crash before it goes to the client unstored.
_KNOWN_SECONDS = 10.0


class DiskStore:
    """See the module and :class:`registry_cache.ports.storage.BlobStore`.

    Args:
        min_free_bytes: of the filesystem, never used up; None for the smaller of 1 GB and 5 % of it.
        files: where files are; None for those under *root*.
        step_bytes: room is made ahead of the writing by so many.
        folders: below blobs/, algorithm and prefix.
    """

    def __init__(
        self,
        root: Path,
        *,
        cap_bytes: int,
        min_free_bytes: int | None,
        index: Index,
        events: events.Events,
        files: Files | None = None,
        step_bytes: int = STEP_BYTES,
        folders: Sequence[tuple[str, str]] = FOLDERS,
    ) -> None:
        self.root = root
        self.room = Room(cap_bytes, lambda: index.answers_bytes)
        self.files = files if files is not None else DiskFiles(root, min_free_bytes)
        self._layout = Layout(root)
        self._index = index
        self._events = events
        self._step_bytes = step_bytes
        self._locks = Locks()
        self._rows = RowWriter(index)
        self._ingesting: dict[Digest, bool] = {}  # and whether the operator has purged it since
        self._known = asyncio.Event()  # what is on the disk is known, so that room can be promised
        self._folders_refused = ""
        self._told_read_only = ""
        self._maintenance = Background(
            "store maintenance", self.maintain, interval_seconds=_MAINTENANCE_SECONDS, events=events
        )
        shared = (self._layout, self.files)
        self._reading = Reading(*shared, index, self.quarantine)
        self.at_hand = self._reading.at_hand  # on the path of every hit, where one more call can be measured
        self._removal = Removal(*shared, self.room, self._rows, self._reading, events)
        self._quarantine = Quarantine(*shared, self.room, self._rows, self._removal, self._locks, events)
        self._reconciler = Reconciler(*shared, index, self.room, self._rows, self._locks, folders, events)
        self._evictor = Evictor(
            *shared, index, self.room, self._rows, self._reading, self._removal, self._quarantine, self._locks, events
        )

    def __repr__(self) -> str:
        return f"<DiskStore {self.room!r}>"

    # --- lifecycle ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the folders, count what is there, go on in the background.

        Raises:
            StoreError: the cache directory cannot be used; a disk that is read-only can.
        """
        try:
            await self._make_folders()
            await self._count()
        except OSError as error:
            raise StoreError(f"{self.root}: {error.strerror}: the cache directory must be writable") from error
        self._tell_state()
        self._maintenance.start()

    async def aclose(self) -> None:
        """Stop the background work; partials stay for the next run."""
        await self._maintenance.aclose()
        await self._rows.aclose()
        self.files.close()

    async def _make_folders(self) -> None:
        try:
            await self.files.make_folders([self._layout.partials, self._layout.quarantine])
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            self._folders_refused = f"the disk is read-only ({self.root})"
        else:
            self._folders_refused = ""

    async def _count(self) -> None:
        self.room.stored = await self._index.totals()
        partials = await self.files.sizes(self._layout.partials)
        if self._index.machine_crashed:
            await self.files.remove([f"{self._layout.partials}/{name}" for name, _ in partials])
            partials = []
        for name, size_bytes in partials:
            with contextlib.suppress(DigestInvalid):
                self.room.found(Digest.parse(name.replace("-", ":", 1)), size_bytes)
        for name, size_bytes in await self.files.sizes(self._layout.quarantine):
            self.room.quarantine(name, size_bytes)
        if not self._index.doubt:
            self._reconciler.is_counted = True
            self._known.set()

    async def maintain(self) -> None:
        """One round of what is done every few seconds."""
        if self._folders_refused:
            await self._make_folders()
        if not self._index.writable:
            await self._index.probe()
        self._tell_state()
        try:
            if not self.read_only:
                await self._make_agree()
        except IndexRefused:
            self._tell_state()
        # Also for an index that cannot be written: often that is because the disk is full.
        await self._evictor.relieve()
        if not self._index.doubt:
            self._known.set()  # not before: what a power cut brought back may be above the cap
        await self._index.flush()
        self._tell_state()

    async def _make_agree(self) -> None:
        """Rows and files, as far as it was not possible before."""
        await self._rows.again()
        if self._index.doubt:
            await self._reconciler.reconcile()

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def read_only(self) -> str:
        """Why nothing is stored now, though what is here is served; empty when all is well."""
        return self._folders_refused or (
            "" if self._index.writable else f"the index cannot be written ({self._index.refusal})"
        )

    def _tell_state(self) -> None:
        """Say once that it begins, and once that it is over."""
        reason = self.read_only
        if bool(reason) != bool(self._told_read_only):
            if reason:
                self._events.emit(events.StoreReadOnly(reason=reason))
            else:
                self._events.emit(events.StoreWritable())
        self._told_read_only = reason

    def totals(self) -> StoreTotals:
        """For the operator."""
        return StoreTotals(
            size_bytes=self.room.stored.size_bytes,
            partial_bytes=self.room.partial_bytes,
            blobs=self.room.stored.blobs,
            manifests=self.room.stored.manifests,
            tags=self._index.tag_count,
            quarantined=len(self.room.quarantined),
            read_only=self.read_only,
        )

    @property
    def total_bytes(self) -> int:
        """Everything that counts against the cap."""
        return self.room.total_bytes

    @property
    def ingests(self) -> int:
        """How many are under way."""
        return len(self._ingesting)

    @property
    def open_files(self) -> int:
        """Blobs that readers have open."""
        return self._reading.open_files

    def space(self) -> DiskSpace | None:
        """The filesystem that the cache is on; None where it cannot be asked."""
        return self.files.space()

    # --- reading ------------------------------------------------------------------------------------------------

    async def open(self, digest: Digest) -> DiskBlob | None:
        """See :class:`registry_cache.ports.storage.BlobStore`."""
        blob = self.at_hand(digest)
        if blob is not None:
            return blob
        entry = await self._index.blob(digest)
        if entry is None and self._index.doubt:
            with contextlib.suppress(OSError):
                entry = await self._reconciler.adopt(digest)
        if entry is None:
            return None
        try:
            blob = self._reading.open(entry)
        except FileNotFoundError:
            await self.missing(digest)
            return None
        except OSError as error:
            self._events.emit(events.StorageFailed(operation="open", reason=f"{digest}: {error}"))
            return None
        except Rot as rot:
            try:
                await self.quarantine(digest, str(rot), rot.inode)
            finally:
                self.files.close_now(rot.fd)
            return None
        self._index.touch(digest)
        return blob

    def remember(self, digest: Digest, body: bytes, media_type: str) -> None:
        """See :class:`registry_cache.ports.storage.BlobStore`."""
        self._reading.remember(digest, body, media_type)

    async def needs(self, digests: Collection[Digest]) -> dict[Digest, Parts]:
        """What each stored manifest among *digests* names; nothing of those that are gone."""
        return await self.files.blocking(functools.partial(self._read_needs, digests))

    def _read_needs(self, digests: Collection[Digest]) -> dict[Digest, Parts]:
        found = {}
        for digest in digests:
            with contextlib.suppress(OSError):
                found[digest] = parts_of(self.files.read(self._layout.blob(digest), MANIFEST_MAX_BYTES))
        return found

    def path(self, digest: Digest) -> Path:
        """Where the blob is, if it is here."""
        return Path(self._layout.blob(digest))

    # --- writing ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def ingest(self, digest: Digest) -> AsyncIterator[DiskPartial]:
        """See :class:`registry_cache.ports.storage.BlobStore`.

        Raises:
            NoSpace: it is being written already, or the disk does not give what it took. What it does not take is
                found by the partial's first expect() or append().
        """
        if digest in self._ingesting:
            raise NoSpace(f"{digest} is being written already")
        self._ingesting[digest] = False
        try:
            async with self._locks.hold([digest]):  # what was left of it may just be on its way out
                is_left = self.room.is_idle(digest)
                partial = self._partial(digest)
            try:
                await self._begin(partial, is_left=is_left)
                yield partial
            finally:
                await finish(self._leave(partial))
        finally:
            del self._ingesting[digest]

    def _partial(self, digest: Digest) -> DiskPartial:
        return DiskPartial(
            Path(self._layout.partial(digest)),
            files=self.files,
            share=self.room.begin(digest),
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
                self.room.leave(partial.share)
            else:
                await self._discard(partial)
        self._evictor.left()

    async def _admit(self, partial: DiskPartial, size_bytes: int) -> None:
        """Raise NoSpace if *size_bytes* can never be stored: nothing is evicted for what does not fit all the same."""
        await self._ready()
        room, more_bytes = self.room, size_bytes - partial.share.promised_bytes
        if size_bytes > room.cap_bytes:
            raise NoSpace(f"{size_bytes} bytes are more than the cap of {room.cap_bytes}")
        if lack(room, self.space(), more_bytes).disk_bytes > room.stored.size_bytes + room.droppable_bytes:
            raise NoSpace("the filesystem is too full, whatever were evicted (MIN_FREE)")
        if more_bytes > room.spare_bytes:
            pinned_bytes = (await self._index.pin_summary(0)).size_bytes
            if size_bytes > room.cap_bytes - pinned_bytes:
                raise NoSpace(f"{size_bytes} bytes do not fit beside the {pinned_bytes} that are pinned")

    async def _reserve(self, partial: DiskPartial, size_bytes: int) -> None:
        """Promise *partial* room to grow to *size_bytes*, evicting what has to go."""
        await self._ready()
        if size_bytes > self.room.cap_bytes:
            raise NoSpace(f"{size_bytes} bytes are more than the cap of {self.room.cap_bytes}")
        await self._evictor.make_room(partial.share, size_bytes)

    async def _ready(self) -> None:
        """Raise NoSpace unless bytes can be stored now."""
        if self.read_only:
            raise NoSpace(self.read_only)
        if self._known.is_set():
            return
        try:
            async with asyncio.timeout(_KNOWN_SECONDS):
                await self._known.wait()
        except TimeoutError as error:
            raise NoSpace("what is on the disk is still being counted") from error

    async def _publish(self, partial: DiskPartial, media_type: str | None) -> None:
        # Used when its last byte came, not when a slow disk has it: order of use is the order of requests.
        now = self._index.clock.now()
        entry = BlobEntry(partial.digest, partial.offset, media_type, now, verified_at=now)
        try:
            await self.files.sync(partial.fd)
            await finish(self._make_blob(partial, entry))
        except (OSError, IndexRefused, NoSpace) as error:
            self._tell_state()
            await self._discard(partial)
            if isinstance(error, OSError):
                raise refused(error) from error
            raise NoSpace(str(error)) from error
        self._events.emit(events.BlobStored(digest=partial.digest, size_bytes=partial.offset))

    async def _make_blob(self, partial: DiskPartial, entry: BlobEntry) -> None:
        async with self._locks.hold([entry.digest]):
            if self._ingesting[entry.digest]:
                raise NoSpace("it was purged while it came")
            target = self._layout.blob(entry.digest)
            came = await self._place(entry, lambda: self.files.place(str(partial.path), target))
            partial.ended = True
            self.room.publish(partial.share, came)
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
        await self._counted()
        if entry.size_bytes > self._spare_bytes(on_disk=False):
            raise NoSpace("there is no room under the cap, or the filesystem is too full (MIN_FREE)")
        await finish(self._adopt(entry, functools.partial(place, self.path(entry.digest))))

    async def _adopt(self, entry: BlobEntry, place: Callable[[], None]) -> None:
        self.room.promise(entry.size_bytes)
        try:
            async with self._locks.hold([entry.digest]):
                came = await self._place(entry, lambda: self.files.put(self._layout.blob(entry.digest), place))
                self.room.store(came)
                self._rows.placed(entry.digest)
        except IndexRefused as error:
            raise NoSpace(str(error)) from error
        finally:
            self.room.promise(-entry.size_bytes)
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
            self._rows.placed(entry.digest)
            if await self._is_here(entry.digest):
                self.room.store(came)
            else:
                row = tally(entry.size_bytes, entry.media_type)
                self.room.remove(row.minus(came))  # an older file, which was counted, went
                self._rows.forget({entry.digest: row})
            raise
        return came

    async def _is_here(self, digest: Digest) -> bool:
        try:
            return await self.files.identify(self._layout.blob(digest)) is not None
        except OSError as error:
            await self._index.raise_doubt(f"{digest}: {error.strerror}")
            return True  # nobody knows: to count too much does no harm

    async def _discard(self, partial: DiskPartial) -> None:
        partial.ended = True
        await finish(self._remove_partial(partial))

    async def _remove_partial(self, partial: DiskPartial) -> None:
        try:
            await self.files.remove([str(partial.path)])
        except OSError as error:
            self._events.emit(events.StorageFailed(operation="remove", reason=str(error)))
            self.room.leave(partial.share)  # what is there counts
        else:
            self.room.discard(partial.share)
        self._evictor.left()

    async def spare_bytes(self, *, on_disk: bool) -> int:
        """How many bytes may come in without anything having to go, once what is here has been counted.

        Args:
            on_disk: they are to be written; else they are on the disk already, and take nothing of it.
        """
        await self._counted()
        return self._spare_bytes(on_disk=on_disk)

    async def _counted(self) -> None:
        if not self.read_only:
            await self._known.wait()
        if self.read_only:
            raise NoSpace(self.read_only)

    def _spare_bytes(self, *, on_disk: bool) -> int:
        missing = lack(self.room, self.space(), 0)
        spare, on_filesystem = -missing.cap_bytes, -missing.disk_bytes
        if self.space() is not None and (on_disk or on_filesystem < 0):
            spare = min(spare, on_filesystem)
        return max(0, spare)

    # --- what goes ----------------------------------------------------------------------------------------------

    async def purge(self, digests: Sequence[Digest]) -> tuple[int, int]:
        """Remove blobs, as the operator wishes; who reads one goes on reading. How many there were, and their bytes.

        What is on its way in is not stored either, so that nothing that was asked for before is served later.
        """
        gone = Tally()
        for first in range(0, len(digests), _PURGE_PAGE):
            page = digests[first : first + _PURGE_PAGE]
            for digest in page:
                if digest in self._ingesting:
                    self._ingesting[digest] = True
            gone = gone.plus(await finish(self._purge(page)))
        await self.settled()
        return gone.objects, gone.size_bytes

    async def settled(self) -> None:
        """Wait until the rows of removed files are gone too, or the index refuses that."""
        await self._rows.settled()

    async def _purge(self, digests: Sequence[Digest]) -> Tally:
        async with self._locks.hold(digests):
            return await self._removal.remove(digests)

    async def missing(self, digest: Digest) -> None:
        """There is no file for *digest* (any more): forget its row."""
        await finish(self._missing(digest))

    async def _missing(self, digest: Digest) -> None:
        async with self._locks.hold([digest]):
            if not await self._is_here(digest):
                self._removal.gone(await self._rows.of([digest]))

    async def next_victims(self, limit: int) -> list[Entry]:
        """What would be evicted first if room were needed now."""
        return await self._evictor.next_victims(limit)

    async def quarantine(self, digest: Digest, reason: str, inode: Inode | None = None) -> None:
        """Take a rotten blob out of service; it is fetched anew when it is next asked for.

        Args:
            inode: of the file that is rotten, which is still open; None for whatever is there.
        """
        await finish(self._quarantine.put_aside(self._reading, digest, reason, inode))
