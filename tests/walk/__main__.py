"""``python -m tests.walk``: as root, a few minutes; writes the table of ``docs/quickstart.md``.

Docker Hub is a look-alike, and pip's packages are on the disk already: nobody's line is measured. What apt installs
comes from where this machine has it from. ``--deb FILE`` walks from that package too (``make dist``).
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.e2e.command import until
from tests.hub.client import HubClient, running_hub
from tests.packaging.debian import ROOT, debian, wheels
from tests.packaging.machine import Machine, booted

BARE = ("systemd", "systemd-sysv", "ca-certificates")
PAGE = ROOT / "docs" / "quickstart.md"
BEGIN, END = "<!-- written by python -m tests.walk: begin -->", "<!-- written by python -m tests.walk: end -->"
ADDRESS = "http://127.0.0.1:5000"
LAYERS = [3_000_000, 500_000]
# A daemon in these namespaces shares the network with others: it leaves that alone.
DAEMON = {"bridge": "none", "iptables": False, "ip6tables": False, "storage-driver": "vfs"}
MIRROR = {"registry-mirrors": [ADDRESS]}


class Step(NamedTuple):
    """What was typed, and how long it took in seconds."""

    typed: str
    seconds: float


class Walk:
    """One walk: it goes on only while everything is well."""

    def __init__(self, machine: Machine, hub: HubClient) -> None:
        self.machine = machine
        self.hub = hub
        self.folder = "/root"
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, typed: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.steps.append(Step(typed, time.monotonic() - began))
        print(f"{self.steps[-1].seconds:6.1f} s  {typed}", flush=True)

    def type(self, typed: str, command: str = "", **env: str) -> str:
        """Type it; *command* where this machine has to be told more than a stranger's."""
        with self.step(typed):
            return self.machine.run("sh", "-c", f"cd {self.folder} && {command or typed}", timeout_seconds=600, **env)

    def point_docker_here(self) -> None:
        """The file that the program names, and a reload."""
        self.machine.write("/etc/docker/daemon.json", json.dumps(DAEMON | MIRROR))
        # A minimal Debian has no kill for the unit to use: the quickstart says so.
        self.type("systemctl reload docker", "systemctl reload docker || kill -HUP $(cat /run/docker.pid)")
        until(
            lambda: ADDRESS in self.machine.run("docker", "info", "--format", "{{.RegistryConfig.Mirrors}}"),
            "it is read",
        )

    def pull_twice(self, program: str) -> None:
        """The second pull is local; figures and doctor are green."""
        self.type("docker pull alpine")
        self.type("docker rmi alpine")
        self.hub.reset()
        self.type("docker pull alpine")
        counters = self.hub.counters()
        assert (counters["counted_pulls"], counters["blob_gets"]) == (0, 0), counters
        said = self.type(f"{program} stats")
        assert "hits" in said, said
        said = self.type(f"{program} doctor", f"{program} doctor 2>&1")
        assert "Nothing broken" in said, said


def apt(machine: Machine) -> None:
    """Where this machine's packages come from."""
    shutil.copytree("/etc/apt", machine.root / "etc/apt", dirs_exist_ok=True, symlinks=True)
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", machine.root / "etc" / name)
    shutil.copytree(
        "/usr/local/share/ca-certificates", machine.root / "usr/local/share/ca-certificates", dirs_exist_ok=True
    )
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", machine.root / "etc/ssl/certs/ca-certificates.crt")
    machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755)
    machine.write("/etc/docker/daemon.json", json.dumps(DAEMON))


def by_the_readme(walk: Walk, source: Path) -> None:
    """From the clone."""
    machine, hub = walk.machine, walk.hub
    shutil.copytree(wheels(), machine.root / "wheels")
    shutil.copytree(source, machine.root / "upstream.git")
    install = "apt-get install -y --no-install-recommends git make python3 python3-venv docker.io"
    walk.type("apt-get update", "apt-get update -qq")
    walk.type(install, f"DEBIAN_FRONTEND=noninteractive {install} >/dev/null")
    walk.type("git clone URL registry-cache", "git clone -q /upstream.git /root/registry-cache")
    walk.folder = "/root/registry-cache"
    told = {"REGISTRY_CACHE_UPSTREAM": hub.url, "REGISTRY_CACHE_CA_FILE": "/etc/ca.pem"}
    told |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
    with walk.step("make run (until it listens)"):
        machine.run("sh", "-c", "cd /root/registry-cache && (setsid make run >/tmp/run.log 2>&1 &)", **told)
        until(lambda: "Figures:" in (machine.root / "tmp/run.log").read_text(), "it listens", seconds=300)
    walk.point_docker_here()
    walk.pull_twice(".venv/bin/registry-cache")


def by_the_package(walk: Walk, package: Path) -> None:
    """From the ``.deb``."""
    machine, hub = walk.machine, walk.hub
    shutil.copy(package, machine.root / "tmp" / package.name)
    # The look-alike stands in for Docker Hub before the service starts for the first time.
    machine.write("/etc/registry-cache.toml", f'upstream = "{hub.url}"\nca_file = "/etc/ca.pem"\n')
    walk.type("apt-get update", "apt-get update -qq")
    install = f"apt-get install -y --no-install-recommends ./{package.name} docker.io"
    options = "DEBIAN_FRONTEND=noninteractive DPKG_FORCE=confold"
    walk.type(install, f"cd /tmp && {options} {install} >/dev/null")
    until(lambda: machine.try_run("registry-cache", "stats").returncode == 0, "it runs")
    walk.point_docker_here()
    walk.pull_twice("registry-cache")


def walked(name: str, go: Callable[[Walk], None]) -> list[Step]:
    """One walk on a machine of its own."""
    print(f"--- {name}")
    with tempfile.TemporaryDirectory() as folder, running_hub() as hub:
        hub.image("library/alpine", "latest", make="runnable", layers=LAYERS)
        with booted(Path(folder) / "machine", debian(BARE)) as machine:
            apt(machine)
            machine.write("/etc/ca.pem", hub.ca_file.read_text())
            walk = Walk(machine, hub)
            go(walk)
            return walk.steps


def table(walks: dict[str, list[Step]]) -> str:
    """The walks as Markdown."""
    lines = []
    for name, steps in walks.items():
        lines += [f"| {name} | seconds |", "|---|---:|"]
        lines += [f"| `{step.typed}` | {step.seconds:.1f} |" for step in steps]
        lines += [f"| together | {sum(step.seconds for step in steps):.0f} |", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.walk", description=__doc__)
    parser.add_argument("--deb", type=Path, help="the package that make dist has built")
    parser.add_argument("--report", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone.git"
        subprocess.run(["git", "clone", "-q", "--bare", ROOT, clone], check=True)
        walks = {"from the README": walked("from the README", lambda walk: by_the_readme(walk, clone))}
    if asked.deb:
        walks["from the package"] = walked("from the package", lambda walk: by_the_package(walk, asked.deb))
    print(table(walks))
    if asked.report:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(walks)}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
