"""Content-addressed files under one directory, within a byte cap.

::

    blobs/sha256/ab/abcd…   verified content; immutable; the truth about what is cached
    partials/               ingests under way or interrupted
    quarantine/             what was found rotten

All accounting is in :class:`DiskStore` and happens on the event loop, between awaits; the files are changed by threads.
"""

import asyncio
import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from cachetools import LRUCache

from proxy import events
from proxy.contents import Parts
from proxy.errors import ContentError, DigestInvalid, IndexRefused, NoSpace, ReadFailed, StoreError
from proxy.oci import Digest
from proxy.storage import BlobEntry, Entry, Sink, StoreTotals, Tally
from proxy.store.eviction import choose_victims
from proxy.store.files import DiskSpace, disk_space, inspect, parts_of, rename, sizes, unlink_all
from proxy.store.index import SqliteIndex
from proxy.store.partial import DiskPartial, refused
from proxy.threads import Threads, finish

# Content up to this size is served from memory: manifests, configs, signatures. Measured in docs/benchmarks.
SMALL_BYTES = 64 * 1024
_MEMORY_BYTES = 32 * 1024 * 1024
_EVICTION_PAGE = 100  # what the event loop does for each of them takes the time of a hit or two
# A thread that unlinks, or deletes rows, keeps its core until it waits, and on two cores a hit waits for that. p99 of
# hits while 10 000 blobs went: 1.9 ms with 100 at once, 0.7 with ten; on another machine 0.44 with ten (1.0 to 3.3
# times that without eviction, in six runs) and 0.39 with four (1.6 to 1.9). It takes 0.6 s with ten, 1 s with four.
_DELETED_AT_ONCE = 4
_MAINTENANCE_SECONDS = 5.0
# How long a transfer waits for the count after a crash before it goes to the client unstored.
_KNOWN_SECONDS = 10.0
# Quarantined files are evidence, not content: so many are kept, the oldest go first.
_QUARANTINE_KEPT = 8


