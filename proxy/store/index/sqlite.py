"""The index that a cache directory has: its parts, over one SQLite file."""

from pathlib import Path

from proxy import events
from proxy.contents import Inventory
from proxy.store.index.answers import Answers
from proxy.store.index.database import Database
from proxy.store.index.endings import DoubtFile
from proxy.store.index.ledger import Ledger
from proxy.store.index.links import Links
from proxy.store.index.pins import Pins, select_inventory
from proxy.threads import Threads


class SqliteIndex(Pins, Links, Answers, Ledger):
    """See :class:`proxy.storage.Index`. Open it with :meth:`start`; whoever starts it calls :meth:`aclose`."""

    def __init__(self, path: Path, *, events: events.Events) -> None:
        super().__init__()
        self._db = Database(path, events=events, lost=self._lost)
        self._files = Threads("index files", 1)
        self._doubt_file = DoubtFile(path.with_suffix(".doubt"))
        self._doubt_is_written = False
        self.doubt = ""
        self.doubts_raised = 0
        self.machine_crashed = False

    async def start(self) -> None:
        """See :class:`proxy.storage.Index`."""
        await self._db.open()
        ending, kept = self._db.ending, await self._files.run(self._doubt_file.read)
        self.doubt, self.machine_crashed = ending.doubt or kept, ending.machine_crashed
        self._doubt_is_written = bool(kept)
        self.tag_count = self._db.figures.tags

    async def aclose(self) -> None:
        """See :class:`proxy.storage.Index`."""
        await self.flush()
        await self._db.aclose(properly=not self.doubt or self._doubt_is_written)
        self._files.close()

    def _lost(self) -> None:
        self._forget_rows()
        self._forget_names()
        self._forget_links()
        self.doubt = self._db.ending.doubt
        self.doubts_raised += 1

    # --- doubt --------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """See :class:`proxy.storage.BlobRows`."""
        return self._db.writable

    async def probe(self) -> bool:
        """See :class:`proxy.storage.BlobRows`."""
        return await self._db.probe()

    async def raise_doubt(self, reason: str) -> None:
        """See :class:`proxy.storage.BlobRows`."""
        self.doubt = self.doubt or reason
        self.doubts_raised += 1
        if not self._doubt_is_written:
            self._doubt_is_written = await self._files.run(self._doubt_file.write, reason)

    async def settle_doubt(self, raised: int | None = None) -> None:
        """See :class:`proxy.storage.BlobRows`."""
        if raised is None or raised == self.doubts_raised:
            self.doubt, self._doubt_is_written = "", False
            await self._files.run(self._doubt_file.remove)

    # --- all parts ----------------------------------------------------------------------------------------------

    async def inventory(self) -> Inventory:
        """See :class:`proxy.storage.Pins`.

        In a thread of its own: reading a hundred thousand rows takes half a second, and tags are asked for meanwhile.
        """
        await self.flush()
        return await self._db.read_whole(select_inventory, Inventory({}, (), {}, ()))

    async def flush(self) -> None:
        """See :class:`proxy.storage.BlobRows`."""
        if not self.writable and not await self.probe():
            return
        await self._write_names()
        await self._flush_uses()
        await self._flush_links()
