"""The journal's facts as rows of the index, and back."""

import sqlite3
from collections.abc import Iterator
from typing import Any

from registry_cache.store.index.journal import Facts


def write_facts(db: sqlite3.Connection, facts: Facts) -> None:
    """Into an index without names. Links come before the rows of their blobs, which are yet to be found."""
    db.executemany(
        "INSERT OR IGNORE INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(*repository, tag, *entry) for (repository, tag), entry in facts.tags.items()],
    )
    db.executemany(
        "INSERT OR IGNORE INTO pins VALUES (?, ?, ?, 0)", [(*pin.repository, pin.target) for pin in facts.pins]
    )
    db.executemany(
        "INSERT OR IGNORE INTO links (registry, repository, digest) VALUES (?, ?, ?)",
        [(*repository, digest) for digest, repositories in facts.links.items() for repository in repositories],
    )


def select_facts(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """All of them, as the journal writes them."""
    queries = (
        ("tag", "SELECT registry, repository, tag, digest, media_type, size_bytes, fetched_at FROM tags"),
        ("type", "SELECT digest, media_type FROM blobs WHERE media_type IS NOT NULL"),
        ("pin", "SELECT registry, repository, target FROM pins"),
        ("link", "SELECT registry, repository, digest FROM links WHERE proven = 1"),
    )
    for kind, query in queries:
        yield from ((kind, *row) for row in db.execute(query))
