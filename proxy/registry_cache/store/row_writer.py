"""Rows that follow files: written before a file comes, deleted after it went, and made good when the index refused.

A row is deleted behind its file's back, in the background: what needs the room need not wait for the index. Until then
the index claims too much, never too little. What it refuses to delete stays here, and leaves doubt, so that a run that
ends meanwhile has rows and files compared by the next one.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Digest
from registry_cache.ports.index import Index
from registry_cache.ports.rows import BlobEntry, Tally
from registry_cache.runtime.threads import finish

# A thread that deletes rows keeps its core until it waits, and a hit waits for that; see removal.py.
_DELETED_AT_ONCE = 4


def tally(size_bytes: int, media_type: str | None) -> Tally:
    """Of one blob, or of one manifest."""
    return Tally(size_bytes, int(media_type is None), int(media_type is not None))


class RowWriter:
    """See the module. Whoever makes it calls :meth:`aclose`."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._going: dict[Digest, Tally] = {}
        self._placing: dict[Digest, Tally] = {}
        self._turn = asyncio.Lock()  # rows change one at a time
        self._task: asyncio.Task[None] | None = None

    def is_going(self, digest: Digest) -> bool:
        """Whether the row of *digest* is there although its file is gone."""
        return digest in self._going

    async def add(self, entry: BlobEntry) -> Tally:
        """Write a row; by how much its file adds to blobs/. :meth:`placed` has to follow.

        Raises:
            IndexRefused: no row, so no file.
        """
        async with self._turn:
            came = await self._index.add_blob(entry)
            if self._going.pop(entry.digest, None) is not None:
                came = tally(entry.size_bytes, entry.media_type)  # the old row's file had been counted out already
            self._placing[entry.digest] = came
        return came

    def placed(self, digest: Digest) -> None:
        """The file of a new row is there, or will not come."""
        self._placing.pop(digest, None)

    def forget(self, rows: Mapping[Digest, Tally]) -> None:
        """The files of *rows* are gone: delete these rows soon."""
        self._going |= rows
        if self._going and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._drain(), name="rows")

    async def settled(self) -> None:
        """Wait until nothing is to be deleted any more, or the index refuses to."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def again(self) -> None:
        """Delete what the index refused to."""
        self.forget({})
        await self.settled()

    async def totals(self) -> Tally:
        """What the rows say is in blobs/, without those whose file is gone or has yet to come."""
        async with self._turn:
            total = await self._index.totals()
            for other in _values(self._going, self._placing):
                total = total.minus(other)
        return total

    async def of(self, digests: Sequence[Digest]) -> dict[Digest, Tally]:
        """Those of *digests* whose files count as stored. To be asked while nothing else changes them.

        Raises:
            IndexRefused: nobody can tell.
        """
        going = set(self._going)  # a row that is deleted while we read it went before, or goes now
        here = await self._index.stored(digests)
        going.update(self._going)
        return {digest: tally(row.size_bytes, row.media_type) for digest, row in here.items() if digest not in going}

    async def aclose(self) -> None:
        """Delete what is left, if the index lets us: what it refused a while ago it may take now."""
        if self._going and not self._index.writable:
            await self._index.probe()
        await self.again()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> None:
        try:
            while self._going:
                async with self._turn:
                    await finish(self._delete(list(self._going)[:_DELETED_AT_ONCE]))
        except IndexRefused as error:
            await self._index.raise_doubt(f"rows of removed files could not be deleted: {error}")

    async def _delete(self, digests: Sequence[Digest]) -> None:
        if digests:
            await self._index.forget_blobs(digests)
        for digest in digests:
            self._going.pop(digest, None)


def _values(*tallies: Mapping[Digest, Tally]) -> Iterable[Tally]:
    for some in tallies:
        yield from some.values()
