"""Which repository holds what: upstream has said so, or a manifest of the repository.

Links are buffered. One whose blob has no row yet (it is on its way to the disk) waits for that row.
"""

import itertools
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

from cachetools import LRUCache

from registry_cache.model.oci import Digest, Repository
from registry_cache.store.index.part import KEPT_IN_MEMORY
from registry_cache.store.index.rows import Rows
from registry_cache.store.index.schema import transaction

# Repositories of one blob. Whoever shares a layer with more than that asks upstream.
LINKS_KEPT = 256


class Links(Rows):
    """See the module and :class:`registry_cache.ports.names.Names`."""

    def __init__(self) -> None:
        super().__init__()
        self._linked: OrderedDict[Digest, set[Repository]] = OrderedDict()  # the oldest first; every hit looks here
        self._unwritten_links: dict[Digest, set[Repository]] = {}
        self._waiting: LRUCache[Digest, set[Repository]] = LRUCache(KEPT_IN_MEMORY)  # for their rows

    def link(self, repository: Repository, digest: Digest) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        known = self._linked.get(digest)
        if known is None:
            while len(self._linked) >= KEPT_IN_MEMORY:
                self._linked.popitem(last=False)
            known = self._linked[digest] = set()
        if repository not in known and len(known) < LINKS_KEPT:
            known.add(repository)
            self._unwritten_links.setdefault(digest, set()).add(repository)

    def _row_came(self, digest: Digest) -> None:
        if waiting := self._waiting.pop(digest, None):
            self._unwritten_links.setdefault(digest, set()).update(waiting)

    def _row_went(self, digest: Digest) -> None:
        for known in (self._linked, self._unwritten_links, self._waiting):
            known.pop(digest, None)

    async def repositories(self, registry: str, after: str, limit: int) -> list[str]:
        """See :class:`registry_cache.ports.names.Names`."""
        written = await self._db.read(_select_repositories, list[str](), registry, after, limit)
        # No client waits for a write: what is buffered is added.
        links = itertools.chain.from_iterable(self._unwritten_links.values())
        buffered = {where.name for where in links if where.registry == registry and where.name > after}
        return sorted(buffered.union(written))[:limit]

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[Repository]]:
        """See :class:`registry_cache.ports.names.Names`."""
        written = await self._db.read(_select_repositories_of, dict[Digest, list[Repository]](), digests)
        return {
            digest: sorted({*written.get(digest, ()), *self._unwritten_links.get(digest, ())}) for digest in digests
        }

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """See :class:`registry_cache.ports.names.Names`."""
        if any(repository in known.get(digest, ()) for known in (self._linked, self._unwritten_links, self._waiting)):
            return True
        return await self._db.read(_select_link, False, repository, digest)

    async def registry_has(self, registry: str, digest: Digest) -> bool:
        """See :class:`registry_cache.ports.names.Names`."""
        for known in (self._linked, self._unwritten_links, self._waiting):
            if any(where.registry == registry for where in known.get(digest, ())):
                return True
        return await self._db.read(_select_registry_link, False, registry, digest)

    async def manifests_of(self, repository: Repository, limit: int) -> list[Digest]:
        """See :class:`registry_cache.ports.names.Names`."""
        return await self._db.read(_select_manifests_of, list[Digest](), repository, limit)

    async def forget_repositories(self, is_meant: Callable[[Repository], bool]) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        await self._flush_links()
        for links in (self._linked, self._unwritten_links, self._waiting):
            for repositories in links.values():
                repositories -= {where for where in repositories if is_meant(where)}
        known = await self._db.read(_select_all_repositories, list[Repository]())
        meant = [repository for repository in known if is_meant(repository)]
        await self._db.try_write(_delete_links, None, meant)
        for repository in meant:
            self._journal.note("unlink", *repository)

    async def _flush_links(self) -> None:
        links = {digest: frozenset(repositories) for digest, repositories in self._unwritten_links.items()}
        if not links:
            return
        written = await self._db.try_write(_write_links, None, links)
        if written is None:
            for digest in [*itertools.islice(self._unwritten_links, max(0, len(links) - KEPT_IN_MEMORY))]:
                del self._unwritten_links[digest]
            return
        for digest, repositories in links.items():
            if digest not in self._unwritten_links:
                continue  # it went meanwhile
            if digest not in written:
                if self.blob_at_hand(digest) is not None:
                    continue  # its row was written just behind: the next time
                self._waiting.setdefault(digest, set()).update(repositories)
            for repository in written.get(digest, ()):
                self._journal.note("link", *repository, digest)
            self._unwritten_links[digest] -= repositories
            if not self._unwritten_links[digest]:
                del self._unwritten_links[digest]

    def _forget_links(self) -> None:
        """Another index has taken the place of the one that these were written to."""
        self._linked.clear()


