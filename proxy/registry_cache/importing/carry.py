"""Bringing in what the plan has: verified, hard-linked where that can be, else copied."""

import asyncio
import contextlib
import errno
import functools
import os
import stat
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from registry_cache.importing.folder import Folder
from registry_cache.importing.plan import Contents, Item, Plan, last_uses
from registry_cache.model.errors import DigestMismatch, NoSpace, StoreError
from registry_cache.model.oci import Digest
from registry_cache.ports.names import TagEntry
from registry_cache.ports.rows import BlobEntry
from registry_cache.runtime.threads import Threads
from registry_cache.store.disk import DiskStore
from registry_cache.store.files import link
from registry_cache.store.index import SqliteIndex
from registry_cache.store.scrub import find_rot_in

T = TypeVar("T")

_ROOT_FILES = ("lock", "index.sqlite3", "index.sqlite3-wal", "index.sqlite3-shm", "index.doubt", "names.journal")

_PIECE_BYTES = 1024 * 1024


@dataclass
class Outcome:
    """What came of it. ``failed`` says for what could not come in, by its digest, why; ``rotten`` for what was bad."""

    linked: dict[Digest, int] = field(default_factory=dict)  # bytes
    copied: dict[Digest, int] = field(default_factory=dict)
    tags: int = 0
    tags_known: int = 0
    rotten: dict[Digest, str] = field(default_factory=dict)
    failed: dict[Digest, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Owner:
    """Whose the cache directory is, where that is not who imports: root, for a service that has a user of its own."""

    uid: int
    gid: int

    @classmethod
    def of(cls, directory: Path) -> "Owner | None":
        """The owner of *directory*, if this process has to hand over to them what it makes."""
        stat = directory.stat()
        return cls(stat.st_uid, stat.st_gid) if os.geteuid() == 0 and stat.st_uid != 0 else None

    def take(self, *paths: Path) -> None:
        """Hand *paths* over, those that are there."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def take_folders(self, root: Path) -> None:
        """Hand over the store in *root* without its content."""
        self.take(*(root / name for name in _ROOT_FILES))
        self.take(*(root / name for name in ("blobs", "partials", "quarantine")))
        self.take(*root.glob("blobs/*"), *root.glob("blobs/*/??"))

    def may_read(self, stat: os.stat_result) -> bool:
        """Whether they can read a file that is not theirs and stays so."""
        return stat.st_uid == self.uid or bool(stat.st_mode & 0o004)


class Carrier:
    """Brings items in; at most *parallel* files are read at the same time, each in a thread.

    Args:
        owner: who gets what is copied; None when that is who runs this.
        expired_at: tags count as confirmed no later than this (Unix seconds): their first use asks upstream.
        came: told of bytes as they are read.
    """

    def __init__(
        self,
        folder: Folder,
        contents: Contents,
        store: DiskStore,
        index: SqliteIndex,
        *,
        owner: Owner | None,
        parallel: int,
        expired_at: float,
        came: Callable[[int], None],
    ) -> None:
        self.outcome = Outcome()
        self._folder = folder
        self._contents = contents
        self._store = store
        self._index = index
        self._owner = owner
        self._parallel = parallel
        self._expired_at = expired_at
        self._came = came
        self._threads = Threads("import", parallel)
        self._stopping = threading.Event()
        self._reserving = asyncio.Lock()
        self._can_link = True

    async def bring(self, plan: Plan, here: Collection[Digest]) -> None:
        """Everything that *plan* takes and that is not *here*; each item counts as soon as all of it is in."""
        lacks = {item: {part for part in item.parts if part not in here} for item in plan.taken}
        waiting: defaultdict[Digest, list[Item]] = defaultdict(list)
        for item in plan.taken:
            for part in lacks[item]:
                waiting[part].append(item)
        used = last_uses(plan.taken)
        todo = iter(plan.parts(here))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._parallel):
                    group.create_task(self._work(todo, waiting, lacks, used.__getitem__))
            # What was here needs no bytes, but maybe its name.
            for item in plan.taken:
                if not any(part in waiting for part in item.parts):
                    await self._name(item)
        finally:
            self._threads.close()

    async def _work(
        self,
        todo: Iterator[Digest],
        waiting: dict[Digest, list[Item]],
        lacks: dict[Item, set[Digest]],
        used_at: Callable[[Digest], float],
    ) -> None:
        for digest in todo:
            await self._take(digest, used_at(digest))
            for item in waiting[digest]:
                lacks[item].discard(digest)
                if not lacks[item]:
                    await self._name(item)

    async def _take(self, digest: Digest, used_at: float) -> None:
        size, now = self._contents.sizes[digest], self._index.clock.now()
        manifest = self._contents.manifests.get(digest)
        entry = BlobEntry(digest, size, manifest.media_type if manifest else None, min(used_at, now), verified_at=now)
        try:
            with self._folder.opened(digest) as source:
                if not (self._may_link(os.fstat(source)) and await self._link(entry, source)):
                    await self._copy(entry, source)
        except DigestMismatch as error:
            self.outcome.rotten[digest] = str(error)
        except (StoreError, OSError) as error:
            self.outcome.failed[digest] = str(error)

    def _may_link(self, source: os.stat_result) -> bool:
        # Who else may write to the file could change what is served as a hit.
        is_safe = not source.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return self._can_link and is_safe and (self._owner is None or self._owner.may_read(source))

    async def _link(self, entry: BlobEntry, source: int) -> bool:
        """Whether it could be. What is linked is what was verified: a registry:2 never writes into its content."""
        rot = await self._read(lambda: find_rot_in(source, entry.digest, self._pace))
        if rot is not None:
            raise DigestMismatch(rot)
        if os.fstat(source).st_size != entry.size_bytes:
            raise DigestMismatch("it changes while it is read")
        try:
            await self._store.adopt(entry, functools.partial(link, source))
        except OSError as error:  # another filesystem, one that has no hard links, or protected_hardlinks
            self._can_link = error.errno == errno.ENOENT  # only this one: it has lost its name meanwhile
            self._came(-entry.size_bytes)
            return False
        self.outcome.linked[entry.digest] = entry.size_bytes
        return True

    async def _copy(self, entry: BlobEntry, source: int) -> None:
        if await self._copied(entry, source) or await self._copied(entry, source):
            await self._index.add_blob(entry)  # its last use is the folder's, not now
            self.outcome.copied[entry.digest] = entry.size_bytes

    async def _copied(self, entry: BlobEntry, source: int) -> bool:
        """False when an earlier run had left something else: that is thrown away, and it can be tried again."""
        with contextlib.ExitStack() as last:
            async with self._store.ingest(entry.digest) as partial:
                last.callback(partial.close)  # not before the store has left it
                resumed = partial.offset > 0
                async with self._reserving:  # two that both find room for one would have something evicted
                    if await self._store.spare_bytes(on_disk=True) < entry.size_bytes - partial.offset:
                        raise NoSpace("there is no room under the cap, or the filesystem is too full (MIN_FREE)")
                    await partial.expect(entry.size_bytes)
                if self._owner is not None:
                    self._owner.take(partial.path)  # at once: if this breaks off, the service goes on with it
                while piece := await self._read(lambda: os.pread(source, _PIECE_BYTES, partial.offset)):
                    if partial.offset + len(piece) > entry.size_bytes:
                        raise DigestMismatch("it is longer than it was")
                    await partial.append(piece)
                    self._pace(len(piece))
                try:
                    partial.verify()
                except DigestMismatch:
                    await partial.discard()
                    if resumed:
                        return False
                    raise
                await partial.publish(entry.media_type)
        return True

    async def _name(self, item: Item) -> None:
        """All of *item* that could come is here: link it to its repositories, and keep its tag."""
        for part in item.parts:
            for repository in self._contents.links.get(part, ()):
                self._index.link(repository, part)
        if item.tag is None:
            return
        repository, name, digest, confirmed_at = item.tag
        if await self._index.tag(repository, name) is not None:
            self.outcome.tags_known += 1  # what is known here is newer
            return
        if digest in self.outcome.rotten or digest in self.outcome.failed:
            return
        media_type = self._contents.manifests[digest].media_type
        confirmed_at = min(confirmed_at, self._expired_at)
        entry = TagEntry(digest, media_type, self._contents.sizes[digest], confirmed_at)
        await self._index.put_tag(repository, name, entry)
        self.outcome.tags += 1

    async def _read(self, work: Callable[[], T]) -> T:
        return await self._threads.run_interruptible(work, interrupt=self._stopping.set)

    def _pace(self, count: int) -> None:
        """Runs in a thread: end soon when the program does."""
        if self._stopping.is_set():
            raise InterruptedError("the import was stopped")
        self._came(count)
