"""Which caches run on this machine: each leaves a note, so that commands find it without being told its directory.

The note is a small file in the runtime directory of root (``/run/registry-cache``) or of the user, named for the
process and holding its cache directory. It goes with the process; one that was left by a crash names nobody alive.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

_SUFFIX = ".cache-dir"
_MAX_BYTES = 4096
_MOST = 100
_ROOTS = Path("/run/registry-cache")


def runtime_directory(environ: Mapping[str, str]) -> Path | None:
    """Where this user's notes are: root's, or the user's own (systemd, ``pam_systemd``), else one in ``/tmp``.

    None for a unit or a container, whose cache is where CACHE_DIRECTORY says.
    """
    if os.geteuid() == 0:
        return _ROOTS
    if directory := environ.get("XDG_RUNTIME_DIR"):
        return Path(directory) / "registry-cache"
    of_systemd, in_tmp = _of_user(os.geteuid())
    if _is_closed(of_systemd.parent, os.geteuid()):
        return of_systemd
    return None if "CACHE_DIRECTORY" in environ else in_tmp


def places(environ: Mapping[str, str]) -> list[tuple[Path, int]]:
    """The directories with notes that this user goes by, and whose they have to be.

    Root by way of sudo also goes by those of who called it, and by no other user's: ``doctor`` opens as root what the
    service that a note leads to says of itself.
    """
    own = runtime_directory(environ)
    found = [(own, os.geteuid())] if own is not None else []
    caller = environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal() and int(caller) > 0:
        found += [(directory, int(caller)) for directory in _of_user(int(caller))]
    return found


def _of_user(uid: int) -> tuple[Path, Path]:
    return Path(f"/run/user/{uid}/registry-cache"), Path(f"/tmp/registry-cache-{uid}")  # noqa: S108 -- see _is_closed


def _is_closed(directory: Path, owner: int) -> bool:
    """Whether it is *owner*'s own, and nobody else can put something into it."""
    try:
        about = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == owner and not about.st_mode & 0o022


@contextlib.contextmanager
def announced(directory: Path | None, cache_dir: Path) -> Iterator[None]:
    """Leave the note while the block runs; a directory that cannot be written is no trouble."""
    if directory is None:
        yield
        return
    note = directory / f"{os.getpid()}{_SUFFIX}"
    is_ours = False
    try:
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
            is_ours = _is_closed(directory, os.geteuid())
            if is_ours:
                _tidy(directory)
                note.write_bytes(os.fsencode(cache_dir.absolute()))
        yield
    finally:
        if is_ours:
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


def running_caches(directory: Path, owner: int) -> list[Path]:
    """The cache directories of those that live, in order; none where *directory* is not closed to all but *owner*."""
    found: set[Path] = set()
    notes = sorted(directory.glob(f"*{_SUFFIX}"))[:_MOST] if _is_closed(directory, owner) else []
    for note in notes:
        with contextlib.suppress(OSError, ValueError):
            if _lives(note):
                # No link is followed, and no pipe waited for: root reads what is another user's here.
                with open(note, "rb", opener=_plainly) as file:
                    found.add(Path(os.fsdecode(file.read(_MAX_BYTES))))
    return sorted(found)


def _plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
