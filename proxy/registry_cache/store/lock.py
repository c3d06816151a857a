"""One process a cache directory, and nobody else reads it."""

import errno
import fcntl
import os
import stat
from pathlib import Path

from registry_cache.model.errors import StoreError, StoreLocked


class DirectoryLock:
    """One process a cache directory; the kernel lets go of it however the process dies.

    ``warning``: what is wrong with the directory that could not be put right; empty when nothing is.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.warning = make_private(root)
            self._fd = _open(root / "lock")
        except OSError as error:
            raise StoreError(f"{root}: {error.strerror}: the cache directory must be writable") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise StoreLocked(f"{root} is in use by another registry-cache (pid {holder or 'unknown'})") from error
        if fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process in."""
        os.close(self._fd)


def _open(path: Path) -> int:
    """The lock's file; the directory itself where a read-only disk has none, and takes none."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def make_private(root: Path) -> str:
    """Private repositories may be in *root*: other users of the machine do not read it.

    Returns:
        What is wrong and what to do about it, when it is not ours to change; empty when all is well.
    """
    found = root.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077:
        return ""
    why = "it is not this user's"
    if found.st_uid == os.geteuid():
        try:
            root.chmod(0o700)
        except OSError as error:
            why = error.strerror or ""
        else:
            return ""
    return f"{root}: other users can read what is cached (mode {mode:04o}; {why}): as its owner, chmod 0700 {root}"
