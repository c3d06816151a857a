"""What the store does to files. Everything here blocks, and runs in a thread; :func:`disk_space` does not."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from proxy.contents import Parts
from proxy.errors import ContentError
from proxy.oci import MANIFEST_MAX_BYTES, TOO_MANY_PARTS, Manifest

_BEGINNING_BYTES = 256


class DiskSpace(NamedTuple):
    """A filesystem, in bytes; of what is free, ``min_free_bytes`` are never used up."""

    size_bytes: int
    free_bytes: int
    min_free_bytes: int


def disk_space(root: Path, min_free_bytes: int | None) -> DiskSpace | None:
    """The filesystem of *root*; None where it cannot be asked.

    Args:
        min_free_bytes: None for the smaller of 1 GB and 5 % of it.
    """
    try:
        disk = os.statvfs(root)
    except OSError:
        return None
    size_bytes, free_bytes = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    if min_free_bytes is None:
        min_free_bytes = min(1_000_000_000, size_bytes // 20)
    return DiskSpace(size_bytes, free_bytes, int(min_free_bytes))


def sizes(folder: Path) -> list[tuple[str, int]]:
    """Name and size (bytes) of each file, the oldest first; nothing for a folder that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if entry.is_file()]
    except OSError:
        return []
    return [(name, stat.st_size) for name, stat in sorted(files, key=lambda file: file[1].st_mtime)]


def inspect(path: Path) -> tuple[int, str | None]:
    """Size, and the media type if the content is a manifest."""
    size_bytes = path.stat().st_size
    if not 0 < size_bytes <= MANIFEST_MAX_BYTES:
        return size_bytes, None
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
        # Layers are told from manifests by their first bytes; most of what is here is layers.
        if not beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return size_bytes, None
        body = beginning + file.read()
    try:
        manifest = Manifest.parse(body, max_parts=0)
    except ContentError:
        return size_bytes, None
    return size_bytes, manifest.media_type


def parts_of(path: Path) -> Parts:
    """What the manifest at *path* names: children, config, layers.

    Raises:
        OSError: it is not here, or cannot be read.
    """
    with path.open("rb") as file:
        body = file.read(MANIFEST_MAX_BYTES)
    try:
        manifest = Manifest.parse(body)
    except ContentError as error:
        return Parts((), str(error))
    return Parts(tuple(part.digest for part in manifest.parts), "" if manifest.is_whole else TOO_MANY_PARTS)


def rename(source: Path, target: Path) -> None:
    """Rename so that it survives a crash of the machine; the file itself has been synced before."""
    source.replace(target)
    _sync(target)


def link(source: Path, target: Path) -> None:
    """A second name for the file *source*, so that it survives a crash of the machine."""
    target.unlink(missing_ok=True)  # left by a crash, of another size than its row says
    target.hardlink_to(source)
    _sync(target)


def _sync(target: Path) -> None:
    """Write down the folder that *target* is in."""
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unlink_all(paths: Iterable[Path | str]) -> None:
    """Remove files, those that are there."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 -- pathlib takes longer than the system call
