"""Debian's newest suite in a chroot, and rooms of namespaces from which nothing can stay behind."""

import subprocess
from pathlib import Path

from tests.packaging.debian import kept, key, mirror, run

SUITE = "sid"
PACKAGES = (
    *("docker.io", "docker-cli", "containerd", "runc", "python3-grpcio"),
    *("podman", "crun", "skopeo", "buildah", "crane", "oras", "cosign", "ca-certificates"),
)
_ROOM = Path("/mnt")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# The clients know no other Docker Hub than this machine, where nothing listens at port 443.
_HOSTS = "127.0.0.1 localhost docker.io index.docker.io registry-1.docker.io auth.docker.io\n"
_APT = (
    'APT::Install-Recommends "false";\n'
    # A mirror may lag behind; these packages are for a test that has no network.
    'Acquire::Check-Valid-Until "false";\n'
)


def debian_of_clients() -> Path:
    """The root of a Debian with every client in it; it must not be changed. The first call takes two minutes.

    The newest versions as of that call: remove the folder, and the next call makes it anew.
    """

    def make(directory: Path) -> None:
        run("debootstrap", "--variant=minbase", SUITE, str(directory), mirror())
        (directory / "etc/apt/apt.conf.d/90clients").write_text(_APT)
        policy = directory / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")  # no daemon is started by its package
        policy.chmod(0o755)
        within = ("chroot", str(directory), "env", "DEBIAN_FRONTEND=noninteractive")
        run(*within, "apt-get", "update", "-qq")
        run(*within, "apt-get", "install", "-qq", "--yes", *PACKAGES)
        run(*within, "apt-get", "clean")

    return kept("-".join(("clients", SUITE, key(PACKAGES))), make)


def room(*command: str | Path) -> list[str | Path]:
    """*command* as the first process of a room: namespaces with no network but a loopback of their own.

    All mounts and processes of the room end with its first process, however that ends; and that ends with us.
    """
    death = ("setpriv", "--pdeathsig", "KILL")
    namespaces = ("unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
    return [*death, *namespaces, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


class Chroot:
    """*lower*, with what is changed in it below *directory*, which has the same name there as here.

    Only in the room: what is mounted here goes with it. The root is not below *directory*, so that who removes that
    cannot come upon anything but its own.

    Attributes:
        within: the words that start a program in it.
    """

    def __init__(self, lower: Path, directory: Path) -> None:
        _mount("-t", "tmpfs", "tmpfs", _ROOM)
        root = _ROOM / "root"
        for path in (root, directory / "upper", directory / "work"):
            path.mkdir()
        layers = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work"
        _mount("-t", "overlay", "overlay", "-o", layers, root)
        _mount("-t", "proc", "proc", root / "proc")
        _mount("-t", "sysfs", "sysfs", root / "sys")
        _mount("--rbind", "/sys/fs/cgroup", root / "sys/fs/cgroup")
        for name in ("dev", "run", "tmp"):
            _mount("-t", "tmpfs", "tmpfs", root / name)
        self._make_devices(root / "dev")
        (root / f".{directory}").mkdir()
        _mount("--bind", directory, root / f".{directory}")
        (root / "etc/hosts").write_text(_HOSTS)
        (root / "etc/resolv.conf").write_text("")
        self.within = ("chroot", str(root))

    def _make_devices(self, dev: Path) -> None:
        for name in _DEVICES:
            (dev / name).touch()
            _mount("--bind", f"/dev/{name}", dev / name)
        (dev / "fd").symlink_to("/proc/self/fd")
        (dev / "shm").mkdir()

    def versions(self) -> dict[str, str]:
        """By package, as Debian has them."""
        command = [*self.within, "dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", *PACKAGES]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return dict(line.split() for line in lines)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)
