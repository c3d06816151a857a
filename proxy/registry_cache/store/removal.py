"""Blobs go: out of memory first, then the file, then the row. Whatever the reason, they go this way."""

import contextlib
from collections.abc import Mapping, Sequence

from registry_cache.model import events
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import Tally
from registry_cache.store.reading import Reading
from registry_cache.store.row_writer import tally
from registry_cache.store.shared import Shared

# A thread that unlinks, or deletes rows, keeps its core until it waits, and on two cores a hit waits for that. p99 of
# hits while 10 000 blobs went: 1.9 ms with 100 at once, 0.7 with ten; on another machine 0.44 with ten (1.0 to 3.3
# times that without eviction, in six runs) and 0.39 with four (1.6 to 1.9). It takes 0.6 s with ten, 1 s with four.
REMOVED_AT_ONCE = 4


class Removal:
    """See the module. Who calls it holds the locks of the digests."""

    def __init__(self, shared: Shared, reading: Reading) -> None:
        self._layout = shared.layout
        self._files = shared.files
        self._index = shared.index
        self._room = shared.room
        self._rows = shared.rows
        self._reading = reading
        self._events = shared.events

    async def remove(self, digests: Sequence[Digest]) -> Tally:
        """Remove files and see to their rows; what that gave back, by what had been counted as stored.

        Dying in between, the index claims too much, never too little. What the disk does not remove stays counted.
        """
        known, total = await self.counted(digests), Tally()
        with self._reading.leaving(digests):
            for first in range(0, len(digests), REMOVED_AT_ONCE):
                gone = await self._unlink(digests[first : first + REMOVED_AT_ONCE])
                total = total.plus(self.gone({digest: known[digest] for digest in gone if digest in known}))
        return total

    async def counted(self, digests: Sequence[Digest]) -> dict[Digest, Tally]:
        """What counts as stored of *digests*, whose files are about to go.

        Their rows cannot follow them now while the index takes nothing, and cannot be relied on while it cannot be
        read: that is known to the next run before the first file is gone.
        """
        if not self._index.writable:
            await self._index.raise_doubt(f"files go while the index refuses writes: {self._index.refusal}")
        try:
            return await self._rows.of(digests)
        except IndexRefused as error:
            await self._index.raise_doubt(f"files go whose rows are not known: {error}")
        return {digest: size for digest in digests if (size := await self._size(digest)) is not None}

    async def _size(self, digest: Digest) -> Tally | None:
        """What *digest* takes by its file; None if it has none."""
        with contextlib.suppress(OSError):
            seen = await self._files.look(self._layout.blob(digest))
            if seen is not None and not self._rows.is_going(digest):
                return tally(seen.size_bytes, self._index.media_type_kept(digest) or seen.media_type)
        return None

    async def _unlink(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of *digests* that have no file any more."""
        paths = {digest: self._layout.blob(digest) for digest in digests}
        try:
            await self._files.remove(list(paths.values()))
        except OSError as error:
            self._events.emit(events.StorageFailed(operation="remove", reason=str(error)))
            return [digest for digest, path in paths.items() if await self._is_gone(digest, path)]
        return digests

    async def _is_gone(self, digest: Digest, path: str) -> bool:
        with contextlib.suppress(OSError):
            await self._files.remove([path])  # one that cannot be removed keeps no other
            return True
        try:
            return await self._files.identify(path) is None
        except OSError as error:
            await self._index.raise_doubt(f"{digest}: {error.strerror}")
            return False  # nobody knows: to count too much does no harm

    def gone(self, rows: Mapping[Digest, Tally]) -> Tally:
        """The files of *rows* are not there any more: count them out. Synchronous, as all accounting is."""
        total = Tally()
        for row in rows.values():
            total = total.plus(row)
        self._room.remove(total)
        self._rows.forget(rows)
        return total
