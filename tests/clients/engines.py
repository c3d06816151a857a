"""dockerd with each of its image stores, and containerd by ctr and by CRI."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.clients.client import ADDRESS, CommandLine, Outcome, Step, done
from tests.e2e.command import until
from tests.e2e.containerd import Containerd, running_containerd
from tests.e2e.dockerd import Dockerd, running_dockerd

_CRI = Path(__file__).with_name("cri.py")


class Docker:
    package = "docker.io"
    platforms = True

    def __init__(self, name: str, daemon: Dockerd) -> None:
        self.name = name
        self.how = '`docker pull [--platform P] NAME`, `"registry-mirrors": ["http://CACHE"]`'
        self._daemon = daemon
        self._command = CommandLine((), daemon.environment())

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        chosen = ("--platform", platform) if platform else ()
        return self._command.run(*self._daemon.command("pull", "--quiet", *chosen, name))

    def forget(self) -> None:
        done(self._command.run(*self._daemon.command("image", "prune", "--all", "--force")))
        content = self._daemon.data_root / "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
        # Else it has the manifests yet, and asks for less than a host that has nothing.
        until(lambda: not (content.is_dir() and any(content.iterdir())), "dockerd has forgotten all content")

    def further(self, repository: str) -> dict[str, Step]:
        return {}


@contextlib.contextmanager
def docker(within: tuple[str, ...], name: str, *, containerd_store: bool) -> Iterator[Docker]:
    settings = {"registry-mirrors": [ADDRESS], "features": {"containerd-snapshotter": containerd_store}}
    with running_dockerd(within=within, **settings) as daemon:
        yield Docker(name, daemon)


class Ctr:
    name = "containerd, ctr"
    package = "containerd"
    how = "`ctr images pull --hosts-dir DIR [--platform P] docker.io/NAME`"
    platforms = True

    def __init__(self, daemon: Containerd) -> None:
        self._daemon = daemon
        self._hosts = daemon.hosts_dir("docker.io", ADDRESS)
        self._command = CommandLine((*daemon.within, "ctr", "--address", str(daemon.socket), "--namespace", "tests"))

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        chosen = ("--platform", platform) if platform else ()
        return self._command.run("images", "pull", "--hosts-dir", self._hosts, *chosen, f"docker.io/{name}")

    def forget(self) -> None:
        if images := done(self._command.run("images", "ls", "--quiet")).output.split():
            self._daemon.remove(*images)

    def further(self, repository: str) -> dict[str, Step]:
        name = f"docker.io/{repository}:1"
        everything = ("images", "pull", "--hosts-dir", str(self._hosts), "--all-platforms", name)
        return {"all platforms": lambda: self._command.run(*everything)}


class Cri:
    name = "containerd, CRI"
    package = "containerd"
    how = "`PullImage` of CRI v1, `config_path` with a hosts.toml"
    platforms = False

    def __init__(self, daemon: Containerd) -> None:
        daemon.hosts_dir("docker.io", ADDRESS)
        script = daemon.directory / "cri.py"  # where the chroot has it too
        script.write_text(_CRI.read_text())
        self._command = CommandLine((*daemon.within, "python3", str(script), str(daemon.socket)))

    def pull(self, name: str, platform: str | None = None) -> Outcome:
        return self._command.run("pull", f"docker.io/{name}")

    def forget(self) -> None:
        done(self._command.run("remove-all"))

    def further(self, repository: str) -> dict[str, Step]:
        return {}


@contextlib.contextmanager
def ctr(within: tuple[str, ...]) -> Iterator[Ctr]:
    with running_containerd(within=within, cri=True) as daemon:
        yield Ctr(daemon)


@contextlib.contextmanager
def cri(within: tuple[str, ...]) -> Iterator[Cri]:
    with running_containerd(within=within, cri=True) as daemon:
        yield Cri(daemon)
