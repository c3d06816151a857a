"""What is known of each stored blob: size, media type, last use, when it was last re-hashed, whether it is pinned."""

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence

from cachetools import LRUCache

from registry_cache.model.contents import Stored
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import BlobEntry, Entry, Tally
from registry_cache.runtime.threads import finish
from registry_cache.store.index.part import KEPT_IN_MEMORY, Part
from registry_cache.store.index.schema import transaction


class Rows(Part):
    """See the module and :class:`registry_cache.ports.rows.BlobRows`."""

    def __init__(self) -> None:
        super().__init__()
        self._blobs: LRUCache[Digest, BlobEntry] = LRUCache(KEPT_IN_MEMORY)
        self._rows_forgotten = 0  # counts, for readers that wait while rows go
        self._used: dict[Digest, float] = {}  # what is not in the rows yet
        # Called now and then with what has been used since: a fleet's bucket keeps that, too.
        self.uses_told: Callable[[Collection[Digest]], None] = lambda _: None

    async def blob(self, digest: Digest) -> BlobEntry | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        entry = self._blobs.get(digest)
        if entry is None:
            forgotten = self._rows_forgotten
            entry = await self._db.read(_select_blob, None, digest)
            if entry is not None and forgotten == self._rows_forgotten:  # it may be one of those that went meanwhile
                self._blobs.setdefault(digest, entry)
        return entry

    def blob_at_hand(self, digest: Digest) -> BlobEntry | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._blobs.get(digest)

    async def add_blob(self, entry: BlobEntry) -> Tally:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await finish(self._add_blob(entry))

    async def _add_blob(self, entry: BlobEntry) -> Tally:
        if entry.digest in self.wanted:
            entry = entry._replace(pinned=True)
        came, entry = await self._db.write(_insert_blob, entry)
        self._blobs[entry.digest] = entry
        self._row_came(entry.digest)
        if entry.media_type is not None:
            self._journal.note("type", entry.digest, entry.media_type)
        self.placed(entry)  # what it needs is known from now on
        return came

    def placed(self, entry: BlobEntry) -> None:
        """See :class:`ports.rows.BlobRows`: what a pinned manifest needs can be read only from now on."""
        if entry.media_type is not None and entry.digest in self.wanted:
            self.pins_changed.set()

    async def forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await finish(self._forget_blobs(digests))

    async def _forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        gone = await self._db.write(_delete_blobs, digests)
        self._rows_forgotten += 1
        if digests:
            self._journal.note("gone", *digests)
        for digest in digests:
            self._blobs.pop(digest, None)
            self._used.pop(digest, None)
            self._row_went(digest)
        return gone

    def touch(self, digest: Digest) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        self._used[digest] = self.clock.now()

    def used_at(self, digest: Digest) -> float | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._used.get(digest)

    async def largest_bytes(self) -> int:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await self._db.read(_select_largest, 0)

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await self._db.read(_select_oldest, [], limit, after)

    async def verified(self, digest: Digest, at: float) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if await self._db.try_write(_update_verified, False, digest, at):
            self._correct(digest, verified_at=at)

    def _correct(self, digest: Digest, **values: float) -> None:
        """What is in memory of a row, as the row is now."""
        entry = self._blobs.get(digest)
        if entry is not None:
            self._blobs[digest] = entry._replace(**values)  # type: ignore[arg-type]

    async def unverified_longest(self, limit: int, *, before: float) -> list[Digest]:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await self._db.read(_select_unverified, [], limit, before)

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await self._db.read_surely(_select_between, first, last)

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """See :class:`registry_cache.ports.index.Pins`."""
        return await self._db.read_surely(_select_stored, digests)

    async def totals(self) -> Tally:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await self._db.read_surely(_select_totals)

    async def _flush_uses(self) -> None:
        used = dict(self._used)
        if not used:
            return
        self.uses_told(used)
        if await self._db.try_write(_update_uses, False, used):
            for digest, at in used.items():
                self._correct(digest, last_use=at)
                if self._used.get(digest) == at:
                    del self._used[digest]
        elif len(self._used) > KEPT_IN_MEMORY:
            self._used = dict([*self._used.items()][-KEPT_IN_MEMORY:])

    def _forget_rows(self) -> None:
        """Another index has taken the place of the one that these were read from."""
        self._blobs.clear()


_TALLY = "COALESCE(SUM(size_bytes), 0), COUNT(*) - COUNT(media_type), COUNT(media_type)"
_BLOB = "digest, size_bytes, media_type, last_use, verified_at, pinned"


