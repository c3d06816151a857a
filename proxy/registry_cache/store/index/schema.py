"""The tables of the index, and how an older file is brought up to date."""

import contextlib
import sqlite3
from collections.abc import Iterator

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
# Links used to be written by mere service. They are kept, to know where a blob may be fetched; only tags prove theirs.
SCHEMA_4 = """
ALTER TABLE links ADD COLUMN proven INTEGER NOT NULL DEFAULT 1;
UPDATE links SET proven = 0;
INSERT INTO links SELECT registry, repository, digest, 1 FROM tags WHERE digest IN (SELECT digest FROM blobs)
    ON CONFLICT DO UPDATE SET proven = 1;
"""
SCHEMAS = (SCHEMA_1, SCHEMA_2, SCHEMA_3, SCHEMA_4)  # each brings an older index one version further
SCHEMA_VERSION = len(SCHEMAS)

# The key "filled" of ``meta`` is "names" in an index that was filled from the journal, until its rows are found again
# ("rows"): until then the journal knows more than it.

# What counts of a row of ``answers``.
ANSWER_BYTES = "LENGTH(key) + LENGTH(body) + COALESCE(LENGTH(link), 0)"


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
