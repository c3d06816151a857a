"""By what a file that was replaced or written anew is told from what it was."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Mark(NamedTuple):
    """A file as it was looked at."""

    inode: int
    size_bytes: int
    modified_ns: int


def marks(paths: Iterable[Path | None]) -> list[Mark | None]:
    """How files are now; links are followed, and one that cannot be looked at is not there. No path is none."""
    found: list[Mark | None] = []
    for path in filter(None, paths):
        mark = None
        with contextlib.suppress(OSError):
            status = path.stat()
            mark = Mark(status.st_ino, status.st_size, status.st_mtime_ns)
        found.append(mark)
    return found
