"""Blobs on their way into the bucket: two at a time, each tried three times and bounded in time; no pull waits for it.

What cannot be brought there stays with the replica that has it, and the others fetch it there.
"""

import asyncio
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.s3 import ObjectRefused, StoreTrouble
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import ReadFailed, RegistryCacheError
from registry_cache.model.oci import Digest
from registry_cache.ports.blobs import OpenBlob, Piece

_AT_A_TIME = 2
_TRIES = 3
_PAUSE_SECONDS = 1.0
_WAITING_MAX = 1000
_PIECE_BYTES = 1024 * 1024
# A store that takes less than this is not waited for.
_BYTES_PER_SECOND = 5_000_000
_PATIENCE_SECONDS = 10.0
# One PUT takes 5 GiB; what is larger goes in parts of this size, up to 10 000 of them.
ONE_PUT_BYTES = 4 * 1024**3
PART_BYTES = 64 * 1024**2


class _Rotten(RegistryCacheError):
    """What is here is not what its digest says."""


class Shelf:
    """See the module.

    Args:
        open_blob: of the local store.
        cap_bytes: of the bucket.
    """

    def __init__(
        self,
        bucket: Bucket,
        index: TierIndex,
        *,
        open_blob: Callable[[Digest], Awaitable[OpenBlob | None]],
        cap_bytes: int,
        counts: Counts,
        bus: Events,
    ) -> None:
        self._bucket = bucket
        self._index = index
        self._open = open_blob
        self._cap_bytes = cap_bytes
        self._counts = counts
        self._events = bus
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._tasks: dict[Digest, asyncio.Task[None]] = {}
        self._purged: set[Digest] = set()  # of those on their way

    def __len__(self) -> int:
        return len(self._tasks)

    async def aclose(self) -> None:
        """Break off; what the store has not got whole it never shows."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def share(self, digest: Digest) -> None:
        """It is here: put it into the bucket when there is time."""
        self._begin(digest, lambda: self._share(digest))

    def share_manifest(self, digest: Digest, body: bytes, headers: Mapping[str, str]) -> None:
        """As :meth:`share`, of what is in memory."""
        self._begin(digest, lambda: self._share_manifest(digest, body, headers))

    def purged(self, digests: Collection[Digest]) -> None:
        """They are not to be in the bucket: what of them is on its way goes again once it is there."""
        self._purged |= self._tasks.keys() & digests

    def _begin(self, digest: Digest, share: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if digest not in self._tasks and len(self._tasks) < _WAITING_MAX:
            task = self._tasks[digest] = asyncio.create_task(share(), name=f"share {digest}")
            task.add_done_callback(functools.partial(self._done, digest))

    def _done(self, digest: Digest, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(digest, None)
        self._purged.discard(digest)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.emit(events.Crashed(message=f"share {digest}", traceback=repr(error)))

    async def _share(self, digest: Digest) -> None:
        async with self._slots:
            if not self._bucket.writing.may_try:
                return
            blob = await self._open(digest)
            if blob is None:
                return
            try:
                put = self._put_in_parts if blob.size_bytes > ONE_PUT_BYTES else self._put_whole
                await self._admitted(digest, blob.size_bytes, lambda: put(blob))
            finally:
                blob.close()

    async def _share_manifest(self, digest: Digest, body: bytes, headers: Mapping[str, str]) -> None:
        async def put() -> None:
            sha256, seconds = hashlib.sha256(body).hexdigest(), _bound(len(body))
            await self._bucket.put(digest, len(body), sha256, lambda: _once(body), seconds=seconds, headers=headers)

        async with self._slots:
            if self._bucket.writing.may_try:
                await self._admitted(digest, len(body), put)

    async def _admitted(self, digest: Digest, size_bytes: int, put: Callable[[], Awaitable[None]]) -> None:
        """Bring it there by *put*, if it is to be there."""
        try:
            if await self._index.admit(digest, size_bytes, self._cap_bytes) == "share":
                await self._put(put)
                await self._index.shared([(digest, size_bytes, None)])
                self._counts.shared += 1
                self._counts.shared_bytes += size_bytes
                if digest in self._purged:
                    await self._index.purged([digest])
        except RedisDown:
            return  # the sweep finds it
        except (StoreTrouble, ObjectRefused, ReadFailed, _Rotten) as error:
            self._counts.not_shared += 1
            self._events.emit(events.FleetNotShared(digest=digest, reason=str(error)))

    @staticmethod
    async def _put(put: Callable[[], Awaitable[None]]) -> None:
        for tries in range(_TRIES):
            try:
                await put()
            except StoreTrouble as error:
                if error.is_lasting or tries == _TRIES - 1:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS * (tries + 1))
            else:
                return

    async def _put_whole(self, blob: OpenBlob) -> None:
        digest, size = blob.digest, blob.size_bytes
        sha256 = digest.encoded
        if digest.algorithm != "sha256":  # the store compares by that one alone
            sha256 = await self._other_hash(blob)
        pieces = functools.partial(_pieces, blob, 0, size)
        await self._bucket.put(digest, size, sha256, pieces, seconds=_bound(size))

    @staticmethod
    async def _other_hash(blob: OpenBlob) -> str:
        own, other = hashlib.new(blob.digest.algorithm), hashlib.sha256()
        async for piece in _pieces(blob, 0, blob.size_bytes):
            await asyncio.to_thread(own.update, piece)
            await asyncio.to_thread(other.update, piece)
        if own.hexdigest() != blob.digest.encoded:
            raise _Rotten("what is here is not what its digest says")
        return other.hexdigest()

    async def _put_in_parts(self, blob: OpenBlob) -> None:
        """The whole becomes an object only when all parts are what the digest says."""
        known = hashlib.new(blob.digest.algorithm)
        async with self._bucket.parts(blob.digest, seconds=_PATIENCE_SECONDS) as parts:
            for start in range(0, blob.size_bytes, PART_BYTES):
                stop = min(start + PART_BYTES, blob.size_bytes)
                part = hashlib.sha256()
                async for piece in _pieces(blob, start, stop):
                    await asyncio.to_thread(known.update, piece)
                    await asyncio.to_thread(part.update, piece)
                pieces = functools.partial(_pieces, blob, start, stop)
                await parts.put(stop - start, part.hexdigest(), pieces, seconds=_bound(stop - start))
            if known.hexdigest() != blob.digest.encoded:
                raise _Rotten("what is here is not what its digest says")
            await parts.complete(seconds=_bound(blob.size_bytes))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _bound(size_bytes: int) -> float:
    return _PATIENCE_SECONDS + size_bytes / _BYTES_PER_SECOND


class _Collected:
    """See :class:`registry_cache.ports.blobs.Sink`: in memory."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: Piece) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        self.data += bytes(data)

    def send_file_now(self, fd: int, start: int, stop: int) -> int:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        del fd, stop
        return start

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """See :class:`registry_cache.ports.blobs.Sink`."""
        try:
            self.data += await asyncio.to_thread(os.pread, fd, stop - start, start)
        except OSError as error:
            raise ReadFailed(f"it cannot be read: {error.strerror}", offset=start) from error


async def _pieces(blob: OpenBlob, start: int, stop: int) -> AsyncIterator[bytes]:
    """The bytes [start, stop) of *blob*.

    Raises:
        ReadFailed: there are fewer.
    """
    for position in range(start, stop, _PIECE_BYTES):
        sink, end = _Collected(), min(position + _PIECE_BYTES, stop)
        await blob.send(sink, position, end)
        if len(sink.data) != end - position:
            raise ReadFailed("the file is shorter than it was", offset=position)
        yield sink.data
