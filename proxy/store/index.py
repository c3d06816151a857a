"""What is known beside the bytes: sizes, media types, last use, tags. SQLite; a loss costs nothing but LRU order.

One connection in one thread of its own. Reads are answered from bounded memory where they can be; last use and links
are buffered and written every few seconds. An index that breaks is emptied and filled again from ``blobs/``: a pull
never fails because of it.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cachetools import LRUCache

from proxy import events
from proxy.clock import Clock
from proxy.contents import Inventory, Pin, PinSummary, Stored
from proxy.errors import StoreTooNew
from proxy.oci import Digest, Repository
from proxy.storage import Answer, TagEntry
from proxy.store import statements
from proxy.store.eviction import Entry
from proxy.store.statements import BlobEntry, Tally
from proxy.threads import Threads

T = TypeVar("T")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Bounds of what is kept in memory: about 300 bytes an entry, so a few MB each.
_MEMORY_ENTRIES = 16_384
_PAGE = 256
_ANSWER_MAX_BYTES = 1024 * 1024


class SqliteIndex:
    """See the module. Open it with :meth:`start`; whoever starts it calls :meth:`aclose`."""

    def __init__(self, path: Path, *, events: events.Events) -> None:
        self._path = path
        self._events = events
        self._thread = Threads("index", 1)
        self._reader = Threads("inventory", 1)
        self._db: sqlite3.Connection | None = None
        self._blobs: LRUCache[Digest, BlobEntry] = LRUCache(_MEMORY_ENTRIES)
        self._tags: LRUCache[tuple[Repository, str], TagEntry] = LRUCache(_MEMORY_ENTRIES)
        self._linked: LRUCache[Digest, set[Repository]] = LRUCache(_MEMORY_ENTRIES)
        self._used: dict[Digest, float] = {}
        self._links: set[tuple[Repository, Digest]] = set()
        self._failing = False
        self.clock = Clock()
        # Why blobs/ has to be compared with the rows; empty when the last run closed the index properly.
        self.doubt = ""
        # Bytes that were never synced to the disk may be zeros now.
        self.machine_crashed = False
        self.tag_count = 0
        # What pins need, whether it is here yet or not; and that it may have to be worked out again.
        self.wanted: frozenset[Digest] = frozenset()
        self.pinned_tags: frozenset[tuple[Repository, str]] = frozenset()
        self.pins_changed = asyncio.Event()
        self._pins_told = False

    # --- lifecycle ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open or create the file.

        Raises:
            StoreTooNew: a newer version of this program wrote it.
        """
        latest = await self._thread.run(self._open)
        self.clock = Clock(not_before=latest)

    async def aclose(self) -> None:
        """Write what is buffered, mark the index as whole, close it."""
        await self.flush()
        if not self.doubt:
            await self._run(statements.set_meta, None, "ended", "")
        await self._thread.run(self._close)
        self._thread.close()
        self._reader.close()

    def _open(self) -> float:
        """Runs in the thread. The latest time written down in the index, Unix seconds."""
        try:
            return self._open_file()
        except sqlite3.DatabaseError as error:
            self._start_over(str(error))
            return 0.0

    def _open_file(self) -> float:
        self._db = db = sqlite3.connect(self._path, isolation_level=None)
        db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > statements.SCHEMA_VERSION:
            db.close()
            raise StoreTooNew(
                f"{self._path} was written by a newer version (schema {version}, this one knows "
                f"{statements.SCHEMA_VERSION}): run the newer version, or delete the file to have it rebuilt from "
                "blobs/"
            )
        if version < statements.SCHEMA_VERSION:
            steps = " ".join(statements.SCHEMAS[version:])
            db.executescript(f"BEGIN; {steps} PRAGMA user_version = {statements.SCHEMA_VERSION}; COMMIT;")
        boot = _boot_id()
        ended = statements.get_meta(db, "ended")
        if version == 0:
            self.doubt = "the index is new"
        elif ended and ended == boot:
            self.doubt = "the last run was killed"
        elif ended:
            self.doubt = "the machine went down during the last run"
            self.machine_crashed = True
        statements.set_meta(db, "ended", boot or "unknown boot")  # until aclose() says that the run ended properly
        self.tag_count = db.execute("SELECT COUNT(*) FROM tags").fetchone()[0]
        row = db.execute(
            "SELECT MAX(t) FROM (SELECT MAX(last_use) AS t FROM blobs UNION SELECT MAX(fetched_at) FROM tags)"
        ).fetchone()
        return float(row[0] or 0.0)

    def _start_over(self, reason: str) -> None:
        """Runs in the thread: put a broken file aside and begin an empty one; in memory if even that fails."""
        self._close()
        self.doubt = f"the index was broken: {reason}"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()
        try:
            self._open_file()
        except (sqlite3.Error, OSError):
            self._db = sqlite3.connect(":memory:", isolation_level=None)
            self._db.executescript(" ".join(statements.SCHEMAS))
        self.doubt = f"the index was broken: {reason}"

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    async def _run(self, work: Callable[..., T], default: T, *args: object) -> T:
        """*work* with the connection, in the thread; *default* when SQLite cannot do it: the pull goes on."""

        def guarded() -> T:
            if self._db is None:
                raise sqlite3.OperationalError("the index is closed")
            return work(self._db, *args)

        try:
            result = await self._thread.run(guarded)
        except sqlite3.Error as error:
            if not self._failing:  # one line when it begins, not one for each request
                self._failing = True
                self._events.emit(events.StorageFailed(operation="index", reason=str(error)))
            broken = type(error) is sqlite3.DatabaseError  # malformed; its subclasses are full, locked, read-only
            if broken:
                await self._thread.run(self._start_over, str(error))
                self._blobs.clear()
                self._tags.clear()
                self._linked.clear()
            return default
        self._failing = False
        return result

    # --- blobs --------------------------------------------------------------------------------------------------

    async def blob(self, digest: Digest) -> BlobEntry | None:
        """The row of *digest*."""
        entry = self.blob_at_hand(digest)
        if entry is None:
            entry = await self._run(statements.select_blob, None, digest)
            if entry is not None:
                self._blobs[digest] = entry
        return entry

    def blob_at_hand(self, digest: Digest) -> BlobEntry | None:
        """As :meth:`blob`, if it is in memory."""
        return self._blobs.get(digest)

    async def add_blob(self, entry: BlobEntry) -> Tally:
        """Write a row; by how much the totals grew (not at all for a row that was there)."""
        if entry.digest in self.wanted:
            entry = entry._replace(pinned=True)
            if entry.media_type is not None:
                self.pins_changed.set()  # what it needs is known from now on
        came = await self._run(statements.insert_blob, statements.tally(entry.size_bytes, entry.media_type), entry)
        self._blobs[entry.digest] = entry
        return came

    def placed(self, entry: BlobEntry) -> None:
        """The file of a new row is there: what a pinned manifest needs can be read only from now on."""
        if entry.media_type is not None and entry.digest in self.wanted:
            self.pins_changed.set()

    async def forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        """Delete rows; what there was of them, each counted by one caller only."""
        for digest in digests:
            self._blobs.pop(digest, None)
            self._used.pop(digest, None)
            self._linked.pop(digest, None)
        return await self._run(statements.delete_blobs, Tally(), digests)

    def touch(self, digest: Digest) -> None:
        """*digest* is used now. Buffered: a crash loses a few seconds of order."""
        self._used[digest] = self.clock.now()

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """Unpinned blobs behind *after*, least recently used first."""
        await self.flush()
        return await self._run(statements.select_oldest, [], limit, after)

    async def verified(self, digest: Digest, at: float) -> None:
        """The content was re-hashed and is good."""
        await self._run(statements.update_verified, None, digest, at)

    async def unverified_longest(self, limit: int, *, before: float) -> list[Digest]:
        """The blobs last re-hashed before *before* (Unix seconds), the longest ago first."""
        return await self._run(statements.select_unverified, [], limit, before)

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        """Rows whose digest is in [first, last), for the reconciliation with the disk."""
        return await self._run(statements.select_between, {}, first, last)

    async def keep(self, wanted: Iterable[Digest]) -> None:
        """From now on these blobs, and no others, are never evicted; those of them that are yet to come, too."""
        before, self.wanted = self.wanted, frozenset(wanted)
        # Until it is first told, what the last run pinned stays pinned: nobody knows better yet.
        first, self._pins_told = not self._pins_told, True
        come, gone = self.wanted - before, before - self.wanted
        if first:
            self._blobs.clear()
        for digest in (*come, *gone):
            self._blobs.pop(digest, None)
        await self._run(statements.update_pinned, None, come, gone, first)

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """Every pin, and what its tag is now (None when it is a digest, or nothing is known of it)."""
        pinned: list[tuple[Pin, Digest | None]] = await self._run(
            statements.select_pinned, list[tuple[Pin, Digest | None]]()
        )
        self.pinned_tags = frozenset((pin.repository, pin.target) for pin, _ in pinned)
        return pinned

    async def pin_summary(self, limit: int) -> PinSummary:
        """How much is pinned, and the first *limit* pins."""
        return await self._run(statements.select_pin_summary, PinSummary(0, 0, []), limit)

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """Those of *digests* that are here."""
        return await self._run(statements.select_stored, dict[Digest, Stored](), digests)

    async def inventory(self) -> Inventory:
        """Everything that is known at one moment.

        Through a connection of its own: reading a hundred thousand rows takes half a second, and tags are asked for
        meanwhile.
        """
        await self.flush()
        try:
            return await self._reader.run(self._read_inventory)
        except sqlite3.Error:  # no file: the index is in memory
            return await self._run(statements.select_inventory, Inventory({}, (), {}, ()))

    def _read_inventory(self) -> Inventory:
        """Runs in the reader's thread."""
        with contextlib.closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.execute("BEGIN")  # one moment for all tables; WAL lets the writer go on
            return statements.select_inventory(db)

    async def change_pins(self, *, add: Sequence[Pin] = (), remove: Sequence[Pin] = ()) -> None:
        """Remember or forget pins."""
        await self._run(statements.update_pins, None, add, remove, self.clock.now())

    async def add_history(self, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
        """See :class:`proxy.history.Ledger`; forgets what is too old.

        Args:
            counts: as the columns of ``history``.
            kept: by length of a step in seconds, how many steps are kept.
        """
        return await self._run(statements.add_history, False, at, counts, kept)

    async def history(self, step_seconds: int, since: float) -> list[tuple[int, ...]]:
        """See :class:`proxy.history.Ledger`."""
        return await self._run(statements.select_history, [], step_seconds, since)

    async def totals(self) -> Tally:
        """Counted afresh."""
        return await self._run(statements.select_totals, Tally())

    # --- names --------------------------------------------------------------------------------------------------

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`proxy.storage.Index`."""
        entry = self.tag_at_hand(repository, tag)
        if entry is None:
            entry = await self._run(statements.select_tag, None, repository, tag)
            if entry is not None:
                self._tags[repository, tag] = entry
        return entry

    def tag_at_hand(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`proxy.storage.Index`."""
        return self._tags.get((repository, tag))

    async def put_tag(self, repository: Repository, tag: str, entry: TagEntry) -> None:
        """See :class:`proxy.storage.Index`."""
        known = self._tags.get((repository, tag))
        if (repository, tag) in self.pinned_tags and (known is None or known.digest != entry.digest):
            self.pins_changed.set()
        self._tags[repository, tag] = entry
        added = await self._run(statements.upsert_tag, 0, repository, tag, entry)
        self.tag_count += added

    async def forget_tag(self, repository: Repository, tag: str) -> None:
        """See :class:`proxy.storage.Index`."""
        await self.forget_tags([(repository, tag)])

    async def forget_tags(self, tags: Sequence[tuple[Repository, str]]) -> None:
        """These are gone, in pages: others ask the index meanwhile."""
        for first in range(0, len(tags), _PAGE):
            page = tags[first : first + _PAGE]
            for tag in page:
                self._tags.pop(tag, None)
            self.tag_count -= await self._run(statements.delete_tags, 0, page)

    def link(self, repository: Repository, digest: Digest) -> None:
        """See :class:`proxy.storage.Index`. Buffered."""
        known = self._linked.get(digest)
        if known is None:
            known = self._linked[digest] = set()
        if repository not in known:
            known.add(repository)
            self._links.add((repository, digest))

    async def repositories(self, after: str, limit: int) -> list[str]:
        """See :class:`proxy.storage.Index`."""
        await self.flush()
        return await self._run(statements.select_repositories, [], after, limit)

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
        """Through which repositories these were pulled."""
        await self.flush()
        return await self._run(statements.select_repositories_of, {}, digests)

    async def answer(self, key: str) -> Answer | None:
        """See :class:`proxy.storage.Index`."""
        return await self._run(statements.select_answer, None, key)

    async def put_answer(self, key: str, answer: Answer) -> None:
        """See :class:`proxy.storage.Index`."""
        if len(answer.body) <= _ANSWER_MAX_BYTES:
            await self._run(statements.upsert_answer, None, key, answer)

    async def flush(self) -> None:
        """Write the buffered last uses and links; they stay buffered if the disk is full."""
        used, self._used = self._used, {}
        links, self._links = self._links, set()
        if not used and not links:
            return
        if not await self._run(statements.write_buffered, False, used, links):
            self._used = dict([*used.items(), *self._used.items()][-_MEMORY_ENTRIES:])
            if len(self._links) < _MEMORY_ENTRIES:
                self._links |= links


def _boot_id() -> str:
    """Which boot of the machine this is; empty when that is hidden.

    A unit with ``ProcSubset=pid`` does not see the kernel's file; ours has ``Environment=BOOT_ID=%b`` for that.
    """
    try:
        text = _BOOT_ID.read_text()
    except OSError:
        text = os.environ.get("BOOT_ID", "")
    return text.strip().replace("-", "")
