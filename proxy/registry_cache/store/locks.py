"""One thing at a time for each digest; different digests never wait for each other."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from registry_cache.model.oci import Digest


class Locks:
    """Held while the file and the row of a digest change together."""

    def __init__(self) -> None:
        self._locks: dict[Digest, asyncio.Lock] = {}
        self._users: Counter[Digest] = Counter()

    def is_busy(self, digest: Digest) -> bool:
        """Whether somebody holds it, or waits for it."""
        return digest in self._locks

    @contextlib.asynccontextmanager
    async def hold(self, digests: Sequence[Digest]) -> AsyncIterator[None]:
        """Hold them all. Nothing is waited for if none is busy: who asked that before may rely on it."""
        async with contextlib.AsyncExitStack() as stack:
            for digest in sorted(set(digests)):
                await stack.enter_async_context(self._hold(digest))
            yield

    async def all_free(self) -> None:
        """Wait until nobody holds or waits for any."""
        while self._locks:
            async with self.hold([next(iter(self._locks))]):
                pass

    @contextlib.asynccontextmanager
    async def _hold(self, digest: Digest) -> AsyncIterator[None]:
        lock = self._locks.setdefault(digest, asyncio.Lock())
        self._users[digest] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest], self._locks[digest]
