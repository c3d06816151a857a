"""The index's SQL: its schema, and one function for each thing that is read or written. All run in the index thread."""

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from proxy.contents import Inventory, Pin, PinSummary, Stored, Tag
from proxy.oci import Digest, Repository
from proxy.storage import Answer, TagEntry
from proxy.store.eviction import Entry

SCHEMA_1 = """
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
SCHEMA_2 = """
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
SCHEMA_3 = "ALTER TABLE history ADD COLUMN evicted_bytes INTEGER NOT NULL DEFAULT 0;"
SCHEMAS = (SCHEMA_1, SCHEMA_2, SCHEMA_3)  # each brings an older index one version further
SCHEMA_VERSION = len(SCHEMAS)

# Bounds of what the index keeps of upstream's answers to tags and referrers.
_ANSWERS_KEPT = 2_000


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


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have ended it already
            db.execute("ROLLBACK")
        raise


def get_meta(db: sqlite3.Connection, key: str) -> str:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else ""


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))


_TALLY = "COALESCE(SUM(size_bytes), 0), COUNT(*) - COUNT(media_type), COUNT(media_type)"
_BLOB = "digest, size_bytes, media_type, last_use, verified_at, pinned"


def blob_entry(row: tuple[str, int, str | None, float, float, int]) -> BlobEntry:
    return BlobEntry(Digest(row[0]), row[1], row[2], row[3], row[4], bool(row[5]))


def select_blob(db: sqlite3.Connection, digest: Digest) -> BlobEntry | None:
    row = db.execute(f"SELECT {_BLOB} FROM blobs WHERE digest = ?", (digest,)).fetchone()  # noqa: S608 -- a constant
    return blob_entry(row) if row else None


def tally(size_bytes: int, media_type: str | None) -> Tally:
    return Tally(size_bytes, media_type is None, media_type is not None)


def insert_blob(db: sqlite3.Connection, entry: BlobEntry) -> Tally:
    with transaction(db):
        query = "SELECT size_bytes, media_type FROM blobs WHERE digest = ?"
        old = db.execute(query, (entry.digest,)).fetchone()
        new = db.execute(
            f"INSERT INTO blobs ({_BLOB}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "  # noqa: S608
            "size_bytes = excluded.size_bytes, media_type = COALESCE(excluded.media_type, media_type), "
            "last_use = excluded.last_use, verified_at = excluded.verified_at, pinned = MAX(pinned, excluded.pinned) "
            "RETURNING size_bytes, media_type",
            tuple(entry),
        ).fetchone()
    return tally(*new).minus(tally(*old) if old else Tally())


def delete_blobs(db: sqlite3.Connection, digests: Sequence[Digest]) -> Tally:
    # One statement for all: row by row it is Python's work, and keeps the event loop from its own.
    names, among = json.dumps(digests), "digest IN (SELECT value FROM json_each(?))"
    with transaction(db):
        gone = db.execute(f"SELECT {_TALLY} FROM blobs WHERE {among}", (names,)).fetchone()  # noqa: S608 -- constants
        db.execute(f"DELETE FROM blobs WHERE {among}", (names,))  # noqa: S608
        db.execute(f"DELETE FROM links WHERE {among}", (names,))  # noqa: S608
    return Tally(*gone)


def select_oldest(db: sqlite3.Connection, limit: int, after: Entry | None) -> list[Entry]:
    last_use, digest = (after.last_use, str(after.digest)) if after else (-1.0, "")
    rows = db.execute(
        "SELECT digest, size_bytes, last_use FROM blobs WHERE pinned = 0 AND (last_use, digest) > (?, ?) "
        "ORDER BY last_use, digest LIMIT ?",
        (last_use, digest, limit),
    )
    return [Entry(Digest(row[0]), row[1], row[2]) for row in rows]


def update_verified(db: sqlite3.Connection, digest: Digest, at: float) -> None:
    db.execute("UPDATE blobs SET verified_at = ? WHERE digest = ?", (at, digest))


def select_unverified(db: sqlite3.Connection, limit: int, before: float) -> list[Digest]:
    rows = db.execute("SELECT digest FROM blobs WHERE verified_at < ? ORDER BY verified_at LIMIT ?", (before, limit))
    return [Digest(row[0]) for row in rows]


def select_between(db: sqlite3.Connection, first: str, last: str) -> dict[Digest, BlobEntry]:
    rows = db.execute(f"SELECT {_BLOB} FROM blobs WHERE digest >= ? AND digest < ?", (first, last))  # noqa: S608
    return {entry.digest: entry for entry in map(blob_entry, rows)}


def update_pinned(db: sqlite3.Connection, come: Iterable[Digest], gone: Iterable[Digest], first: bool) -> None:
    with transaction(db):
        if first:
            db.execute("UPDATE blobs SET pinned = 0 WHERE pinned = 1")
        db.executemany("UPDATE blobs SET pinned = 0 WHERE digest = ?", [(digest,) for digest in gone])
        db.executemany("UPDATE blobs SET pinned = 1 WHERE digest = ?", [(digest,) for digest in come])


