"""The fleet's bucket: where each blob lies in it, and when it is left alone.

Reading, writing and deleting fail apart: a full Ceph answers each GET, and lets PUT and DELETE hang; an object may be
locked, or a key have no right to delete. What does not work is left alone; whether it works again is found out beside
the pulls, never by one.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Literal

from registry_cache.fleet.s3 import S3, Listed, ObjectMissing, ObjectReply, StoreTrouble
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import DigestInvalid
from registry_cache.model.oci import Digest

# So long a store is left alone that cannot be reached, or that will not serve us.
RETRY_SECONDS = 5.0
LASTING_RETRY_SECONDS = 60.0
_LIST_SECONDS = 60.0
_DELETE_SECONDS = 10.0


class Breaker:
    """Reading, writing or deleting: whether it is done without for now."""

    def __init__(self, part: Literal["reading", "writing", "deleting"], bus: Events) -> None:
        self.trouble = ""  # why; empty while it works
        self._part = part
        self._events = bus
        self._retry_at = 0.0  # monotonic seconds

    @property
    def may_try(self) -> bool:
        """Whether it works, or may by now."""
        return not self.trouble or time.monotonic() >= self._retry_at

    def failed(self, error: StoreTrouble) -> None:
        """It does not work."""
        was_well, self.trouble = not self.trouble, str(error)
        self._retry_at = time.monotonic() + (LASTING_RETRY_SECONDS if error.is_lasting else RETRY_SECONDS)
        if was_well:
            self._events.emit(events.FleetBucketDown(part=self._part, reason=self.trouble))

    def worked(self) -> None:
        """It does."""
        if self.trouble:
            self.trouble = ""
            self._events.emit(events.FleetBucketUp(part=self._part))


class Parts:
    """An object on its way in parts."""

    def __init__(self, s3: S3, key: str, upload: str) -> None:
        self._s3 = s3
        self._key = key
        self._upload = upload
        self._etags: list[str] = []

    async def put(
        self, size_bytes: int, sha256: str, pieces: Callable[[], AsyncIterator[bytes]], *, seconds: float
    ) -> None:
        """The next one; see :meth:`.s3.S3.put`."""
        number = len(self._etags) + 1
        etag = await self._s3.put_part(self._key, self._upload, number, size_bytes, sha256, pieces, seconds=seconds)
        self._etags.append(etag)

    async def complete(self, *, seconds: float) -> None:
        """They are one object now."""
        await self._s3.end_parts(self._key, self._upload, self._etags, seconds=seconds)

    async def drop(self, *, seconds: float) -> None:
        """There will be none."""
        await self._s3.drop_parts(self._key, self._upload, seconds=seconds)


class Bucket:
    """See the module.

    Args:
        name: of the fleet; others may have the same bucket.
    """

    def __init__(self, s3: S3, *, name: str, bus: Events) -> None:
        self.reading = Breaker("reading", bus)
        self.writing = Breaker("writing", bus)
        self.deleting = Breaker("deleting", bus)
        self._s3 = s3
        self._is_known = False  # it has been asked once
        self._prefix = f"v1/{name}/"

    def __repr__(self) -> str:
        return (
            f"<Bucket {self._s3} reading: {self.reading.trouble or 'works'} writing: {self.writing.trouble or 'works'} "
            f"deleting: {self.deleting.trouble or 'works'}>"
        )

    def key(self, digest: Digest) -> str:
        """Where *digest* lies."""
        return f"{self._prefix}{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"

    def digest(self, key: str) -> Digest | None:
        """What lies at *key*; None if that is no place of a blob."""
        algorithm, _, rest = key.removeprefix(self._prefix).partition("/")
        with suppress(DigestInvalid):
            found = Digest.parse(f"{algorithm}:{rest[3:]}")
            return found if self.key(found) == key else None
        return None

    async def get(self, digest: Digest, start: int) -> ObjectReply:
        """The blob from *start* on.

        Raises:
            ObjectMissing, ObjectShort, StoreTrouble.
        """
        try:
            return await self._s3.get(self.key(digest), start)
        except StoreTrouble as error:
            self.reading.failed(error)
            raise

    async def size(self, digest: Digest) -> int:
        """How large the blob is there, in bytes.

        Raises:
            ObjectMissing, ObjectShort, StoreTrouble.
        """
        try:
            return await self._s3.size(self.key(digest))
        except StoreTrouble as error:
            self.reading.failed(error)
            raise

    def link(self, digest: Digest, *, seconds: int) -> str:
        """See :meth:`.s3.S3.link`."""
        return self._s3.link(self.key(digest), seconds=seconds)

    async def put(
        self,
        digest: Digest,
        size_bytes: int,
        sha256: str,
        pieces: Callable[[], AsyncIterator[bytes]],
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Store the blob; see :meth:`.s3.S3.put`.

        Raises:
            ObjectRefused, StoreTrouble; and whatever *pieces* raises.
        """
        try:
            await self._s3.put(self.key(digest), size_bytes, sha256, pieces, seconds=seconds, headers=headers)
        except StoreTrouble as error:
            self.writing.failed(error)
            raise
        self.writing.worked()

    @asynccontextmanager
    async def parts(self, digest: Digest, *, seconds: float) -> AsyncIterator[Parts]:
        """As :meth:`put`, of a blob that is too large for one; without :meth:`Parts.complete` nothing of it stays.

        Args:
            seconds: for what carries no body.
        """
        key = self.key(digest)
        try:
            parts = Parts(self._s3, key, await self._s3.begin_parts(key, seconds=seconds))
            try:
                yield parts
            except BaseException:
                with suppress(StoreTrouble):
                    await parts.drop(seconds=seconds)
                raise
        except StoreTrouble as error:
            self.writing.failed(error)
            raise
        self.writing.worked()

    async def delete(self, digest: Digest) -> None:
        """It is not there any more, or never was.

        Raises:
            StoreTrouble: nobody knows. One that is lasting may be of this object alone, as of one that is locked.
        """
        try:
            await self._s3.delete(self.key(digest), seconds=_DELETE_SECONDS)
        except StoreTrouble as error:
            if not error.is_lasting:
                self.deleting.failed(error)
            raise
        self.deleting.worked()

    async def page(self, after: str) -> tuple[list[Listed], str]:
        """See :meth:`.s3.S3.page`."""
        try:
            return await self._s3.page(self._prefix, after, seconds=_LIST_SECONDS)
        except StoreTrouble as error:
            self.reading.failed(error)
            raise

    async def look(self) -> None:
        """Find out whether it can be read by now; nothing is asked of one that works."""
        if self._is_known and (not self.reading.trouble or not self.reading.may_try):
            return
        self._is_known = True
        try:
            (await self._s3.get(f"{self._prefix}probe", 0)).reply.close()
        except ObjectMissing:
            pass
        except StoreTrouble as error:
            self.reading.failed(error)
            return
        self.reading.worked()
