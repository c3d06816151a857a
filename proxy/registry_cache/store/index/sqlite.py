"""The index that a cache directory has: its parts, over one SQLite file."""

import asyncio
import sqlite3
from pathlib import Path

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Inventory
from registry_cache.model.oci import Digest
from registry_cache.runtime.threads import Threads, finish
from registry_cache.store.index.answers import Answers
from registry_cache.store.index.database import BUSY_SECONDS, Database, surely
from registry_cache.store.index.doubt import Doubt
from registry_cache.store.index.endings import DoubtFile
from registry_cache.store.index.facts import select_facts, write_facts
from registry_cache.store.index.files import set_all_aside
from registry_cache.store.index.journal import Journal
from registry_cache.store.index.ledger import Ledger
from registry_cache.store.index.links import Links, delete_rowless_links
from registry_cache.store.index.pins import Pins, select_inventory
from registry_cache.store.index.schema import get_meta, set_meta

ANSWERS_MAX_BYTES = 64 * 1024 * 1024


class SqliteIndex(Pins, Links, Answers, Ledger):
    """See :class:`ports.index.Index`. Open it with :meth:`start`; whoever starts it calls :meth:`aclose`."""

    def __init__(
        self,
        path: Path,
        *,
        events: Events,
        answers_max_bytes: int = ANSWERS_MAX_BYTES,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        super().__init__()
        self._events = events
        self._db = Database(path, events=events, busy_seconds=busy_seconds, fill=self._fill, lost=self._lost)
        self.clock = self._db.clock
        self._journal = Journal(path.with_name("names.journal"))
        self._journal_fails = False
        self._media_types: dict[Digest, str] = {}
        self.answers_max_bytes = answers_max_bytes
        self._files = Threads("index files", 1)
        self._doubt_file = DoubtFile(path.with_suffix(".doubt"))
        self._doubt = Doubt(
            lambda reason: self._files.run(self._doubt_file.write, reason),
            lambda: self._files.run(self._doubt_file.remove),
        )
        self._writing_journal = asyncio.Lock()
        self.machine_crashed = False

    async def start(self) -> None:
        """See :class:`registry_cache.ports.index.Index`."""
        await self._files.run(set_all_aside, self._db.path)
        await self._files.run(self._journal.open)
        await self._db.open()
        self._read_figures()
        ending, kept = self._db.ending, await self._files.run(self._doubt_file.read)
        self._doubt.reason, self.machine_crashed = ending.doubt or kept, ending.machine_crashed
        self._doubt.is_written = bool(kept)
        if self.doubt and not self._media_types:
            self._media_types = (await self._files.run(self._journal.read)).media_types

    async def aclose(self) -> None:
        """See :class:`registry_cache.ports.index.Index`."""
        await self.flush()
        await self._flush_journal()
        await self._db.aclose(properly=not self.doubt or self._doubt.is_written)
        self._files.close()

    def _fill(self, db: sqlite3.Connection, is_empty: bool) -> None:
        """Runs in the thread that writes: what is known beside the content goes into a new index."""
        if not is_empty:
            self._journal.distrust()
            return
        facts = self._journal.read()
        write_facts(db, facts)
        self._media_types = facts.media_types

    def _read_figures(self) -> None:
        self._forget_names()
        self._forget_answers()

    def _lost(self) -> None:
        self._forget_rows()
        self._forget_links()
        self._forget_pins()
        self._read_figures()
        self._doubt.reason = self._db.ending.doubt or self.doubt
        self._doubt.raised += 1

    # --- doubt --------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._db.writable

    @property
    def refusal(self) -> str:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._db.refusal

    async def probe(self) -> bool:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return await self._db.probe()

    @property
    def doubt(self) -> str:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._doubt.reason

    @property
    def doubts_raised(self) -> int:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._doubt.raised

    async def raise_doubt(self, reason: str) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        await self._doubt.raise_(reason)

    async def settle_doubt(self, raised: int | None = None) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if await self._doubt.settle(raised, lambda: self._db.try_write(_rows_are_found, False)):
            self._media_types = {}

    def media_type_kept(self, digest: Digest) -> str | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._media_types.get(digest)

    # --- all parts ----------------------------------------------------------------------------------------------

    async def inventory(self) -> Inventory:
        """See :class:`registry_cache.ports.index.Pins`.

        In a thread of its own: reading a hundred thousand rows takes half a second, and tags are asked for meanwhile.
        """
        await self.flush()
        return surely(await self._db.read_whole(select_inventory, None))

    async def flush(self) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if not await self._db.is_there() and not await self.probe():
            return
        await finish(self._flush())

    async def _flush(self) -> None:
        await self._write_names()
        await self._flush_uses()
        await self._flush_links()
        await self._flush_pins()
        await self._flush_journal()

    async def _flush_journal(self) -> None:
        """Append what is new, or write the whole of it anew; not while rows are missing that it has to know of."""
        async with self._writing_journal:
            lines = self._journal.take()
            try:
                is_due = self._journal.is_due and not self.doubt
                if is_due and await self._db.read_whole(self._rewrite_journal, False):
                    lines = []  # the new file has them
                if lines:
                    await self._files.run(self._journal.append, lines)
            except OSError as error:
                self._journal.give_back(lines)
                if not self._journal_fails:  # one line when it begins
                    self._events.emit(events.StorageFailed(operation="names.journal", reason=str(error)))
                self._journal_fails = True
            else:
                self._journal_fails = False

    def _rewrite_journal(self, db: sqlite3.Connection) -> bool:
        if get_meta(db, "filled") != "rows":
            return False
        self._journal.rewrite(select_facts(db))
        return True


def _rows_are_found(db: sqlite3.Connection) -> bool:
    delete_rowless_links(db)
    set_meta(db, "filled", "rows")
    return True
