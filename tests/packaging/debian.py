"""A bare Debian 12 and the program's wheels, each made once and kept in the user's cache directory."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SUITE = "bookworm"
PYTHON_VERSION = "3.11"  # of that suite
# What make install needs there; systemd is what runs it.
PACKAGES = ("systemd", "systemd-sysv", "python3", "python3-venv", "make", "ca-certificates")
ROOT = Path(__file__).parents[2]


def debian(packages: tuple[str, ...] = PACKAGES) -> Path:
    """The root of a Debian that nothing was ever started in; it must not be changed. The first call takes a minute."""

    def make(directory: Path) -> None:
        include = f"--include={','.join(packages)}"
        run("debootstrap", "--variant=minbase", include, SUITE, str(directory), mirror())

    return kept("-".join(("debian", SUITE, key(packages))), make)


def wheels() -> Path:
    """Every wheel that make install asks for, so that it can be run again and again without a network."""
    locks = [ROOT / "requirements.lock", ROOT / "requirements-build.lock"]

    def make(directory: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest"]
        pip += [str(directory), "--only-binary=:all:", f"--python-version={PYTHON_VERSION}"]
        for lock in locks:
            run(*pip, "--no-deps", "--require-hashes", "--requirement", str(lock))

    return kept(f"wheels-{key([lock.read_text() for lock in locks])}", make)


def source(directory: Path) -> Path:
    """The source as a checkout has it, in *directory*."""
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, directory / name)
    return directory


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The directory *name* in the cache, made by *make* if it is not there; one process makes it, others wait."""
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "registry-cache-tests"
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = parent / name
        if not directory.exists():
            unfinished = parent / f"{name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o755)
            make(unfinished)
            unfinished.rename(directory)
        return directory


def key(words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:12]


def mirror() -> str:
    """Where this machine's apt gets Debian from."""
    listed = run("apt-get", "indextargets", "--format", "$(LABEL) $(SITE)", "Created-By: Packages")
    sites = [line.split()[-1] for line in listed.splitlines() if line.startswith("Debian ")]
    assert sites, "apt names no Debian archive: see /etc/apt/sources.list"
    return sites[0]


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
