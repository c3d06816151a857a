"""Whether anything can be stored now, and why not: folders, index, and whether what is here has been counted."""

import asyncio
import errno

from registry_cache.model import events
from registry_cache.model.errors import NoSpace
from registry_cache.store.shared import Shared

# How long a transfer waits for the count after a crash before it goes to the client unstored.
_KNOWN_SECONDS = 10.0


class Condition:
    """See the module."""

    def __init__(self, shared: Shared) -> None:
        self.known = asyncio.Event()  # what is on the disk is known, so that room can be promised
        self._layout = shared.layout
        self._files = shared.files
        self._index = shared.index
        self._events = shared.events
        self._folders_refused = ""
        self._uncounted = ""
        self._told = ""

    @property
    def read_only(self) -> str:
        """Why nothing is stored now, though what is here is served; empty when all is well."""
        return self.unwritable or ("" if self.known.is_set() else self._uncounted)

    @property
    def unwritable(self) -> str:
        """As :attr:`read_only`, but for what cannot be counted, which is tried again and again."""
        return self._folders_refused or (
            "" if self._index.writable else f"the index cannot be written ({self._index.refusal})"
        )

    def counted_up_to(self, error: OSError | None) -> None:
        """Rows and files were compared, or *error* was in the way: then no transfer waits for the end of it."""
        self._uncounted = "" if error is None else f"what is on the disk cannot be counted: {error}"

    def tell(self) -> None:
        """Say once that it begins, and once that it is over."""
        reason = self.read_only
        if bool(reason) != bool(self._told):
            if reason:
                self._events.emit(events.StoreReadOnly(reason=reason))
            else:
                self._events.emit(events.StoreWritable())
        self._told = reason

    @property
    def lacks_folders(self) -> bool:
        """Whether they could not be made yet."""
        return bool(self._folders_refused)

    async def make_folders(self) -> None:
        """Make the folders that are there from the beginning; a disk that is read-only refuses them."""
        try:
            await self._files.make_folders([self._layout.partials, self._layout.quarantine])
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            self._folders_refused = f"the disk is read-only ({self._layout.root})"
        else:
            self._folders_refused = ""

    async def ready(self) -> None:
        """Raise NoSpace unless bytes can be stored now."""
        if self.read_only:
            raise NoSpace(self.read_only)
        if self.known.is_set():
            return
        try:
            async with asyncio.timeout(_KNOWN_SECONDS):
                await self.known.wait()
        except TimeoutError as error:
            raise NoSpace("what is on the disk is still being counted") from error

    async def counted(self) -> None:
        """Wait until what is here is counted, however long.

        Raises:
            NoSpace: nothing can be stored.
        """
        if not self.read_only:
            await self.known.wait()
        if self.read_only:
            raise NoSpace(self.read_only)
