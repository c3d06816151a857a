"""How the last run ended, and what has been in doubt since.

The database says while a run goes on which boot of the machine it is part of; a run that ends properly takes that back.
Doubt that arises meanwhile is a file beside the database, since the database may be what refuses to be written.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from registry_cache.store.index.files import open_file, sync_folder
from registry_cache.store.index.schema import get_meta, set_meta

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_REASON_CHARACTERS = 500


class Ending(NamedTuple):
    """Why rows and files may differ ("": they do not), and whether unsynced bytes may be zeros now."""

    doubt: str
    machine_crashed: bool


def last_ending(db: sqlite3.Connection, *, is_new: bool) -> Ending:
    """How the run before this one ended."""
    ended = get_meta(db, "ended")
    if is_new:
        return Ending("the index is new", machine_crashed=False)
    if ended and ended == boot_id():
        return Ending("the last run was killed", machine_crashed=False)
    if ended:
        return Ending("the machine went down during the last run", machine_crashed=True)
    return Ending("", machine_crashed=False)


def begin(db: sqlite3.Connection) -> None:
    """A run has begun: until :func:`end`, whatever comes next is told that this one did not end properly.

    The disk has it before anything else happens: after a power cut the log may lack rows of files that are there.
    """
    db.execute("PRAGMA synchronous = FULL")
    try:
        set_meta(db, "ended", boot_id() or "unknown boot")
    finally:
        db.execute("PRAGMA synchronous = NORMAL")


def end(db: sqlite3.Connection) -> None:
    """The run ends properly."""
    set_meta(db, "ended", "")


def boot_id() -> str:
    """Which boot of the machine this is; empty when that is hidden.

    A unit with ``ProcSubset=pid`` does not see the kernel's file; ours has ``Environment=BOOT_ID=%b`` for that.
    """
    try:
        text = _BOOT_ID.read_text()
    except OSError:
        text = os.environ.get("BOOT_ID", "")
    return text.strip().replace("-", "")


class DoubtFile:
    """Doubt that outlives the process, whatever the database does. All methods block.

    Args:
        path: of the file; it is there for as long as there is doubt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        """The reason; empty when there is no doubt."""
        try:
            return self._path.read_text(errors="replace")[:_REASON_CHARACTERS].strip() or "the reason is not known"
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self._path.name}: {error.strerror}"

    def write(self, reason: str) -> bool:
        """Write it down; whether the disk has it."""
        try:
            fd = open_file(self._path, os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(fd, reason[:_REASON_CHARACTERS].encode(errors="replace"))
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_folder(self._path.parent)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """There is no doubt any more."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            sync_folder(self._path.parent)
