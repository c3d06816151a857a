"""Which repository holds what: a blob or manifest was pulled through it.

Links are buffered. One whose blob has no row yet (it is on its way to the disk) waits for it.
"""

import sqlite3
from collections.abc import Mapping, Sequence

from cachetools import LRUCache

from proxy.oci import Digest, Repository
from proxy.store.index.part import KEPT_IN_MEMORY, Part
from proxy.store.index.schema import transaction


class Links(Part):
    """See the module and :class:`proxy.storage.Names`."""

    def __init__(self) -> None:
        super().__init__()
        self._linked: LRUCache[Digest, set[Repository]] = LRUCache(KEPT_IN_MEMORY)
        self._unlinked: dict[Digest, set[Repository]] = {}  # what is to be written

    def link(self, repository: Repository, digest: Digest) -> None:
        """See :class:`proxy.storage.Names`."""
        known = self._linked.get(digest)
        if known is None:
            known = self._linked[digest] = set()
        if repository not in known:
            known.add(repository)
            self._unlinked.setdefault(digest, set()).add(repository)

    def _unlink(self, digest: Digest) -> None:
        self._linked.pop(digest, None)

    async def repositories(self, after: str, limit: int) -> list[str]:
        """See :class:`proxy.storage.Names`."""
        await self._flush_links()
        return await self._db.read(_select_repositories, [], after, limit)

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
        """See :class:`proxy.storage.Names`."""
        await self._flush_links()
        return await self._db.read(_select_repositories_of, {}, digests)

    async def _flush_links(self) -> None:
        links, self._unlinked = self._unlinked, {}
        if links and not await self._db.try_write(_write_links, False, links) and len(self._unlinked) < KEPT_IN_MEMORY:
            for digest, repositories in links.items():
                self._unlinked.setdefault(digest, set()).update(repositories)

    def _forget_links(self) -> None:
        """Another index has taken the place of the one that these were written to."""
        self._linked.clear()


def _write_links(db: sqlite3.Connection, links: Mapping[Digest, set[Repository]]) -> bool:
    with transaction(db):
        db.executemany(
            "INSERT OR IGNORE INTO links SELECT ?, ?, digest FROM blobs WHERE digest = ?",
            [(*repository, digest) for digest, repositories in links.items() for repository in repositories],
        )
    return True


def _select_repositories(db: sqlite3.Connection, after: str, limit: int) -> list[str]:
    rows = db.execute(
        "SELECT DISTINCT repository FROM links WHERE repository > ? ORDER BY repository LIMIT ?", (after, limit)
    )
    return [row[0] for row in rows]


def _select_repositories_of(db: sqlite3.Connection, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
    query = "SELECT repository FROM links WHERE digest = ? LIMIT 10"
    return {digest: [row[0] for row in db.execute(query, (digest,))] for digest in digests}
