"""One process a cache directory."""

import fcntl
import os
from pathlib import Path

from proxy.errors import StoreError, StoreLocked


class DirectoryLock:
    """One process a cache directory; the kernel lets go of it however the process dies."""

    def __init__(self, root: Path) -> None:
        try:
            # Private repositories may be in it: other users of the machine do not read it. One that is there stays.
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{root}: {error.strerror}: the cache directory must be writable") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise StoreLocked(f"{root} is in use by another registry-cache (pid {holder or 'unknown'})") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process in."""
        os.close(self._fd)
