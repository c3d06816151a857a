"""The files of the index: nobody else reads them; they belong to whom the directory belongs to. All of it blocks."""

import contextlib
import os
import stat
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


def set_all_aside(index: Path) -> None:
    """Rename a pipe or a socket that is in the place of a file of ours: whoever opens one waits for ever.

    A link to a file elsewhere is the operator's, and stays.

    Args:
        index: the path of the database; the others lie beside it.
    """
    beside = (f"{index.name}-wal", f"{index.name}-shm", "names.journal", "names.journal.new", f"{index.stem}.doubt")
    for path in (index, *map(index.with_name, beside)):
        with contextlib.suppress(OSError):
            mode = path.stat().st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                path.rename(path.with_name(f"{path.name}.no-file"))
