"""Verified content by digest, within a byte cap: the parts of the store put together.

What is where is in ``layout.py``. Who has how many bytes is in ``room.py``, changed on the event loop under no await.
Files are changed by threads (``files.py``), each digest's by one at a time (``locks.py``); its row is written before
the file comes and deleted after it went (``row_writer.py``).
"""

import contextlib
import functools
from collections.abc import Collection, Sequence
from pathlib import Path

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Parts
from registry_cache.model.errors import DigestInvalid, IndexRefused, StoreError
from registry_cache.model.oci import MANIFEST_MAX_BYTES, Digest
from registry_cache.ports.blobs import StoreTotals
from registry_cache.ports.index import Index
from registry_cache.ports.rows import Entry, Tally
from registry_cache.runtime.background import Background
from registry_cache.runtime.threads import finish
from registry_cache.store.condition import Condition
from registry_cache.store.entries import Inode, parts_of
from registry_cache.store.eviction import Evictor
from registry_cache.store.files import DiskFiles, DiskSpace, Files
from registry_cache.store.intake import Intake
from registry_cache.store.layout import FOLDERS, Layout
from registry_cache.store.locks import Locks
from registry_cache.store.partial import STEP_BYTES
from registry_cache.store.quarantine import Quarantine
from registry_cache.store.reading import DiskBlob, Reading, Rot
from registry_cache.store.reconciliation import Reconciler
from registry_cache.store.removal import Removal
from registry_cache.store.room import Room
from registry_cache.store.row_writer import RowWriter
from registry_cache.store.shared import Shared

_PURGE_PAGE = 100  # transfers that end meanwhile need not wait for the whole of a large purge
_MAINTENANCE_SECONDS = 5.0


class DiskStore:
    """See the module and :class:`registry_cache.ports.blobs.BlobStore`.

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
        events: Events,
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
        self._locks = Locks()
        self._rows = RowWriter(index)
        self._maintenance = Background(
            "store maintenance", self.maintain, interval_seconds=_MAINTENANCE_SECONDS, events=events
        )
        shared = Shared(self._layout, self.files, index, self.room, self._rows, self._locks, events)
        self._reading = Reading(shared, self.quarantine)
        self.at_hand = self._reading.at_hand  # on the path of every hit, where one more call can be measured
        self._removal = Removal(shared, self._reading)
        self._quarantine = Quarantine(shared, self._removal)
        self._reconciler = Reconciler(shared, folders)
        self._evictor = Evictor(shared, self._reading, self._removal, self._quarantine)
        self._condition = Condition(shared)
        self._intake = Intake(shared, self._evictor, self._condition, step_bytes=step_bytes)
        self.ingest = self._intake.ingest
        self.adopt = self._intake.adopt
        self.spare_bytes = self._intake.spare_bytes

    def __repr__(self) -> str:
        return f"<DiskStore {self.room!r}>"

    # --- lifecycle ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the folders, count what is there, go on in the background.

        Raises:
            StoreError: the cache directory cannot be used; a disk that is read-only can.
        """
        try:
            await self._condition.make_folders()
            await self._count()
        except OSError as error:
            raise StoreError(f"{self.root}: {error.strerror}: the cache directory must be writable") from error
        self._condition.tell()
        self._maintenance.start()

    async def aclose(self) -> None:
        """Stop the background work; partials stay for the next run."""
        await self._maintenance.aclose()
        # Whose caller was cancelled, and not waited for, still changes files and says so of their rows.
        await self._locks.all_free()
        await self._rows.aclose()
        self.files.close()

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
            if self.room.spare_bytes >= 0:  # else the first round of maintenance makes it so
                self._condition.known.set()

    async def maintain(self) -> None:
        """One round of what is done every few seconds."""
        if self._condition.lacks_folders:
            await self._condition.make_folders()
        if not self._index.writable:
            await self._index.probe()
        self._condition.tell()
        try:
            if not self._condition.unwritable:
                await self._make_agree()
                self._condition.counted_up_to(None)
        except IndexRefused:
            self._condition.tell()
        except OSError as error:  # one folder that cannot be read; the next round tries again
            self._condition.counted_up_to(error)
        # Also for an index that cannot be written: often that is because the disk is full.
        await self._evictor.relieve()
        if not self._index.doubt:
            self._condition.known.set()  # not before: what a power cut brought back may be above the cap
        await self._index.flush()
        self._condition.tell()

    async def _make_agree(self) -> None:
        """Rows and files, as far as it was not possible before."""
        await self._rows.again()
        if self._index.doubt:
            await self._reconciler.reconcile()

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def read_only(self) -> str:
        """Why nothing is stored now, though what is here is served; empty when all is well."""
        return self._condition.read_only

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
        return self._intake.under_way

    @property
    def open_files(self) -> int:
        """Blobs that readers have open."""
        return self._reading.open_files

    def space(self) -> DiskSpace | None:
        """The filesystem that the cache is on; None where it cannot be asked."""
        return self.files.space()

    # --- reading ------------------------------------------------------------------------------------------------

    async def open(self, digest: Digest) -> DiskBlob | None:
        """See :class:`registry_cache.ports.blobs.BlobStore`."""
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
        """See :class:`registry_cache.ports.blobs.BlobStore`."""
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

    # --- what goes ----------------------------------------------------------------------------------------------

    async def purge(self, digests: Sequence[Digest]) -> tuple[int, int]:
        """Remove blobs, as the operator wishes; who reads one goes on reading. How many there were, and their bytes.

        What is on its way in is not stored either, so that nothing that was asked for before is served later.
        """
        gone = Tally()
        for first in range(0, len(digests), _PURGE_PAGE):
            page = digests[first : first + _PURGE_PAGE]
            self._intake.purged(page)
            gone = gone.plus(await finish(self._purge(page)))
        await self.settled()
        return gone.objects, gone.size_bytes

    async def stored_before(self, digests: Sequence[Digest], at: float) -> list[Digest]:
        """Those of *digests* that have been here since before *at* (Unix seconds, by the clock of the files)."""
        found = []
        for digest in digests:
            try:
                seen = await self.files.look(self._layout.blob(digest))
            except OSError:  # it cannot be told: as if it were old
                found.append(digest)
                continue
            if seen is not None and seen.changed_at < at:
                found.append(digest)
        return found

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
            if not await self._intake.is_here(digest):
                self._removal.gone(await self._removal.counted([digest]))

    async def next_victims(self, limit: int) -> list[Entry]:
        """What would be evicted first if room were needed now."""
        return await self._evictor.next_victims(limit)

    async def quarantine(self, digest: Digest, reason: str, inode: Inode | None = None) -> None:
        """Take a rotten blob out of service; it is fetched anew when it is next asked for.

        Args:
            inode: of the file that is rotten, which is still open; None for whatever is there.
        """
        await finish(self._quarantine.put_aside(self._reading, digest, reason, inode))
