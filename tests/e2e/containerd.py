"""A private containerd, and ``ctr`` that pulls through hosts.toml."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.dockerd import require_daemons

READY_SECONDS = 30
STOP_SECONDS = 30

_CONFIG = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{root}/sock"
[ttrpc]
  address = "{root}/sock.ttrpc"
"""


@dataclass
class Containerd:
    """Everything it has is below *directory*."""

    directory: Path
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def ctr(self, *arguments: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ctr", "--address", str(self.directory / "sock"), "--namespace", "tests", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )

    def run(self, *arguments: str) -> str:
        """``ctr``; fails with what it printed."""
        done = self.ctr(*arguments)
        assert done.returncode == 0, f"ctr {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def hosts_dir(self, registry: str, address: str) -> Path:
        """A folder for ``--hosts-dir`` that sends *registry* to *address*, and nobody anywhere else."""
        folder = self.directory / "hosts" / registry
        folder.mkdir(parents=True, exist_ok=True)
        # `server` is where containerd goes when the hosts fail: never to the real registry.
        (folder / "hosts.toml").write_text(
            f'server = "{address}"\n[host."{address}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        return folder.parent

    def remove(self, *images: str) -> None:
        """Images and, with nothing left that holds them, their content and snapshots."""
        self.run("images", "rm", "--sync", *images)


@contextlib.contextmanager
def running_containerd() -> Iterator[Containerd]:
    """A daemon of its own, stopped by its pid and cleaned up after."""
    require_daemons("containerd", "ctr", "runc")
    directory = Path(tempfile.mkdtemp(prefix="containerd-"))
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(root=directory))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["containerd", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    daemon = Containerd(directory, process)
    try:
        _wait_for_daemon(daemon)
        yield daemon
    finally:
        _stop_daemon(daemon)


def _wait_for_daemon(daemon: Containerd) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while daemon.ctr("version").returncode != 0:
        assert daemon.process.poll() is None, f"containerd ended: {daemon.log()[-2000:]}"
        assert time.monotonic() < deadline, f"containerd is not ready: {daemon.log()[-2000:]}"
        time.sleep(0.05)


def _stop_daemon(daemon: Containerd) -> None:
    _end_tasks(daemon)
    daemon.process.terminate()
    try:
        daemon.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.process.kill()
        daemon.process.wait(STOP_SECONDS)
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{daemon.directory}/")]):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    shutil.rmtree(daemon.directory, ignore_errors=True)


def _end_tasks(daemon: Containerd) -> None:
    """Tasks first: their shims outlive a daemon."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        for line in daemon.ctr("tasks", "ls").stdout.splitlines()[1:]:
            pid = int(line.split()[1])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            daemon.ctr("tasks", "rm", "--force", line.split()[0])
