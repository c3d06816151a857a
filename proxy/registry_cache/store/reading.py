"""Stored blobs as they are opened: small ones from memory, the others by their files."""

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator

from cachetools import LRUCache

from registry_cache.model.errors import ContentError, ReadFailed
from registry_cache.model.oci import Digest
from registry_cache.ports.blobs import Sink
from registry_cache.ports.rows import BlobEntry
from registry_cache.store.entries import Inode
from registry_cache.store.shared import Shared

# Content up to this size is served from memory: manifests, configs, signatures. Measured in docs/benchmarks.
SMALL_BYTES = 64 * 1024
_MEMORY_BYTES = 32 * 1024 * 1024

# Called with the digest, what is wrong and which file it is; that file stays open meanwhile.
Rotten = Callable[[Digest, str, Inode], Awaitable[None]]


class Rot(Exception):
    """A file is not what its row says. It is open until its finder closes it, so that it cannot be mistaken."""

    def __init__(self, reason: str, fd: int, inode: Inode) -> None:
        super().__init__(reason)
        self.fd = fd
        self.inode = inode


class DiskBlob:
    """See :class:`registry_cache.ports.blobs.OpenBlob`."""

    def __init__(self, reading: "Reading", entry: BlobEntry, fd: int, inode: Inode, body: bytes | None) -> None:
        self.digest = entry.digest
        self.size_bytes = entry.size_bytes
        self.media_type = entry.media_type
        self.body = body
        self._reading = reading
        self._fd = fd
        self._inode = inode

    def send_now(self, sink: Sink, start: int, stop: int) -> int:
        """See :class:`registry_cache.ports.blobs.OpenBlob`."""
        return sink.send_file_now(self._fd, start, stop) if self.body is None else start

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """See :class:`registry_cache.ports.blobs.OpenBlob`.

        Raises:
            ReadFailed: the disk does not give what it took; the blob is on its way to quarantine.
        """
        if self.body is not None:
            await sink.write(self.body[start:stop])
            return
        try:
            await sink.send_file(self._fd, start, stop)
        except ReadFailed as error:
            await self._reading.rotten(self.digest, str(error), self._inode)
            raise

    def close(self) -> None:
        """See :class:`registry_cache.ports.blobs.OpenBlob`."""
        if self._fd >= 0:
            self._reading.files.close_now(self._fd)
            self._fd = -1
            self._reading.released(self.digest)


class Reading:
    """See the module.

    Args:
        rotten: takes a file out of service that could not be read to its end.
    """

    def __init__(self, shared: Shared, rotten: Rotten) -> None:
        self.files = shared.files
        self.rotten = rotten
        self._layout = shared.layout
        self._index = shared.index
        self._memory: LRUCache[Digest, DiskBlob] = LRUCache(_MEMORY_BYTES, getsizeof=lambda blob: blob.size_bytes + 512)
        self._readers: Counter[Digest] = Counter()
        self._leaving: set[Digest] = set()

    @property
    def open_files(self) -> int:
        """Blobs that are open, each as often as it is."""
        return self._readers.total()

    def is_read(self, digest: Digest) -> bool:
        """Whether somebody has the file of *digest* open."""
        return digest in self._readers

    def at_hand(self, digest: Digest) -> DiskBlob | None:
        """See :class:`registry_cache.ports.blobs.BlobStore`."""
        blob: DiskBlob | None
        try:
            blob = self._memory[digest]  # get() takes twice as many calls, and every hit comes here
        except KeyError:
            blob = self._opened_at_once(digest)
        if blob is not None:
            self._index.touch(digest)
        return blob

    def _opened_at_once(self, digest: Digest) -> DiskBlob | None:
        entry = self._index.blob_at_hand(digest)
        if entry is None:
            return None
        try:
            return self.open(entry)
        except Rot as rot:
            self.files.close_now(rot.fd)
            return None  # who opens it without haste meets it again, and sees to it
        except OSError:
            return None

    def open(self, entry: BlobEntry) -> DiskBlob:
        """The file of *entry*. Not awaited: what is removed meanwhile is not there.

        Raises:
            FileNotFoundError: it is gone, or about to be.
            OSError: the disk refuses.
            Rot: it is not what was stored; the caller closes it.
        """
        digest = entry.digest
        if digest in self._leaving:
            raise FileNotFoundError(digest)
        fd, size_bytes, inode = self.files.open_now(self._layout.blob(digest))
        with contextlib.ExitStack() as undo:
            undo.callback(self.files.close_now, fd)
            if size_bytes != entry.size_bytes:
                undo.pop_all()
                if size_bytes < 0:
                    raise Rot("it is no file", fd, inode)
                raise Rot(f"{size_bytes} bytes on the disk, {entry.size_bytes} were stored", fd, inode)
            if entry.size_bytes <= SMALL_BYTES or entry.media_type is not None:
                # Read whole, and hashed each time it comes from the disk: it is never served rotten.
                body = self.files.read_now(fd, size_bytes)
                try:
                    digest.verify(body)
                except ContentError as error:
                    undo.pop_all()
                    raise Rot(str(error), fd, inode) from error
                blob = self._memory[digest] = DiskBlob(self, entry, -1, inode, body)
                return blob
            undo.pop_all()
        self._readers[digest] += 1
        return DiskBlob(self, entry, fd, inode, None)

    def released(self, digest: Digest) -> None:
        """A reader of *digest* has closed it."""
        self._readers[digest] -= 1
        if not self._readers[digest]:
            del self._readers[digest]

    def remember(self, digest: Digest, body: bytes, media_type: str) -> None:
        """See :class:`registry_cache.ports.blobs.BlobStore`."""
        if digest in self._leaving:
            return
        entry = BlobEntry(digest, len(body), media_type, 0.0)
        with contextlib.suppress(ValueError):  # larger than the whole memory
            self._memory[digest] = DiskBlob(self, entry, -1, (0, 0), body)

    @contextlib.contextmanager
    def leaving(self, digests: Collection[Digest]) -> Iterator[None]:
        """These are being removed: from now on nobody opens them, and nothing brings them back into memory."""
        for digest in digests:
            self._memory.pop(digest, None)
        self._leaving.update(digests)
        try:
            yield
        finally:
            self._leaving.difference_update(digests)