def _blob_entry(row: tuple[str, int, str | None, float, float, int]) -> BlobEntry:
    return BlobEntry(Digest(row[0]), row[1], row[2], row[3], row[4], bool(row[5]))


def _select_blob(db: sqlite3.Connection, digest: Digest) -> BlobEntry | None:
    row = db.execute(f"SELECT {_BLOB} FROM blobs WHERE digest = ?", (digest,)).fetchone()  # noqa: S608 -- a constant
    return _blob_entry(row) if row else None


def _tally(row: BlobEntry | None) -> Tally:
    return Tally(row.size_bytes, row.media_type is None, row.media_type is not None) if row else Tally()


def _insert_blob(db: sqlite3.Connection, entry: BlobEntry) -> tuple[Tally, BlobEntry]:
    """By how much the totals grew, and the row as it is now: what was a manifest once stays one, what is pinned too."""
    with transaction(db):
        old = _select_blob(db, entry.digest)
        db.execute(
            f"INSERT INTO blobs ({_BLOB}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "  # noqa: S608
            "size_bytes = excluded.size_bytes, media_type = COALESCE(excluded.media_type, media_type), "
            "last_use = excluded.last_use, verified_at = excluded.verified_at, pinned = MAX(pinned, excluded.pinned)",
            tuple(entry),
        )
        new = _select_blob(db, entry.digest) or entry
    return _tally(new).minus(_tally(old)), new


def _delete_blobs(db: sqlite3.Connection, digests: Sequence[Digest]) -> Tally:
    # One statement for all: row by row it is Python's work, and keeps the event loop from its own.
    names, among = json.dumps(digests), "digest IN (SELECT value FROM json_each(?))"
    with transaction(db):
        gone = db.execute(f"SELECT {_TALLY} FROM blobs WHERE {among}", (names,)).fetchone()  # noqa: S608 -- constants
        db.execute(f"DELETE FROM blobs WHERE {among}", (names,))  # noqa: S608
        db.execute(f"DELETE FROM links WHERE {among}", (names,))  # noqa: S608
    return Tally(*gone)


def _select_oldest(db: sqlite3.Connection, limit: int, after: Entry | None) -> list[Entry]:
    last_use, digest = (after.last_use, str(after.digest)) if after else (-1.0, "")
    rows = db.execute(
        "SELECT digest, size_bytes, last_use FROM blobs WHERE pinned = 0 AND (last_use, digest) > (?, ?) "
        "ORDER BY last_use, digest LIMIT ?",
        (last_use, digest, limit),
    )
    return [Entry(Digest(row[0]), row[1], row[2]) for row in rows]


def _select_largest(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(MAX(size_bytes), 0) FROM blobs").fetchone()[0])


def _update_uses(db: sqlite3.Connection, used: dict[Digest, float]) -> bool:
    with transaction(db):
        db.executemany("UPDATE blobs SET last_use = ? WHERE digest = ?", [(at, digest) for digest, at in used.items()])
    return True


def _update_verified(db: sqlite3.Connection, digest: Digest, at: float) -> bool:
    db.execute("UPDATE blobs SET verified_at = ? WHERE digest = ?", (at, digest))
    return True


def _select_unverified(db: sqlite3.Connection, limit: int, before: float) -> list[Digest]:
    rows = db.execute("SELECT digest FROM blobs WHERE verified_at < ? ORDER BY verified_at LIMIT ?", (before, limit))
    return [Digest(row[0]) for row in rows]


def _select_between(db: sqlite3.Connection, first: str, last: str) -> dict[Digest, BlobEntry]:
    rows = db.execute(f"SELECT {_BLOB} FROM blobs WHERE digest >= ? AND digest < ?", (first, last))  # noqa: S608
    return {entry.digest: entry for entry in map(_blob_entry, rows)}


def _select_stored(db: sqlite3.Connection, digests: Collection[Digest]) -> dict[Digest, Stored]:
    query = "SELECT size_bytes, media_type, last_use FROM blobs WHERE digest = ?"
    rows = ((digest, db.execute(query, (digest,)).fetchone()) for digest in digests)
    return {digest: Stored(*row) for digest, row in rows if row is not None}


def _select_totals(db: sqlite3.Connection) -> Tally:
    return Tally(*db.execute(f"SELECT {_TALLY} FROM blobs").fetchone())  # noqa: S608 -- a constant
