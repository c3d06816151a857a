"""What is known beside the bytes: sizes, media types, last use, tags. SQLite; a loss costs nothing but LRU order.

One connection in one thread of its own. Reads are answered from bounded memory where they can be; last use and links
are buffered and written every few seconds. An index that breaks is emptied and filled again from ``blobs/``: a pull
never fails because of it.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from cachetools import LRUCache

from proxy import events
from proxy.clock import Clock
from proxy.contents import Inventory, Pin, PinSummary, Stored, Tag
from proxy.errors import StoreTooNew
from proxy.oci import Digest, Repository
from proxy.storage import Answer, TagEntry
from proxy.store.eviction import Entry
from proxy.threads import Threads

T = TypeVar("T")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, media_type TEXT,
    last_use REAL NOT NULL, verified_at REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX blobs_by_last_use ON blobs (pinned, last_use, digest, size_bytes);
CREATE INDEX blobs_by_verification ON blobs (verified_at);
CREATE TABLE tags (
    registry TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, media_type TEXT NOT NULL, size_bytes INTEGER NOT NULL, fetched_at REAL NOT NULL,
    PRIMARY KEY (registry, repository, tag)
) WITHOUT ROWID;
CREATE TABLE links (
    registry TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (registry, repository, digest)
) WITHOUT ROWID;
CREATE INDEX links_by_digest ON links (digest);
CREATE TABLE answers (
    key TEXT PRIMARY KEY, body BLOB NOT NULL, content_type TEXT NOT NULL, link TEXT, filters_applied TEXT,
    fetched_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_by_age ON answers (fetched_at);
"""
_SCHEMA_2 = """
CREATE TABLE pins (
    registry TEXT NOT NULL, repository TEXT NOT NULL, target TEXT NOT NULL, pinned_at REAL NOT NULL,
    PRIMARY KEY (registry, repository, target)
) WITHOUT ROWID;
CREATE TABLE history (
    step_seconds INTEGER NOT NULL, began_at INTEGER NOT NULL,
    hits INTEGER NOT NULL, misses INTEGER NOT NULL, errors INTEGER NOT NULL,
    cached_bytes INTEGER NOT NULL, served_bytes INTEGER NOT NULL, received_bytes INTEGER NOT NULL,
    PRIMARY KEY (step_seconds, began_at)
) WITHOUT ROWID;
"""
_SCHEMA_3 = "ALTER TABLE history ADD COLUMN evicted_bytes INTEGER NOT NULL DEFAULT 0;"
_SCHEMAS = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3)  # each brings an older index one version further
SCHEMA_VERSION = len(_SCHEMAS)

# Bounds of what is kept in memory: about 300 bytes an entry, so a few MB each.
_MEMORY_ENTRIES = 16_384
# Bounds of what the index keeps of upstream's answers to tags and referrers.
_ANSWERS_KEPT = 2_000
_PAGE = 256
_ANSWER_MAX_BYTES = 1024 * 1024


class BlobEntry(NamedTuple):
    """A row of the index: ``media_type`` is set for manifests only."""

    digest: Digest
    size_bytes: int
    media_type: str | None
    last_use: float
    verified_at: float = 0.0  # 0: never re-hashed since it was found on the disk
    pinned: bool = False


