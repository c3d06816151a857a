"""A private containerd, and ``ctr`` that pulls through hosts.toml."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.dockerd import require_daemons

READY_SECONDS = 60
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


# containerd 2, as a kubelet uses it.
_CRI_CONFIG = """\
version = 3
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{root}/sock"
[ttrpc]
  address = "{root}/sock.ttrpc"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{root}/hosts"
"""


@dataclass
class Containerd:
    """Everything it has is below *directory*.

    Attributes:
        within: the words that start a program where the daemon's are, such as ``chroot``'s.
    """

    directory: Path
    process: subprocess.Popen[bytes]
    within: Sequence[str] = ()

    @property
    def socket(self) -> Path:
        return self.directory / "sock"

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def ctr(self, *arguments: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.within, "ctr", "--address", str(self.socket), "--namespace", "tests", *arguments],
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

    def hosts_dir(self, registry: str, address: str, *, path: str = "") -> Path:
        """A folder for ``--hosts-dir`` that sends *registry* to *address*, and nobody anywhere else.

        Args:
            path: what stands between *address* and a name, instead of ``/v2``.
        """
        folder = self.directory / "hosts" / registry
        folder.mkdir(parents=True, exist_ok=True)
        # `server` is where containerd goes when the hosts fail: never to the real registry.
        (folder / "hosts.toml").write_text(
            f'server = "{address}"\n[host."{address}{path}"]\n  capabilities = ["pull", "resolve"]\n'
            + ("  override_path = true\n" if path else "")
        )
        return folder.parent

    def remove(self, *images: str) -> None:
        """Images and, with nothing left that holds them, their content and snapshots."""
        self.run("images", "rm", "--sync", *images)


@contextlib.contextmanager
def running_containerd(*, within: Sequence[str] = (), cri: bool = False) -> Iterator[Containerd]:
    """A daemon of its own, stopped by its pid and cleaned up after.

    Args:
        within: see ``Containerd``; temporary files have the same names there as here.
        cri: with the plugin that the kubelet speaks to; needs containerd 2.
    """
    require_daemons(*(() if within else ("containerd", "ctr", "runc")))
    directory = Path(tempfile.mkdtemp(prefix="containerd-"))
    config = directory / "config.toml"
    config.write_text((_CRI_CONFIG if cri else _CONFIG).format(root=directory))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*within, "containerd", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    daemon = Containerd(directory, process, within)
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
