"""One blob on its way in: a file that grows, is hashed as it grows, and becomes a blob by one rename.

What is on the disk if the process dies here: a partial is only ever a prefix of what upstream sent. It is hashed again
from its beginning when it is taken up, and nothing but :meth:`DiskPartial.verify` lets it be published.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from proxy.errors import DigestMismatch, NoSpace
from proxy.oci import Digest
from proxy.storage import Hash, Piece, Sink
from proxy.threads import Threads

_READ_BYTES = 1024 * 1024

# What a disk says when it is not the content's fault: full, over quota, read-only, no permission, broken.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENOENT}


def refused(error: OSError) -> NoSpace:
    """The disk's refusal in the words of the domain."""
    return NoSpace(f"{errno.errorcode.get(error.errno or 0, '?')}: {os.strerror(error.errno or 0)}")


class DiskPartial:
    """See :class:`proxy.storage.Partial`.

    Args:
        reserve: makes room for so many bytes in all, or raises NoSpace.
        publish: makes the verified file a blob.
        discard: removes the file and gives its room back.
    """

    def __init__(
        self,
        digest: Digest,
        path: Path,
        *,
        threads: Threads,
        reserve: Callable[["DiskPartial", int], Coroutine[Any, Any, None]],
        publish: Callable[["DiskPartial", str | None], Awaitable[None]],
        discard: Callable[["DiskPartial"], Awaitable[None]],
    ) -> None:
        self.digest = digest
        self.path = path
        self.offset = 0
        self.ended = False  # published or discarded: nothing is left to keep
        self._fd = -1
        self._opening: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._reserve = reserve
        self._publish = publish
        self._discard = discard
        self._hash: Hash = hashlib.new(digest.algorithm)
        self._replayed = 0
        self._seen: Hash | None = None  # of [0, offset) as it was before restart(); None when not replaying
        self._differs: Callable[[int], None] | None = None
        self._expected: int | None = None

    def __repr__(self) -> str:
        return f"<DiskPartial {self.digest} {self.offset}/{self._expected}>"

    def rehash(self) -> None:
        """Take up what an earlier ingest left in the file. Blocks: runs in a thread."""
        self._open(os.O_RDWR)
        buffer = bytearray(_READ_BYTES)
        while count := os.preadv(self._fd, [buffer], self.offset):
            self._hash.update(memoryview(buffer)[:count])
            self.offset += count

    def open_soon(self) -> None:
        """Make the file in the background: upstream is asked meanwhile, a disk can take as long as that."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._opening = asyncio.create_task(self._threads.run(self._open, flags), name=f"open {self.digest}")

    def _open(self, flags: int) -> None:
        self._fd = os.open(self.path, flags | os.O_CLOEXEC, 0o644)

    async def _opened(self) -> None:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            try:
                await opening
            except OSError as error:
                raise refused(error) from error

    async def settle(self) -> None:
        """Nothing is under way any more that could still make a file."""
        with contextlib.suppress(NoSpace):
            await self._opened()

    async def expect(self, size_bytes: int | None) -> None:
        """See :class:`proxy.storage.Partial`."""
        await self._opened()
        if size_bytes is not None:
            await self._reserve(self, size_bytes)
        self._expected = size_bytes

    async def append(self, data: Piece) -> None:
        """See :class:`proxy.storage.Partial`."""
        if self._seen is not None:
            data = await self._threads.run(self._replay, data)
        if self._expected is None:
            await self._reserve(self, self.offset + len(data))
        await self._threads.run(self._write, data)

    def write(self, data: Piece) -> None:
        """See :class:`proxy.storage.Partial`."""
        if self._seen is not None:
            data = self._replay(data)
        if self._expected is None:
            room = self._reserve(self, self.offset + len(data))
            asyncio.run_coroutine_threadsafe(room, self._loop).result()
        self._write(data)

    def _write(self, data: Piece) -> None:
        view, offset = memoryview(data), self.offset
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            if error.errno in _REFUSALS:
                raise refused(error) from error
            raise
        # After the write, so that a disk that refuses leaves hash and offset in step; here, so that a cancelled caller
        # does too.
        self._hash.update(data)
        self.offset = offset

    def restart(self, differs: Callable[[int], None] | None = None) -> None:
        """See :class:`proxy.storage.Partial`.

        The file keeps its bytes, and readers theirs, as far as the new transfer brings the same ones.
        """
        if self.offset and self._seen is None:
            self._seen = self._hash
        self._hash = hashlib.new(self.digest.algorithm)
        self._replayed = 0
        self._differs = differs

    def resume(self) -> None:
        """See :class:`proxy.storage.Partial`."""
        if self._seen is not None:
            self._hash, self._seen = self._seen, None

    def _replay(self, data: Piece) -> Piece:
        """Hash the part of *data* that is in the file already; the rest is returned."""
        known = memoryview(data)[: self.offset - self._replayed]
        agreed = self._agreed(known)
        self._hash.update(known[:agreed])
        self._replayed += agreed
        if agreed < len(known):
            self._cut(self._replayed)
        if self._replayed == self.offset:
            self._seen = None
        return data[agreed:]

    def _agreed(self, known: memoryview) -> int:
        """How many bytes of *known* are those of the file, at the place where the replay stands."""
        try:
            there = os.pread(self._fd, len(known), self._replayed)
        except OSError:
            return 0  # what cannot be read is written again
        if there == known:
            return len(known)
        return next((at for at, (a, b) in enumerate(zip(there, known, strict=False)) if a != b), len(there))

    def _cut(self, offset: int) -> None:
        """Only the digest can tell which of two beginnings is right: the new one is taken, it may be the whole."""
        if self._differs is not None:
            self._differs(offset)
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            raise refused(error) from error
        self.offset = offset

    def verify(self) -> None:
        """See :class:`proxy.storage.Partial`."""
        if self._seen is not None or self._hash.hexdigest() != self.digest.encoded:
            raise DigestMismatch(f"asked for {self.digest}, got {self.digest.algorithm}:{self._hash.hexdigest()}")

    def hashed(self) -> Hash:
        """See :class:`proxy.storage.Partial`."""
        return (self._seen or self._hash).copy()

    def fsync(self) -> None:
        """Blocks: runs in a thread."""
        os.fsync(self._fd)

    async def publish(self, media_type: str | None = None) -> None:
        """See :class:`proxy.storage.Partial`."""
        await self._publish(self, media_type)

    async def discard(self) -> None:
        """See :class:`proxy.storage.Partial`."""
        if not self.ended:
            await self._discard(self)

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """See :class:`proxy.storage.Partial`."""
        await sink.send_file(self._fd, start, stop)

    def close(self) -> None:
        """Close the file; after its last reader."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