def _write_links(
    db: sqlite3.Connection, links: Mapping[Digest, Collection[Repository]]
) -> dict[Digest, list[Repository]]:
    """For those of the digests that have a row, which links were new; the others are not written."""
    written: dict[Digest, list[Repository]] = {}
    insert = (
        "INSERT INTO links (registry, repository, digest) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET proven = 1 WHERE proven = 0"
    )
    with transaction(db):
        for digest, repositories in links.items():
            if db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone():
                count = db.execute("SELECT COUNT(*) FROM links WHERE digest = ? AND proven = 1", (digest,)).fetchone()[
                    0
                ]
                room = itertools.islice(repositories, max(0, LINKS_KEPT - count))
                written[digest] = [where for where in room if db.execute(insert, (*where, digest)).rowcount]
    return written


def delete_rowless_links(db: sqlite3.Connection) -> None:
    """Links of what is not here: they came from the journal, and their blobs were not found."""
    with transaction(db):
        db.execute("DELETE FROM links WHERE digest NOT IN (SELECT digest FROM blobs)")


def _select_repositories(db: sqlite3.Connection, registry: str, after: str, limit: int) -> list[str]:
    rows = db.execute(
        "SELECT DISTINCT repository FROM links WHERE proven = 1 AND registry = ? AND repository > ? "
        "ORDER BY repository LIMIT ?",
        (registry, after, limit),
    )
    return [row[0] for row in rows]


def _select_repositories_of(db: sqlite3.Connection, digests: Sequence[Digest]) -> dict[Digest, list[Repository]]:
    query = "SELECT registry, repository FROM links WHERE digest = ? ORDER BY proven DESC LIMIT 10"
    return {digest: [Repository(*row) for row in db.execute(query, (digest,))] for digest in digests}


def _select_registry_link(db: sqlite3.Connection, registry: str, digest: Digest) -> bool:
    query = "SELECT 1 FROM links WHERE digest = ? AND registry = ? AND proven = 1 LIMIT 1"
    return db.execute(query, (digest, registry)).fetchone() is not None


def _select_link(db: sqlite3.Connection, repository: Repository, digest: Digest) -> bool:
    query = "SELECT 1 FROM links WHERE registry = ? AND repository = ? AND digest = ? AND proven = 1"
    return db.execute(query, (*repository, digest)).fetchone() is not None


def _select_manifests_of(db: sqlite3.Connection, repository: Repository, limit: int) -> list[Digest]:
    rows = db.execute(
        # What a tag is, upstream has said, also where the link was lost with the last seconds of a run.
        "SELECT digest FROM blobs WHERE media_type IS NOT NULL AND digest IN ("
        "SELECT digest FROM links WHERE registry = ? AND repository = ? AND proven = 1 "
        "UNION SELECT digest FROM tags WHERE registry = ? AND repository = ?) ORDER BY last_use DESC LIMIT ?",
        (*repository, *repository, limit),
    )
    return [Digest(row[0]) for row in rows]


def _select_all_repositories(db: sqlite3.Connection) -> list[Repository]:
    return [Repository(*row) for row in db.execute("SELECT DISTINCT registry, repository FROM links")]


def _delete_links(db: sqlite3.Connection, repositories: Sequence[Repository]) -> None:
    with transaction(db):
        db.executemany("DELETE FROM links WHERE registry = ? AND repository = ?", repositories)
