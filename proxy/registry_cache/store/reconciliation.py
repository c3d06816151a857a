"""Rows are made to agree with blobs/, beside the running service: after a crash, a lost index, a refused write."""

import contextlib
import hashlib
import time
from collections.abc import Sequence

from registry_cache.model import events
from registry_cache.model.errors import DigestInvalid, IndexRefused
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import BlobEntry
from registry_cache.store.entries import Seen
from registry_cache.store.layout import ALGORITHMS
from registry_cache.store.shared import Shared


class Reconciler:
    """See the module.

    ``is_counted``: whether the room knows every file; else it knows only those that had a row when the store started.
    """

    def __init__(self, shared: Shared, folders: Sequence[tuple[str, str]]) -> None:
        self.is_counted = False
        self._found = False  # any file
        self._layout = shared.layout
        self._files = shared.files
        self._index = shared.index
        self._room = shared.room
        self._rows = shared.rows
        self._locks = shared.locks
        self._folders = folders
        self._events = shared.events

    async def reconcile(self) -> None:
        """Compare everything. New doubt that comes up meanwhile stays.

        Raises:
            IndexRefused: rows cannot be read or written; the doubt stays.
            OSError: a folder cannot be read; the doubt stays.
        """
        self._found = False
        began, reason, raised = time.monotonic(), self._index.doubt, self._index.doubts_raised
        await self._rows.again()
        for algorithm, prefix in await self._worth_comparing():
            await self._folder(algorithm, prefix)
        await self._rows.settled()
        stored = await self._rows.totals()
        if not stored.objects and self._found:
            raise IndexRefused("rows can neither be counted nor read")
        self._room.stored = stored
        self.is_counted = True
        await self._index.settle_doubt(raised)
        if self._index.doubt:
            return  # the next round looks again
        if not self._room.stored.objects:
            return  # a new cache: nothing to tell
        self._events.emit(
            events.IndexRebuilt(
                reason=reason,
                blobs=self._room.stored.objects,
                size_bytes=self._room.stored.size_bytes,
                duration_ms=(time.monotonic() - began) * 1000,
            )
        )

    async def _worth_comparing(self) -> Sequence[tuple[str, str]]:
        """Without rows, only what is there."""
        if (await self._index.totals()).objects:
            return self._folders
        there = {name: await self._files.folders(self._layout.algorithm(name)) for name in ALGORITHMS}
        return [(algorithm, prefix) for algorithm, prefix in self._folders if prefix in there[algorithm]]

    async def _folder(self, algorithm: str, prefix: str) -> None:
        known = await self._index.entries_between(f"{algorithm}:{prefix}", f"{algorithm}:{prefix}g")
        found: dict[Digest, int] = {}
        for name, size_bytes in await self._files.sizes(self._layout.blobs(algorithm, prefix)):
            try:
                found[Digest.parse(f"{algorithm}:{name}")] = size_bytes
                self._found = True
            except DigestInvalid:
                continue  # not ours: left alone
        differing = {digest for digest in known.keys() & found.keys() if known[digest].size_bytes != found[digest]}
        for digest in sorted((known.keys() ^ found.keys()) | differing):
            async with self._locks.hold([digest]):
                await self._compare(digest)

    async def _compare(self, digest: Digest) -> None:
        """Give the file of *digest* its row, or take a row without a file away. Under the lock of the digest.

        A power cut may have brought the row of an earlier file back: where sizes differ, the content tells. If that is
        wrong, it is found when it is opened.
        """
        row = await self._rows.of([digest])
        seen = await self._files.look(self._layout.blob(digest))
        if seen is None:
            self._rows.forget(row)
        elif digest not in row or (row[digest].size_bytes != seen.size_bytes and await self._is_right(digest)):
            entry = BlobEntry(digest, seen.size_bytes, self._media_type(digest, seen), seen.changed_at)
            await self._rows.add(entry)
            self._rows.placed(digest)

    async def _is_right(self, digest: Digest) -> bool:
        hasher = hashlib.new(digest.algorithm)
        try:
            fd, _ = await self._files.reopen(str(self._layout.blob(digest)), hasher)
        except OSError:
            return False
        self._files.close_now(fd)
        return hasher.hexdigest() == digest.encoded

    async def adopt(self, digest: Digest) -> BlobEntry | None:
        """A file that the index does not know, if it is here: the index was lost, or is being rebuilt.

        Served even if it cannot have a row yet: the doubt that let us look for it stays.

        Raises:
            OSError: nobody can tell.
        """
        async with self._locks.hold([digest]):
            if (row := await self._index.blob(digest)) is not None:
                return row  # it has come back meanwhile, and knows more than the file
            seen = await self._files.look(self._layout.blob(digest))
            if seen is None:
                return None
            entry = BlobEntry(digest, seen.size_bytes, self._media_type(digest, seen), self._index.clock.now())
            with contextlib.suppress(IndexRefused):
                came = await self._rows.add(entry)
                self._rows.placed(digest)
                if not self.is_counted:
                    self._room.store(came)
        return entry

    def _media_type(self, digest: Digest, seen: Seen) -> str | None:
        """What was served as a manifest stays one, whatever it looks like."""
        return self._index.media_type_kept(digest) or seen.media_type
