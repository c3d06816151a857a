"""What is at a path of the cache directory, whatever somebody has put there by hand.

A pipe in the place of a blob must not keep the event loop waiting for a writer, a link must not have another file
served or written to, and a folder must not stand in the way for ever.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from registry_cache.model.contents import Parts
from registry_cache.model.errors import ContentError
from registry_cache.model.oci import MANIFEST_MAX_BYTES, TOO_MANY_PARTS, Manifest
from registry_cache.ports.blobs import Hash

# Of what is no regular file, only the last part of a path can be that: the directory may be a link to another disk.
_PLAINLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_BEGINNING_BYTES = 256
_READ_BYTES = 1024 * 1024

# Which file it is, whatever its name: device and inode. Unique as long as somebody has it open.
Inode = tuple[int, int]


class Opened(NamedTuple):
    """A file that is open for reading; ``size_bytes`` is -1 for what is no regular file."""

    fd: int
    size_bytes: int
    inode: Inode


class Seen(NamedTuple):
    """A file in blobs/, looked at."""

    size_bytes: int
    media_type: str | None
    changed_at: float  # Unix seconds


def open_to_read(path: str | Path) -> Opened:
    """What is at *path*, open, without waiting for anybody.

    Raises:
        OSError: nothing, a link, or a socket.
    """
    fd = os.open(path, os.O_RDONLY | _PLAINLY)
    status = os.fstat(fd)
    return Opened(fd, status.st_size if stat.S_ISREG(status.st_mode) else -1, (status.st_dev, status.st_ino))


def make_file(path: str) -> int:
    """An empty file at *path*, open for reading and writing; what was there has gone."""
    unlink_all([path])
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _PLAINLY, 0o600)


def read_beginning(path: str | Path, limit: int) -> bytes:
    """The first *limit* bytes of a file."""
    fd = os.open(path, os.O_RDONLY | _PLAINLY)
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)


def sizes(folder: Path) -> list[tuple[str, int]]:
    """Name and size (bytes) of each file, the oldest first; nothing for a folder that is not there."""
    try:
        with os.scandir(folder) as entries:
            files = [
                (entry.name, entry.stat(follow_symlinks=False))
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    return [(name, stat.st_size) for name, stat in sorted(files, key=lambda file: file[1].st_mtime)]


def folders_in(folder: str) -> set[str]:
    """Names of the folders in *folder*; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def look(path: Path) -> Seen | None:
    """The file at *path*; None for nothing, and for what is no regular file."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return None
        size_bytes, media_type = inspect(path)
    except FileNotFoundError:
        return None
    return Seen(size_bytes, media_type, status.st_mtime)


def inspect(path: Path) -> tuple[int, str | None]:
    """Size, and the media type if the content is a manifest."""
    size_bytes = path.stat().st_size
    if not 0 < size_bytes <= MANIFEST_MAX_BYTES:
        return size_bytes, None
    # Layers are told from manifests by their first bytes; most of what is here is layers.
    beginning = read_beginning(path, _BEGINNING_BYTES)
    if not beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return size_bytes, None
    body = read_beginning(path, MANIFEST_MAX_BYTES)
    try:
        manifest = Manifest.parse(body, max_parts=0)
    except ContentError:
        return size_bytes, None
    return size_bytes, manifest.media_type


def parts_of(body: bytes) -> Parts:
    """What the manifest *body* names: children, config, layers."""
    try:
        manifest = Manifest.parse(body)
    except ContentError as error:
        return Parts((), str(error))
    return Parts(tuple(part.digest for part in manifest.parts), "" if manifest.is_whole else TOO_MANY_PARTS)


def reopen(path: str, hasher: Hash) -> tuple[int, int]:
    """A file that is there, open for reading and writing, and how many bytes it has; *hasher* has seen them."""
    fd = os.open(path, os.O_RDWR | _PLAINLY)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        buffer, offset = bytearray(_READ_BYTES), 0
        while count := os.preadv(fd, [buffer], offset):
            hasher.update(memoryview(buffer)[:count])
            offset += count
        undo.pop_all()
    return fd, offset


def identify(path: str) -> Inode | None:
    """Which file is at *path*."""
    try:
        status = os.stat(path, follow_symlinks=False)  # noqa: PTH116 -- as in unlink_all
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def unlink_all(paths: Iterable[Path | str]) -> None:
    """Remove what is there: files, and folders that are in their place."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(path)  # noqa: PTH108 -- pathlib takes longer than the system call
            except IsADirectoryError:
                shutil.rmtree(path)
