"""A blob that cannot be stored, on its way through memory: one upstream stream for all who read at about one pace.

The fastest reader sets the pace. What is behind it is kept for the others as long as there is room; who falls out of
that window goes on with a stream of its own, and so does who wants something far ahead.
"""

import asyncio
from collections import deque

from registry_cache.ports.blobs import Hash

# So far ahead of its fastest reader upstream is read; further ahead nobody waits for the relay.
_AHEAD_BYTES = 1024 * 1024
# Kept of one blob for readers that are slower, and of all blobs together.
_WINDOW_BYTES = 8 * 1024 * 1024
_WINDOWS_BYTES = 64 * 1024 * 1024


class Relay:
    """The bytes [start, stop) of a blob, in memory.

    Args:
        offset: where it begins.
        known: the hash of what comes before that.
    """

    def __init__(self, offset: int, known: Hash) -> None:
        self.start = self.stop = self.began = offset
        self.known = known  # of [0, stop)
        self._known_before = known.copy()  # of all but the last byte of those here
        self._furthest = offset
        self._pieces: deque[bytes] = deque()
        self._stirred = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Relay [{self.start}, {self.stop})>"

    @property
    def wanted(self) -> bool:
        """Whether a reader has come so far that it will soon want more than there is."""
        return self._furthest + _AHEAD_BYTES > self.stop

    async def stirred(self) -> None:
        """Until a reader has come further, has come or has gone."""
        self._stirred.clear()
        await self._stirred.wait()

    def stir(self) -> None:
        """See :meth:`stirred`."""
        self._stirred.set()

    async def put(self, piece: bytes, relays: int) -> None:
        """Add *piece*; *relays*: how many share the memory."""
        if not piece:
            return
        await asyncio.to_thread(self.known.update, piece[:-1])
        self._known_before = self.known.copy()
        self.known.update(piece[-1:])
        self._pieces.append(piece)
        self.stop += len(piece)
        window = min(_WINDOW_BYTES, _WINDOWS_BYTES // max(1, relays))
        while len(self._pieces) > 1 and self.stop - self.start - len(self._pieces[0]) >= window:
            self.start += len(self._pieces.popleft())

    def take_back(self) -> None:
        """Forget the last byte, which no reader of an unverified blob has got."""
        if self._pieces:
            self.stop -= 1
            self.known = self._known_before
            self._pieces.append(self._pieces.pop()[:-1])

    def reaches(self, position: int) -> bool:
        """Whether a reader at *position* finds here what it wants, soon."""
        return self.start <= position <= self.stop + _AHEAD_BYTES

    def read(self, position: int) -> memoryview:
        """What is there from *position* on: a piece, empty at the end."""
        if position > self._furthest:
            self._furthest = position
            self.stir()
        start = self.start
        for piece in self._pieces:
            if position < start + len(piece):
                return memoryview(piece)[position - start :]
            start += len(piece)
        return memoryview(b"")