def select_pinned(db: sqlite3.Connection) -> list[tuple[Pin, Digest | None]]:
    rows = db.execute(
        "SELECT pins.registry, pins.repository, pins.target, tags.digest FROM pins LEFT JOIN tags ON "
        "tags.registry = pins.registry AND tags.repository = pins.repository AND tags.tag = pins.target"
    )
    return [
        (Pin(Repository(registry, name), target), Digest(digest) if digest else None)
        for registry, name, target, digest in rows
    ]


def select_pin_summary(db: sqlite3.Connection, limit: int) -> PinSummary:
    rows = db.execute("SELECT registry, repository, target FROM pins ORDER BY repository, target LIMIT ?", (limit,))
    return PinSummary(
        db.execute("SELECT COUNT(*) FROM pins").fetchone()[0],
        db.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM blobs WHERE pinned = 1").fetchone()[0],
        [Pin(Repository(registry, name), target) for registry, name, target in rows],
    )


def select_stored(db: sqlite3.Connection, digests: Collection[Digest]) -> dict[Digest, Stored]:
    query = "SELECT size_bytes, media_type, last_use FROM blobs WHERE digest = ?"
    rows = ((digest, db.execute(query, (digest,)).fetchone()) for digest in digests)
    return {digest: Stored(*row) for digest, row in rows if row is not None}


def update_pins(db: sqlite3.Connection, add: Sequence[Pin], remove: Sequence[Pin], now: float) -> None:
    with transaction(db):
        db.executemany(
            "INSERT OR IGNORE INTO pins VALUES (?, ?, ?, ?)", [(*pin.repository, pin.target, now) for pin in add]
        )
        db.executemany(
            "DELETE FROM pins WHERE registry = ? AND repository = ? AND target = ?",
            [(*pin.repository, pin.target) for pin in remove],
        )


def select_inventory(db: sqlite3.Connection) -> Inventory:
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


def add_history(db: sqlite3.Connection, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
    with transaction(db):
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


def select_history(db: sqlite3.Connection, step_seconds: int, since: float) -> list[tuple[int, ...]]:
    return db.execute(
        "SELECT began_at, hits, misses, errors, cached_bytes, served_bytes, received_bytes, evicted_bytes "
        "FROM history WHERE step_seconds = ? AND began_at >= ? ORDER BY began_at",
        (step_seconds, since),
    ).fetchall()


def select_totals(db: sqlite3.Connection) -> Tally:
    return Tally(*db.execute(f"SELECT {_TALLY} FROM blobs").fetchone())  # noqa: S608 -- a constant


def select_tag(db: sqlite3.Connection, repository: Repository, tag: str) -> TagEntry | None:
    row = db.execute(
        "SELECT digest, media_type, size_bytes, fetched_at FROM tags WHERE registry = ? AND repository = ? AND tag = ?",
        (*repository, tag),
    ).fetchone()
    return TagEntry(Digest(row[0]), *row[1:]) if row else None


def upsert_tag(db: sqlite3.Connection, repository: Repository, tag: str, entry: TagEntry) -> int:
    with transaction(db):
        replaced = delete_tag(db, repository, tag)
        db.execute("INSERT INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)", (*repository, tag, *entry))
    return 1 - replaced


def delete_tags(db: sqlite3.Connection, tags: Sequence[tuple[Repository, str]]) -> int:
    with transaction(db):
        return sum(delete_tag(db, repository, tag) for repository, tag in tags)


def delete_tag(db: sqlite3.Connection, repository: Repository, tag: str) -> int:
    return db.execute("DELETE FROM tags WHERE registry = ? AND repository = ? AND tag = ?", (*repository, tag)).rowcount


def select_repositories(db: sqlite3.Connection, after: str, limit: int) -> list[str]:
    rows = db.execute(
        "SELECT DISTINCT repository FROM links WHERE repository > ? ORDER BY repository LIMIT ?", (after, limit)
    )
    return [row[0] for row in rows]


def select_repositories_of(db: sqlite3.Connection, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
    query = "SELECT repository FROM links WHERE digest = ? LIMIT 10"
    return {digest: [row[0] for row in db.execute(query, (digest,))] for digest in digests}


def select_answer(db: sqlite3.Connection, key: str) -> Answer | None:
    row = db.execute(
        "SELECT body, content_type, link, filters_applied, fetched_at FROM answers WHERE key = ?", (key,)
    ).fetchone()
    return Answer(*row) if row else None


def upsert_answer(db: sqlite3.Connection, key: str, answer: Answer) -> None:
    with transaction(db):
        db.execute("REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (key, *answer))
        db.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY fetched_at DESC LIMIT -1 OFFSET ?)",
            (_ANSWERS_KEPT,),
        )


def write_buffered(
    db: sqlite3.Connection, used: dict[Digest, float], links: Iterable[tuple[Repository, Digest]]
) -> bool:
    with transaction(db):
        db.executemany("UPDATE blobs SET last_use = ? WHERE digest = ?", [(at, digest) for digest, at in used.items()])
        db.executemany(
            "INSERT OR IGNORE INTO links SELECT ?, ?, digest FROM blobs WHERE digest = ?",
            [(*repository, digest) for repository, digest in links],
        )
    return True
