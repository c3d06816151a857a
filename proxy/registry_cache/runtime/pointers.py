"""Which caches run on this machine: each leaves a note, so that commands find it without being told its directory.

The note is a small file in the runtime directory of root (``/run/registry-cache``) or of the user, named for the
process and holding its cache directory. It goes with the process; one that was left by a crash names nobody alive.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_SUFFIX = ".cache-dir"
_MAX_BYTES = 4096
_MOST = 100


def runtime_directory(environ: Mapping[str, str]) -> Path | None:
    """Root's, or the user's where there is one (systemd, ``pam_systemd``); closed to others' writing."""
    if os.geteuid() == 0:
        return Path("/run/registry-cache")
    if directory := environ.get("XDG_RUNTIME_DIR"):
        return Path(directory) / "registry-cache"
    return None


@contextlib.contextmanager
def announced(directory: Path | None, cache_dir: Path) -> Iterator[None]:
    """Leave the note while the block runs; a directory that cannot be written is no trouble."""
    note = directory / f"{os.getpid()}{_SUFFIX}" if directory is not None else None
    try:
        if note is not None:
            with contextlib.suppress(OSError):
                note.parent.mkdir(mode=0o755, exist_ok=True)
                _tidy(note.parent)
                note.write_bytes(os.fsencode(cache_dir.absolute()))
        yield
    finally:
        if note is not None:
            with contextlib.suppress(OSError):
                note.unlink()


def _tidy(directory: Path) -> None:
    """Take away what crashes have left."""
    for note in directory.glob(f"*{_SUFFIX}"):
        if not _lives(note):
            note.unlink(missing_ok=True)


def _lives(note: Path) -> bool:
    pid = note.name.removesuffix(_SUFFIX)
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def running_caches(directory: Path | None) -> list[Path]:
    """The cache directories of those that live, in order."""
    found: set[Path] = set()
    notes = sorted(directory.glob(f"*{_SUFFIX}"))[:_MOST] if directory is not None else []
    for note in notes:
        with contextlib.suppress(OSError):
            if _lives(note):
                with note.open("rb") as file:
                    found.add(Path(os.fsdecode(file.read(_MAX_BYTES))))
    return sorted(found)
