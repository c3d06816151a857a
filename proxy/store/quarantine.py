"""Rotten files are put aside: the file that was read, never the good one that has taken its name meanwhile."""

from proxy import events
from proxy.oci import Digest
from proxy.store.files import Files, Inode
from proxy.store.layout import Layout, file_name
from proxy.store.locks import Locks
from proxy.store.reading import Reading
from proxy.store.removal import Removal
from proxy.store.room import Room
from proxy.store.row_writer import RowWriter

# They are evidence, not content: so many are kept, the oldest go first.
_KEPT = 8


class Quarantine:
    """See the module."""

    def __init__(
        self,
        layout: Layout,
        files: Files,
        room: Room,
        rows: RowWriter,
        removal: Removal,
        locks: Locks,
        events: events.Events,
    ) -> None:
        self._layout = layout
        self._files = files
        self._room = room
        self._rows = rows
        self._removal = removal
        self._locks = locks
        self._events = events

    async def put_aside(self, reading: Reading, digest: Digest, reason: str, inode: Inode | None) -> None:
        """Take a rotten blob out of service; it is fetched anew when it is next asked for.

        Args:
            inode: of the file that is rotten, which its finder keeps open; None for whatever is there.
        """
        async with self._locks.hold([digest]):
            path = self._layout.blob(digest)
            there = await self._files.identify(path)
            if there is None or (inode is not None and there != inode):
                return  # somebody was faster, or removed it by hand
            self._events.emit(events.Quarantined(digest=digest, reason=reason))
            seen, known = await self._files.look(path), await self._rows.of([digest])
            with reading.leaving([digest]):
                await self._move(digest, seen.size_bytes if seen else 0)
            self._removal.gone(known)
        await self.drop(keep=_KEPT)

    async def _move(self, digest: Digest, size_bytes: int) -> None:
        name = file_name(digest)
        try:
            await self._files.move(self._layout.blob(digest), self._layout.quarantined(name))
        except OSError as error:
            # Evidence is worth less than that nobody is served it.
            self._events.emit(events.StorageFailed(operation="quarantine", reason=f"{digest}: {error}"))
            await self._files.remove([self._layout.blob(digest)])
        else:
            self._room.quarantine(name, size_bytes)

    async def drop(self, *, keep: int = 0) -> int:
        """Remove all but the last *keep* files; how many bytes that gave back."""
        names = self._room.quarantined
        old = names[: max(0, len(names) - keep)]
        if not old:
            return 0
        await self._files.remove([self._layout.quarantined(name) for name in old])
        return sum(self._room.unquarantine(name) for name in old if name in self._room.quarantined)
