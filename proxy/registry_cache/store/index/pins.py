"""What the operator wants to stay, and all that is here, by name."""

import sqlite3
from collections.abc import Iterable, Sequence

from registry_cache.model.contents import Inventory, Pin, PinSummary, Stored, Tag
from registry_cache.model.oci import Digest, Repository
from registry_cache.runtime.threads import finish
from registry_cache.store.index.names import Names
from registry_cache.store.index.rows import Rows
from registry_cache.store.index.schema import transaction


class Pins(Rows, Names):
    """See the module and :class:`registry_cache.ports.index.Pins`."""

    def __init__(self) -> None:
        super().__init__()
        # Until keep() is first told, what the last run pinned stays pinned: nobody knows better yet.
        self._kept_in_rows: frozenset[Digest] | None = None
        self._pins_told = False

    async def keep(self, wanted: Iterable[Digest]) -> None:
        """See :class:`registry_cache.ports.index.Pins`."""
        self.wanted, self._pins_told = frozenset(wanted), True
        await self._flush_pins()

    async def _flush_pins(self) -> None:
        """Mark the rows of what is wanted; what is refused now is marked the next time."""
        before, wanted = self._kept_in_rows, self.wanted
        if not self._pins_told or before == wanted:
            return
        come, gone = wanted - (before or frozenset()), (before or frozenset()) - wanted
        if await self._db.try_write(_update_pinned, False, come, gone, before is None):
            self._kept_in_rows = wanted
        if before is None:
            self._blobs.clear()
        for digest in (*come, *gone):
            self._blobs.pop(digest, None)
        self._rows_forgotten += 1

    def _forget_pins(self) -> None:
        """Another index has taken the place of the one whose rows were marked."""
        self._kept_in_rows = None

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """See :class:`registry_cache.ports.index.Pins`."""
        pinned = await self._db.read_surely(_select_pinned)
        self.pinned_tags = frozenset((pin.repository, pin.target) for pin, _ in pinned)
        return [(pin, self._digest_now(pin, digest)) for pin, digest in pinned]

    def _digest_now(self, pin: Pin, digest: Digest | None) -> Digest | None:
        """What is not written yet is newer than what was read."""
        name = (pin.repository, pin.target)
        if name not in self._unwritten:
            return digest
        entry = self._unwritten[name]
        return entry.digest if entry is not None else None

    async def pin_summary(self, limit: int) -> PinSummary:
        """See :class:`registry_cache.ports.index.Pins`."""
        return await self._db.read(_select_pin_summary, PinSummary(0, 0, []), limit)

    async def change_pins(self, *, add: Sequence[Pin] = (), remove: Sequence[Pin] = ()) -> None:
        """See :class:`registry_cache.ports.index.Pins`."""
        await finish(self._change_pins(add, remove))

    async def _change_pins(self, add: Sequence[Pin], remove: Sequence[Pin]) -> None:
        await self._db.write(_update_pins, add, remove, self.clock.now())
        for kind, pins in (("pin", add), ("unpin", remove)):
            for pin in pins:
                self._journal.note(kind, *pin.repository, pin.target)


def _update_pinned(db: sqlite3.Connection, come: Iterable[Digest], gone: Iterable[Digest], first: bool) -> bool:
    with transaction(db):
        if first:
            db.execute("UPDATE blobs SET pinned = 0 WHERE pinned = 1")
        db.executemany("UPDATE blobs SET pinned = 0 WHERE digest = ?", [(digest,) for digest in gone])
        db.executemany("UPDATE blobs SET pinned = 1 WHERE digest = ?", [(digest,) for digest in come])
    return True


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


def _update_pins(db: sqlite3.Connection, add: Sequence[Pin], remove: Sequence[Pin], now: float) -> None:
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
    proven: dict[Digest, tuple[Repository, ...]] = {}
    for is_proven in (True, False):  # what was only served under a name counts where nothing is proven
        query = "SELECT registry, repository, digest FROM links WHERE proven = ?"
        for registry, name, text in db.execute(query, (is_proven,)):
            digest, where = digests.get(text) or Digest(text), repository(registry, name)
            if digest not in proven:
                known = links.get(digest)
                links[digest] = (*known, where) if known else alone.setdefault(where, (where,))
        proven = proven or dict(links)
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
