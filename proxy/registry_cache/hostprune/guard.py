"""The run lock: shared by runs, exclusive for the prune.

It is a plain ``flock(2)``, so that ``flock -s FILE COMMAND`` is a run too. A run holds it shared for as long as it
lives. The prune takes it for one deletion at a time and never waits for it: a run that starts meanwhile waits for one
deletion at most, and a run under way stops the prune.

Whoever may open the file may lock it, and hold it for ever. So a run waits for a time only and says who holds it, and
the file can belong to a group.
"""

import fcntl
import grp
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from registry_cache.model.errors import RunLockError
from registry_cache.model.terminal import shown
from registry_cache.model.units import format_duration

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
    """The lock on one file; opened anew for each use, because the file may be replaced in between.

    Args:
        group: who may take it beside the file's owner; ``None`` is everybody.
    """

    def __init__(self, path: Path, group: str | None = None) -> None:
        self._path = path
        self._group = group

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Try to take the lock, without waiting; the block runs either way and is told whether it has it."""
        handle = self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def share(self, wait_seconds: float) -> int:
        """Take the lock shared; waits while something is being deleted.

        Args:
            wait_seconds: for so long at most; 0 is not at all.

        Returns:
            the file descriptor that holds it, which a program started by exec keeps.

        Raises:
            RunLockError: the lock cannot be taken, or somebody else has held it all the time.
        """
        handle = self._take(fcntl.LOCK_SH | fcntl.LOCK_NB)
        if handle is None and wait_seconds:
            limit = format_duration(wait_seconds)
            sys.stderr.write(f"registry-cache guard: waiting for {self._who()}, for {limit} at most (LOCK_WAIT)\n")
            handle = _Wait(lambda: self._take(fcntl.LOCK_SH)).within(wait_seconds)
        if handle is None:
            held = f"has been held for {format_duration(wait_seconds)}" if wait_seconds else "is held"
            raise RunLockError(f"the run lock {str(self._path)!r} {held} by {self._who()}")
        os.set_inheritable(handle, True)
        return handle

    def _who(self) -> str:
        return ", ".join(map(str, self.holders())) or "a process that cannot be seen from here"

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
            self._give_to_group(handle)
        except OSError as error:
            raise RunLockError(f"the run lock {str(self._path)!r}: {error.strerror or error}") from error
        return handle

    def _create(self, flags: int) -> int:
        try:
            handle = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(self._path, flags)
        # Every user's runs share it, whatever the umask of the first; or those of the group.
        os.fchmod(handle, 0o666 if self._group is None else 0o660)
        return handle

    def _give_to_group(self, handle: int) -> None:
        """Nobody outside the group may open it, and so hold it; made by somebody else it is taken over."""
        if self._group is None:
            return
        status = os.fstat(handle)
        try:
            wanted = grp.getgrnam(self._group).gr_gid
        except KeyError:
            os.close(handle)
            raise RunLockError(f"PRUNE__LOCK_GROUP: {self._group!r}: there is no such group") from None
        if status.st_gid == wanted and not status.st_mode & 0o007:
            return
        try:
            os.fchown(handle, os.geteuid() if os.geteuid() == 0 else -1, wanted)
            os.fchmod(handle, 0o660)
        except OSError as error:
            os.close(handle)
            path = str(self._path)
            remedy = f"chown root:{self._group} {path} && chmod 660 {path}"
            raise RunLockError(f"the run lock {path!r} is open to others than {self._group}: {remedy}") from error


class _Wait:
    """A blocking call that is given up after a time: flock(2) knows no timeout, and who polls is never seen waiting.

    The thread of a call that was given up stays until it returns, and what it returns then is closed.
    """

    def __init__(self, take: Callable[[], int | None]) -> None:
        self._take = take
        self._state = threading.Lock()
        self._given_up = False
        self._handle: int | None = None
        self._error: RunLockError | None = None

    def within(self, seconds: float) -> int | None:
        """What it returns, or ``None`` after *seconds*.

        Raises:
            RunLockError: as the call does.
        """
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(min(seconds, threading.TIMEOUT_MAX))
        with self._state:
            self._given_up = True
        if self._error is not None:
            raise self._error
        return self._handle

    def _run(self) -> None:
        try:
            handle = self._take()
        except RunLockError as error:
            self._error = error
            return
        with self._state:
            if not self._given_up:
                self._handle = handle
                return
        if handle is not None:
            os.close(handle)


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
    text = shown(b" ".join(words).decode(errors="replace"))
    return text if len(text) <= _SHOWN_COMMAND_LENGTH else text[: _SHOWN_COMMAND_LENGTH - 1] + "…"


def run_guarded(lock: RunLock, command: Sequence[str], wait_seconds: float) -> NoReturn:
    """Become *command*, holding the lock shared; waits for it for *wait_seconds* at most.

    exec and not a child: signals, the exit code, the terminal and job control are the command's own, and there is no
    second process that could die and let go of the lock.

    Raises:
        RunLockError: the lock cannot be taken; the command is not run.
        SystemExit: 127 or 126: there is no such command, or it cannot be executed.
    """
    lock.share(wait_seconds)
    # Python ignores these, and a program started by exec would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 -- to run a command is what it is for
    except (FileNotFoundError, NotADirectoryError):
        code, reason = NOT_FOUND, "command not found"
    except (OSError, ValueError) as error:
        code, reason = NOT_EXECUTABLE, getattr(error, "strerror", None) or str(error)
    sys.stderr.write(f"registry-cache guard: {shown(command[0])}: {reason}\n")
    raise SystemExit(code)
