"""Why rows and files may differ: in memory, and in a file beside the index that outlives the run."""

import asyncio
from collections.abc import Awaitable, Callable


class Doubt:
    """See the module.

    ``reason``: "" when rows and files are known to agree. ``raised``: how often doubt was. ``is_written``: the next run
    will know, whatever the database says.

    Args:
        write: puts a reason beside the index; whether the disk has it.
        remove: takes it away.
    """

    def __init__(self, write: Callable[[str], Awaitable[bool]], remove: Callable[[], Awaitable[None]]) -> None:
        self._write = write
        self._remove = remove
        self._turn = asyncio.Lock()  # what is known of the file is what was done last
        self.reason = ""
        self.raised = 0
        self.is_written = False

    async def raise_(self, reason: str) -> None:
        """Rows and files may differ from now on."""
        self.reason = self.reason or reason
        self.raised += 1
        async with self._turn:
            if self.reason and not self.is_written:
                self.is_written = await self._write(self.reason)

    async def settle(self, raised: int | None, note: Callable[[], Awaitable[bool]]) -> bool:
        """Rows and files agree, as far as nobody has doubted it since; whether that is all.

        Args:
            raised: what :attr:`raised` was before they were compared; None for what it is.
            note: writes that down; whether it could.
        """
        raised = self.raised if raised is None else raised
        async with self._turn:
            # Asked behind each wait: what is raised meanwhile is about what has been compared already.
            if raised != self.raised or not await note() or raised != self.raised:
                return False
            self.reason, self.is_written = "", False
            await self._remove()
        return True
