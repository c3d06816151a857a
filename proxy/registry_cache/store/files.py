"""What the store does to files: the port, and the real ones.

A thread that waits for the disk keeps nobody else waiting: opening, reading, removing and syncing have threads of their
own, so four slow fsyncs are no reason for a new transfer to stand still.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from registry_cache.ports.blobs import Hash, Piece
from registry_cache.runtime.threads import Threads
from registry_cache.store.entries import (
    Inode,
    Opened,
    Seen,
    folders_in,
    identify,
    look,
    make_file,
    open_to_read,
    read_beginning,
    reopen,
    sizes,
    unlink_all,
)

T = TypeVar("T")

# Of all inodes, at most this share stays free, and at least so many.
_FREE_FILES_SHARE = 20
_FREE_FILES_LEAST = 16


class DiskSpace(NamedTuple):
    """A filesystem, in bytes and in files (inodes); of what is free, ``min_free_…`` are never used up.

    All counts of files are 0 where the filesystem has no bound for them.
    """

    size_bytes: int
    free_bytes: int
    min_free_bytes: int
    free_files: int = 0
    min_free_files: int = 0


class Files(Protocol):
    """What the store needs of a disk. ``…_now`` and :meth:`space` do not wait; the coroutines raise OSError.

    A folder that has been removed is made again when something is put into it.
    """

    def open_now(self, path: str) -> Opened:
        """On the event loop: a thread hop costs more than an open of a cached directory entry."""

    def read_now(self, fd: int, size_bytes: int, offset: int = 0) -> bytes:
        """A piece of a file."""

    def close_now(self, fd: int) -> None:
        """Let go of a file."""

    def space(self) -> DiskSpace | None:
        """The filesystem; None where it cannot be asked."""

    def write(self, fd: int, data: Piece, offset: int) -> None:
        """All of *data*. Blocks: for a thread."""

    def cut(self, fd: int, size_bytes: int) -> None:
        """Leave no more than *size_bytes*. Blocks: for a thread."""

    def read(self, path: str, limit: int) -> bytes:
        """The first *limit* bytes of a file. Blocks."""

    async def blocking(self, work: Callable[[], T]) -> T:
        """The result of *work*, which uses :meth:`write` or :meth:`read`."""

    async def make_folders(self, folders: Sequence[str]) -> None:
        """Those that are missing."""

    async def create(self, path: str) -> int:
        """An empty file, open for reading and writing."""

    async def reopen(self, path: str, hasher: Hash) -> tuple[int, int]:
        """A file that is there, open for reading and writing, and how many bytes it has; *hasher* has seen them."""

    async def sync(self, fd: int) -> None:
        """Return once the file survives a crash of the machine."""

    async def place(self, source: str, target: str) -> None:
        """Rename so that it survives a crash of the machine; the file itself has been synced before."""

    async def put(self, target: str, place: Callable[[], None]) -> None:
        """*place*, which puts a file at *target*."""

    async def move(self, source: str, target: str) -> None:
        """Rename."""

    async def remove(self, paths: Sequence[str]) -> None:
        """Unlink, those that are there."""

    async def folders(self, folder: str) -> set[str]:
        """Names of the folders in *folder*; none if it is not there."""

    async def sizes(self, folder: str) -> list[tuple[str, int]]:
        """Name and size (bytes) of each file, the oldest first; nothing for a folder that is not there."""

    async def look(self, path: str) -> Seen | None:
        """What is at *path*."""

    async def identify(self, path: str) -> Inode | None:
        """Which file is at *path*."""

    def close(self) -> None:
        """No more work will come."""


class DiskFiles:
    """See :class:`Files`.

    Args:
        min_free_bytes: of the filesystem, never used up; None for the smaller of 1 GB and 5 % of it.
    """

    def __init__(self, root: Path, min_free_bytes: int | None) -> None:
        self.min_free_bytes = min_free_bytes
        self._root = root
        self._opening = Threads("open", 4)
        self._reading = Threads("look", 4)
        self._writing = Threads("write", 4)
        self._syncing = Threads("sync", 8)
        self._removing = Threads("remove", 2)

    def open_now(self, path: str) -> Opened:
        """See :class:`Files`."""
        return open_to_read(path)

    def read_now(self, fd: int, size_bytes: int, offset: int = 0) -> bytes:
        """See :class:`Files`."""
        return os.pread(fd, size_bytes, offset)

    def close_now(self, fd: int) -> None:
        """See :class:`Files`."""
        os.close(fd)

    def space(self) -> DiskSpace | None:
        """See :class:`Files`."""
        return disk_space(self._root, self.min_free_bytes)

    def write(self, fd: int, data: Piece, offset: int) -> None:
        """See :class:`Files`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def cut(self, fd: int, size_bytes: int) -> None:
        """See :class:`Files`."""
        os.ftruncate(fd, size_bytes)

    def read(self, path: str, limit: int) -> bytes:
        """See :class:`Files`."""
        return read_beginning(path, limit)

    async def blocking(self, work: Callable[[], T]) -> T:
        """See :class:`Files`."""
        return await self._writing.run(work)

    async def make_folders(self, folders: Sequence[str]) -> None:
        """See :class:`Files`."""
        await self._opening.run(lambda: [self._make_folder(Path(folder)) for folder in folders])

    async def create(self, path: str) -> int:
        """See :class:`Files`."""
        return await self._opening.run_interruptible(
            lambda: self._in_folder(path, lambda: make_file(path)), dispose=os.close
        )

    async def reopen(self, path: str, hasher: Hash) -> tuple[int, int]:
        """See :class:`Files`."""
        return await self._reading.run_interruptible(
            lambda: reopen(path, hasher), dispose=lambda opened: os.close(opened[0])
        )

    async def sync(self, fd: int) -> None:
        """See :class:`Files`."""
        await self._syncing.run(os.fsync, fd)

    async def place(self, source: str, target: str) -> None:
        """See :class:`Files`."""
        await self._syncing.run(self._in_folder, target, lambda: rename(Path(source), Path(target)))

    async def put(self, target: str, place: Callable[[], None]) -> None:
        """See :class:`Files`."""
        await self._writing.run(self._in_folder, target, place)

    async def move(self, source: str, target: str) -> None:
        """See :class:`Files`."""
        await self._removing.run(self._in_folder, target, lambda: os.replace(source, target))  # noqa: PTH105

    async def remove(self, paths: Sequence[str]) -> None:
        """See :class:`Files`."""
        await self._removing.run(unlink_all, paths)

    async def folders(self, folder: str) -> set[str]:
        """See :class:`Files`."""
        return await self._reading.run(folders_in, folder)

    async def sizes(self, folder: str) -> list[tuple[str, int]]:
        """See :class:`Files`."""
        return await self._reading.run(sizes, Path(folder))

    async def look(self, path: str) -> Seen | None:
        """See :class:`Files`."""
        return await self._reading.run(look, Path(path))

    async def identify(self, path: str) -> Inode | None:
        """See :class:`Files`."""
        return await self._reading.run(identify, path)

    def close(self) -> None:
        """See :class:`Files`."""
        for threads in (self._opening, self._reading, self._writing, self._syncing, self._removing):
            threads.close()

    def _in_folder(self, path: str, work: Callable[[], T]) -> T:
        """*work*, which puts something at *path*; once more if the folder had been removed by hand, or never made."""
        try:
            return work()
        except FileNotFoundError:
            if not self._root.is_dir():  # not ours to make: a disk that is not mounted looks like that
                raise
            self._make_folder(Path(path).parent)
            return work()

    def _make_folder(self, folder: Path) -> list[Path]:
        """Make *folder* and what is above it, for whom the cache directory belongs to: import may run as root."""
        missing = [path for path in (folder, *folder.parents) if self._root in path.parents and not path.is_dir()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() == 0:
                owner = self._root.stat()
                os.chown(path, owner.st_uid, owner.st_gid)
        return missing


def disk_space(root: Path, min_free_bytes: int | None) -> DiskSpace | None:
    """The filesystem of *root*; None where it cannot be asked. See :func:`space_of`."""
    try:
        return space_of(os.statvfs(root), min_free_bytes)
    except OSError:
        return None


def space_of(disk: os.statvfs_result, min_free_bytes: int | None) -> DiskSpace:
    """What *disk* has.

    Args:
        min_free_bytes: None for the smaller of 1 GB and 5 % of it; of its inodes as large a share stays free, 5 % at
            most.
    """
    size_bytes, free_bytes = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    if min_free_bytes is None:
        min_free_bytes = min(1_000_000_000, size_bytes // 20)
    if not disk.f_files:
        return DiskSpace(size_bytes, free_bytes, int(min_free_bytes))
    likewise = disk.f_files * int(min_free_bytes) // max(1, size_bytes)
    min_free_files = max(_FREE_FILES_LEAST, min(disk.f_files // _FREE_FILES_SHARE, likewise))
    return DiskSpace(size_bytes, free_bytes, int(min_free_bytes), disk.f_favail, min_free_files)


def rename(source: Path, target: Path) -> None:
    """Rename so that it survives a crash of the machine; the file itself has been synced before."""
    try:
        source.replace(target)
    except IsADirectoryError:  # somebody has made a folder where only a blob can be
        unlink_all([target])
        source.replace(target)
    _sync(target)


def link(source: int, target: Path) -> None:
    """A name for the open file *source*, whatever its path leads to by now, so that it survives a crash of the machine.

    Raises:
        OSError: it is on another filesystem, or has no name any more, or may not be linked.
    """
    unlink_all([target])  # left by a crash, of another size than its row says
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a folder's descriptor it is linkat(2), which can follow the link in /proc to the file itself.
        os.link(f"/proc/self/fd/{source}", target.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
    _sync(target)


def _sync(target: Path) -> None:
    """Write down the folder that *target* is in."""
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
