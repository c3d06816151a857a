"""The files of the index: nobody else reads them; they belong to whom the directory belongs to. All of it blocks."""

import contextlib
import os
from pathlib import Path


def open_file(path: Path, flags: int) -> int:
    """The descriptor of *path*, made if it is not there.

    What root makes (an import, a repair) in a service's directory is the service's, who has to write it later.
    """
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            folder = path.parent.stat()
            os.fchown(fd, folder.st_uid, folder.st_gid)
    return fd


def sync_folder(folder: Path) -> None:
    """Write down which files are in *folder*."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
