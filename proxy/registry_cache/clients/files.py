"""Files of others, changed without losing anything: the old one stays beside the new one."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

from registry_cache.clients.texts import ClientFile, Unmergeable

Status = Literal["written", "unchanged", "refused"]


class Written(NamedTuple):
    """What came of one file.

    Attributes:
        backup: what was there before; empty where nothing was, or nothing changed.
        reason: why it was refused.
    """

    path: str
    status: Status
    backup: str = ""
    reason: str = ""


def current(path: Path) -> str | None:
    """The text of a file; None where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def write(file: ClientFile, root: Path) -> Written:
    """Put *file* below *root*, whole or not at all; what was there is kept beside it.

    Raises:
        OSError: it cannot be written.
    """
    path = root / file.path.relative_to("/")
    try:
        now = current(path)
        text = file.make(now)
    except (Unmergeable, UnicodeDecodeError) as error:
        return Written(str(path), "refused", reason=str(error))
    if now == text:
        return Written(str(path), "unchanged")
    path.parent.mkdir(parents=True, exist_ok=True)
    backup = ""
    if now is not None:
        backup = f"{path}.{time.strftime('%Y%m%dT%H%M%S')}.bak"
        shutil.copy2(path, backup)  # with its mode
    _replace(path, text, secret=file.secret)
    return Written(str(path), "written", backup)


def _replace(path: Path, text: str, *, secret: bool) -> None:
    """At once: who reads it meanwhile gets the old or the new one. Its owner stays, and its mode, unless *secret*."""
    mode, owner = 0o600 if secret else 0o644, None
    if path.exists():
        stat = path.stat()
        mode, owner = stat.st_mode & (0o700 if secret else 0o777), (stat.st_uid, stat.st_gid)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).chmod(mode)
        if owner is not None and os.geteuid() == 0:
            os.chown(temporary, *owner)
        Path(temporary).replace(path.resolve())  # a symlink stays one
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
