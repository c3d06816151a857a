"""A Debian with a systemd of its own, in namespaces: no virtual machine, no container runtime.

It shares the network with the tests, so that it reaches the look-alike on loopback; everything else is its own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.command import until
from tests.packaging.debian import debian, source, wheels

BOOT_SECONDS = 60
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_ENTER = """
echo $$ >"$1/cgroup.procs"
shift
exec unshare --mount --pid --cgroup --uts --ipc --fork --kill-child "$@"
"""
# Run as PID 1 of new namespaces. $1: where the root is put together, $2: what is below it, $3: what is changed.
_BOOT = """
set -eu
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$1"
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for device in null zero full random urandom tty; do
  touch "$1/dev/$device"
  mount --bind "/dev/$device" "$1/dev/$device"
done
ln -s /proc/self/fd "$1/dev/fd"
mkdir "$1/dev/shm" "$1/dev/pts"
mount -t tmpfs tmpfs "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
mkdir -p "$1/.old"
cd "$1"
pivot_root . .old
umount -l /.old
rmdir /.old
# systemd's credentials are mounted in a namespace of their own, and reach the service only where mounts propagate.
mount --make-rshared /
exec env -i container=test /lib/systemd/systemd --system --show-status=no --log-target=journal
"""


class Machine:
    """A running systemd.

    Attributes:
        root: its file system as seen from here; only while it runs.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def try_run(self, *command: str, timeout_seconds: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """Run *command* in it, as root."""
        return subprocess.run(
            ["nsenter", f"--target={self._pid}", "--all", "--wd=/", "env", "-i", f"PATH={_PATH}", "HOME=/root"]
            + [f"{name}={value}" for name, value in env.items()]
            + list(command),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )

    def run(self, *command: str, timeout_seconds: float = 120, **env: str) -> str:
        """As :meth:`try_run`; fails with what was printed."""
        done = self.try_run(*command, timeout_seconds=timeout_seconds, **env)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def make(self, *arguments: str) -> str:
        """``make`` in the source, with nothing but the wheels to install from."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        return self.run("make", "-C", "/src", *arguments, timeout_seconds=280, **offline)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def systemctl(self, *arguments: str) -> str:
        done = self.try_run("systemctl", "--no-pager", *arguments)
        if done.returncode != 0:
            log = self.try_run("journalctl", "--no-pager", "--lines=40", "--output=short-monotonic").stdout
            raise AssertionError(f"systemctl {' '.join(arguments)}: {done.stderr}\n{log}")
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of *unit*."""
        return self.systemctl("show", unit, f"--property={name}", "--value").strip()

    def journal(self, unit: str) -> list[str]:
        """What *unit* has printed, and what systemd has said about it."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--quiet", "--output=cat", f"--unit={unit}").splitlines()

    def set_unit(self, unit: str, text: str) -> None:
        """A drop-in of the test for *unit*; the empty text takes it away."""
        path = f"/etc/systemd/system/{unit}.d/test.conf"
        if text:
            self.write(path, text)
        else:
            shutil.rmtree((self.root / path.lstrip("/")).parent, ignore_errors=True)
        self.systemctl("daemon-reload")


@contextlib.contextmanager
def booted(directory: Path, lower: Path | None = None) -> Iterator[Machine]:
    """A machine on the bare Debian, with the source in /src and the wheels in /wheels; changes are in *directory*.

    On another root, *lower*, it is bare: without source and wheels.

    A second machine in the same *directory* is the first one after a reboot.
    """
    changes = directory / "upper"
    if not changes.exists():
        (directory / "work").mkdir(parents=True)
        changes.mkdir()
        if lower is None:
            source(changes / "src")
            shutil.copytree(wheels(), changes / "wheels")
        changes.chmod(0o755)
    merged = directory / "merged"
    merged.mkdir(exist_ok=True)
    group = _cgroups() / f"registry-cache-test-{os.getpid()}"
    group.mkdir()
    log = (directory / "boot.log").open("ab")
    with log:
        # The group is entered before its namespace is made: what systemd sees as the root of all groups is this one.
        process = subprocess.Popen(
            ["sh", "-c", _ENTER, "sh", group, "sh", "-c", _BOOT, "sh", merged, lower or debian(), directory],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield _running(process, directory / "boot.log")
    finally:
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGKILL)  # PID 1 takes everything with it
        process.wait(BOOT_SECONDS)
        _remove_group(group)


def _running(process: subprocess.Popen[bytes], log: Path) -> Machine:
    def system_state() -> Machine | None:
        assert process.poll() is None, f"no machine: {log.read_text()}"
        for pid in _children(process.pid):
            if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                machine = Machine(pid)
                state = machine.try_run("systemctl", "is-system-running").stdout.strip()
                return machine if state in ("running", "degraded") else None
        return None

    machine = until(system_state, f"systemd is up: {log.read_text()}", seconds=BOOT_SECONDS)
    assert machine is not None
    return machine


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _cgroups() -> Path:
    """Where the second version of control groups is mounted here."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise OSError("no cgroup2 is mounted here")


def _remove_group(group: Path) -> None:
    def removed() -> bool:
        for directory in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
            if directory.is_dir():
                with contextlib.suppress(OSError):
                    directory.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    until(removed, "the machine's control groups are empty")
