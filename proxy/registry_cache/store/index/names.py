"""Which digest a tag was when upstream was last asked.

What upstream said is ordered by when it was asked: an answer that was long on its way does not undo a later one. A tag
that cannot be written now is known in memory, and written with the next flush.
"""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cachetools import LRUCache

from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.names import TagEntry
from registry_cache.runtime.threads import finish
from registry_cache.store.index.part import KEPT_IN_MEMORY, Part
from registry_cache.store.index.schema import transaction

Name = tuple[Repository, str]


class Names(Part):
    """See the module and :class:`registry_cache.ports.names.Names`."""

    def __init__(self) -> None:
        super().__init__()
        self.tag_count = 0
        self._tags: LRUCache[Name, TagEntry] = LRUCache(KEPT_IN_MEMORY)
        self._unwritten: dict[Name, TagEntry | None] = {}  # None: to be deleted
        self._forgotten: LRUCache[Name, float] = LRUCache(KEPT_IN_MEMORY)  # answers asked before that are void
        self._writing_names = asyncio.Lock()

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`registry_cache.ports.names.Names`."""
        name = (repository, tag)
        if name in self._tags:
            return self._tags[name]
        forgotten = self._forgotten.get(name)
        entry = await self._db.read(_select_tag, None, repository, tag)
        # What was said meanwhile is newer than what was read.
        if name in self._tags:
            return self._tags[name]
        if name in self._unwritten:
            return self._unwritten[name]
        if self._forgotten.get(name) != forgotten:
            return None
        if entry is not None:
            self._tags[name] = entry
        return entry

    def tag_at_hand(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`registry_cache.ports.names.Names`."""
        try:
            return self._tags[repository, tag]  # get() takes twice as many calls, and every hit by tag comes here
        except KeyError:
            return None

    async def put_tag(self, repository: Repository, tag: str, entry: TagEntry) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        name = (repository, tag)
        known = self._tags.get(name)
        if not self._is_news(known, entry.fetched_at) or entry.fetched_at <= self._forgotten.get(name, -1.0):
            return
        self._forgotten.pop(name, None)
        self._tags[name] = entry
        if _can_be_written(entry):
            self._unwritten[name] = entry
            await self._write_names()
        if name in self.pinned_tags and (known is None or known.digest != entry.digest):
            self.pins_changed.set()

    def _is_news(self, known: TagEntry | None, asked_at: float) -> bool:
        # A time in the future is one of a clock that was ahead: whatever is said now is later.
        return known is None or known.fetched_at <= asked_at or known.fetched_at > self.clock.now()

    async def forget_tag(self, repository: Repository, tag: str, *, asked_at: float | None = None) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        known = self._tags.get((repository, tag))
        if asked_at is None or self._is_news(known, asked_at):
            self._forget((repository, tag), asked_at)
            await self._write_names()

    async def forget_tags(self, tags: Sequence[Name]) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        for name in tags:
            self._forget(name, None)
        await self._write_names()

    def _forget(self, name: Name, asked_at: float | None) -> None:
        self._tags.pop(name, None)
        self._forgotten[name] = self.clock.now() if asked_at is None else asked_at
        self._unwritten[name] = None

    async def _write_names(self) -> None:
        """Write what is not written yet; what is refused stays for the next time."""
        await finish(self._write_pages())

    async def _write_pages(self) -> None:
        async with self._writing_names:
            while self._unwritten:
                page = dict(list(self._unwritten.items())[:_PAGE])
                written = await self._db.try_write(_write_tags, None, page, self.clock.now())
                if written is None:
                    for name in list(self._unwritten)[:-KEPT_IN_MEMORY]:
                        del self._unwritten[name]
                    return
                self.tag_count += written.added
                for repository, tag in written.changed:
                    entry = page[repository, tag]
                    self._journal.note("untag" if entry is None else "tag", *repository, tag, *(entry or ()))
                for name, entry in page.items():
                    if self._unwritten[name] is entry:
                        del self._unwritten[name]
                    if name in written.older and self._tags.get(name) is entry:
                        del self._tags[name]
                await self._drop_oldest()

    async def _drop_oldest(self) -> None:
        """Clients ask for tags, upstream has them all: their number is bounded, pinned ones stay."""
        if self.tag_count <= TAGS_KEPT:
            return
        for name in await self._db.try_write(_delete_oldest, list[Name](), TAGS_KEPT // 100 + 1):
            self._tags.pop(name, None)
            self._journal.note("untag", *name[0], name[1])
            self.tag_count -= 1

    def _forget_names(self) -> None:
        """Another index has taken the place of the one that these were read from."""
        self._tags.clear()
        self.tag_count = self._db.figures.tags


_PAGE = 256  # others write meanwhile
TAGS_KEPT = 100_000
_INTEGER_MAX = (1 << 63) - 1


def _can_be_written(entry: TagEntry) -> bool:
    """Whether SQLite has a text and a number for it; one entry that it has none for would keep all others waiting."""
    try:
        entry.media_type.encode()
    except UnicodeError:
        return False
    return entry.size_bytes <= _INTEGER_MAX


def _select_tag(db: sqlite3.Connection, repository: Repository, tag: str) -> TagEntry | None:
    row = db.execute(
        "SELECT digest, media_type, size_bytes, fetched_at FROM tags WHERE registry = ? AND repository = ? AND tag = ?",
        (*repository, tag),
    ).fetchone()
    return TagEntry(Digest(row[0]), *row[1:]) if row else None


class _Written(NamedTuple):
    """What came of a write: how many tags there are more, which are another digest now, which are known later."""

    added: int
    changed: list[Name]
    older: set[Name]


def _write_tags(db: sqlite3.Connection, tags: Mapping[Name, TagEntry | None], now: float) -> _Written:
    changed: list[Name] = []
    older: set[Name] = set()
    added = 0
    with transaction(db):
        for name, entry in tags.items():
            known = _select_tag(db, *name)
            if entry is None:
                added -= _delete_tag(db, *name)
            elif known is not None and entry.fetched_at < known.fetched_at <= now:
                older.add(name)
                continue
            else:
                db.execute("REPLACE INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)", (*name[0], name[1], *entry))
                added += known is None
            if (known and known[:3]) != (entry and entry[:3]):
                changed.append(name)
    return _Written(added, changed, older)


def _delete_oldest(db: sqlite3.Connection, count: int) -> list[Name]:
    with transaction(db):
        rows = db.execute(
            "SELECT registry, repository, tag FROM tags WHERE NOT EXISTS (SELECT 1 FROM pins WHERE "
            "pins.registry = tags.registry AND pins.repository = tags.repository AND pins.target = tags.tag) "
            "ORDER BY fetched_at LIMIT ?",
            (count,),
        ).fetchall()
        names = [(Repository(registry, name), tag) for registry, name, tag in rows]
        for name in names:
            _delete_tag(db, *name)
    return names


def _delete_tag(db: sqlite3.Connection, repository: Repository, tag: str) -> int:
    return db.execute("DELETE FROM tags WHERE registry = ? AND repository = ? AND tag = ?", (*repository, tag)).rowcount
