"""Find rot: re-hash what is stored, slowly beside the running service, or all at once for ``registry-cache verify``."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import DigestInvalid
from registry_cache.model.oci import Digest
from registry_cache.ports.index import Index
from registry_cache.runtime.threads import Threads
from registry_cache.store.disk import DiskStore
from registry_cache.store.entries import open_to_read

_PIECE_BYTES = 256 * 1024  # the thread keeps a core for as long as it hashes one, and a hit may wait for that
# What looking at a file costs beside its content, as bytes of the rate: else tiny blobs would be hashed at full speed.
_FILE_BYTES = 64 * 1024
# A blob that was found good is looked at again after this time.
_AGAIN_SECONDS = 7 * 86400.0
_IDLE_SECONDS = 60.0
_PAGE = 64


def find_rot(path: Path, digest: Digest, pace: Callable[[int], None] = lambda _: None) -> str | None:
    """Re-hash the file at *path*; what is wrong with it, or None. Blocks.

    Args:
        pace: called with the number of bytes of each piece that was read; may sleep, or raise to stop.

    Raises:
        FileNotFoundError: it is gone, evicted meanwhile.
    """
    try:
        fd = open_to_read(path).fd
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    try:
        return find_rot_in(fd, digest, pace)
    finally:
        os.close(fd)


def find_rot_in(fd: int, digest: Digest, pace: Callable[[int], None]) -> str | None:
    """As :func:`find_rot`, of an open file."""
    hasher, offset, buffer = hashlib.new(digest.algorithm), 0, bytearray(_PIECE_BYTES)
    try:
        while True:
            was_cached = _is_cached(fd, offset)
            count = os.preadv(fd, [buffer], offset)
            if count == 0:
                break
            hasher.update(memoryview(buffer)[:count])
            if not was_cached:  # leave the page cache to what clients ask for
                os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)
            offset += count
            pace(count)
    except InterruptedError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if hasher.hexdigest() == digest.encoded:
        return None
    return f"its content hashes to {digest.algorithm}:{hasher.hexdigest()}"


def _is_cached(fd: int, offset: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError:
        return False
    return True


def stored_files(root: Path) -> Iterator[tuple[Digest, Path]]:
    """Every blob under the cache directory *root*, in the order of the folders. Blocks."""
    for algorithm in ("sha256", "sha512"):
        for path in sorted((root / "blobs" / algorithm).glob("??/*")):
            try:
                digest = Digest.parse(f"{algorithm}:{path.name}")
            except DigestInvalid:
                continue
            yield digest, path


class Scrubber:
    """Re-hashes stored blobs in the background, those first that have gone without for the longest time.

    Args:
        bytes_per_second: how fast, at most.
    """

    def __init__(self, store: DiskStore, index: Index, *, bytes_per_second: int, events: Events) -> None:
        self._store = store
        self._index = index
        self._bytes_per_second = bytes_per_second
        self._events = events
        self._thread = Threads("scrub", 1)
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless the rate is 0."""
        if self._bytes_per_second > 0:
            self._task = asyncio.create_task(self._run(), name="scrub")

    async def aclose(self) -> None:
        """Stop within a piece."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.close()

    async def _run(self) -> None:
        while True:
            try:
                found = await self.scrub_some()
            except Exception as error:  # noqa: BLE001 -- the next round may do better; it must not end for ever
                self._events.emit(events.StorageFailed(operation="scrub", reason=repr(error)))
                found = 0
            if not found:
                await asyncio.sleep(_IDLE_SECONDS)

    async def scrub_some(self) -> int:
        """Re-hash the next few blobs that are due; how many there were."""
        now = self._index.clock.now()
        due = await self._index.unverified_longest(_PAGE, before=now - _AGAIN_SECONDS)
        for digest in due:
            await self._scrub(digest, now)
        await self._store.settled()  # else what has just gone would be due again
        return len(due)

    async def _scrub(self, digest: Digest, now: float) -> None:
        """The file stays open until it is in quarantine, so that it is not mistaken for one that came meanwhile."""
        try:
            opened = self._store.files.open_now(str(self._store.path(digest)))
        except FileNotFoundError:
            await self._store.missing(digest)
            return
        except OSError as error:  # the others are looked at all the same
            self._events.emit(events.StorageFailed(operation="scrub", reason=f"{digest}: {error}"))
            return
        try:
            rot = await self._thread.run_interruptible(
                lambda: self._find_rot(opened.fd, digest), interrupt=self._stopping.set
            )
            if rot is None:
                await self._index.verified(digest, now)
            else:
                await self._store.quarantine(digest, rot, opened.inode)
        finally:
            self._store.files.close_now(opened.fd)

    def _find_rot(self, fd: int, digest: Digest) -> str | None:
        rot = find_rot_in(fd, digest, self._pace)
        self._pace(_FILE_BYTES)
        return rot

    def _pace(self, count: int) -> None:
        """Runs in the thread: wait as long as the rate wants, and end when the program does."""
        if self._stopping.wait(count / self._bytes_per_second):
            raise InterruptedError("the scrub was stopped")
