"""One blob on its way in: a file that grows, is hashed as it grows, and becomes a blob by one rename.

What is on the disk if the process dies here: a partial is only ever a prefix of what upstream sent. It is hashed again
from its beginning when it is taken up, and nothing but :meth:`DiskPartial.verify` lets it be published.
"""

import asyncio
import contextlib
import errno
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from registry_cache.model.errors import DigestMismatch, NoSpace, reason_of
from registry_cache.model.oci import Digest
from registry_cache.ports.blobs import Hash, Piece, Sink
from registry_cache.store.files import Files
from registry_cache.store.room import Share

# Room is made in steps of this size: what upstream only announces pushes nothing out.
STEP_BYTES = 8 * 1024 * 1024

# What a disk says when it is not the content's fault: full, over quota, read-only, no permission, broken.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENOENT}


def refused(error: OSError) -> NoSpace:
    """The disk's refusal in the words of the domain."""
    return NoSpace(f"{errno.errorcode.get(error.errno or 0, '?')}: {reason_of(error)}")


class DiskPartial:
    """See :class:`registry_cache.ports.blobs.Partial`.

    Args:
        admit: raises NoSpace if so many bytes can never be stored.
        reserve: makes room for so many bytes in all, or raises NoSpace.
        publish: makes the verified file a blob.
        discard: removes the file and gives its room back.
    """

    def __init__(
        self,
        path: Path,
        *,
        files: Files,
        share: Share,
        step_bytes: int,
        admit: Callable[["DiskPartial", int], Awaitable[None]],
        reserve: Callable[["DiskPartial", int], Coroutine[Any, Any, None]],
        publish: Callable[["DiskPartial", str | None], Awaitable[None]],
        discard: Callable[["DiskPartial"], Awaitable[None]],
    ) -> None:
        self.digest: Digest = share.digest
        self.path = path
        self.share = share
        self.ended = False  # published or discarded: nothing is left to keep
        self.fd = -1
        self._files = files
        self._step_bytes = step_bytes
        self._opening: asyncio.Task[int] | None = None
        self._loop = asyncio.get_running_loop()
        self._admit = admit
        self._reserve = reserve
        self._publish = publish
        self._discard = discard
        self._hash: Hash = hashlib.new(self.digest.algorithm)
        self._replayed = 0
        self._seen: Hash | None = None  # of [0, offset) as it was before restart(); None when not replaying
        self._differs: Callable[[int], None] | None = None
        self._expected: int | None = None
        self.offset = 0

    def __repr__(self) -> str:
        return f"<DiskPartial {self.digest} {self.offset}/{self._expected}>"

    async def take_up(self) -> bool:
        """Go on with what an earlier ingest left in the file; False if somebody has removed that.

        Raises:
            NoSpace: it cannot be read.
        """
        try:
            self.fd, self.offset = await self._files.reopen(str(self.path), self._hash)
        except FileNotFoundError:
            self.offset = 0
        except OSError as error:
            raise refused(error) from error
        self.share.has(self.offset)
        return self.fd >= 0

    def open_soon(self) -> None:
        """Make the file in the background: upstream is asked meanwhile, a disk can take as long as that."""
        self._opening = asyncio.create_task(self._files.create(str(self.path)), name=f"open {self.digest}")

    async def _opened(self) -> None:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            try:
                self.fd = await opening
            except OSError as error:
                raise refused(error) from error

    async def settle(self) -> None:
        """Nothing is under way any more that could still make a file."""
        with contextlib.suppress(NoSpace):
            await self._opened()

    async def expect(self, size_bytes: int | None) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        await self._opened()
        self._expected = size_bytes
        if size_bytes is not None:
            await self._admit(self, size_bytes)
            await self._grow(self.offset)

    async def append(self, data: Piece) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        if self._seen is not None:
            whole = data
            data = await self._files.blocking(lambda: self._replay(whole))
        if self._lacks_room(data):
            await self._grow(self.offset + len(data))
        await self._files.blocking(lambda: self._write(data))

    def write(self, data: Piece) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        if self._seen is not None:
            data = self._replay(data)
        if self._lacks_room(data):
            room = self._grow(self.offset + len(data))
            asyncio.run_coroutine_threadsafe(room, self._loop).result()
        self._write(data)

    def _lacks_room(self, data: Piece) -> bool:
        return self.offset + len(data) > self.share.promised_bytes

    async def _grow(self, size_bytes: int) -> None:
        """Have room for *size_bytes*, and for the step behind them where it is known how much will come."""
        if self._expected is not None:
            size_bytes = max(size_bytes, min(self._expected, size_bytes + self._step_bytes))
        await self._reserve(self, size_bytes)

    def _write(self, data: Piece) -> None:
        try:
            self._files.write(self.fd, data, self.offset)
        except OSError as error:
            if error.errno in _REFUSALS:
                raise refused(error) from error
            raise
        # After the write, so that a disk that refuses leaves hash and offset in step; here, so that a cancelled caller
        # does too.
        self._hash.update(data)
        self.offset += len(data)
        self.share.written_bytes = self.offset

    def restart(self, differs: Callable[[int], None] | None = None) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`.

        The file keeps its bytes, and readers theirs, as far as the new transfer brings the same ones.
        """
        if self.offset and self._seen is None:
            self._seen = self._hash
        self._hash = hashlib.new(self.digest.algorithm)
        self._replayed = 0
        self._differs = differs

    def resume(self) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
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
            there = self._files.read_now(self.fd, len(known), self._replayed)
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
            self._files.cut(self.fd, offset)
        except OSError as error:
            raise refused(error) from error
        self.offset = self.share.written_bytes = offset

    def verify(self) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        if self._seen is not None or self._hash.hexdigest() != self.digest.encoded:
            raise DigestMismatch(f"asked for {self.digest}, got {self.digest.algorithm}:{self._hash.hexdigest()}")

    def hashed(self) -> Hash:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        return (self._seen or self._hash).copy()

    async def publish(self, media_type: str | None = None) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        await self._publish(self, media_type)

    async def discard(self) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        if not self.ended:
            await self._discard(self)

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """See :class:`registry_cache.ports.blobs.Partial`."""
        await sink.send_file(self.fd, start, stop)

    def close(self) -> None:
        """Close the file; after its last reader."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                self._files.close_now(self.fd)
            self.fd = -1
