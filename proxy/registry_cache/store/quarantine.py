"""Rotten files are put aside: the file that was read, never the good one that has taken its name meanwhile."""

import asyncio

from registry_cache.model import events
from registry_cache.model.oci import Digest
from registry_cache.store.entries import Inode
from registry_cache.store.layout import file_name
from registry_cache.store.reading import Reading
from registry_cache.store.removal import Removal
from registry_cache.store.shared import Shared

# They are evidence, not content: so many are kept, the oldest go first.
_KEPT = 8


class Quarantine:
    """See the module."""

    def __init__(self, shared: Shared, removal: Removal) -> None:
        self._layout = shared.layout
        self._files = shared.files
        self._room = shared.room
        self._removal = removal
        self._locks = shared.locks
        self._events = shared.events
        self._turn = asyncio.Lock()  # a name may come again while it is removed

    async def put_aside(self, reading: Reading, digest: Digest, reason: str, inode: Inode | None) -> None:
        """Take a rotten blob out of service; it is fetched anew when it is next asked for.

        Args:
            inode: of the file that is rotten, which its finder keeps open; None for whatever is there.
        """
        async with self._locks.hold([digest]):
            try:
                there = await self._files.identify(self._layout.blob(digest))
                if there is None or (inode is not None and there != inode):
                    return  # somebody was faster, or removed it by hand
                self._events.emit(events.Quarantined(digest=digest, reason=reason))
                await self._take_out(reading, digest)
            except OSError as error:
                self._events.emit(events.StorageFailed(operation="quarantine", reason=f"{digest}: {error}"))
        await self.drop(keep=_KEPT)

    async def _take_out(self, reading: Reading, digest: Digest) -> None:
        path, name = self._layout.blob(digest), file_name(digest)
        # In this order: what is rotten may get shorter in between, and no more goes to quarantine than left blobs/.
        known, seen = await self._removal.counted([digest]), await self._files.look(path)
        with reading.leaving([digest]):
            async with self._turn:
                if seen is not None and await self._moved(path, name):
                    self._room.quarantine(name, seen.size_bytes)
                else:
                    await self._files.remove([path])  # evidence is worth less than that nobody is served it
        self._removal.gone(known)

    async def _moved(self, path: str, name: str) -> bool:
        try:
            await self._files.move(path, self._layout.quarantined(name))
        except OSError:
            return False
        return True

    async def drop(self, *, keep: int = 0) -> int:
        """Remove all but the last *keep* files; how many bytes that gave back."""
        freed_bytes = 0
        async with self._turn:
            names = self._room.quarantined
            for name in names[: max(0, len(names) - keep)]:
                try:
                    await self._files.remove([self._layout.quarantined(name)])
                except OSError as error:
                    self._events.emit(events.StorageFailed(operation="remove", reason=str(error)))
                else:
                    freed_bytes += self._room.unquarantine(name)
        return freed_bytes