class Tally(NamedTuple):
    """So many bytes, blobs and manifests: all that is here, or what came and went."""

    size_bytes: int = 0
    blobs: int = 0
    manifests: int = 0

    @property
    def objects(self) -> int:
        """Blobs and manifests."""
        return self.blobs + self.manifests

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: "Tally") -> "Tally":
        """What is left of this without *other*."""
        return Tally(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


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
            await self._run(_set_meta, None, "ended", "")
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
        if version > SCHEMA_VERSION:
            db.close()
            raise StoreTooNew(
                f"{self._path} was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}): "
                "run the newer version, or delete the file to have it rebuilt from blobs/"
            )
        if version < SCHEMA_VERSION:
            db.executescript(f"BEGIN; {' '.join(_SCHEMAS[version:])} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        boot = _boot_id()
        ended = _get_meta(db, "ended")
        if version == 0:
            self.doubt = "the index is new"
        elif ended and ended == boot:
            self.doubt = "the last run was killed"
        elif ended:
            self.doubt = "the machine went down during the last run"
            self.machine_crashed = True
        _set_meta(db, "ended", boot or "unknown boot")  # until aclose() says that the run ended properly
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
            self._db.executescript(" ".join(_SCHEMAS))
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
        entry = self._blobs.get(digest)
        if entry is None:
            entry = await self._run(_select_blob, None, digest)
            if entry is not None:
                self._blobs[digest] = entry
        return entry

    async def add_blob(self, entry: BlobEntry) -> Tally:
        """Write a row; by how much the totals grew (not at all for a row that was there)."""
        if entry.digest in self.wanted:
            entry = entry._replace(pinned=True)
            if entry.media_type is not None:
                self.pins_changed.set()  # what it needs is known from now on
        came = await self._run(_insert_blob, _tally(entry.size_bytes, entry.media_type), entry)
        self._blobs[entry.digest] = entry
        return came

    async def forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        """Delete rows; what there was of them, each counted by one caller only."""
        for digest in digests:
            self._blobs.pop(digest, None)
            self._used.pop(digest, None)
            self._linked.pop(digest, None)
        return await self._run(_delete_blobs, Tally(), digests)

    def touch(self, digest: Digest) -> None:
        """*digest* is used now. Buffered: a crash loses a few seconds of order."""
        self._used[digest] = self.clock.now()

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """Unpinned blobs behind *after*, least recently used first."""
        await self.flush()
        return await self._run(_select_oldest, [], limit, after)

    async def verified(self, digest: Digest, at: float) -> None:
        """The content was re-hashed and is good."""
        await self._run(_update_verified, None, digest, at)

    async def unverified_longest(self, limit: int, *, before: float) -> list[Digest]:
        """The blobs last re-hashed before *before* (Unix seconds), the longest ago first."""
        return await self._run(_select_unverified, [], limit, before)

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        """Rows whose digest is in [first, last), for the reconciliation with the disk."""
        return await self._run(_select_between, {}, first, last)

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
        await self._run(_update_pinned, None, come, gone, first)

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """Every pin, and what its tag is now (None when it is a digest, or nothing is known of it)."""
        pinned: list[tuple[Pin, Digest | None]] = await self._run(_select_pinned, list[tuple[Pin, Digest | None]]())
        self.pinned_tags = frozenset((pin.repository, pin.target) for pin, _ in pinned)
        return pinned

    async def pin_summary(self, limit: int) -> PinSummary:
        """How much is pinned, and the first *limit* pins."""
        return await self._run(_select_pin_summary, PinSummary(0, 0, []), limit)

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """Those of *digests* that are here."""
        return await self._run(_select_stored, dict[Digest, Stored](), digests)

    async def inventory(self) -> Inventory:
        """Everything that is known at one moment.

        Through a connection of its own: reading a hundred thousand rows takes half a second, and tags are asked for
        meanwhile.
        """
        await self.flush()
        try:
            return await self._reader.run(self._read_inventory)
        except sqlite3.Error:  # no file: the index is in memory
            return await self._run(_select_inventory, Inventory({}, (), {}, ()))

    def _read_inventory(self) -> Inventory:
        """Runs in the reader's thread."""
        with contextlib.closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.execute("BEGIN")  # one moment for all tables; WAL lets the writer go on
            return _select_inventory(db)

    async def change_pins(self, *, add: Sequence[Pin] = (), remove: Sequence[Pin] = ()) -> None:
        """Remember or forget pins."""
        await self._run(_update_pins, None, add, remove, self.clock.now())

    async def add_history(self, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
        """See :class:`proxy.history.Ledger`; forgets what is too old.

        Args:
            counts: as the columns of ``history``.
            kept: by length of a step in seconds, how many steps are kept.
        """
        return await self._run(_add_history, False, at, counts, kept)

    async def history(self, step_seconds: int, since: float) -> list[tuple[int, ...]]:
        """See :class:`proxy.history.Ledger`."""
        return await self._run(_select_history, [], step_seconds, since)

    async def totals(self) -> Tally:
        """Counted afresh."""
        return await self._run(_select_totals, Tally())

    # --- names --------------------------------------------------------------------------------------------------

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`proxy.storage.Index`."""
        entry = self.tag_at_hand(repository, tag)
        if entry is None:
            entry = await self._run(_select_tag, None, repository, tag)
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
        added = await self._run(_upsert_tag, 0, repository, tag, entry)
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
            self.tag_count -= await self._run(_delete_tags, 0, page)

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
        return await self._run(_select_repositories, [], after, limit)

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
        """Through which repositories these were pulled."""
        await self.flush()
        return await self._run(_select_repositories_of, {}, digests)

    async def answer(self, key: str) -> Answer | None:
        """See :class:`proxy.storage.Index`."""
        return await self._run(_select_answer, None, key)

    async def put_answer(self, key: str, answer: Answer) -> None:
        """See :class:`proxy.storage.Index`."""
        if len(answer.body) <= _ANSWER_MAX_BYTES:
            await self._run(_upsert_answer, None, key, answer)

    async def flush(self) -> None:
        """Write the buffered last uses and links; they stay buffered if the disk is full."""
        used, self._used = self._used, {}
        links, self._links = self._links, set()
        if not used and not links:
            return
        if not await self._run(_write_buffered, False, used, links):
            self._used = dict([*used.items(), *self._used.items()][-_MEMORY_ENTRIES:])
            if len(self._links) < _MEMORY_ENTRIES:
                self._links |= links


# --- SQL: everything below runs in the index thread ---------------------------------------------------------------


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have ended it already
            db.execute("ROLLBACK")
        raise


def _get_meta(db: sqlite3.Connection, key: str) -> str:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else ""


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))


_BLOB = "digest, size_bytes, media_type, last_use, verified_at, pinned"


def _blob_entry(row: tuple[str, int, str | None, float, float, int]) -> BlobEntry:
    return BlobEntry(Digest(row[0]), row[1], row[2], row[3], row[4], bool(row[5]))


def _select_blob(db: sqlite3.Connection, digest: Digest) -> BlobEntry | None:
    row = db.execute(f"SELECT {_BLOB} FROM blobs WHERE digest = ?", (digest,)).fetchone()  # noqa: S608 -- a constant
    return _blob_entry(row) if row else None


def _tally(size_bytes: int, media_type: str | None) -> Tally:
    return Tally(size_bytes, media_type is None, media_type is not None)


def _insert_blob(db: sqlite3.Connection, entry: BlobEntry) -> Tally:
    with _transaction(db):
        query = "SELECT size_bytes, media_type FROM blobs WHERE digest = ?"
        old = db.execute(query, (entry.digest,)).fetchone()
        new = db.execute(
            f"INSERT INTO blobs ({_BLOB}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "  # noqa: S608
            "size_bytes = excluded.size_bytes, media_type = COALESCE(excluded.media_type, media_type), "
            "last_use = excluded.last_use, verified_at = excluded.verified_at, pinned = MAX(pinned, excluded.pinned) "
            "RETURNING size_bytes, media_type",
            tuple(entry),
        ).fetchone()
    return _tally(*new).minus(_tally(*old) if old else Tally())


def _delete_blobs(db: sqlite3.Connection, digests: Sequence[Digest]) -> Tally:
    gone = Tally()
    with _transaction(db):
        for digest in digests:
            row = db.execute(
                "DELETE FROM blobs WHERE digest = ? RETURNING size_bytes, media_type", (digest,)
            ).fetchone()
            if row:
                gone = gone.plus(_tally(*row))
                db.execute("DELETE FROM links WHERE digest = ?", (digest,))
    return gone


def _select_oldest(db: sqlite3.Connection, limit: int, after: Entry | None) -> list[Entry]:
    last_use, digest = (after.last_use, str(after.digest)) if after else (-1.0, "")
    rows = db.execute(
        "SELECT digest, size_bytes, last_use FROM blobs WHERE pinned = 0 AND (last_use, digest) > (?, ?) "
        "ORDER BY last_use, digest LIMIT ?",
        (last_use, digest, limit),
    )
    return [Entry(Digest(row[0]), row[1], row[2]) for row in rows]


def _update_verified(db: sqlite3.Connection, digest: Digest, at: float) -> None:
    db.execute("UPDATE blobs SET verified_at = ? WHERE digest = ?", (at, digest))


def _select_unverified(db: sqlite3.Connection, limit: int, before: float) -> list[Digest]:
    rows = db.execute("SELECT digest FROM blobs WHERE verified_at < ? ORDER BY verified_at LIMIT ?", (before, limit))
    return [Digest(row[0]) for row in rows]


def _select_between(db: sqlite3.Connection, first: str, last: str) -> dict[Digest, BlobEntry]:
    rows = db.execute(f"SELECT {_BLOB} FROM blobs WHERE digest >= ? AND digest < ?", (first, last))  # noqa: S608
    return {entry.digest: entry for entry in map(_blob_entry, rows)}


def _update_pinned(db: sqlite3.Connection, come: Iterable[Digest], gone: Iterable[Digest], first: bool) -> None:
    with _transaction(db):
        if first:
            db.execute("UPDATE blobs SET pinned = 0 WHERE pinned = 1")
        db.executemany("UPDATE blobs SET pinned = 0 WHERE digest = ?", [(digest,) for digest in gone])
        db.executemany("UPDATE blobs SET pinned = 1 WHERE digest = ?", [(digest,) for digest in come])


def _select_pinned(db: sqlite3.Connection) -> list[tuple[Pin, Digest | None]]:
    rows = db.execute(
        "SELECT pins.registry, pins.repository, pins.target, tags.digest FROM pins LEFT JOIN tags ON "
        "tags.registry = pins.registry AND tags.repository = pins.repository AND tags.tag = pins.target"
    )
    return [
        (Pin(Repository(registry, name), target), Digest(digest) if digest else None)
        for registry, name, target, digest in rows
    ]


def _select_pin_summary(db: sqlite3.Connection, limit: int) -> PinSummary:
    rows = db.execute("SELECT registry, repository, target FROM pins ORDER BY repository, target LIMIT ?", (limit,))
    return PinSummary(
        db.execute("SELECT COUNT(*) FROM pins").fetchone()[0],
        db.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM blobs WHERE pinned = 1").fetchone()[0],
        [Pin(Repository(registry, name), target) for registry, name, target in rows],
    )


def _select_stored(db: sqlite3.Connection, digests: Collection[Digest]) -> dict[Digest, Stored]:
    query = "SELECT size_bytes, media_type, last_use FROM blobs WHERE digest = ?"
    rows = ((digest, db.execute(query, (digest,)).fetchone()) for digest in digests)
    return {digest: Stored(*row) for digest, row in rows if row is not None}


def _update_pins(db: sqlite3.Connection, add: Sequence[Pin], remove: Sequence[Pin], now: float) -> None:
    with _transaction(db):
        db.executemany(
            "INSERT OR IGNORE INTO pins VALUES (?, ?, ?, ?)", [(*pin.repository, pin.target, now) for pin in add]
        )
        db.executemany(
            "DELETE FROM pins WHERE registry = ? AND repository = ? AND target = ?",
            [(*pin.repository, pin.target) for pin in remove],
        )


def _select_inventory(db: sqlite3.Connection) -> Inventory:
    rows = db.execute("SELECT digest, size_bytes, media_type, last_use FROM blobs")
    blobs = {Digest(digest): Stored(size, media_type, used) for digest, size, media_type, used in rows}
    # One object for each digest and each repository, however often it is named: it saves many megabytes, and the time
    # to free them, in which no other thread runs.
    digests = {str(digest): digest for digest in blobs}
    repositories: dict[tuple[str, str], Repository] = {}

    def repository(registry: str, name: str) -> Repository:
        return repositories.setdefault((registry, name), Repository(registry, name))

    alone: dict[Repository, tuple[Repository, ...]] = {}
    links: dict[Digest, tuple[Repository, ...]] = {}
    for registry, name, text in db.execute("SELECT registry, repository, digest FROM links"):
        digest, where = digests.get(text) or Digest(text), repository(registry, name)
        known = links.get(digest)
        links[digest] = (*known, where) if known else alone.setdefault(where, (where,))
    tags = db.execute("SELECT registry, repository, tag, digest, fetched_at FROM tags")
    pins = db.execute("SELECT registry, repository, target FROM pins")
    return Inventory(
        blobs,
        [
            Tag(repository(registry, name), tag, digests.get(digest) or Digest(digest), fetched_at)
            for registry, name, tag, digest, fetched_at in tags
        ],
        links,
        [Pin(repository(registry, name), target) for registry, name, target in pins],
    )


def _add_history(db: sqlite3.Connection, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
    with _transaction(db):
        for step, number in kept.items():
            began = int(at // step * step)
            db.execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "hits = hits + excluded.hits, misses = misses + excluded.misses, errors = errors + excluded.errors, "
                "cached_bytes = cached_bytes + excluded.cached_bytes, "
                "served_bytes = served_bytes + excluded.served_bytes, "
                "received_bytes = received_bytes + excluded.received_bytes, "
                "evicted_bytes = evicted_bytes + excluded.evicted_bytes",
                (step, began, *counts),
            )
            # Steps behind now were written while the machine's clock was ahead.
            db.execute(
                "DELETE FROM history WHERE step_seconds = ? AND (began_at <= ? OR began_at > ?)",
                (step, began - number * step, began),
            )
    return True


def _select_history(db: sqlite3.Connection, step_seconds: int, since: float) -> list[tuple[int, ...]]:
    return db.execute(
        "SELECT began_at, hits, misses, errors, cached_bytes, served_bytes, received_bytes, evicted_bytes "
        "FROM history WHERE step_seconds = ? AND began_at >= ? ORDER BY began_at",
        (step_seconds, since),
    ).fetchall()


def _select_totals(db: sqlite3.Connection) -> Tally:
    size, rows, manifests = db.execute(
        "SELECT COALESCE(SUM(size_bytes), 0), COUNT(*), COUNT(media_type) FROM blobs"
    ).fetchone()
    return Tally(size, rows - manifests, manifests)


def _select_tag(db: sqlite3.Connection, repository: Repository, tag: str) -> TagEntry | None:
    row = db.execute(
        "SELECT digest, media_type, size_bytes, fetched_at FROM tags WHERE registry = ? AND repository = ? AND tag = ?",
        (*repository, tag),
    ).fetchone()
    return TagEntry(Digest(row[0]), *row[1:]) if row else None


def _upsert_tag(db: sqlite3.Connection, repository: Repository, tag: str, entry: TagEntry) -> int:
    with _transaction(db):
        replaced = _delete_tag(db, repository, tag)
        db.execute("INSERT INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)", (*repository, tag, *entry))
    return 1 - replaced


def _delete_tags(db: sqlite3.Connection, tags: Sequence[tuple[Repository, str]]) -> int:
    with _transaction(db):
        return sum(_delete_tag(db, repository, tag) for repository, tag in tags)


def _delete_tag(db: sqlite3.Connection, repository: Repository, tag: str) -> int:
    return db.execute("DELETE FROM tags WHERE registry = ? AND repository = ? AND tag = ?", (*repository, tag)).rowcount


def _select_repositories(db: sqlite3.Connection, after: str, limit: int) -> list[str]:
    rows = db.execute(
        "SELECT DISTINCT repository FROM links WHERE repository > ? ORDER BY repository LIMIT ?", (after, limit)
    )
    return [row[0] for row in rows]


def _select_repositories_of(db: sqlite3.Connection, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
    query = "SELECT repository FROM links WHERE digest = ? LIMIT 10"
    return {digest: [row[0] for row in db.execute(query, (digest,))] for digest in digests}


def _select_answer(db: sqlite3.Connection, key: str) -> Answer | None:
    row = db.execute(
        "SELECT body, content_type, link, filters_applied, fetched_at FROM answers WHERE key = ?", (key,)
    ).fetchone()
    return Answer(*row) if row else None


def _upsert_answer(db: sqlite3.Connection, key: str, answer: Answer) -> None:
    with _transaction(db):
        db.execute("REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (key, *answer))
        db.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY fetched_at DESC LIMIT -1 OFFSET ?)",
            (_ANSWERS_KEPT,),
        )


def _write_buffered(
    db: sqlite3.Connection, used: dict[Digest, float], links: Iterable[tuple[Repository, Digest]]
) -> bool:
    with _transaction(db):
        db.executemany("UPDATE blobs SET last_use = ? WHERE digest = ?", [(at, digest) for digest, at in used.items()])
        db.executemany(
            "INSERT OR IGNORE INTO links SELECT ?, ?, digest FROM blobs WHERE digest = ?",
            [(*repository, digest) for repository, digest in links],
        )
    return True


def _boot_id() -> str:
    """Which boot of the machine this is; empty when that is hidden.

    A unit with ``ProcSubset=pid`` does not see the kernel's file; ours has ``Environment=BOOT_ID=%b`` for that.
    """
    try:
        text = _BOOT_ID.read_text()
    except OSError:
        text = os.environ.get("BOOT_ID", "")
    return text.strip().replace("-", "")
