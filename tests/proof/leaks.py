"""Where a secret has got to: process lists all the while, files in the end."""

import base64
import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

_OFTEN_SECONDS = 0.1


def forms_of(username: str, secret: str) -> list[bytes]:
    """What to look for: the secret, and what a Basic ``Authorization`` and a form (an identity token's) make of it."""
    forms = [secret.encode(), base64.b64encode(f"{username}:{secret}".encode()), quote_plus(secret).encode()]
    return list(dict.fromkeys(forms))


@contextlib.contextmanager
def watched_processes(forms: list[bytes]) -> Iterator[set[str]]:
    """Look at every process's arguments and environment, ten times a second, while the block runs.

    Yields:
        where it was seen.
    """
    found: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_OFTEN_SECONDS):
            found.update(_processes_with(forms))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def _processes_with(forms: list[bytes]) -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                content = (process / name).read_bytes()
                if any(form in content for form in forms):
                    yield f"{name} of {(process / 'comm').read_text().strip()}"


def files_with(forms: list[bytes], folders: Iterable[Path], *, but: Iterable[Path]) -> tuple[int, list[str]]:
    """Look into every file below *folders*, the folders in *but* left out.

    Returns:
        how many files were read, and those with the secret.
    """
    left_out = set(but)
    read, found = 0, []
    for folder in folders:
        for root, names, files in os.walk(folder):
            here = Path(root)
            names[:] = [name for name in names if here / name not in left_out]
            for path in (here / name for name in files):
                if path.is_symlink() or not path.is_file():
                    continue
                read += 1
                content = path.read_bytes()
                found += [str(path) for form in forms if form in content]
    return read, found