class DiskBlob:
    """See :class:`proxy.storage.OpenBlob`."""

    def __init__(self, store: "DiskStore", entry: BlobEntry, fd: int, body: bytes | None) -> None:
        self.digest = entry.digest
        self.size_bytes = entry.size_bytes
        self.media_type = entry.media_type
        self.body = body
        self._store = store
        self._fd = fd

    def send_now(self, sink: Sink, start: int, stop: int) -> int:
        """See :class:`proxy.storage.OpenBlob`."""
        return sink.send_file_now(self._fd, start, stop) if self.body is None else start

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """See :class:`proxy.storage.OpenBlob`.

        Raises:
            ReadFailed: the disk does not give what it took; the blob is on its way to quarantine.
        """
        if self.body is not None:
            await sink.write(self.body[start:stop])
            return
        try:
            await sink.send_file(self._fd, start, stop)
        except ReadFailed as error:
            await self._store.quarantine(self.digest, str(error))
            raise

    def close(self) -> None:
        """See :class:`proxy.storage.OpenBlob`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._store.released(self.digest)


class DiskStore:
    """See the module and :class:`proxy.storage.BlobStore`.

    ``size_bytes + partial_bytes + quarantine`` never exceeds *cap_bytes*: room is reserved before a byte is written.

    Args:
        min_free_bytes: of the filesystem, never used up; None for the smaller of 1 GB and 5 % of it.
    """

    def __init__(
        self, root: Path, *, cap_bytes: int, min_free_bytes: int | None, index: SqliteIndex, events: events.Events
    ) -> None:
        self.root = root
        self.cap_bytes = cap_bytes
        self._min_free_bytes = min_free_bytes
        self._index = index
        self._events = events
        self._threads = Threads("disk", 4)
        self._memory: LRUCache[Digest, DiskBlob] = LRUCache(_MEMORY_BYTES, getsizeof=lambda blob: blob.size_bytes + 512)
        self._readers: Counter[Digest] = Counter()
        # Changes of what is in blobs/ happen one at a time: eviction, publication, quarantine, reconciliation.
        self._changing = asyncio.Lock()
        self._here = Tally()  # in blobs/, as the index has it
        self._reserved: dict[Digest, int] = {}  # by partial: what it may grow to; idle ones: what they are
        self._ingesting: set[Digest] = set()
        self._active: dict[Digest, DiskPartial] = {}
        self._quarantined: dict[str, int] = {}
        self._known = asyncio.Event()  # what is on the disk is known, so that room can be promised
        self._maintenance: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<DiskStore {self.total_bytes}/{self.cap_bytes} bytes, {len(self._active)} ingests>"

    # --- lifecycle ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the folders, count what is there, go on in the background."""
        await self._threads.run(self._make_folders)
        self._here = await self._index.totals()
        if self._index.machine_crashed:
            await self._threads.run(unlink_all, (self.root / "partials").iterdir())
        for name, size_bytes in await self._threads.run(sizes, self.root / "partials"):
            with contextlib.suppress(DigestInvalid):
                self._reserved[Digest.parse(name.replace("-", ":", 1))] = size_bytes
        self._quarantined = dict(await self._threads.run(sizes, self.root / "quarantine"))
        if not self._index.doubt:
            self._known.set()
        self._maintenance = asyncio.create_task(self._maintain(), name="store maintenance")

    async def aclose(self) -> None:
        """Stop the background work; partials stay for the next run."""
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.gather(self._maintenance, return_exceptions=True)
        self._threads.close()

    def _make_folders(self) -> None:
        try:
            for name in ("partials", "quarantine"):
                (self.root / name).mkdir(exist_ok=True)
            for algorithm in ("sha256", "sha512"):
                for number in range(256):
                    (self.root / "blobs" / algorithm / f"{number:02x}").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.root}: {error.strerror}: the cache directory must be writable") from error

    async def _maintain(self) -> None:
        while True:
            try:
                if self._index.doubt:
                    await self._reconcile()
                    self._known.set()
                await self._make_room(0)
                await self._index.flush()
            except Exception as error:  # noqa: BLE001 -- the next round may do better; it must not end for ever
                self._events.emit(events.StorageFailed(operation="maintenance", reason=repr(error)))
            await asyncio.sleep(_MAINTENANCE_SECONDS)

    # --- reading ------------------------------------------------------------------------------------------------

    async def open(self, digest: Digest) -> DiskBlob | None:
        """See :class:`proxy.storage.BlobStore`."""
        blob = self.at_hand(digest)
        if blob is not None:
            return blob
        entry = await self._index.blob(digest)
        if entry is None:
            entry = await self._adopt(digest)
            if entry is None:
                return None
        try:
            blob = self._open_file(entry)
        except FileNotFoundError:
            await self.missing(digest)
            return None
        except OSError as error:
            self._events.emit(events.StorageFailed(operation="open", reason=f"{digest}: {error}"))
            return None
        except ContentError as error:
            await self.quarantine(digest, str(error))
            return None
        self._index.touch(digest)
        return blob

    def at_hand(self, digest: Digest) -> DiskBlob | None:
        """See :class:`proxy.storage.BlobStore`.

        The file is opened on the event loop: a thread hop costs more than an open of a cached directory entry.
        """
        blob = self._memory.get(digest)
        if blob is None:
            entry = self._index.blob_at_hand(digest)
            if entry is None:
                return None
            try:
                blob = self._open_file(entry)
            except (OSError, ContentError):
                return None  # open() meets it again, and sees to it
        self._index.touch(digest)
        return blob

    def _open_file(self, entry: BlobEntry) -> DiskBlob:
        with contextlib.ExitStack() as undo:
            fd = os.open(self._name(entry.digest), os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            size_bytes = os.fstat(fd).st_size
            if size_bytes != entry.size_bytes:
                raise ContentError(f"{size_bytes} bytes on the disk, {entry.size_bytes} were stored")
            if entry.size_bytes <= SMALL_BYTES or entry.media_type is not None:
                # Read whole, and hashed each time it comes from the disk: a manifest or config is never served rotten.
                body = os.pread(fd, size_bytes, 0)
                entry.digest.verify(body)
                blob = DiskBlob(self, entry, -1, body)
                self._memory[entry.digest] = blob
                return blob
            undo.pop_all()
        self._readers[entry.digest] += 1
        return DiskBlob(self, entry, fd, None)

    def released(self, digest: Digest) -> None:
        """A reader of *digest* has closed it."""
        self._readers[digest] -= 1
        if not self._readers[digest]:
            del self._readers[digest]

    async def _adopt(self, digest: Digest) -> BlobEntry | None:
        """A file that the index does not know: it was lost, or is being rebuilt."""
        if not self._index.doubt:
            return None
        async with self._changing:
            try:
                size_bytes, media_type = await self._threads.run(inspect, self.path(digest))
            except OSError:
                return None
            entry = BlobEntry(digest, size_bytes, media_type, self._index.clock.now())
            with contextlib.suppress(IndexRefused):  # served all the same; counted when rows and files are compared
                self._here = self._here.plus(await self._index.add_blob(entry))
        return entry

    def remember(self, digest: Digest, body: bytes, media_type: str) -> None:
        """See :class:`proxy.storage.BlobStore`."""
        entry = BlobEntry(digest, len(body), media_type, 0.0)
        with contextlib.suppress(ValueError):  # larger than the whole memory
            self._memory[digest] = DiskBlob(self, entry, -1, body)

    # --- writing ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def ingest(self, digest: Digest) -> AsyncIterator[DiskPartial]:
        """See :class:`proxy.storage.BlobStore`.

        Raises:
            NoSpace: it is being written already, or the disk does not give what it took. What it does not take is
                found by the partial's first expect() or append().
        """
        path = self.root / "partials" / f"{digest.algorithm}-{digest.encoded}"
        if digest in self._ingesting:
            raise NoSpace(f"{digest} is being written already")
        self._ingesting.add(digest)  # before the first await: the evictor leaves it alone from here on
        try:
            partial = await self._begin(digest, path)
            self._active[digest] = partial
            try:
                yield partial
            finally:
                del self._active[digest]
                await finish(self._leave(partial))
        finally:
            self._ingesting.discard(digest)

    async def _leave(self, partial: DiskPartial) -> None:
        """Keep what has arrived for the next ingest, and no more room than it takes."""
        await partial.settle()
        if not partial.ended:
            if partial.offset:
                self._reserved[partial.digest] = partial.offset
            else:
                await self._discard(partial)

    async def _begin(self, digest: Digest, path: Path) -> DiskPartial:
        resumed = digest in self._reserved
        partial = DiskPartial(
            digest, path, threads=self._threads, reserve=self._reserve, publish=self._publish, discard=self._discard
        )
        if resumed:
            try:
                await self._threads.run(partial.rehash)
            except BaseException as error:
                partial.close()
                if isinstance(error, OSError):
                    raise refused(error) from error
                raise
        else:
            partial.open_soon()
        self._reserved.setdefault(digest, 0)
        return partial

    async def _reserve(self, partial: DiskPartial, size_bytes: int) -> None:
        """Promise *partial* room to grow to *size_bytes*, evicting what has to go."""
        try:
            async with asyncio.timeout(_KNOWN_SECONDS):
                await self._known.wait()
        except TimeoutError as error:
            raise NoSpace("what is on the disk is still being counted") from error
        if size_bytes > self.cap_bytes:
            raise NoSpace(f"{size_bytes} bytes are more than the cap of {self.cap_bytes}")
        promised = self._reserved.get(partial.digest, 0)
        if size_bytes <= promised:
            return
        more = size_bytes - promised
        if self.total_bytes + more <= self.cap_bytes and self._lacking_free_bytes(more) <= 0:
            self._reserved[partial.digest] = size_bytes  # at once: no miss waits for what others publish
            return
        async with self._changing:
            if self._lacking_free_bytes(more) > self._here.size_bytes + sum(self._quarantined.values()):
                raise NoSpace("the filesystem is too full, whatever were evicted (MIN_FREE)")
            await finish(self._evict(more))
            if self.total_bytes + more > self.cap_bytes:
                raise NoSpace("the cap is used up by pinned blobs, open readers and other transfers")
            if self._lacking_free_bytes(more) > 0:
                raise NoSpace("the filesystem has no free space to spare (MIN_FREE)")
            self._reserved[partial.digest] = size_bytes

    async def _publish(self, partial: DiskPartial, media_type: str | None) -> None:
        # Used when its last byte came, not when a slow disk has it: order of use is the order of requests.
        now = self._index.clock.now()
        entry = BlobEntry(partial.digest, partial.offset, media_type, now, verified_at=now)
        try:
            await self._threads.run(partial.fsync)
            await finish(self._make_blob(partial, entry))
        except IndexRefused as error:
            await self._discard(partial)
            raise NoSpace(str(error)) from error
        except OSError as error:
            await self._discard(partial)
            raise refused(error) from error
        self._events.emit(events.BlobStored(digest=partial.digest, size_bytes=partial.offset))

    async def _make_blob(self, partial: DiskPartial, entry: BlobEntry) -> None:
        async with self._changing:
            await self._place(entry, functools.partial(rename, partial.path))
            partial.ended = True
            self._reserved.pop(partial.digest, None)

    async def adopt(self, entry: BlobEntry, place: Callable[[Path], None]) -> None:
        """Take in content that was verified where it is; nothing is evicted for it.

        Args:
            place: puts the file at the path that it is given, as it is meant to stay: nothing here ever writes to it.

        Raises:
            NoSpace: not without evicting something.
            OSError: *place* cannot do it.
        """
        await self._known.wait()
        async with self._changing:
            if entry.size_bytes > self._spare_bytes(on_disk=False):
                raise NoSpace("there is no room under the cap, or the filesystem is too full (MIN_FREE)")
            await finish(self._place(entry, place))

    async def _place(self, entry: BlobEntry, place: Callable[[Path], None]) -> None:
        # The row first: if the process dies in between, the index claims too much, never too little.
        came = await self._index.add_blob(entry)
        try:
            await self._threads.run(place, self.path(entry.digest))
        except OSError:
            with contextlib.suppress(IndexRefused):  # the row claims too much, until it is opened
                came = came.minus(await self._index.forget_blobs([entry.digest]))
            raise
        finally:
            self._here = self._here.plus(came)
        self._index.placed(entry)

    async def _discard(self, partial: DiskPartial) -> None:
        partial.ended = True
        await finish(self._remove_partial(partial.digest))

    async def _remove_partial(self, digest: Digest) -> int:
        with contextlib.suppress(OSError):
            await self._threads.run(os.unlink, self.root / "partials" / f"{digest.algorithm}-{digest.encoded}")
        return self._reserved.pop(digest, 0)

    # --- room ---------------------------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> int:
        """Everything that counts against the cap."""
        return self._here.size_bytes + sum(self._reserved.values()) + sum(self._quarantined.values())

    def totals(self) -> StoreTotals:
        """For the operator."""
        return StoreTotals(
            size_bytes=self._here.size_bytes,
            partial_bytes=sum(self._reserved.values()),
            blobs=self._here.blobs,
            manifests=self._here.manifests,
            tags=self._index.tag_count,
            quarantined=len(self._quarantined),
        )

    def space(self) -> DiskSpace | None:
        """The filesystem that the cache is on; None where it cannot be asked."""
        return disk_space(self.root, self._min_free_bytes)

    def _lacking_free_bytes(self, more: int) -> int:
        """How many bytes the filesystem lacks for *more*, beside what is already promised and MIN_FREE."""
        disk = self.space()
        if disk is None:
            return 0  # the write itself will tell
        promised = sum(self._reserved[d] - partial.offset for d, partial in self._active.items() if d in self._reserved)
        return more + promised + disk.min_free_bytes - disk.free_bytes

    async def spare_bytes(self, *, on_disk: bool) -> int:
        """How many bytes may come in without anything having to go, once what is here has been counted.

        Args:
            on_disk: they are to be written; else they are on the disk already, and take nothing of it.
        """
        await self._known.wait()
        return self._spare_bytes(on_disk=on_disk)

    def _spare_bytes(self, *, on_disk: bool) -> int:
        spare, on_filesystem = self.cap_bytes - self.total_bytes, -self._lacking_free_bytes(0)
        if on_disk or on_filesystem < 0:
            spare = min(spare, on_filesystem)
        return max(0, spare)

    async def _make_room(self, more: int) -> None:
        if self._lacking_free_bytes(more) > 0 or self.total_bytes + more > self.cap_bytes:
            async with self._changing:
                await finish(self._evict(more))

    async def _evict(self, more: int) -> None:
        """Make room for *more* bytes under the cap and above MIN_FREE, as far as it can be made."""
        over_cap = self.total_bytes + more - self.cap_bytes
        over_disk = self._lacking_free_bytes(more)
        need, reason = max((over_cap, "cap"), (over_disk, "min_free"))
        if need <= 0:
            return
        freed, objects = await self._drop_quarantine(), 0
        for digest in list(self._reserved):
            if freed >= need:
                break
            if digest not in self._ingesting:  # abandoned: it serves nobody
                freed += await self._remove_partial(digest)
                objects += 1
        after: Entry | None = None
        await self._index.flush()  # rows have the order of use
        while freed < need:
            page = await self._index.oldest(_EVICTION_PAGE, after)
            if not page:
                break
            after = page[-1]
            victims = choose_victims(page, need - freed, self._readers.__contains__)
            gone = await self._delete([victim.digest for victim in victims])
            freed, objects = freed + gone.size_bytes, objects + gone.objects
        if objects:
            kind: Literal["cap", "min_free"] = "cap" if reason == "cap" else "min_free"
            self._events.emit(events.Evicted(objects=objects, size_bytes=freed, reason=kind))

    async def _delete(self, digests: Sequence[Digest]) -> Tally:
        """Remove files, then rows: dying in between, the index claims too much, never too little."""
        gone = Tally()
        for first in range(0, len(digests), _DELETED_AT_ONCE):
            few = digests[first : first + _DELETED_AT_ONCE]
            for digest in few:
                self._memory.pop(digest, None)
            await self._threads.run(unlink_all, map(self._name, few))
            gone = gone.plus(await self._forget(few))
        return gone

    async def _forget(self, digests: Sequence[Digest]) -> Tally:
        try:
            gone = await self._index.forget_blobs(digests)
        except IndexRefused as error:
            await self._index.raise_doubt(str(error))
            return Tally()
        self._here = self._here.minus(gone)
        return gone

    async def purge(self, digests: Sequence[Digest]) -> tuple[int, int]:
        """Remove blobs, as the operator wishes; who reads one goes on reading. How many there were, and their bytes.

        In pages, so that transfers that end meanwhile need not wait for the whole of a large purge.
        """
        gone = Tally()
        for first in range(0, len(digests), _EVICTION_PAGE):
            async with self._changing:
                gone = gone.plus(await finish(self._delete(digests[first : first + _EVICTION_PAGE])))
        return gone.objects, gone.size_bytes

    async def needs(self, digests: Collection[Digest]) -> dict[Digest, Parts]:
        """What each stored manifest among *digests* names; nothing of those that are gone."""
        return await self._threads.run(self._read_needs, digests)

    def _read_needs(self, digests: Collection[Digest]) -> dict[Digest, Parts]:
        found = {}
        for digest in digests:
            with contextlib.suppress(OSError):
                found[digest] = parts_of(self.path(digest))
        return found

    async def next_victims(self, limit: int) -> list[Entry]:
        """What would be evicted first if room were needed now."""
        await self._index.flush()
        return choose_victims(await self._index.oldest(limit), 1 << 62, self._readers.__contains__)

    async def missing(self, digest: Digest) -> None:
        """There is no file for *digest* (any more): forget its row."""
        async with self._changing:
            if not self.path(digest).exists():
                await finish(self._forget([digest]))

    # --- rot ----------------------------------------------------------------------------------------------------

    async def quarantine(self, digest: Digest, reason: str) -> None:
        """Take a rotten blob out of service; it is fetched anew when it is next asked for."""
        self._events.emit(events.Quarantined(digest=digest, reason=reason))
        await finish(self._quarantine(digest))

    async def _quarantine(self, digest: Digest) -> None:
        async with self._changing:
            self._memory.pop(digest, None)
            name = f"{digest.algorithm}-{digest.encoded}"
            target = self.root / "quarantine" / name
            await self._forget([digest])
            try:
                await self._threads.run(os.replace, self.path(digest), target)
                self._quarantined[name] = (await self._threads.run(os.stat, target)).st_size
            except OSError:
                return  # somebody was faster, or removed it by hand
            if len(self._quarantined) > _QUARANTINE_KEPT:
                await self._drop_quarantine(len(self._quarantined) - _QUARANTINE_KEPT)

    async def _drop_quarantine(self, count: int | None = None) -> int:
        names = list(self._quarantined)[:count]
        await self._threads.run(unlink_all, [self.root / "quarantine" / name for name in names])
        return sum(self._quarantined.pop(name) for name in names)

    # --- reconciliation -----------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        """Make the rows agree with blobs/, one folder at a time, beside the running service."""
        began, reason = time.monotonic(), self._index.doubt
        for algorithm in ("sha256", "sha512"):
            for number in range(256):
                async with self._changing:
                    await self._reconcile_folder(algorithm, f"{number:02x}")
        async with self._changing:
            self._here = await self._index.totals()
        await self._index.settle_doubt()
        if not self._here.objects:
            return  # a new cache: nothing to tell
        self._events.emit(
            events.IndexRebuilt(
                reason=reason,
                blobs=self._here.objects,
                size_bytes=self._here.size_bytes,
                duration_ms=(time.monotonic() - began) * 1000,
            )
        )

    async def _reconcile_folder(self, algorithm: str, prefix: str) -> None:
        folder = self.root / "blobs" / algorithm / prefix
        known = await self._index.entries_between(f"{algorithm}:{prefix}", f"{algorithm}:{prefix}g")
        found: dict[Digest, int] = {}
        for name, size_bytes in await self._threads.run(sizes, folder):
            try:
                found[Digest.parse(f"{algorithm}:{name}")] = size_bytes
            except DigestInvalid:
                continue  # not ours: left alone
        await self._index.forget_blobs([digest for digest in known if digest not in found])
        for digest, size_bytes in found.items():
            if digest not in known:  # one that has another size than its row is found when it is opened
                with contextlib.suppress(OSError):
                    path = self.path(digest)
                    _, media_type = await self._threads.run(inspect, path)
                    last_use = (await self._threads.run(os.stat, path)).st_mtime
                    await self._index.add_blob(BlobEntry(digest, size_bytes, media_type, last_use))

    def path(self, digest: Digest) -> Path:
        """Where the blob is, if it is here."""
        return Path(self._name(digest))

    def _name(self, digest: Digest) -> str:
        algorithm, _, encoded = digest.partition(":")
        return f"{self.root}/blobs/{algorithm}/{encoded[:2]}/{encoded}"
