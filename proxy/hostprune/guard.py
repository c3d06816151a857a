"""The run lock: shared by runs, exclusive for the prune.

It is a plain ``flock(2)``, so that ``flock -s FILE COMMAND`` is a run too. A run holds it shared for as long as it
lives. The prune takes it for one deletion at a time and never waits for it: a run that starts meanwhile waits for one
deletion at most, and a run under way stops the prune.
"""

import fcntl
import os
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from proxy.errors import RunLockError

NOT_FOUND = 127  # as shells say it
NOT_EXECUTABLE = 126
_LOCKS = Path("/proc/locks")
_MAX_LOCKS_BYTES = 4 * 1024 * 1024
_MAX_COMMAND_BYTES = 4096
_SHOWN_COMMAND_LENGTH = 80
_OPEN_TRIES = 10


@dataclass(frozen=True)
class Holder:
    """A process that holds the run lock."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})" if self.command else f"pid {self.pid}"


class RunLock:
    """The lock on one file; opened anew for each use, because the file may be replaced in between."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Try to take the lock, without waiting; the block runs either way and is told whether it has it."""
        handle = self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def share(self) -> int:
        """Take the lock shared; waits while something is being deleted.

        Returns:
            the file descriptor that holds it, which a program started by exec keeps.
        """
        handle = self._take(fcntl.LOCK_SH | fcntl.LOCK_NB)
        while handle is None:
            holders = ", ".join(map(str, self.holders())) or "another process"
            sys.stderr.write(f"registry-cache guard: waiting for {holders}\n")
            handle = self._take(fcntl.LOCK_SH)
        os.set_inheritable(handle, True)
        return handle

    def holders(self) -> list[Holder]:
        """Who holds the lock now, as far as this process may see."""
        pids = {int(words[4]) for words in self._entries() if "->" not in words}
        return [Holder(pid, _command(pid)) for pid in sorted(pids - {0})]

    def awaited(self) -> bool:
        """Whether somebody waits for the lock that this process holds."""
        return any("->" in words for words in self._entries())

    def _entries(self) -> list[list[str]]:
        """The kernel's lines about this file.

        Such as ``1: FLOCK  ADVISORY  READ 4242 fd:00:1234 0 EOF``, and ``1: -> FLOCK  …`` for who waits (proc(5)).
        """
        try:
            status = self._path.stat()
            with _LOCKS.open("rb") as file:
                lines = file.read(_MAX_LOCKS_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return []
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        return [words for line in lines if "FLOCK" in (words := line.split()) and place in words]

    def _take(self, operation: int) -> int | None:
        for _ in range(_OPEN_TRIES):
            handle = self._open()
            try:
                if not _flock(handle, operation):
                    os.close(handle)
                    return None
                if self._is_current(handle):
                    return handle
            except BaseException:
                with suppress(OSError):
                    os.close(handle)
                raise
            os.close(handle)  # the file was replaced while we waited: lock the new one
        raise RunLockError(f"the run lock {str(self._path)!r} is replaced again and again")

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(handle))
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            try:
                # First without O_CREAT: in a sticky directory such as /run/lock the kernel (fs.protected_regular)
                # refuses O_CREAT on a file of another user, even to root.
                handle = os.open(self._path, flags)
            except FileNotFoundError:
                handle = self._create(flags)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise RunLockError(f"the run lock {str(self._path)!r} is not a regular file")
        except OSError as error:
            raise RunLockError(f"the run lock {str(self._path)!r}: {error.strerror or error}") from error
        return handle

    def _create(self, flags: int) -> int:
        try:
            handle = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(self._path, flags)
        # Every user's runs share it, whatever the umask of the first.
        os.fchmod(handle, 0o666)
        return handle


def _flock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        return False
    return True


def _command(pid: int) -> str:
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            words = file.read(_MAX_COMMAND_BYTES).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    text = "".join(
        character if character.isprintable() else "?" for character in b" ".join(words).decode(errors="replace")
    )
    return text if len(text) <= _SHOWN_COMMAND_LENGTH else text[: _SHOWN_COMMAND_LENGTH - 1] + "…"


def run_guarded(lock: RunLock, command: Sequence[str]) -> NoReturn:
    """Become *command*, holding the lock shared.

    exec and not a child: signals, the exit code, the terminal and job control are the command's own, and there is no
    second process that could die and let go of the lock.

    Raises:
        RunLockError: the lock cannot be taken; the command is not run.
        SystemExit: 127 or 126: there is no such command, or it cannot be executed.
    """
    lock.share()
    # Python ignores these, and a program started by exec would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 -- to run a command is what it is for
    except (FileNotFoundError, NotADirectoryError):
        code, reason = NOT_FOUND, "command not found"
    except (OSError, ValueError) as error:
        code, reason = NOT_EXECUTABLE, getattr(error, "strerror", None) or str(error)
    sys.stderr.write(f"registry-cache guard: {command[0]}: {reason}\n")
    raise SystemExit(code)
