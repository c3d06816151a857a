"""One process a cache directory, and nobody else reads it."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path

from registry_cache.model.errors import StoreError, StoreLocked


class DirectoryLock:
    """One process a cache directory; the kernel lets go of it however the process dies.

    ``warning``: what is wrong with the directory that could not be put right; empty when nothing is.
    """

    def __init__(self, root: Path) -> None:
        try:
            self._made = _make(root)
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

    def keep(self) -> None:
        """From now on :meth:`undo` takes nothing away."""
        self._made = []

    def undo(self) -> None:
        """Take the directory away that this lock has made, and what was made above it; before :meth:`release`."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                if path == self._made[-1]:
                    shutil.rmtree(path)
                else:
                    path.rmdir()

    def release(self) -> None:
        """Let another process in."""
        os.close(self._fd)


def _make(root: Path) -> list[Path]:
    """Make *root* and what is above it; the folders that were not there, the deepest last. Empty where *root* was."""
    missing = [path for path in root.absolute().parents if not path.exists()]
    made = []
    for path in (*reversed(missing), root.absolute()):
        try:
            path.mkdir(mode=0o700 if path == root.absolute() else 0o777)
            made.append(path)
        except FileExistsError:
            if not path.is_dir():
                raise
            made = []
    return made


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
